"""Label Studio's regions and our masks: the border between the two.

Several labels make several masks; several regions of one label are united into one. Sizes are always those of the
image as a browser displays it (EXIF orientation applied).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnusableRegion
from backend.labelstudio import shapes
from backend.labelstudio.brush import decode_mask, encode_mask
from cavsam.errors import InvalidReference

BoolMask = NDArray[np.bool_]


class Slot(NamedTuple):
    """Where a mask belongs: a control tag, the image tag it draws on, the label, and how its regions are written.

    `kind` is the type of the results; `labels_name` the `<Labels>` tag beside a tag that only draws.
    """

    from_name: str
    to_name: str
    label: str
    kind: str = "brushlabels"
    labels_name: str | None = None


def reference_masks(regions: Iterable[Mapping[str, Any]], to_name: str, size: tuple[int, int]) -> dict[Slot, BoolMask]:
    """The masks that a reference's regions draw on one image.

    Args:
        regions: usable regions as `references.examine` reduces them.
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
        if region["to_name"] != to_name:
            continue
        height, width = region["original_height"], region["original_width"]
        if (height, width) != size:
            raise InvalidReference(
                f"The annotation was drawn on an image of {width}x{height} pixels, but the task's image has "
                f"{size[1]}x{size[0]}; annotate the task again."
            )
        try:
            mask = _drawn(region, height, width)
        except UnusableRegion as error:
            damage.append(str(error))
            continue
        if not mask.any():
            continue
        for label in region["labels"]:
            slot = Slot(region["from_name"], to_name, label, region["kind"], region["labels_name"])
            masks[slot] = masks[slot] | mask if slot in masks else mask
    if not masks:
        raise InvalidReference(" ".join(damage) or "Every mask of the annotation is empty; draw the object.")
    return masks


def mask_names(slots: Iterable[Slot]) -> dict[Slot, str]:
    """A name for each mask of one image: its label, told apart by the control tag where two share it."""
    slots = list(slots)
    labels = [slot.label for slot in slots]
    return {s: s.label if labels.count(s.label) == 1 else f"{s.label} ({s.from_name})" for s in slots}


def prediction_regions(slot: Slot, mask: BoolMask, score: float) -> tuple[list[dict[str, Any]], list[str]]:
    """A mask as Label Studio stores it, and what could not be said that way in plain sentences.

    Args:
        slot: where the mask belongs.
        mask: bool (H, W) of the displayed image, not empty.
        score: 0..1.

    Returns:
        One region for a brush or bitmask, one per connected component for a polygon or rectangle; two results each
        where a `<Labels>` tag gives the label.
    """
    shape = slot.kind.removesuffix("labels")
    notes: list[str] = []
    if shape == "brush":
        values: list[dict[str, Any]] = [{"format": "rle", "rle": encode_mask(mask)}]
    elif shape == "bitmask":
        values = [{"imageDataURL": shapes.mask_to_png(mask)}]
    elif shape == "polygon":
        outlines, holes = shapes.mask_to_polygons(mask)
        values = [{"points": points, "closed": True} for points in outlines]
        if holes:
            notes.append(f"{holes} holes of {slot.label!r} are filled: a polygon cannot have any.")
    else:
        values = list(shapes.mask_to_boxes(mask))
    regions = []
    for number, value in enumerate(values):
        regions += _results(slot, region_id(slot, number), value, mask.shape, score)
    return regions, notes


def region_id(slot: Slot, number: int) -> str:
    """The id of region number `number` of a slot, the same in every prediction: a corrected region replaces it."""
    return hashlib.sha256(f"{slot}|{number}".encode()).hexdigest()[:10]


def _results(
    slot: Slot, identity: str, value: dict[str, Any], size: tuple[int, ...], score: float
) -> list[dict[str, Any]]:
    height, width = size
    common = {
        "id": identity,
        "to_name": slot.to_name,
        "origin": "prediction",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
    }
    drawn = common | {"from_name": slot.from_name, "type": slot.kind}
    if slot.labels_name is None:
        return [drawn | {"value": value | {slot.kind: [slot.label]}}]
    labelled = common | {"from_name": slot.labels_name, "type": "labels"}
    return [drawn | {"value": value}, labelled | {"value": value | {"labels": [slot.label]}}]


def _drawn(region: Mapping[str, Any], height: int, width: int) -> BoolMask:
    """The mask of shape (H, W) that one usable region draws; raises `UnusableRegion`."""
    if "rle" in region:
        return decode_mask(region["rle"], height, width)
    if "imageDataURL" in region:
        return shapes.png_to_mask(region["imageDataURL"], height, width)
    if "points" in region:
        return shapes.polygon_to_mask(region["points"], height, width)
    if "radiusX" in region:
        ellipse = shapes.Ellipse(region["x"], region["y"], region["radiusX"], region["radiusY"], region["rotation"])
        return shapes.ellipse_to_mask(ellipse, height, width)
    box = shapes.Box(region["x"], region["y"], region["width"], region["height"], region["rotation"])
    return shapes.box_to_mask(box, height, width)
