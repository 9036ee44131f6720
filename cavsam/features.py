"""Prototypes, activations, thresholds, smoothing of features, and the overlap of masks: functions of tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cavsam.errors import NumericalError

BINS = 256
"""Bins of the histogram that Otsu's threshold is taken from."""


def grid_of(features: Tensor) -> tuple[int, int]:
    """Give the cells (h, w) of features or activations (..., h, w)."""
    return features.shape[-2], features.shape[-1]


def prototypes(features: Tensor, masks: Tensor) -> Tensor:
    """Pool features under masks, over all images together (method, TTGA 1).

    Args:
        features: (N, C, h, w).
        masks: float (N, labels, H, W) in 0..1, averaged down to (h, w).

    Returns:
        (labels, C), unit length; zero for a label whose masks are all empty.
    """
    small = F.adaptive_avg_pool2d(masks, grid_of(features))
    pooled = torch.einsum("nchw,nlhw->lc", features, small)
    # the mean and the sum have one direction, and only the direction counts for the cosine
    return F.normalize(pooled, dim=1)


def descriptors(features: Tensor) -> Tensor:
    """Average features (N, C, h, w) over each image: (N, C), unit length."""
    return F.normalize(features.mean(dim=(2, 3)), dim=1)


def activation(features: Tensor, unit_prototypes: Tensor, background: Tensor | None = None) -> Tensor:
    """Measure how much every feature is like every label.

    Args:
        features: (N, C, h, w).
        unit_prototypes: (labels, C).
        background: (n, C) of unit length, or None.

    Returns:
        (N, labels, h, w): the cosine with the label's prototype, -1..1; with `background`, that minus the highest
        cosine with any other prototype, the background's and the other labels', -2..2.
    """
    unit = F.normalize(features, dim=1)
    own = torch.einsum("nchw,lc->nlhw", unit, unit_prototypes)
    if background is None:
        return own
    everything = torch.cat([own, torch.einsum("nchw,lc->nlhw", unit, background)], dim=1)
    first, second = everything.topk(2, dim=1).values.split(1, dim=1)
    return own - torch.where(own == first, second, first)


def unlabelled(features: Tensor, masks: Tensor) -> Tensor:
    """Give the share of each cell of `features` that no label covers: (N, 1, h, w), of masks (N, labels, H, W)."""
    return F.adaptive_avg_pool2d(1 - masks.amax(dim=1, keepdim=True), grid_of(features))


def otsu(values: Tensor) -> float:
    """Find Otsu's threshold of `values`: those above it are foreground. A constant input gives its value.

    Raises:
        NumericalError: a value is not finite.
    """
    flat = values.detach().flatten().cpu().double()
    low, high = flat.min(), flat.max()
    if not (low.isfinite() and high.isfinite()):
        raise NumericalError("The activation is not finite; lower ttga_lr or use precision float32.")
    if high - low < 1e-12:
        return float(low)
    counts = torch.histc(flat, bins=BINS, min=float(low), max=float(high))
    centres = low + (torch.arange(BINS, dtype=torch.double) + 0.5) * (high - low) / BINS
    below = counts.cumsum(0)
    above = counts.flip(0).cumsum(0).flip(0)
    mean_below = (counts * centres).cumsum(0) / below.clamp_min(1)
    mean_above = ((counts * centres).flip(0).cumsum(0) / above.flip(0).clamp_min(1)).flip(0)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[int(between.argmax())])


def separation(values: Tensor, threshold: float) -> float:
    """Measure how clearly `threshold` parts `values` into two modes.

    The measure is Ashman's D, the distance of the two means in deviations. Unlike Otsu's own criterion it does not
    depend on how large the foreground is. One normal mode cut in the middle gives 2.6, a uniform spread 3.5; it is 0 if
    one side is empty, and infinity if both sides are constant.
    """
    flat = values.detach().flatten().cpu().double()
    above, below = flat[flat > threshold], flat[flat <= threshold]
    if not len(above) or not len(below):
        return 0.0
    spread = ((above.var(correction=0) + below.var(correction=0)) / 2).sqrt()
    distance = above.mean() - below.mean()
    return float(distance / spread) if spread > 0 else math.inf


def covered_cells(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Find the cells (..., h, w) of a grid that bool masks (..., S, S) cover.

    A cell counts if a mask covers at least half of what it covers of any cell: thin objects count too.
    """
    coverage = F.adaptive_avg_pool2d(masks.float(), grid)
    return (coverage >= coverage.amax(dim=(-2, -1), keepdim=True) / 2) & (coverage > 0)


def without_overlap(logits: Tensor) -> Tensor:
    """Cut logits (labels, H, W) at 0 into bool masks; a contested pixel goes to the highest logit."""
    masks = logits > 0
    best = logits.amax(dim=0)  # label by label from here: on a picture of 50 megapixels every further map is 200 MB
    free = torch.ones_like(best, dtype=torch.bool)
    for mask, logit in zip(masks, logits, strict=True):
        mask &= logit == best
        mask &= free
        free &= ~mask
    return masks


def iou(first: Tensor, second: Tensor) -> float:
    """Divide the intersection of two bool masks by their union; two empty masks agree: 1."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def guided_filter(values: Tensor, picture: Tensor, radius: int, smoothness: float = 1e-3) -> Tensor:
    """Smooth maps where the picture is smooth, and move their steps to its edges (He, Sun, Tang 2010).

    In each window a map is the nearest linear function of the colours; every pixel gets the mean of the windows that
    hold it. The functions are fitted at half the size, as in the fast guided filter (He, Sun 2015).

    Args:
        values: float (n, H, W), sides even.
        picture: float (3, H, W) in 0..1.
        radius: of a window, pixels.
        smoothness: variance of colours below which a window counts as smooth.

    Returns:
        float (n, H, W), linear in `values`.
    """
    half = F.avg_pool2d(picture[None].float(), 2)
    maps = F.avg_pool2d(values[:, None].float(), 2)
    side = 2 * max(1, radius // 2) + 1

    def mean(images: Tensor) -> Tensor:
        rows = F.avg_pool2d(images, (side, 1), 1, (side // 2, 0), count_include_pad=False)
        return F.avg_pool2d(rows, (1, side), 1, (0, side // 2), count_include_pad=False)

    colour, level = mean(half), mean(maps)
    products = mean((half[:, :, None] * half[:, None]).flatten(1, 2)).unflatten(1, (3, 3))
    spread = products - colour[:, :, None] * colour[:, None]
    shared = mean(maps * half) - level * colour  # (n, 3, h, w)
    regular = spread.permute(0, 3, 4, 1, 2) + smoothness * torch.eye(3, device=picture.device)
    slope = torch.linalg.solve(regular, shared.permute(0, 2, 3, 1)[..., None])[..., 0].permute(0, 3, 1, 2)
    offset = level - (slope * colour).sum(dim=1, keepdim=True)
    fitted = F.interpolate(mean(torch.cat([slope, offset], dim=1)), size=picture.shape[-2:], mode="bilinear")
    return (fitted[:, :3] * picture).sum(dim=1) + fitted[:, 3]
