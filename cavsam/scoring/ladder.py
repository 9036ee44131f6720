"""The ladder of `auto`: what each rung gives on measured targets, and the first that is as good as all further ones.

The rungs are the kinds of candidates in the order in which they are tried. Standing on one means to choose, by score,
among all candidates up to it. Numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SAME_IOU = 0.01
"""Means of IoU nearer than that count as equal: nobody sees a hundredth, and frames cost a hundred times more."""


@dataclass(frozen=True)
class TriedMask:
    """One candidate's mask of one label whose IoU with the truth is known.

    Attributes:
        kind: of the candidate.
        score: estimated IoU, 0..1.
        iou: 0..1.
        seconds: that the candidate took.
    """

    kind: str
    score: float
    iou: float
    seconds: float


TriedTarget = Sequence[Sequence[TriedMask]]
"""Of each label of a target the candidates in the order in which they were tried; those not needed are missing."""


@dataclass(frozen=True)
class Rung:
    """What standing on a rung gives.

    Attributes:
        kind: of the last candidate that is tried.
        ious: of each target, the mean over its labels, float (N,).
        seconds: of each target, float (N,).
    """

    kind: str
    ious: Floats
    seconds: Floats


def rungs(targets: Sequence[TriedTarget]) -> list[Rung]:
    """Measure every rung; a target that did not need a kind of candidate keeps what it had on the rung before."""
    kinds: list[str] = []
    for target in targets:
        for tried in target:
            kinds += [one.kind for one in tried if one.kind not in kinds]
    found = []
    for number, kind in enumerate(kinds):
        reached = set(kinds[: number + 1])
        ious, seconds = [], []
        for target in targets:
            labels = [[one for one in tried if one.kind in reached] for tried in target]
            ious.append(np.mean([max(tried, key=lambda one: one.score).iou for tried in labels if tried] or [0.0]))
            seconds.append(max([sum(one.seconds for one in tried) for tried in labels], default=0.0))
        found.append(Rung(kind, np.array(ious, float), np.array(seconds, float)))
    return found


def first_enough(ladder: Sequence[Rung]) -> int:
    """Find the first rung that is as good as each further one.

    It is if the mean of the further one is higher by no more than the standard error of the difference, target by
    target, or by no more than `SAME_IOU`. The order of costs is that of the rungs.
    """
    for number, rung in enumerate(ladder):
        further = [other.ious - rung.ious for other in ladder[number + 1 :]]
        if all(gain.mean() <= max(SAME_IOU, standard_error(gain)) for gain in further):
            return number
    raise ValueError("A ladder has at least one rung.")


def standard_error(values: Floats) -> float:
    """Estimate by how much the mean of values (N,) is off; 0 for one value, which says nothing of it."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
