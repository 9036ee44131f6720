"""A scene on its way to a finished image, and the sizes that every domain keeps to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from research.synth.raster import Array, Mask, photometric, to_uint8
from research.synth.types import SynthImage

SMALLEST, LARGEST = 0.01, 0.6  # part of the image that one class covers, where it is there at all
ATTEMPTS = 60


@dataclass
class Scene:
    """canvas: float (H, W, 3) in 0..1; masks: bool (H, W) of each class asked for."""

    canvas: Array
    masks: dict[str, Mask]


def finished(
    draw: Callable[[np.random.Generator], Scene],
    names: Sequence[str],
    *,
    domain: str,
    seed: int,
    rng: np.random.Generator,
    accidents: float = 1.0,
    grey: bool = False,
) -> SynthImage:
    """The first scene that `draw` makes from `rng` in which each class has an allowed size, photographed.

    accidents: strength of the photometric finish; grey: it adds no colour. Raises RuntimeError where no scene fits.
    """
    for _ in range(ATTEMPTS):
        scene = draw(rng)
        if all(SMALLEST <= scene.masks[name].mean() <= LARGEST for name in names):
            image = to_uint8(photometric(rng, scene.canvas, strength=accidents, grey=grey))
            return SynthImage(image, {name: scene.masks[name] for name in names}, domain, seed)
    raise RuntimeError(f"No scene of {domain} with {', '.join(names)} came out at seed {seed}.")
