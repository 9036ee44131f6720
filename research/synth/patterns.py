"""Surface patterns in an object's own frame: `PATTERNS[name](u, v, noise)` is a field in 0..1.

The field mixes the object's two colours. u and v already carry the instance's frequency and direction
(one unit is one period); `noise` is the instance's own source of irregularity, so that the same instance
shows the same pattern in every frame of a clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from research.synth.raster import Array


@dataclass(frozen=True)
class Noise:
    """A repeatable random field over the plane: table float32 (64, 64) of uniform numbers in 0..1."""

    table: NDArray[np.float32]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Noise:
        """A field of its own from the generator."""
        return cls(rng.random((64, 64), dtype=np.float32))

    def cell(self, i: NDArray[np.int32], j: NDArray[np.int32]) -> Array:
        """The number of the integer cell (i, j), going round at 64."""
        return self.table[i & 63, j & 63]

    def smooth(self, u: Array, v: Array) -> Array:
        """Value noise of one bump per unit, in 0..1."""
        i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
        a, b = u - i, v - j
        a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
        top = self.cell(i, j) * (1 - a) + self.cell(i + 1, j) * a
        bottom = self.cell(i, j + 1) * (1 - a) + self.cell(i + 1, j + 1) * a
        return top * (1 - b) + bottom * b

    def cells(self, u: Array, v: Array) -> tuple[Array, Array, Array]:
        """Nearest and second nearest distance to one random point per unit cell, and the nearest's number."""
        i0, j0 = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
        first = np.full(u.shape, 9.0, dtype=np.float32)
        second = first.copy()
        number = np.zeros(u.shape, dtype=np.float32)
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                i, j = i0 + di, j0 + dj
                distance = np.hypot(i + self.cell(i, j) - u, j + self.cell(i + 17, j + 5) - v)
                nearer = distance < first
                second = np.where(nearer, first, np.minimum(second, distance))
                number = np.where(nearer, self.cell(i + 31, j + 47), number)
                first = np.where(nearer, distance, first)
        return first, second, number


Pattern = Callable[[Array, Array, Noise], Array]


def _step(field: Array, sharpness: float = 6.0) -> Array:
    return np.clip(field * np.float32(sharpness) + 0.5, 0.0, 1.0)


def _plain(u: Array, v: Array, noise: Noise) -> Array:
    return 0.25 * noise.smooth(u * 0.5, v * 0.5)


def _striped(u: Array, v: Array, noise: Noise) -> Array:
    return _step(np.sin(2 * np.pi * (u + 0.25 * noise.smooth(u * 0.4, v * 0.4))), 1.5)


def _checked(u: Array, v: Array, noise: Noise) -> Array:
    return _step(np.sin(np.pi * u) * np.sin(np.pi * v), 4.0)


def _dotted(u: Array, v: Array, noise: Noise) -> Array:
    i, j = np.floor(u), np.floor(v)
    radius = 0.22 + 0.14 * noise.cell(i.astype(np.int32), j.astype(np.int32))
    return _step(radius - np.hypot(u - i - 0.5, v - j - 0.5), 8.0)


def _marbled(u: Array, v: Array, noise: Noise) -> Array:
    bend = noise.smooth(u * 0.6, v * 0.6) * 2.2 + noise.smooth(u * 1.4 + 9, v * 1.4) * 0.8
    return 0.5 + 0.5 * np.sin(2 * np.pi * (0.35 * u + bend))


def _grained(u: Array, v: Array, noise: Noise) -> Array:
    return np.clip(1.6 * noise.smooth(u * 3.0, v * 3.0) - 0.3, 0.0, 1.0)


def _cracked(u: Array, v: Array, noise: Noise) -> Array:
    first, second, _ = noise.cells(u, v)
    return _step(0.12 - (second - first), 8.0)


def _patchy(u: Array, v: Array, noise: Noise) -> Array:
    return noise.cells(u * 0.8, v * 0.8)[2]


def _zigzag(u: Array, v: Array, noise: Noise) -> Array:
    fold = np.abs(np.mod(v * 0.7, 1.0) * 2 - 1)
    return _step(np.sin(2 * np.pi * (u + 0.7 * fold)), 1.5)


def _woven(u: Array, v: Array, noise: Noise) -> Array:
    over = np.mod(np.floor(u) + np.floor(v), 2)
    along = np.where(over > 0, np.mod(u, 1.0), np.mod(v, 1.0))
    return 1 - np.abs(along * 2 - 1)


def _scaled(u: Array, v: Array, noise: Noise) -> Array:
    row = np.floor(v * 1.2)
    shifted = u + 0.5 * np.mod(row, 2)
    a, b = np.mod(shifted, 1.0) - 0.5, np.mod(v * 1.2, 1.0)
    return np.clip(np.hypot(a * 1.4, b) * 1.1 - 0.1, 0.0, 1.0)


def _bricked(u: Array, v: Array, noise: Noise) -> Array:
    row = np.floor(v * 1.5)
    a, b = np.mod(u * 0.8 + 0.5 * np.mod(row, 2), 1.0), np.mod(v * 1.5, 1.0)
    return _step(0.08 - np.minimum(np.minimum(a, 1 - a), np.minimum(b, 1 - b)), 12.0)


PATTERNS: dict[str, Pattern] = {
    "plain": _plain,
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "marbled": _marbled,
    "grained": _grained,
    "cracked": _cracked,
    "patchy": _patchy,
    "zigzag": _zigzag,
    "woven": _woven,
    "scaled": _scaled,
    "bricked": _bricked,
}
