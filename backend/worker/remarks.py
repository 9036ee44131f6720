"""Remarks: what a person should look at in a result, though its score may be high."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy import ndimage

from backend.labelstudio.masks import BoolMask
from cavsam.types import TargetResult

CONTESTED = 0.05
"""Shared part of what two labels claim, as IoU, from which it is more than the seam where two objects touch."""
MORE_PARTS, SPARE_PARTS = 4, 4
"""A mask has far more parts than the reference if it has more than `MORE_PARTS` times as many, and `SPARE_PARTS`."""


def count_parts(mask: BoolMask) -> int:
    """Count the connected parts of a mask, bool (H, W); parts that touch at a corner are one."""
    return int(ndimage.label(mask, np.ones((3, 3)))[1])


def most_parts(masks: Iterable[Mapping[str, BoolMask]]) -> dict[str, int]:
    """Find of each label the most parts that any of the references' masks has."""
    most: dict[str, int] = {}
    for shown in masks:
        for label, mask in shown.items():
            most[label] = max(most.get(label, 0), count_parts(mask))
    return most


def remarks_on(result: TargetResult, parts: Mapping[str, int]) -> list[str]:
    """Say in sentences what is doubtful about a result, label by label.

    Args:
        result: without an error.
        parts: of each label of the reference, how many parts its mask has there.
    """
    return [*_not_found(result), *_contested(result), *_in_pieces(result, parts)]


def _not_found(result: TargetResult) -> list[str]:
    found = {label for label, mask in result.masks.items() if mask.any()}
    return [
        f"{label!r} was not found" + (f": {result.held_back[label]}." if label in result.held_back else ".")
        for label in result.scores
        if label not in found
    ]


def _contested(result: TargetResult) -> list[str]:
    return [
        f"{one!r} and {other!r} claim the same place ({share:.0%} of their area): one may stand for the other."
        for (one, other), share in result.contested.items()
        if share >= CONTESTED
    ]


def _in_pieces(result: TargetResult, parts: Mapping[str, int]) -> list[str]:
    said = []
    for label, mask in result.masks.items():
        found, known = count_parts(mask), parts.get(label, 0)
        if known and found > MORE_PARTS * known + SPARE_PARTS:
            said.append(f"The mask of {label!r} has {found} parts, that of the reference {known}.")
    return said
