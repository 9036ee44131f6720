"""What a generator returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SynthImage:
    """One image with exact masks of the classes that are in it.

    image: uint8 (H, W, 3); masks: class name -> bool (H, W), none of them empty, none overlapping another.
    """

    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]
    domain: str
    seed: int


@dataclass(frozen=True)
class SynthClip:
    """A short clip of ONE object.

    frames: uint8 (T, H, W, 3); masks: bool (T, H, W), empty in the frames where the object is gone, never in
    the first; motion: "smooth" or "far"; class_name: what the object is.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    motion: str
    class_name: str
    seed: int
