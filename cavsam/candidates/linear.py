"""A linear classifier of SAM2's features, fitted to the references in closed form: the cheapest way to a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cavsam.alignment import otsu
from cavsam.tracking import Tracker

CELLS = 64
"""Side of the grid on which cells are classified."""

COARSEST = 32
"""Side of the coarsest level of features that takes part: what has fewer cells places no border."""

RIDGE = 1.0
"""Penalty of the squared weights, in mean variances of a feature."""


@torch.no_grad()
def linear_logits(tracker: Tracker, levels: Sequence[Tensor], masks: Tensor) -> Tensor:
    """What the classifier finds on the target, less its own Otsu threshold: above 0 is the object.

    Args:
        levels: of SAM2's original neck, of the K references and the target, from `Tracker.neck`.
        masks: of the references, bool (K, labels, S, S); each label is on at least one.

    Returns:
        float (labels, S, S).

    Raises:
        NumericalError: the features are not finite.
    """
    features = _features(tracker, levels)
    known, target = features[:-1], features[-1]
    size = (tracker.image_size, tracker.image_size)
    logits = []
    for label in range(masks.shape[1]):
        coverage = F.adaptive_avg_pool2d(masks[:, label].float(), CELLS)
        # a cell counts as the object's where it covers half of it, or as much as of any cell: thin objects too
        value = ridge(known, coverage >= coverage.amax().clamp(max=0.5), target)
        full = F.interpolate(value[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        logits.append(full - otsu(value))
    return torch.stack(logits)


def ridge(known: Tensor, truth: Tensor, target: Tensor, penalty: float = RIDGE) -> Tensor:
    """Ridge regression on +1 for the object's cells and -1 for all others, which weigh the same in all.

    Args:
        known: features of the references, (K, C, h, w).
        truth: bool (K, h, w), not all false.
        target: features, (C, h, w).

    Returns:
        Its values on the target, float (h, w).
    """
    cells, inside = known.movedim(1, -1)[None].flatten(0, 3), truth.flatten()
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
    """Unit-length features, all fine levels together, (N, C, CELLS, CELLS)."""
    parts = []
    for stride in (4, 8, 16):
        if tracker.image_size // stride < COARSEST:
            continue
        level = F.normalize(tracker.level(levels, stride), dim=1)
        if level.shape[-1] > CELLS:
            level = F.adaptive_avg_pool2d(level, CELLS)
        parts.append(F.interpolate(level, size=(CELLS, CELLS), mode="bilinear", align_corners=False))
    return torch.cat(parts, dim=1)
