"""Masks of the regions of Label Studio, and the regions that say a mask: the border between the two.

Several labels make several masks; several regions of one label are united into one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnusableRegion
from backend.labelstudio import shapes
from backend.labelstudio.brush import decode_mask, encode_mask
from backend.labelstudio.regions import Bitmask, Brush, Ellipse, Polygon, Rectangle, Region, Shape, Slot, write_region
from cavsam.errors import InvalidReference

BoolMask = NDArray[np.bool_]


def reference_masks(regions: Iterable[Region], to_name: str, size: tuple[int, int]) -> dict[Slot, BoolMask]:
    """Draw the masks of a reference's regions on one image.

    Args:
        regions: the regions, those on other images too.
        to_name: name of the image tag.
        size: (H, W) of the displayed image.

    Returns:
        A mask of shape (H, W) per label that has one; empty ones are left out.

    Raises:
        InvalidReference: no region gives a mask, or one was drawn on an image of another size.
    """
    masks: dict[Slot, BoolMask] = {}
    damage: list[str] = []
    for region in regions:
        if region.to_name != to_name:
            continue
        if region.size != size:
            height, width = region.size
            raise InvalidReference(
                f"The annotation was drawn on an image of {width}x{height} pixels, but the task's image has "
                f"{size[1]}x{size[0]}; annotate the task again."
            )
        try:
            mask = mask_of(region)
        except UnusableRegion as error:
            damage.append(str(error))
            continue
        if not mask.any():
            continue
        for slot in region.slots:
            masks[slot] = masks[slot] | mask if slot in masks else mask
    if not masks:
        raise InvalidReference(" ".join(damage) or "Every mask of the annotation is empty; draw the object.")
    return masks


def mask_names(slots: Iterable[Slot]) -> dict[Slot, str]:
    """Name each mask of one image: by its label, told apart by the control tag where two share it."""
    slots = list(slots)
    labels = [slot.label for slot in slots]
    return {s: s.label if labels.count(s.label) == 1 else f"{s.label} ({s.from_name})" for s in slots}


def prediction_regions(slot: Slot, mask: BoolMask, score: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Write a mask as Label Studio stores it.

    Args:
        slot: where the mask belongs.
        mask: bool (H, W) of the displayed image, not empty.
        score: 0..1.

    Returns:
        One region for a brush or bitmask, one per connected component for a polygon or rectangle, two results each
        where a `<Labels>` tag gives the label; and what could not be said that way in plain sentences.
    """
    found, warnings = _shapes(slot, mask)
    height, width = mask.shape
    results = []
    for number, shape in enumerate(found):
        region = Region(
            slot.from_name, slot.to_name, (slot.label,), (height, width), shape, slot.kind, slot.labels_name
        )
        results += write_region(region, number, score)
    return results, warnings


def mask_of(region: Region) -> BoolMask:
    """Draw the mask, bool (H, W), of one region; raises `UnusableRegion` if its code or picture is damaged."""
    height, width = region.size
    match region.shape:
        case Brush(rle):
            return decode_mask(list(rle), height, width)
        case Bitmask(address):
            return shapes.png_to_mask(address, height, width)
        case Polygon(points):
            return shapes.polygon_to_mask(points, height, width)
        case Rectangle() as box:
            return shapes.box_to_mask(box, height, width)
        case Ellipse() as ellipse:
            return shapes.ellipse_to_mask(ellipse, height, width)


def _shapes(slot: Slot, mask: BoolMask) -> tuple[list[Shape], list[str]]:
    """The shapes of a slot's kind that together are a mask, and what they cannot say."""
    shape = slot.kind.removesuffix("labels")
    if shape == "brush":
        return [Brush(bytes(encode_mask(mask)))], []
    if shape == "bitmask":
        return [Bitmask(shapes.mask_to_png(mask))], []
    if shape == "polygon":
        outlines, holes = shapes.mask_to_polygons(mask)
        filled = f"{holes} holes of {slot.label!r} are filled: a polygon cannot have any."
        return list(outlines), [filled] if holes else []
    return list(shapes.mask_to_boxes(mask)), []
