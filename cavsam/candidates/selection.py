"""Several ways to a mask on one target, and the choice between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cavsam.errors import NumericalError
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import Calibration
from cavsam.scoring.cues import iou
from cavsam.types import CandidateMask

ACTIVATION, LINEAR = "activation", "linear"
REGIONS = (ACTIVATION, LINEAR)
"""Those that mark regions of features; the others track objects."""

CHEAP = ("concat", "ttga", *REGIONS)
"""What `auto` tries before it generates frames, in this order."""


@dataclass(frozen=True)
class Instance:
    """One of several objects of a label.

    Attributes:
        logits: float (S, S).
        signs: of this object alone; the label's stand for what it lacks.
        score: 0..1, estimated IoU with the truth.
    """

    logits: Tensor
    signs: dict[str, float]
    score: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """One way to a mask of every label.

    Attributes:
        kind: the mode that gives it, `activation` or `linear`.
        logits: float (labels, S, S); above 0 is the object.
        signs: of each label, what speaks for its mask by name, the higher the better; see docs/method.md.
        instances: of each label, where they were tracked apart; empty otherwise.
        scattered: labels whose connected components are objects of their own, though they were not tracked apart.
        scores: of each label, 0..1, estimated IoU with the truth.
        presence: of each label, 0..1, estimated probability that it is on the target.
    """

    kind: str
    logits: Tensor
    signs: list[dict[str, float]]
    instances: list[list[Instance]] = field(default_factory=list)
    scattered: tuple[int, ...] = ()
    scores: list[float] = field(default_factory=list)
    presence: list[float] = field(default_factory=list)

    @property
    def masks(self) -> Tensor:
        """bool (labels, S, S), no two overlapping."""
        return without_overlap(self.logits)

    def claim(self, label: int) -> Tensor:
        """Logits (S, S) of one label, negative where this candidate itself gives the pixel to another label."""
        logits = self.logits[label]
        return torch.where(self.masks[label], logits, -logits.abs())

    def described(self, label: int, *, chosen: bool) -> CandidateMask:
        """What it came to for one label, as plain numpy."""
        mask = self.masks[label].cpu().numpy()
        return CandidateMask(self.kind, mask, self.scores[label], self.presence[label], dict(self.signs[label]), chosen)

    def scored(self, calibration: Calibration) -> Candidate:
        """The same with scores and presence; a label without a mask scores 0 and is as present as SAM2 says.

        Raises:
            NumericalError: a sign is not finite.
        """
        spoken = [*self.signs, *(one.signs for own in self.instances for one in own)]
        if not all(math.isfinite(value) for signs in spoken for value in signs.values()):
            raise NumericalError("What speaks for a mask is not finite; try precision float32.")
        found = self.masks.flatten(1).any(dim=1).tolist()
        scores = [calibration.score(self.kind, s) if f else 0.0 for s, f in zip(self.signs, found, strict=True)]
        instances = [
            [replace(one, score=calibration.score(self.kind, {**signs, **one.signs})) for one in own]
            for own, signs in zip(self.instances, self.signs, strict=False)
        ]
        presence = [
            calibration.present(self.kind, s) if f else s.get("presence", 0.0)
            for s, f in zip(self.signs, found, strict=True)
        ]
        return replace(self, scores=scores, presence=presence, instances=instances)


def without_overlap(logits: Tensor) -> Tensor:
    """bool (labels, H, W) from logits: above 0, and a contested pixel goes to the highest."""
    masks = logits > 0
    best = logits.amax(dim=0)  # label by label from here: on a picture of 50 megapixels every further map is 200 MB
    free = torch.ones_like(best, dtype=torch.bool)
    for mask, logit in zip(masks, logits, strict=True):
        mask &= logit == best
        mask &= free
        free &= ~mask
    return masks


def comparable(logits: Tensor, scores: Sequence[float]) -> Tensor:
    """Logits (labels, H, W) of masks from different kinds of candidates, so that they may be held against each other.

    Each kind has a scale of its own: SAM2's logits reach 10, differences of cosines 1. So the label's score stands for
    its logits inside its mask: a contested pixel goes to the mask that is trusted more.
    """
    trust = torch.tensor(scores, dtype=logits.dtype, device=logits.device)[:, None, None] + 1e-6
    return torch.where(logits > 0, trust, logits)


def contested(logits: Tensor, labels: Sequence[str]) -> dict[tuple[str, str], float]:
    """Labels that claim the same pixels of logits (labels, S, S): pair -> the shared part of what either claims."""
    claims = logits > 0
    pairs = ((a, b) for a in range(len(labels)) for b in range(a + 1, len(labels)))
    return {(labels[a], labels[b]): iou(claims[a], claims[b]) for a, b in pairs if (claims[a] & claims[b]).any()}


def kinds(recipe: Recipe) -> tuple[str, ...]:
    """The candidates that a recipe always makes; `auto` may make `full` as well."""
    if recipe.mode == "auto":
        # on the original neck, and with nothing to correct it on the target, `ttga` tracks as `concat` does
        same = recipe.propagate_with == "original" and recipe.target_prompt == "none"
        return tuple(kind for kind in CHEAP if not (same and kind == "ttga"))
    return (recipe.mode, ACTIVATION) if recipe.region_fallback and recipe.aligns else (recipe.mode,)


def settled(candidates: Sequence[Candidate], recipe: Recipe) -> bool:
    """Whether `auto` may go without generated frames: every label has a trusted mask, or no label has any hope."""
    best = [max(scores) for scores in zip(*(candidate.scores for candidate in candidates), strict=True)]
    return min(best) >= recipe.auto_threshold or max(best) < recipe.auto_floor


def choose(candidates: Sequence[Candidate], recipe: Recipe) -> list[int]:
    """For each label the index of the candidate to believe.

    In `auto` that is the one with the highest score, the first of equals. Otherwise it is the tracked mask, unless the
    activation disagrees with it and scores higher.
    """
    labels = range(len(candidates[0].scores))
    if recipe.mode == "auto":
        return [max(range(len(candidates)), key=lambda i: candidates[i].scores[label]) for label in labels]
    chosen = []
    for label in labels:
        tracked = candidates[0]
        better = [
            index
            for index, other in enumerate(candidates)
            if other.scores[label] > tracked.scores[label]
            and iou(other.masks[label], tracked.masks[label]) < recipe.fallback_iou
        ]
        chosen.append(better[0] if better else 0)
    return chosen
