"""Forms as implicit functions: `SHAPES[name](u, v, knob)` is negative inside, positive outside.

u and v are float32 arrays in the object's own frame, where every form has a radius of about 1; the value
grows by about 1 per unit of length near the outline. `knob` in 0..1 is one degree of freedom of the form
(how pointed, how thick, how many lobes) that differs between the instances of a class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from research.synth.raster import Array

Shape = Callable[[Array, Array, float], Array]


def _polar(u: Array, v: Array) -> tuple[Array, Array]:
    return np.hypot(u, v), np.arctan2(v, u)


def _disc(u: Array, v: Array, knob: float) -> Array:
    return np.hypot(u, v * np.float32(0.85 + 0.4 * knob)) - np.float32(1.0)


def _square(u: Array, v: Array, knob: float) -> Array:
    power = np.float32(3.0 + 9.0 * knob)
    return (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power) - np.float32(0.9)


def _polygon(u: Array, v: Array, sides: int, rounding: float) -> Array:
    radius, angle = _polar(u, v)
    sector = 2 * np.pi / sides
    folded = np.mod(angle, np.float32(sector)) - np.float32(sector / 2)
    return radius * np.cos(folded) * np.float32(1 - rounding) + radius * np.float32(rounding) - np.float32(0.8)


def _triangle(u: Array, v: Array, knob: float) -> Array:
    return _polygon(u, v, 3, 0.05 + 0.25 * knob)


def _hexagon(u: Array, v: Array, knob: float) -> Array:
    return _polygon(u, v, 6, 0.25 * knob)


def _star(u: Array, v: Array, knob: float) -> Array:
    radius, angle = _polar(u, v)
    wave = np.abs(np.mod(angle * np.float32(5 / (2 * np.pi)), 1.0) * 2 - 1)
    depth = np.float32(0.42 + 0.2 * knob)
    return radius - (1 - depth * wave) * np.float32(1.15)


def _flower(u: Array, v: Array, knob: float) -> Array:
    radius, angle = _polar(u, v)
    petals = 5 + int(knob * 3.99)
    return radius - (np.float32(0.72) + np.float32(0.38) * np.abs(np.cos(angle * np.float32(petals / 2))))


def _gear(u: Array, v: Array, knob: float) -> Array:
    radius, angle = _polar(u, v)
    teeth = 8 + int(knob * 4.99)
    return radius - (np.float32(0.9) + np.float32(0.15) * np.tanh(4 * np.sin(angle * np.float32(teeth))))


def _ring(u: Array, v: Array, knob: float) -> Array:
    return np.abs(np.hypot(u, v) - np.float32(0.75)) - np.float32(0.2 + 0.14 * knob)


def _crescent(u: Array, v: Array, knob: float) -> Array:
    outer = np.hypot(u, v) - np.float32(1.0)
    bite = np.hypot(u - np.float32(0.42 + 0.2 * knob), v) - np.float32(0.78)
    return np.maximum(outer, -bite)


def _cross(u: Array, v: Array, knob: float) -> Array:
    thick = np.float32(0.3 + 0.14 * knob)
    return np.minimum(
        np.maximum(np.abs(u) - thick, np.abs(v) - np.float32(1.0)),
        np.maximum(np.abs(v) - thick, np.abs(u) - np.float32(1.0)),
    )


def _bar(u: Array, v: Array, knob: float) -> Array:
    along = np.maximum(np.abs(u) - np.float32(1.0), 0.0)
    return np.hypot(along, v) - np.float32(0.26 + 0.14 * knob)


def _heart(u: Array, v: Array, knob: float) -> Array:
    radius, angle = _polar(u, v + np.float32(0.25))
    turned = np.abs(np.mod(angle + np.float32(1.5 * np.pi), np.float32(2 * np.pi)) / np.float32(np.pi) - 1)
    return radius - np.float32(1.25) * (1 - np.float32(0.6 - 0.15 * knob) * (turned**0.7)) * (
        1 - np.float32(0.28) * np.exp(-((1 - turned) ** 2) * 40)
    )


def _drop(u: Array, v: Array, knob: float) -> Array:
    taper = np.clip((u + np.float32(1.3)) / np.float32(2.2), 0.0, 1.0)
    width = np.float32(0.75 + 0.25 * knob) * taper ** np.float32(0.9) * np.sqrt(np.clip(1 - taper**6, 0, 1))
    return np.maximum(np.abs(v) - width, np.abs(u + np.float32(0.2)) - np.float32(1.1))


def _leaf(u: Array, v: Array, knob: float) -> Array:
    offset = np.float32(0.55 + 0.35 * knob)
    radius = np.float32(np.sqrt(1.2**2 + offset**2))
    return np.maximum(np.hypot(u, v - offset), np.hypot(u, v + offset)) - radius


def _arch(u: Array, v: Array, knob: float) -> Array:
    thick = np.float32(0.2 + 0.12 * knob)
    bow = np.abs(np.hypot(u, v) - np.float32(0.8)) - thick
    legs = np.maximum(np.abs(np.abs(u) - np.float32(0.8)) - thick, np.abs(v - np.float32(0.45)) - np.float32(0.45))
    return np.minimum(np.maximum(bow, v), legs)


SHAPES: dict[str, Shape] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "hexagon": _hexagon,
    "star": _star,
    "flower": _flower,
    "gear": _gear,
    "ring": _ring,
    "crescent": _crescent,
    "cross": _cross,
    "bar": _bar,
    "heart": _heart,
    "drop": _drop,
    "leaf": _leaf,
    "arch": _arch,
}
