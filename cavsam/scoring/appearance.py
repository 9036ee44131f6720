"""Colours and forms of a predicted mask beside those of the references' masks: the cues that plain pixels give."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from cavsam.features import covered_cells, otsu
from cavsam.images import Mask

GRID = 128
"""Side in pixels of the pictures on which colours and forms are compared."""

BINS = 8
"""Of a palette, for each channel."""

LARGEST = 5
"""So many of a mask's components, the largest ones, tell how full it is."""

LEAST = 6
"""Pixels of the smallest component that has an ellipse."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Form:
    """Measures of a mask's shape that do not depend on its size, place or turn; natural logarithms of ratios.

    Attributes:
        thickness: the largest distance to the outside over the root of the area.
        fullness: mean over the largest components of the area over that of the ellipse of the same moments.
        holes: the area with all holes filled over the area.
        compactness: the root of the area over the number of border pixels.
    """

    thickness: float
    fullness: float
    holes: float
    compactness: float

    @classmethod
    def of(cls, mask: Mask) -> Form:
        """Measure a non-empty mask, bool (H, W)."""
        area = int(mask.sum())
        # the edge of the picture is an outside too
        depth = ndimage.distance_transform_edt(np.pad(mask, 1)).max()
        border = int((mask & ~ndimage.binary_erosion(mask)).sum())
        return cls(
            math.log(depth / math.sqrt(area)),
            _fullness(mask),
            math.log(ndimage.binary_fill_holes(mask).sum() / area),
            math.log(math.sqrt(area) / border),
        )


@dataclass(frozen=True)
class LabelAppearance:
    """Colours and forms of a label on the references.

    Attributes:
        palette: of its pixels on all of them, see `palette`.
        pictures: of all pixels.
        colour: mean of its pixels, float (3,) in 0..1.
        background: mean of all other pixels, float (3,) in 0..1.
        forms: of its mask on each reference that shows it.
    """

    palette: Floats
    pictures: Floats
    colour: Floats
    background: Floats
    forms: tuple[Form, ...]

    @classmethod
    def of(cls, pictures: Floats, masks: NDArray[np.bool_]) -> LabelAppearance:
        """Measure references: float (K, GRID, GRID, 3) in 0..1 and bool (K, GRID, GRID), not all empty."""
        inside, outside = pictures[masks], pictures[~masks]
        background = outside if len(outside) else inside
        return cls(
            palette(inside),
            palette(pictures.reshape(-1, 3)),
            inside.mean(axis=0),
            background.mean(axis=0),
            tuple(Form.of(m) for m in masks if m.any()),
        )


def pictures_of(images: Tensor) -> Tensor:
    """Shrink images, float (N, 3, S, S) in 0..1, to the size they are compared at: uint8 (N, 3, GRID, GRID)."""
    return (F.adaptive_avg_pool2d(images.float(), GRID) * 255).round().to(torch.uint8)


def appearances(pictures: Tensor, masks: Tensor) -> list[LabelAppearance]:
    """Measure how each label looks on the references.

    Args:
        pictures: of the K references, from `pictures_of`.
        masks: bool (K, labels, S, S); each label is on at least one.
    """
    small = _small_masks(masks)
    return [LabelAppearance.of(_array(pictures), small[:, label]) for label in range(small.shape[1])]


def appearance_cues(labels: list[LabelAppearance], picture: Tensor, predicted: Tensor) -> list[dict[str, float]]:
    """Compare the target's pixels inside and outside each predicted mask with those of the references.

    Args:
        labels: how each one looks on the references.
        picture: of the target, uint8 (1, 3, GRID, GRID), from `pictures_of`.
        predicted: bool (labels, S, S).

    Returns:
        For each label, empty if nothing was predicted:
        `colour`: IoU of the mask with the pixels that are nearer to the label's mean colour than to the background's,
        by Otsu's threshold, 0..1;
        `palette`: what the palettes of mask and references share, 0..1;
        `picture`: what the palettes of target and references share, as wholes, 0..1;
        `distinct`: what the palettes of the mask and of the rest of the target do not share, 0..1;
        `thickness`, `fullness`, `holes`: likeness of the form to the most alike reference's, see `Form`, 0..1;
        `compactness`: of the mask, see `Form`, at most about 0;
        `area`: natural logarithm of the mask's share of the picture, at most 0;
        `inside`: share of the picture's border that the mask does not touch, 0..1.
    """
    (pixels,) = _array(picture)
    whole = palette(pixels.reshape(-1, 3))
    cues: list[dict[str, float]] = []
    for known, empty, mask in zip(labels, ~predicted.flatten(1).any(dim=1), _small_masks(predicted), strict=True):
        if empty:
            cues.append({})
            continue
        form = Form.of(mask)
        nearer = ((pixels - known.background) ** 2 - (pixels - known.colour) ** 2).sum(axis=-1)
        coloured = nearer > otsu(torch.from_numpy(nearer))
        own, rest = palette(pixels[mask]), palette(pixels[~mask] if not mask.all() else pixels[mask])
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        cues.append(
            {
                "colour": float((mask & coloured).sum() / (mask | coloured).sum()),
                "palette": float(np.minimum(own, known.palette).sum()),
                "picture": float(np.minimum(whole, known.pictures).sum()),
                "distinct": float(1 - np.minimum(own, rest).sum()),
                "thickness": max(_likeness(form.thickness, one.thickness) for one in known.forms),
                "fullness": max(_likeness(form.fullness, one.fullness) for one in known.forms),
                "holes": max(_likeness(form.holes, one.holes) for one in known.forms),
                "compactness": form.compactness,
                "area": math.log(mask.mean()),
                "inside": float(1 - edge.mean()),
            }
        )
    return cues


def palette(pixels: Floats) -> Floats:
    """Count colours, float (N, 3) in 0..1: (BINS, BINS, BINS) of sum 1, blurred so that near colours meet."""
    bins = np.minimum((pixels * BINS).astype(int), BINS - 1)
    counts = np.zeros((BINS, BINS, BINS))
    np.add.at(counts, tuple(bins.T), 1.0)
    blurred: Floats = ndimage.gaussian_filter(counts, 0.7, mode="nearest")
    return blurred / blurred.sum()


def _likeness(first: float, second: float) -> float:
    return math.exp(-2 * abs(first - second))


def _fullness(mask: Mask) -> float:
    numbered, count = ndimage.label(mask)
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    full = []
    for index in np.argsort(-sizes, kind="stable")[:LARGEST]:
        if sizes[index] < LEAST:
            break
        low, high = np.linalg.eigvalsh(np.cov(np.stack(np.nonzero(numbered == index + 1))))
        # a line one pixel wide has no second axis of its own
        full.append(math.log(sizes[index] / (4 * math.pi * math.sqrt(max(low * high, 0.1)))))
    return float(np.mean(full)) if full else 0.0


def _array(pictures: Tensor) -> Floats:
    """Turn uint8 (N, 3, GRID, GRID) into float (N, GRID, GRID, 3) in 0..1."""
    scaled: Floats = pictures.permute(0, 2, 3, 1).cpu().numpy() / 255
    return scaled


def _small_masks(masks: Tensor) -> NDArray[np.bool_]:
    """Shrink bool (..., S, S) to (..., GRID, GRID)."""
    small: NDArray[np.bool_] = covered_cells(masks, (GRID, GRID)).cpu().numpy()
    return small
