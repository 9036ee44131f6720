"""Experience: what measured targets of one project teach about scores and about which ways to a mask are worth trying.

A calibration is fitted once per pair of models, on pictures that are not the user's. Experience corrects it with masks
of the user's own targets whose truth became known. Free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST = 10
"""Measured targets from which on anything is learned."""
SHRINKAGES = (1.0, 4.0, 16.0)
"""Strengths with which a correction is held to the models' own score; cross-validation chooses. One measured target
weighs as much as a strength of 1."""
FOLDS = 10
STEPS = 30
_FARTHEST = 8.0
"""Bound of a score's logit: a score of 0 or 1 has none."""


@dataclass(frozen=True)
class Measured:
    """One mask of one candidate whose IoU with the truth is known.

    Attributes:
        target: number of the target; the masks of one target stand or fall together.
        kind: of the candidate.
        own: the models' own score, 0..1.
        cues: see `scoring.cues`.
        iou: with the truth, 0..1.
    """

    target: int
    kind: str
    own: float
    cues: Mapping[str, float]
    iou: float


@dataclass(frozen=True)
class Correction:
    """Turns the models' own score of a mask into an estimate of its IoU: a logistic function.

    Attributes:
        bias: its value in the middle.
        slope: weight of the own score's logit.
        weights: of cues, by name.
        usual: what stands for a cue that is missing.
    """

    bias: float
    slope: float
    weights: dict[str, float] = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)

    def __call__(self, own: float, cues: Mapping[str, float]) -> float:
        """Estimate an IoU, 0..1."""
        value = self.bias + self.slope * _logit(own)
        for name, weight in self.weights.items():
            value += weight * (cues.get(name, self.usual[name]) - self.usual[name])
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, value))))


@dataclass(frozen=True)
class Experience:
    """What measured targets taught; empty, everything stays as it is.

    Attributes:
        corrections: kind of candidate -> correction of its score; a kind without one keeps the models' own score.
        last: in the mode `auto`, kind of the last candidate worth trying; empty to try all.
        targets: how many measured targets it was learned from.
    """

    corrections: dict[str, Correction] = field(default_factory=dict)
    last: str = ""
    targets: int = 0

    def corrects(self, kind: str) -> bool:
        """Tell whether it knows better than the models' own score."""
        return kind in self.corrections

    def score(self, kind: str, own: float, cues: Mapping[str, float]) -> float:
        """Estimate the IoU of a mask, 0..1."""
        return self.corrections[kind](own, cues) if kind in self.corrections else own

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Experience:
        """The experience that `to_json` wrote."""
        corrections = {kind: Correction(**one) for kind, one in held["corrections"].items()}
        return cls(corrections, held["last"], held["targets"])


@dataclass(frozen=True)
class Learned:
    """A correction of scores and how it stands the test.

    Attributes:
        corrections: see `Experience`; empty if the models' own scores are as good.
        held_out: of each mask, 0..1, as estimated by a correction that did not see its target; the own score if there
            is no correction.
        error: mean squared error of `held_out`, each target counting once.
        own_error: the same of the models' own scores.
    """

    corrections: dict[str, Correction]
    held_out: list[float]
    error: float
    own_error: float


def learn(masks: Sequence[Measured]) -> Learned:
    """Learn a correction of scores, held to the models' own, and keep it only if it predicts left-out targets better.

    Args:
        masks: of at least `LEAST` targets; fewer teach nothing.
    """
    own = [one.own for one in masks]
    truth, weights = np.array([one.iou for one in masks]), _weights(masks)

    def error(scores: Sequence[float] | Floats) -> float:
        return float(weights @ (np.asarray(scores) - truth) ** 2 / weights.sum()) if masks else 0.0

    best = Learned({}, own, error(own), error(own))
    targets = sorted({one.target for one in masks})
    if len(targets) < LEAST:
        return best
    fold_of = {target: number % FOLDS for number, target in enumerate(targets)}
    folds = np.array([fold_of[one.target] for one in masks])
    for with_cues in (False, True):
        design = _Design.of(masks, with_cues)
        for shrinkage in SHRINKAGES:
            held_out = np.zeros(len(masks))
            for fold in range(FOLDS):
                change = design.nearest(truth, weights * (folds != fold), shrinkage)
                held_out[folds == fold] = design.estimates(change)[folds == fold]
            if error(held_out) < best.error:
                change = design.nearest(truth, weights, shrinkage)
                best = Learned(design.corrections(change), held_out.tolist(), error(held_out), error(own))
    return best


@dataclass(frozen=True)
class _Design:
    """Masks as columns of a logistic regression whose unknowns are changes of the models' own score.

    The columns of `table`, float (N, 2 + kinds + cues): a bias, the logit of the own score, a bias of each kind, and
    the cues in unit deviation, 0 if missing. All kinds share but their own bias, because what a cue means is much the
    same for all.
    """

    kinds: list[str]
    cues: list[str]
    usual: Floats
    scale: Floats
    logits: Floats
    table: Floats

    @classmethod
    def of(cls, masks: Sequence[Measured], with_cues: bool) -> _Design:
        kinds = sorted({one.kind for one in masks})
        cues = sorted({name for one in masks for name in one.cues}) if with_cues else []
        values = np.array([[one.cues.get(name, np.nan) for name in cues] for one in masks]).reshape(
            len(masks), len(cues)
        )
        usual, scale = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
        scale[~(scale > 1e-9)] = np.inf  # a cue that never changes tells nothing
        logits = np.array([_logit(one.own) for one in masks])
        members = np.array([[float(one.kind == kind) for kind in kinds] for one in masks])
        columns = [np.ones(len(masks)), logits, members, np.nan_to_num((values - usual) / scale)]
        return cls(kinds, cues, usual, scale, logits, np.column_stack(columns))

    def estimates(self, change: Floats) -> Floats:
        """Estimate the IoU of each mask, (N,), after a change (columns,)."""
        return np.asarray(1 / (1 + np.exp(-(self.logits + self.table @ change))))

    def corrections(self, change: Floats) -> dict[str, Correction]:
        """Write a change (columns,) as a correction for each kind."""
        of_kinds, of_cues = change[2 : 2 + len(self.kinds)], change[2 + len(self.kinds) :] / self.scale
        weights = {name: float(weight) for name, weight in zip(self.cues, of_cues, strict=True) if weight}
        usual = {name: float(self.usual[self.cues.index(name)]) for name in weights}
        return {
            kind: Correction(float(change[0] + own), float(1 + change[1]), weights, usual)
            for kind, own in zip(self.kinds, of_kinds, strict=True)
        }

    def nearest(self, truth: Floats, weights: Floats, shrinkage: float) -> Floats:
        """Find the change (columns,) that is nearest to the truth in cross entropy, and small, by Newton's method.

        Args:
            truth: IoU of each mask, (N,).
            weights: of each mask, (N,).
            shrinkage: half of it times the sum of the squares of the change is added to the cross entropy.
        """
        x: Floats = np.zeros(self.table.shape[1])
        penalty = np.full(self.table.shape[1], shrinkage)

        def loss(at: Floats) -> float:
            value = self.logits + self.table @ at
            return float(weights @ (np.logaddexp(0, value) - truth * value) + penalty @ at**2 / 2)

        for _ in range(STEPS):
            estimate = 1 / (1 + np.exp(-(self.logits + self.table @ x)))
            slope = self.table.T @ (weights * (estimate - truth)) + penalty * x
            curvature = self.table.T @ (self.table * (weights * estimate * (1 - estimate))[:, None]) + np.diag(penalty)
            step = np.linalg.solve(curvature, slope)
            size = 1.0
            while loss(x - size * step) > loss(x) and size > 1e-6:
                size /= 2
            x = x - size * step
            if np.abs(step).max() < 1e-8:
                break
        return x


def _weights(masks: Sequence[Measured]) -> Floats:
    """Weigh the masks (N,) so that those of each target weigh 1 in all."""
    counts: dict[int, int] = {}
    for one in masks:
        counts[one.target] = counts.get(one.target, 0) + 1
    return np.array([1 / counts[one.target] for one in masks])


def _logit(score: float) -> float:
    if score <= 0 or score >= 1:
        return -_FARTHEST if score <= 0 else _FARTHEST
    return max(-_FARTHEST, min(_FARTHEST, math.log(score / (1 - score))))
