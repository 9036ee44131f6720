"""Masks as Label Studio's editor stores them, by the SDK's converter: independent of the backend's own code."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from numpy.typing import NDArray


def regions(masks: Mapping[str, NDArray[np.bool_]], *, from_name: str, to_name: str) -> list[dict[str, Any]]:
    """One brush region for each label -> mask bool (H, W), as the editor submits them."""
    return [
        {
            "id": secrets.token_hex(5),
            "from_name": from_name,
            "to_name": to_name,
            "type": "brushlabels",
            "origin": "manual",
            "original_width": mask.shape[1],
            "original_height": mask.shape[0],
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": mask2rle(np.where(mask, 255, 0).astype(np.uint8)),
                "brushlabels": [label],
            },
        }
        for label, mask in masks.items()
    ]


def masks(result: list[dict[str, Any]]) -> dict[str, NDArray[np.bool_]]:
    """Label -> mask bool (H, W), the union of a prediction's brush regions of that label."""
    found: dict[str, NDArray[np.bool_]] = {}
    for region in result:
        height, width = region["original_height"], region["original_width"]
        alpha = decode_rle(region["value"]["rle"]).reshape(height, width, 4)[..., 3]
        for label in region["value"]["brushlabels"]:
            found[label] = found.get(label, np.zeros((height, width), bool)) | (alpha >= 128)
    return found


def iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union, 0..1; 1 where both are empty."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 1.0
