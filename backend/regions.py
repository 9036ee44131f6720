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

from backend.brush import decode_mask, encode_mask
from backend.errors import UnusableRegion
from cavsam.errors import InvalidReference

BoolMask = NDArray[np.bool_]


class Slot(NamedTuple):
    """Where a mask belongs: a control tag, the image tag it draws on, and the label."""

    from_name: str
    to_name: str
    label: str


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
            mask = decode_mask(region["rle"], height, width)
        except UnusableRegion as error:
            damage.append(str(error))
            continue
        if not mask.any():
            continue
        for label in region["labels"]:
            slot = Slot(region["from_name"], to_name, label)
            masks[slot] = masks[slot] | mask if slot in masks else mask
    if not masks:
        raise InvalidReference(" ".join(damage) or "Every mask of the annotation is empty; draw the object.")
    return masks


def mask_names(slots: Iterable[Slot]) -> dict[Slot, str]:
    """A name for each mask of one image: its label, told apart by the control tag where two share it."""
    slots = list(slots)
    labels = [slot.label for slot in slots]
    return {s: s.label if labels.count(s.label) == 1 else f"{s.label} ({s.from_name})" for s in slots}


def prediction_region(slot: Slot, mask: BoolMask, score: float) -> dict[str, Any]:
    """One brush region as Label Studio stores it; `mask` has the displayed image's shape (H, W) and is not empty."""
    height, width = mask.shape
    return {
        "id": hashlib.sha256("|".join(slot).encode()).hexdigest()[:10],
        "from_name": slot.from_name,
        "to_name": slot.to_name,
        "type": "brushlabels",
        "origin": "prediction",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
        "value": {"format": "rle", "rle": encode_mask(mask), "brushlabels": [slot.label]},
    }
