"""A linear classifier of SAM2's features, fitted to the references in closed form: the cheapest way to a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cavsam.candidates.base import Candidate, Proposal, Scene, presence_said_by
from cavsam.features import otsu
from cavsam.observe.run import Run
from cavsam.recipe import Recipe
from cavsam.tracking import Tracker

CELLS = 64
"""Side of the grid on which cells are classified."""

COARSEST = 32
"""Side of the coarsest level of features that takes part: what has fewer cells places no border."""

RIDGE = 1.0
"""Penalty of the squared weights, in mean variances of a feature."""

ORIGIN = "a ridge classifier of SAM2's features, fitted to the references (object against the rest), marks it"


@dataclass(frozen=True)
class LinearClassifier:
    """The region that a linear classifier finds on the target; it works on SAM2's own neck.

    Attributes:
        tracker: SAM2.
        recipe: says what an instance is.
        presence_of: kind of the tracked candidate that says whether the objects are there.
    """

    tracker: Tracker
    recipe: Recipe
    presence_of: str
    kind = "linear"
    generates_frames = False

    def propose(self, scene: Scene, before: Sequence[Candidate], run: Run) -> Proposal:
        """Classify the target's cells; labels, not objects, because a classifier tells no instances apart."""
        objects, scattered = scene.objects("union"), scene.objects(self.recipe.instances).several()
        run.candidate(self.kind, len(scene.video), objects, ORIGIN)
        with run.step("prompt"):
            if scene.features is not None:
                logits = backbone_linear_logits(scene.features, scene.masks)
            else:
                logits = scene.refined(linear_logits(self.tracker, scene.levels, scene.masks))
        presence = presence_said_by(self.presence_of, before)
        return Proposal(self.kind, scene.video, None, objects, logits, presence, self.presence_of, scattered=scattered)


@torch.no_grad()
def linear_logits(tracker: Tracker, levels: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Classify the target's cells, less Otsu's threshold of them: above 0 is the object.

    Args:
        tracker: SAM2.
        levels: of SAM2's original neck, of the K references and the target, from `Tracker.neck`.
        masks: of the references, bool (K, labels, S, S); each label is on at least one.

    Returns:
        float (labels, S, S).

    Raises:
        NumericalError: the features are not finite.
    """
    return _classified(_features(tracker, levels), masks)


@torch.no_grad()
def backbone_linear_logits(features: Tensor, masks: Tensor) -> Tensor:
    """Classify the target's cells by a backbone's features, as `linear_logits` does by SAM2's.

    Args:
        features: of the K references and the target, (K + 1, C, h, w).
        masks: of the references, bool (K, labels, S, S).
    """
    unit = F.normalize(features, dim=1)
    return _classified(F.interpolate(unit, size=(CELLS, CELLS), mode="bilinear", align_corners=False), masks)


def _classified(features: Tensor, masks: Tensor) -> Tensor:
    """Fit to the references' cells, classify the target's (the last): float (labels, S, S), above 0 is the object."""
    known, target = features[:-1], features[-1]
    size = (masks.shape[-2], masks.shape[-1])
    logits = []
    for label in range(masks.shape[1]):
        coverage = F.adaptive_avg_pool2d(masks[:, label].float(), CELLS)
        # a cell counts as the object's where it covers half of it, or as much as of any cell: thin objects too
        value = ridge(known, coverage >= coverage.amax().clamp(max=0.5), target)
        full = F.interpolate(value[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        logits.append(full - otsu(value))
    return torch.stack(logits)


def ridge(known: Tensor, inside: Tensor, target: Tensor, penalty: float = RIDGE) -> Tensor:
    """Fit a ridge regression on +1 for the object's cells and -1 for all others, which weigh the same in all.

    Args:
        known: features of the references, (K, C, h, w).
        inside: bool (K, h, w), not all false.
        target: features, (C, h, w).
        penalty: see `RIDGE`.

    Returns:
        Its values on the target, float (h, w).
    """
    cells, inside = known.movedim(1, -1)[None].flatten(0, 3), inside.flatten()
    weights = inside / inside.sum() + ~inside / (~inside).sum().clamp(min=1)
    weights = weights / weights.sum()
    sides = inside.to(cells.dtype) * 2 - 1
    mean, middle = weights @ cells, weights @ sides
    centred = cells - mean
    scatter = (centred * weights[:, None]).T @ centred
    scatter.diagonal().add_(penalty * scatter.diagonal().mean() + 1e-12)
    direction = torch.linalg.solve(scatter, (centred * weights[:, None]).T @ (sides - middle))
    return torch.einsum("chw,c->hw", target - mean[:, None, None], direction) + middle


def _features(tracker: Tracker, levels: Sequence[Tensor]) -> Tensor:
    """Scale features to unit length and one grid, all fine levels together, (N, C, CELLS, CELLS)."""
    parts = []
    for stride in (4, 8, 16):
        if tracker.image_size // stride < COARSEST:
            continue
        level = F.normalize(tracker.level(levels, stride), dim=1)
        if level.shape[-1] > CELLS:
            level = F.adaptive_avg_pool2d(level, CELLS)
        parts.append(F.interpolate(level, size=(CELLS, CELLS), mode="bilinear", align_corners=False))
    return torch.cat(parts, dim=1)
