"""What is odd about a mask that is to be learned from, before anybody wonders about the predictions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats

from backend.labelstudio.masks import BoolMask

CRUMB = 0.01
"""Share of a mask below which a connected part of it is a crumb."""
MANY_CRUMBS = 10
LOOKED_AT = 1024
"""Pixels of a picture's longer side from which on shapes and colours are looked at smaller: it takes seconds else."""
SAMPLED = 2000
"""Pixels of the object and of its surroundings that are compared."""
TELLS_APART = 0.56
"""Chance that a pixel of the object is brighter (or redder, ...) than one beside it, from which a colour tells them
apart; 0.5 says nothing."""


def oddities(image: NDArray[np.uint8], masks: Mapping[str, BoolMask], cells: int) -> list[str]:
    """Say in sentences what makes masks poor references.

    Args:
        image: uint8 (H, W, 3).
        masks: label -> bool (H, W), none empty.
        cells: how many cells the model has along either side of a picture; 0 if that is not known.
    """
    small = _shrunk(image)
    return [f"The mask of {label!r} {odd}" for label, mask in masks.items() for odd in _odd(small, mask, cells)]


def _odd(small: NDArray[np.uint8], mask: BoolMask, cells: int) -> list[str]:
    found = []
    shape = mask if mask.shape == small.shape[:2] else _shrunk(mask.astype(np.uint8) * 255) >= 128
    if cells and mask.mean() * cells**2 < 1:
        found.append(
            f"is tiny: {int(mask.sum())} pixels, less than one of the model's cells. Annotate a task where the object "
            "is larger, or crop the pictures."
        )
    elif cells and _thickness(shape, cells) < 1:
        found.append(
            "is thinner than one of the model's cells everywhere. Crop the pictures if the predictions miss such parts."
        )
    crumbs = _crumbs(mask)
    if crumbs >= MANY_CRUMBS:
        found.append(f"has {crumbs} crumbs beside its large parts. Erase them if they are slips of the brush.")
    if not _stands_out(small, shape):
        found.append(
            "does not differ from its surroundings in colour or brightness. Check that it lies on the object, and "
            "covers all of it."
        )
    return found


def _shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale a picture, uint8 (H, W) or (H, W, 3), down to at most `LOOKED_AT` pixels along its longer side."""
    image = Image.fromarray(picture)
    image.thumbnail((LOOKED_AT, LOOKED_AT), Image.Resampling.BOX)
    return np.asarray(image)


def _thickness(mask: BoolMask, cells: int) -> float:
    """Diameter, in the model's cells, of the largest disc that fits into a mask (H, W)."""
    height, width = mask.shape
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=(cells / height, cells / width))
    return 2 * float(depth.max())


def _crumbs(mask: BoolMask) -> int:
    """Count the connected parts of a mask that are small beside the whole of it."""
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    return int((sizes < CRUMB * mask.sum()).sum())


def _stands_out(image: NDArray[np.uint8], mask: BoolMask) -> bool:
    """Whether a colour, the brightness or how rough they are tells a mask's pixels from those around it."""
    width = max(3, round(0.25 * float(np.sqrt(mask.sum()))))
    around = (ndimage.distance_transform_edt(~mask) <= width) & ~mask
    if not mask.any() or not around.any():
        return True  # too thin to say, or the whole picture
    pixels = image.astype(np.float32)
    grey = pixels.mean(axis=2)
    roughness = ndimage.generic_gradient_magnitude(grey, ndimage.sobel)
    channels = [*np.moveaxis(pixels, 2, 0), grey, roughness, *(grey - channel for channel in np.moveaxis(pixels, 2, 0))]
    return any(abs(_chance(channel[mask], channel[around]) - 0.5) > TELLS_APART - 0.5 for channel in channels)


def _chance(inside: NDArray[np.float32], around: NDArray[np.float32]) -> float:
    """The chance that a value of one set is above one of another, ties counting half (the area under the curve)."""
    one, other = (values[:: max(1, len(values) // SAMPLED)] for values in (inside, around))
    return float(stats.mannwhitneyu(one, other, method="asymptotic").statistic) / (len(one) * len(other))
