"""What the reviews of a project say: how good its predictions were, and what other settings would have given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.learning.lessons import measured_masks, tried_masks
from backend.learning.measure import Review
from cavsam.scoring.experience import LEAST, Experience
from cavsam.scoring.ladder import first_enough, rungs

RESAMPLES = 1000
WORST = 10
SURE = 0.02
"""Difference of a mean IoU below which two settings are called equal in words."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A mean with its 95% interval, tasks resampled."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | Floats) -> Figure:
        """The mean of values (N,), at least one."""
        given = np.asarray(values, float)
        drawn = np.random.default_rng(0).integers(0, len(given), (RESAMPLES, len(given)))
        low, high = np.percentile(given[drawn].mean(axis=1), [2.5, 97.5])
        return cls(*(round(float(number), 4) for number in (given.mean(), low, high)))


@dataclass(frozen=True)
class Way:
    """What one way to masks would have given.

    Attributes:
        name: kind of the candidate.
        iou: mean over the tasks.
        seconds: mean of a task.
        tasks: how many tasks it was measured on.
    """

    name: str
    iou: Figure
    seconds: float
    tasks: int


@dataclass(frozen=True)
class Evaluation:
    """What the reviews of a project say.

    Attributes:
        reviews: how many there are.
        verdicts: how many came to `unchanged`, `corrected` and `rejected`.
        labels: how many masks came to which verdict.
        iou: mean IoU of the predictions.
        unchanged: share of tasks accepted as they were.
        seconds: mean of a task.
        kinds: what each kind of candidate would have given alone, on the tasks that it was tried on.
        ladder: what `auto` would have given if it ended at each kind.
        gap: mean distance of a prediction's score from its IoU.
        points: (score of the prediction, IoU) of each task.
        worst: tasks with the lowest IoU, (task, IoU).
        advice: settings that are recommended, in sentences.
    """

    reviews: int
    verdicts: dict[str, int]
    labels: dict[str, int]
    iou: Figure
    unchanged: Figure
    seconds: float
    kinds: list[Way]
    ladder: list[Way]
    gap: float
    points: list[tuple[float, float]]
    worst: list[tuple[int, float]]
    advice: list[str]

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return asdict(self)

    @classmethod
    def of(cls, reviews: Sequence[Review], experience: Experience, *, mode: str) -> Evaluation:
        """Evaluate reviews.

        Args:
            reviews: at least one.
            experience: what scores the candidates among which `auto` chooses.
            mode: that of the recipe.
        """
        ious = [review.iou for review in reviews]
        masks = measured_masks(reviews)
        tried = tried_masks(reviews, masks, [experience.score(one.kind, one.own, one.cues) for one in masks])
        complete = [
            review for review in reviews if not review.last and any(label.candidates for label in review.labels)
        ]
        base = float(np.mean([review.seconds for review in complete])) if complete else 0.0
        found = rungs(tried) if mode == "auto" else []
        ladder = [Way(r.kind, Figure.of(r.ious), round(base + float(r.seconds.mean()), 3), len(r.ious)) for r in found]
        kinds = _kinds(reviews)
        points = [(round(r.score, 4), round(r.iou, 4)) for r in reviews if r.score is not None]
        verdicts = Counter(review.verdict for review in reviews)
        return cls(
            reviews=len(reviews),
            verdicts={name: verdicts[name] for name in ("unchanged", "corrected", "rejected")},
            labels=dict(Counter(str(label.verdict) for review in reviews for label in review.labels)),
            iou=Figure.of(ious),
            unchanged=Figure.of([float(review.verdict == "unchanged") for review in reviews]),
            seconds=round(float(np.mean([_whole(review) for review in reviews])), 3),
            kinds=kinds,
            ladder=ladder,
            gap=round(float(np.mean([abs(score - iou) for score, iou in points] or [0.0])), 4),
            points=points,
            worst=[(r.task, round(r.iou, 4)) for r in sorted(reviews, key=lambda r: (r.iou, r.task))[:WORST]],
            advice=_advice(reviews, kinds, mode, first_enough(found) if found else None, ladder),
        )


def _whole(review: Review) -> float:
    """Seconds of a task with all that was tried."""
    return review.seconds + max((sum(c.seconds for c in label.candidates) for label in review.labels), default=0.0)


def _kinds(reviews: Sequence[Review]) -> list[Way]:
    """Measure each kind of candidate alone."""
    names = dict.fromkeys(c.kind for review in reviews for label in review.labels for c in label.candidates)
    ways = []
    for name in names:
        ious, seconds = [], []
        for review in reviews:
            own = [c for label in review.labels for c in label.candidates if c.kind == name]
            if own:
                ious.append(sum(c.iou for c in own) / len(own))
                seconds.append(review.seconds + own[0].seconds)
        ways.append(Way(name, Figure.of(ious), round(float(np.mean(seconds)), 3), len(ious)))
    return ways


def _advice(
    reviews: Sequence[Review], kinds: Sequence[Way], mode: str, enough: int | None, ladder: Sequence[Way]
) -> list[str]:
    """Recommend settings in words."""
    if len(reviews) < LEAST:
        return [f"There are {len(reviews)} reviews; {LEAST} are needed to recommend anything."]
    advice = []
    if enough is not None and enough < len(ladder) - 1:
        there, top = ladder[enough], ladder[-1]
        advice.append(
            f"Mode auto need not go beyond {there.name} here: mean IoU {there.iou.value:.2f}, with all "
            f"{top.iou.value:.2f} in {_ratio(top.seconds, there.seconds)}. CAVSAM_LEARN=on stops there by itself."
        )
    elif enough is not None and len(ladder) > 1:
        advice.append("Mode auto is right as it is: every further candidate pays here.")
    if mode != "auto" and len(kinds) == 1:
        advice.append(
            f"Only {mode} was tried. CAVSAM_MODE=auto tries the cheaper ways as well, and stops where they suffice."
        )
    modes = [way for way in kinds if way.name in ("concat", "ttga", "dbst", "full") and way.name != mode]
    whole = [way for way in modes if way.tasks == len(reviews)]
    best = max(whole, key=lambda way: way.iou.value, default=None)
    mean = Figure.of([review.iou for review in reviews])
    seconds = float(np.mean([_whole(review) for review in reviews]))
    if best is not None and best.iou.value > mean.value - SURE and best.seconds < seconds:
        advice.append(
            f"CAVSAM_MODE={best.name} would have had mean IoU {best.iou.value:.2f} instead of {mean.value:.2f}, in "
            f"{best.seconds:.1f} s a task instead of {seconds:.1f} s."
        )
    if mean.value < 0.5:
        advice.append(
            "The masks are poor here. Try another reference, or several: CAVSAM_REFERENCE_POLICY=latest-k "
            "(docs/active-learning.md)."
        )
    return advice or ["The settings are right as they are."]


def _ratio(more: float, less: float) -> str:
    return f"{more / less:.1f} times the time" if less > 0 else "more time"


def summary(evaluation: dict[str, Any]) -> str:
    """Say what an evaluation (`to_json`) comes to, in one sentence or two."""
    count, verdicts = evaluation["reviews"], evaluation["verdicts"]
    said = (
        f"{count} reviewed: mean IoU {evaluation['iou']['value']:.2f}, "
        f"{100 * verdicts['unchanged'] / count:.0f}% accepted unchanged"
    )
    other = _other_way(evaluation)
    if other is None:
        return said + "."
    share = other["seconds"] / evaluation["seconds"]
    return f"{said}; {other['name']} alone would have had {other['iou']['value']:.2f} {_share(share)}."


def _other_way(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """The best kind of candidate alone that was tried on every task and took clearly less time."""
    ways = [
        way
        for way in evaluation["kinds"]
        if way["tasks"] == evaluation["reviews"] and 0 < way["seconds"] < 0.8 * evaluation["seconds"]
    ]
    return max(ways, key=lambda way: float(way["iou"]["value"]), default=None)


def _share(share: float) -> str:
    """A share of the time in words."""
    whole = round(1 / share)
    names: dict[int, str] = {1: "in the same time", 2: "in half the time", 3: "in a third of the time"}
    return names.get(whole, f"in 1/{whole} of the time")
