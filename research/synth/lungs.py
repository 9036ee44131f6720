"""The domain "lungs": chest films. One class of two dark components of low contrast.

Patients differ in build, posture, exposure and inspiration, films in zoom and burned-in marks. A film without the
class shows a belly: spine, pelvis and dark gas that looks alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from research.synth.raster import Array, Mask, blurred, extent, grid, smooth_noise
from research.synth.scenes import Scene, finished
from research.synth.types import SynthImage

DOMAIN = "lungs"
CLASSES = ("lung",)


def generate(names: Sequence[str], *, seed: int, size: tuple[int, int], avoid: Sequence[str] = ()) -> SynthImage:
    """A chest film with both lungs, or a film of the belly where `names` is empty."""
    rng = np.random.default_rng([seed, 12])
    draw = _chest if names else _belly
    accidents = float(rng.uniform(0.2, 0.6))
    return finished(lambda r: draw(r, size), names, domain=DOMAIN, seed=seed, rng=rng, accidents=accidents, grey=True)


def _body(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Coordinates of the body (0, 0 in its middle, about -1..1) and a film of soft tissue, each (H, W)."""
    x, y = grid(size)
    height, width = extent(size)
    zoom = float(np.exp(rng.uniform(np.log(0.75), np.log(2.0)))) * 0.5
    turn = rng.normal(0, 0.06)
    dx = x - np.float32(width * (0.5 + rng.normal(0, 0.05)))
    dy = y - np.float32(height * (0.5 + rng.normal(0, 0.05)))
    u = ((np.cos(turn) * dx + np.sin(turn) * dy) / (zoom * rng.uniform(0.9, 1.15))).astype(np.float32)
    v = ((np.cos(turn) * dy - np.sin(turn) * dx) / zoom).astype(np.float32)
    u = u + np.float32(0.04) * np.sin(np.float32(rng.uniform(1, 3)) * v + np.float32(rng.uniform(0, 6)))
    inside = 1 / (1 + np.exp(np.clip((np.abs(u) ** 3 + np.abs(v * 0.72) ** 5 - 1.15) * 9, -30, 30)))
    film = np.float32(rng.uniform(0.02, 0.12)) + inside * np.float32(rng.uniform(0.45, 0.65))
    film += np.float32(0.03) * smooth_noise(rng, size, 4)
    return u, v, film.astype(np.float32)


def _chest(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    u, v, film = _body(rng, size)
    lungs, depth = np.zeros(size, dtype=bool), np.full(size, 9.0, dtype=np.float32)
    top, lean = rng.uniform(-0.85, -0.7), rng.uniform(0.3, 0.6)
    for side in (-1, 1):
        base = rng.uniform(0.4, 0.85) + (0.05 if side < 0 else 0.0)
        outer = rng.uniform(0.74, 0.88)
        inner = rng.uniform(0.12, 0.2)
        across = side * u
        along = np.clip((v - top) / (base - top), -0.5, 1.5)
        wall = outer * np.clip(1 - (1 - np.clip(along, 0, 1)) ** (2.2 + lean), 0, 1) ** 0.55
        wall = wall - 0.05 * np.clip(along - 0.6, 0, 1)
        notch = (0.22 if side > 0 else 0.1) * np.exp(-(((v - base + 0.25) / 0.35) ** 2))  # the heart
        dome = base - 0.16 * np.cos((across - 0.45) * 2.6) + 0.16
        field = np.maximum(np.maximum(across - wall, inner + notch - across), np.maximum(top - v, v - dome))
        field = field + np.float32(0.012) * smooth_noise(rng, size, 7, octaves=2)
        lungs |= field < 0
        depth = np.minimum(depth, field)

    contrast = float(rng.uniform(0.16, 0.4))
    dark = 1 / (1 + np.exp(np.clip(depth / np.float32(rng.uniform(0.012, 0.04)), -30, 30)))
    vessels = np.clip(smooth_noise(rng, size, 14, octaves=3), 0, 2) * 0.06
    film = film - (contrast - vessels * contrast / 0.3) * dark
    film += 0.2 * np.exp(-((u / 0.09) ** 2)) * (0.8 + 0.2 * np.sin(v * 38))  # spine
    heart = np.exp(-(((u - 0.14) / 0.22) ** 2) - ((v - 0.35) / 0.3) ** 2)
    film += 0.1 * heart
    film += _ribs(rng, u, v) * np.float32(rng.uniform(0.03, 0.1))
    if rng.random() < 0.3:  # a shadow in a lung: still lung
        spot = np.hypot(u - rng.choice([-0.45, 0.45]), v - rng.uniform(-0.4, 0.3)) / rng.uniform(0.08, 0.2)
        film += 0.12 * np.exp(-(spot**2))
    return Scene(_film(rng, film, size), {"lung": lungs})


def _belly(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    u, v, film = _body(rng, size)
    film += 0.22 * np.exp(-((u / 0.1) ** 2)) * (0.8 + 0.2 * np.sin(v * 30))
    basin = (np.hypot(u / 0.8, (v - 0.35) / 0.5) - 1) / 0.12
    film += 0.2 * np.exp(-(basin**2)) / (1 + np.exp(np.clip((0.4 - v) * 20, -30, 30)))
    for _ in range(int(rng.integers(3, 9))):  # gas
        across = (u - rng.uniform(-0.7, 0.7)) / rng.uniform(0.07, 0.22)
        along = (v - rng.uniform(-0.6, 0.5)) / rng.uniform(0.05, 0.12)
        distance = np.hypot(across, along) + 0.15 * smooth_noise(rng, size, 9, octaves=1)
        film -= np.float32(rng.uniform(0.08, 0.25)) / (1 + np.exp(np.clip((distance - 1) * 9, -30, 30)))
    masks: dict[str, Mask] = {}
    return Scene(_film(rng, film, size), masks)


def _ribs(rng: np.random.Generator, u: Array, v: Array) -> Array:
    spacing = rng.uniform(0.13, 0.19)
    slope = rng.uniform(0.15, 0.4)
    height = v + slope * np.abs(u) ** 1.5 - rng.uniform(0, 0.2)
    band = np.cos(2 * np.pi * height / spacing)
    return (np.clip(band - 0.2, 0, 1) * (np.abs(u) > 0.12) * (np.abs(u) < 0.9) * (v < 0.8)).astype(np.float32)


def _film(rng: np.random.Generator, film: Array, size: tuple[int, int]) -> Array:
    """Grey (H, W, 3), blurred like a film, with a burned-in letter of the side in some."""
    film = blurred(film.astype(np.float32), float(rng.uniform(0.3, 0.9)))
    if rng.random() < 0.4:
        height, width = size
        row, column = height // 20, width // 20 if rng.random() < 0.5 else width - width // 10
        film[row : row + height // 20, column : column + max(1, width // 90)] = 0.95
        film[row + height // 20 : row + height // 20 + max(1, height // 90), column : column + width // 30] = 0.95
    return np.repeat(film[..., None], 3, axis=2)
