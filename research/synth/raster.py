"""Small numeric tools the generators share: pixel grids, smooth noise, colours, photometric finish.

Images are float32 (H, W, 3) in 0..1 until `to_uint8`. Lengths are in units of sqrt(H * W), so that the
area of a form in these units is its fraction of the image, whatever the image's size and aspect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating[Any]]  # float32 in practice
Mask = NDArray[np.bool_]


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels from an int (square) or a pair; at least 32 each."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 32:
        raise ValueError(f"A synthetic image needs at least 32 pixels a side, got {height} x {width}.")
    return int(height), int(width)


def grid(size: tuple[int, int]) -> tuple[Array, Array]:
    """x and y of the pixel centres, each float32 (H, W), origin at the image's top left corner."""
    height, width = size
    unit = np.float32(1.0 / np.sqrt(height * width))
    x = (np.arange(width, dtype=np.float32) + 0.5) * unit
    y = (np.arange(height, dtype=np.float32) + 0.5) * unit
    grid_x, grid_y = np.meshgrid(x, y)
    return grid_x, grid_y


def extent(size: tuple[int, int]) -> tuple[float, float]:
    """Height and width of the image in its own length unit (1, 1 for a square one)."""
    height, width = size
    return float(np.sqrt(height / width)), float(np.sqrt(width / height))


def resized(array: NDArray, size: tuple[int, int]) -> Array:
    """float32 (h, w) interpolated bicubically to `size`."""
    image = Image.fromarray(np.asarray(array, dtype=np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC), dtype=np.float32)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: float, octaves: int = 3) -> Array:
    """Noise of zero mean and unit deviation, float32 (H, W); `cells` bumps along the shorter side."""
    total = np.zeros(size, dtype=np.float32)
    shorter = min(size)
    for octave in range(octaves):
        count = cells * 2**octave
        if octave and count > shorter / 2:
            break
        small = (max(2, round(count * size[0] / shorter) + 1), max(2, round(count * size[1] / shorter) + 1))
        total += resized(rng.standard_normal(small), size) * np.float32(0.55**octave)
    total -= total.mean()
    return total / np.float32(max(float(total.std()), 1e-6))


def blurred(image: Array, radius: float) -> Array:
    """Gaussian blur of float32 (H, W) or (H, W, C), sigma in pixels; untouched for a radius under 0.2."""
    from scipy.ndimage import gaussian_filter

    if radius < 0.2:
        return image
    sigma = (radius, radius, 0.0)[: image.ndim]
    return gaussian_filter(image, sigma, truncate=2.5, mode="nearest")


def hsv(hue: float, saturation: float, value: float) -> Array:
    """One colour, float32 (3,) in 0..1; the hue goes round at 1."""
    hue = (hue % 1.0) * 6.0
    channel = (np.array([5.0, 3.0, 1.0]) + hue) % 6.0
    rgb = value - value * saturation * np.clip(np.minimum(channel, 4.0 - channel), 0.0, 1.0)
    return rgb.astype(np.float32)


def mix(a: Array, b: Array, weight: Array) -> Array:
    """a * (1 - weight) + b * weight, where a and b are colours (3,) or images (H, W, 3), weight (H, W)."""
    return a + (b - a) * weight[..., None]


def photometric(rng: np.random.Generator, image: Array, *, strength: float = 1.0, grey: bool = False) -> Array:
    """A photograph's accidents: exposure, gamma, colour cast (not if `grey`), blur and noise; float32 (H, W, 3)."""
    image = np.clip(image, 0.0, 1.0)
    image = image ** np.float32(np.exp(rng.uniform(-0.35, 0.35) * strength))
    cast = 1.0 + rng.uniform(-0.1, 0.1, 3) * (0.0 if grey else strength)
    image = image * (cast * rng.uniform(1 - 0.2 * strength, 1 + 0.1 * strength)).astype(np.float32)
    if rng.random() < 0.3 * strength:
        image = blurred(image, float(rng.uniform(0.4, 1.1)))
    sigma = float(rng.uniform(0.004, 0.02)) * strength
    shape = (*image.shape[:2], 1) if grey else image.shape
    return image + rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)


def to_uint8(image: Array) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) from 0..1, clipped and rounded."""
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
