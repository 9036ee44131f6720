"""Label Studio's brush encoding: a run-length code over the interleaved RGBA bytes of a picture.

The editor paints a region by its alpha, in steps of 0 to 255; strokes drawn by a person are anti-aliased.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from numpy.typing import NDArray

from backend.errors import UnusableRegion

THRESHOLD = 128
CHANNELS = 4


def encode_mask(mask: NDArray[np.bool_]) -> list[int]:
    """The code of a mask of shape (H, W): 255 in all four channels inside, 0 outside."""
    rle: list[int] = mask2rle(mask.astype(np.uint8) * 255)
    return rle


def decode_mask(rle: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The mask of shape (H, W) where the code's alpha is at least 128.

    Raises `UnusableRegion` where the code is malformed or is that of a picture of another size.
    """
    code = _as_bytes(rle)
    values = int.from_bytes(code[:4], "big")
    if values != height * width * CHANNELS:
        raise UnusableRegion(
            f"A brush region says {width}x{height} pixels but encodes {values // CHANNELS} of them; draw it again."
        )
    try:
        rgba = decode_rle(code)
    except (ValueError, IndexError) as error:
        raise UnusableRegion("A brush region's run-length code is damaged; draw the region again.") from error
    alpha: NDArray[np.uint8] = rgba.reshape(height, width, CHANNELS)[..., 3]
    return alpha >= THRESHOLD


def _as_bytes(rle: Any) -> bytes:
    if not isinstance(rle, list) or len(rle) < 8:
        raise UnusableRegion("A brush region has no run-length code; draw the region again.")
    try:
        return bytes(rle)
    except (TypeError, ValueError) as error:
        raise UnusableRegion("A brush region's run-length code is not a list of bytes.") from error
