"""The domain "cells": microscopy with many instances of the classes "round cell" and "rod cell".

Stain, magnification, crowding and focus differ between images; round cells have a nucleus and a membrane, rods are
thin, bent and often in chains. Debris, bubbles and cells out of focus look alike and belong to no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from research.synth.raster import Array, Mask, extent, grid, hsv, smooth_noise
from research.synth.scenes import Scene, finished
from research.synth.types import SynthImage

DOMAIN = "cells"
CLASSES = ("round cell", "rod cell")


def generate(names: Sequence[str], *, seed: int, size: tuple[int, int], avoid: Sequence[str] = ()) -> SynthImage:
    """A field of view with cells of each class in `names`; the other class may be there unless in `avoid`."""
    rng = np.random.default_rng([seed, 14])
    return finished(
        lambda r: _scene(r, tuple(names), tuple(avoid), size),
        names,
        domain=DOMAIN,
        seed=seed,
        rng=rng,
        accidents=float(rng.uniform(0.3, 0.8)),
    )


@dataclass(frozen=True)
class _Stain:
    """Colours of one image, float32 (3,): background, cytoplasm, nucleus, rods."""

    background: Array
    cytoplasm: Array
    nucleus: Array
    rod: Array


def _stain(rng: np.random.Generator) -> _Stain:
    hue = rng.uniform(0.72, 0.98) if rng.random() < 0.7 else rng.uniform(0.45, 0.7)
    if rng.random() < 0.12:  # dark field
        return _Stain(
            background=hsv(hue, 0.4, rng.uniform(0.03, 0.12)),
            cytoplasm=hsv(hue + rng.normal(0, 0.03), rng.uniform(0.3, 0.7), rng.uniform(0.35, 0.55)),
            nucleus=hsv(hue + rng.normal(0, 0.05), rng.uniform(0.2, 0.6), rng.uniform(0.7, 0.95)),
            rod=hsv(hue + rng.normal(0, 0.1), rng.uniform(0.3, 0.7), rng.uniform(0.6, 0.9)),
        )
    return _Stain(
        background=hsv(hue + rng.normal(0, 0.05), rng.uniform(0.02, 0.16), rng.uniform(0.82, 0.97)),
        cytoplasm=hsv(hue + rng.normal(0, 0.03), rng.uniform(0.15, 0.4), rng.uniform(0.65, 0.88)),
        nucleus=hsv(hue + rng.normal(0, 0.04), rng.uniform(0.4, 0.8), rng.uniform(0.25, 0.6)),
        rod=hsv(hue + rng.normal(0, 0.08), rng.uniform(0.4, 0.85), rng.uniform(0.25, 0.6)),
    )


def _scene(rng: np.random.Generator, names: tuple[str, ...], avoid: tuple[str, ...], size: tuple[int, int]) -> Scene:
    stain = _stain(rng)
    shade = 1 + np.float32(0.03) * smooth_noise(rng, size, 3) + np.float32(0.015) * smooth_noise(rng, size, 30)
    canvas = stain.background * shade[..., None]
    masks: dict[str, Mask] = {name: np.zeros(size, dtype=bool) for name in CLASSES}
    cells = grid(size)
    rough = smooth_noise(rng, size, 24)
    radius = float(np.exp(rng.uniform(np.log(0.03), np.log(0.1))))

    _debris(rng, canvas, cells, stain, size)
    shown = [name for name in CLASSES if name in names or (name not in avoid and rng.random() < 0.35)]
    for name in shown:
        cover = float(np.exp(rng.uniform(np.log(0.03), np.log(0.45)))) / len(shown)
        if name == "round cell":
            count = int(np.clip(cover / (np.pi * radius**2), 2, 45))
            for _ in range(count):
                covered = _round_cell(rng, canvas, cells, stain, radius, rough, size)
                _lay(masks, name, covered)
        else:
            length = radius * rng.uniform(0.8, 1.6)
            breadth = length * rng.uniform(0.2, 0.32)
            count = int(np.clip(0.7 * cover / (4 * length * breadth), 3, 40))
            for _ in range(count):
                _lay(masks, name, _rod_cell(rng, canvas, cells, stain, length, breadth, size))
    return Scene(canvas, {name: masks[name] for name in names})


def _lay(masks: dict[str, Mask], name: str, covered: tuple[tuple[slice, slice], Mask]) -> None:
    """Give the pixels to this class and take them from the other: the last cell laid lies on top."""
    window, inside = covered
    for other, mask in masks.items():
        mask[window] = mask[window] | inside if other == name else mask[window] & ~inside


def _window(cells: tuple[Array, Array], x: float, y: float, reach: float) -> tuple[slice, slice]:
    rows = np.flatnonzero(np.abs(cells[1][:, 0] - y) <= reach)
    columns = np.flatnonzero(np.abs(cells[0][0] - x) <= reach)
    if not len(rows) or not len(columns):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _place(rng: np.random.Generator, size: tuple[int, int]) -> tuple[float, float]:
    height, width = extent(size)
    return float(rng.uniform(0, width)), float(rng.uniform(0, height))


def _round_cell(
    rng: np.random.Generator,
    canvas: Array,
    cells: tuple[Array, Array],
    stain: _Stain,
    radius: float,
    rough: Array,
    size: tuple[int, int],
) -> tuple[tuple[slice, slice], Mask]:
    x, y = _place(rng, size)
    own = radius * float(np.exp(rng.normal(0, 0.18)))
    window = _window(cells, x, y, 1.6 * own)
    dx, dy = cells[0][window] - np.float32(x), cells[1][window] - np.float32(y)
    turn, stretch = rng.uniform(0, np.pi), float(np.exp(rng.normal(0, 0.12)))
    u, v = (np.cos(turn) * dx + np.sin(turn) * dy) * stretch, (np.cos(turn) * dy - np.sin(turn) * dx) / stretch
    angle = np.arctan2(v, u)
    wobble = 1 + 0.07 * np.cos(2 * angle + rng.uniform(0, 6)) + 0.05 * np.cos(3 * angle + rng.uniform(0, 6))
    field = (np.hypot(u, v) / np.float32(own) - wobble).astype(np.float32)
    inside = field < 0
    pixel = float(cells[0][0, 1] - cells[0][0, 0])
    alpha = np.clip(0.5 - field * np.float32(own / pixel), 0, 1)

    tint = np.float32(rng.uniform(0.85, 1.12))
    colour = stain.cytoplasm * tint * (1 + 0.05 * rough[window])[..., None]
    rim = np.exp(-((field / np.float32(0.12)) ** 2)) * np.float32(0.35)
    colour = colour + (stain.nucleus - colour) * rim[..., None]
    away = own * 0.25
    core = np.hypot(u - rng.normal(0, away), v - rng.normal(0, away)) / np.float32(own * rng.uniform(0.35, 0.6))
    weight = 1 / (1 + np.exp(np.clip((core - 1) * 9, -30, 30)))
    nucleus = stain.nucleus * tint * (1 + 0.12 * rough[window])[..., None]
    colour = colour + (nucleus - colour) * weight[..., None]
    canvas[window] += (colour - canvas[window]) * (alpha * np.float32(rng.uniform(0.8, 1.0)))[..., None]
    return window, inside


def _rod_cell(
    rng: np.random.Generator,
    canvas: Array,
    cells: tuple[Array, Array],
    stain: _Stain,
    length: float,
    breadth: float,
    size: tuple[int, int],
) -> tuple[tuple[slice, slice], Mask]:
    x, y = _place(rng, size)
    own = length * float(np.exp(rng.normal(0, 0.2)))
    window = _window(cells, x, y, own + 2 * breadth)
    dx, dy = cells[0][window] - np.float32(x), cells[1][window] - np.float32(y)
    turn = rng.uniform(0, np.pi)
    u, v = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
    v = v + np.float32(rng.normal(0, 0.25) / own) * u**2
    distance = np.hypot(np.maximum(np.abs(u) - np.float32(own), 0), v)
    field = (distance - np.float32(breadth)).astype(np.float32)
    pixel = float(cells[0][0, 1] - cells[0][0, 0])
    alpha = np.clip(0.5 - field / np.float32(pixel), 0, 1)
    light = 1 + 0.35 * np.clip(1 - distance / np.float32(breadth), 0, 1)
    if rng.random() < 0.4:  # about to divide
        light = light - 0.3 * np.exp(-((u / np.float32(0.4 * breadth)) ** 2))
    colour = stain.rod * np.float32(rng.uniform(0.85, 1.15)) * light[..., None]
    canvas[window] += (colour - canvas[window]) * alpha[..., None]
    return window, field < 0


def _debris(
    rng: np.random.Generator, canvas: Array, cells: tuple[Array, Array], stain: _Stain, size: tuple[int, int]
) -> None:
    """Bubbles (bright rings), crumbs and pale cells out of focus, painted into the canvas."""
    for _ in range(int(rng.integers(2, 10))):
        x, y = _place(rng, size)
        radius = float(np.exp(rng.uniform(np.log(0.008), np.log(0.06))))
        window = _window(cells, x, y, 2.2 * radius)
        distance = np.hypot(cells[0][window] - x, cells[1][window] - y) / np.float32(radius)
        kind = rng.integers(3)
        if kind == 0:
            weight = 0.5 * np.exp(-(((distance - 1) / 0.15) ** 2))
            colour = np.float32(1.0) - stain.background * np.float32(0.3)
        elif kind == 1:
            weight = 0.6 * np.clip((1 - distance * rng.uniform(2, 4)) * 3, 0, 1)
            colour = hsv(rng.random(), 0.3, rng.uniform(0.1, 0.6))
        else:
            weight = 0.3 * np.exp(-(distance**2))
            colour = stain.cytoplasm
        canvas[window] += (colour - canvas[window]) * weight.astype(np.float32)[..., None]
