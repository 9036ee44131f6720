"""The domain "lesions": skin through a dermoscope. One class with a soft, irregular border.

Lesions differ in pigment (brown, black, red, blue-grey), structure (even, net, globules, two tones), size and
border. Freckles, hair, gel bubbles, vignetting and ruler marks are there with and without a lesion.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from research.synth.raster import Array, Mask, blurred, extent, grid, hsv, mix, smooth_noise
from research.synth.scenes import Scene, finished
from research.synth.types import SynthImage

DOMAIN = "lesions"
CLASSES = ("lesion",)


def generate(names: Sequence[str], *, seed: int, size: tuple[int, int], avoid: Sequence[str] = ()) -> SynthImage:
    """Skin with one lesion, or with none where `names` is empty."""
    rng = np.random.default_rng([seed, 11])
    draw = partial(_scene, with_lesion=bool(names), size=size)
    return finished(draw, names, domain=DOMAIN, seed=seed, rng=rng, accidents=0.7)


def _scene(rng: np.random.Generator, *, with_lesion: bool, size: tuple[int, int]) -> Scene:
    skin = hsv(rng.uniform(0.0, 0.07), rng.uniform(0.2, 0.6), rng.uniform(0.55, 0.97))
    canvas = np.broadcast_to(skin, (*size, 3)).copy()
    canvas *= (1 + np.float32(0.04) * smooth_noise(rng, size, 3))[..., None]
    canvas *= (1 + np.float32(rng.uniform(0.01, 0.05)) * smooth_noise(rng, size, 45, octaves=2))[..., None]

    for _ in range(int(rng.integers(0, 5))):
        canvas = _freckle(rng, canvas, skin, size)
    masks: dict[str, Mask] = {}
    if with_lesion:
        lesion = _blob(rng, size, float(np.exp(rng.uniform(np.log(0.015), np.log(0.58)))), 0.22)
        canvas = _pigmented(rng, canvas, lesion, skin, size, strength=float(rng.uniform(0.55, 1.0)))
        masks["lesion"] = lesion < 0

    if rng.random() < 0.45:
        canvas = _hairs(rng, canvas, size)
    if rng.random() < 0.25:
        canvas = _bubbles(rng, canvas, size)
    if rng.random() < 0.2:
        canvas = _ruler(canvas, size)
    return Scene(_vignetted(rng, canvas, size), masks)


def _freckle(rng: np.random.Generator, canvas: Array, skin: Array, size: tuple[int, int]) -> Array:
    """A small even spot without structure or border: no lesion."""
    x, y = grid(size)
    height, width = extent(size)
    radius = np.exp(rng.uniform(np.log(0.008), np.log(0.03)))
    u = (x - rng.uniform(0, 1) * width) * np.float32(np.exp(rng.normal(0, 0.2)) / radius)
    v = (y - rng.uniform(0, 1) * height) / np.float32(radius)
    tone = skin * hsv(rng.uniform(-0.03, 0.06), rng.uniform(0.2, 0.6), rng.uniform(0.5, 0.8))
    return mix(canvas, tone, np.exp(-(u**2 + v**2)).astype(np.float32) * np.float32(rng.uniform(0.3, 0.8)))


def _blob(rng: np.random.Generator, size: tuple[int, int], area: float, roughness: float) -> Array:
    """An irregular form as a field (H, W): negative inside, in units of sqrt(H * W) near the border."""
    x, y = grid(size)
    height, width = extent(size)
    radius = float(np.sqrt(area / np.pi))
    margin = min(0.45, 0.15 + 0.5 * radius)
    centre = rng.uniform(margin, 1 - margin, 2) * [width, height]
    turn, stretch = rng.uniform(0, np.pi), float(np.exp(rng.uniform(-0.3, 0.3)))
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u = (np.cos(turn) * dx + np.sin(turn) * dy) * np.float32(stretch**0.5)
    v = (np.cos(turn) * dy - np.sin(turn) * dx) / np.float32(stretch**0.5)
    angle = np.arctan2(v, u)
    turns = np.linspace(-np.pi, np.pi, 512)
    waves = np.ones(512)
    for order in (2, 3, 4, 5, 7, 9):
        waves += roughness / order * rng.normal() * np.cos(order * turns + rng.uniform(0, 2 * np.pi))
    outline = np.interp(angle, turns, waves).astype(np.float32)
    rough = smooth_noise(rng, size, max(4.0, 1.6 / max(radius, 0.05)), octaves=2)
    return (np.hypot(u, v) - np.float32(radius) * (outline + np.float32(0.25 * roughness) * rough)).astype(np.float32)


def _pigmented(
    rng: np.random.Generator, canvas: Array, field: Array, skin: Array, size: tuple[int, int], *, strength: float
) -> Array:
    """The canvas with pigment where the field is negative, half of it at the border."""
    kind = rng.random()
    if kind < 0.6:
        tone = hsv(rng.uniform(0.02, 0.08), rng.uniform(0.45, 0.85), rng.uniform(0.15, 0.5))
    elif kind < 0.8:
        tone = hsv(rng.uniform(-0.04, 0.03), rng.uniform(0.5, 0.8), rng.uniform(0.45, 0.75))
    else:
        tone = hsv(rng.uniform(0.58, 0.72), rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.5))
    tone = np.minimum(tone, skin * np.float32(0.85))
    second = np.clip(tone * np.float32(rng.uniform(0.4, 1.7)) + np.float32(rng.uniform(-0.05, 0.1)), 0, 1)
    parts = np.clip(0.5 + 0.6 * smooth_noise(rng, size, float(rng.uniform(3, 10))), 0, 1)
    colour = mix(tone, second, parts.astype(np.float32))
    structure = rng.random()
    if structure < 0.35:  # a pigment net
        net = np.abs(smooth_noise(rng, size, float(rng.uniform(18, 34)), octaves=1))
        colour *= (0.75 + 0.35 * np.clip(net, 0, 1))[..., None]
    elif structure < 0.6:  # globules
        globules = smooth_noise(rng, size, float(rng.uniform(14, 30)), octaves=1) > 1.0
        colour *= (1 - 0.4 * blurred(globules.astype(np.float32), 0.8))[..., None]
    softness = float(np.exp(rng.uniform(np.log(0.006), np.log(0.03))))
    weight = strength / (1 + np.exp(np.clip(field / np.float32(softness), -30, 30)))
    return mix(canvas, colour, weight.astype(np.float32))


def _hairs(rng: np.random.Generator, canvas: Array, size: tuple[int, int]) -> Array:
    height, width = size
    layer = Image.new("L", (width * 2, height * 2))
    pen = ImageDraw.Draw(layer)
    direction = rng.uniform(0, np.pi)
    for _ in range(int(rng.integers(3, 16))):
        turn = direction + rng.normal(0, 0.5)
        middle = rng.uniform(0, 1, 2) * [width * 2, height * 2]
        reach = np.array([np.cos(turn), np.sin(turn)]) * rng.uniform(0.2, 0.9) * max(size)
        bow = np.array([-np.sin(turn), np.cos(turn)]) * rng.normal(0, 0.12) * max(size)
        t = np.linspace(-1, 1, 16)[:, None]
        points = middle + t * reach + (1 - t**2) * bow
        pen.line([(float(px), float(py)) for px, py in points], fill=255, width=int(rng.integers(1, 4)))
    weight = np.asarray(layer.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
    colour = hsv(rng.uniform(0.03, 0.1), rng.uniform(0.2, 0.6), rng.uniform(0.05, 0.4))
    return mix(canvas, colour, weight * np.float32(rng.uniform(0.6, 0.95)))


def _bubbles(rng: np.random.Generator, canvas: Array, size: tuple[int, int]) -> Array:
    x, y = grid(size)
    height, width = extent(size)
    for _ in range(int(rng.integers(1, 7))):
        radius = float(rng.uniform(0.012, 0.05))
        distance = np.hypot(x - rng.uniform(0, 1) * width, y - rng.uniform(0, 1) * height) / radius
        rim = np.exp(-(((distance - 1) / 0.12) ** 2)) * 0.5
        canvas = mix(canvas, np.ones(3, dtype=np.float32), rim.astype(np.float32))
    return canvas


def _ruler(canvas: Array, size: tuple[int, int]) -> Array:
    height, width = size
    step = max(6, width // 24)
    row = height - max(4, height // 24)
    canvas = canvas.copy()
    for number, column in enumerate(range(step, width - 2, step)):
        canvas[row - (height // 30 if number % 5 == 0 else height // 60) : row, column : column + 1] = 0.12
    return canvas


def _vignetted(rng: np.random.Generator, canvas: Array, size: tuple[int, int]) -> Array:
    x, y = grid(size)
    height, width = extent(size)
    distance = np.hypot(x - width / 2, y - height / 2)
    canvas = canvas * (1 - np.float32(rng.uniform(0, 0.6)) * distance**2)[..., None]
    if rng.random() < 0.25:  # the round rim of the instrument
        rim = (distance - np.float32(rng.uniform(0.52, 0.66))) / np.float32(0.012)
        canvas = canvas * np.clip(0.5 - rim, 0.03, 1.0)[..., None]
    return canvas.astype(np.float32)
