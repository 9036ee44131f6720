"""The domain "satellite": land from above. Classes "field", "water" and "road", any of which may share an image.

The land is parted into parcels of fields, woods, dry ground and houses, crossed by a river or dotted by lakes and
ponds, and by a net of roads that runs over all of it. Masks do not overlap: a road over a field or a river is road.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from research.synth.raster import Array, Mask, blurred, extent, grid, hsv, mix, smooth_noise
from research.synth.scenes import Scene, finished
from research.synth.types import SynthImage

DOMAIN = "satellite"
CLASSES = ("field", "water", "road")


def generate(names: Sequence[str], *, seed: int, size: tuple[int, int], avoid: Sequence[str] = ()) -> SynthImage:
    """Land with each class in `names`; the others may be in view unless they are in `avoid`."""
    rng = np.random.default_rng([seed, 13])
    return finished(
        lambda r: _scene(r, tuple(names), tuple(avoid), size),
        names,
        domain=DOMAIN,
        seed=seed,
        rng=rng,
        accidents=float(rng.uniform(0.3, 0.9)),
    )


def _scene(rng: np.random.Generator, names: tuple[str, ...], avoid: tuple[str, ...], size: tuple[int, int]) -> Scene:
    shown = {name for name in CLASSES if name in names or (name not in avoid and rng.random() < 0.4)}
    canvas, fields = _land(rng, size, "field" in shown)
    masks: dict[str, Mask] = {"field": fields, "water": np.zeros(size, dtype=bool), "road": np.zeros(size, dtype=bool)}
    if "water" in shown:
        depth = _river(rng, size) if rng.random() < 0.5 else _lakes(rng, size)
        canvas = _flooded(rng, canvas, depth, size)
        masks["water"] = depth < 0
    if "road" in shown:
        masks["road"] = _roads(rng, size)
        canvas = _paved(rng, canvas, masks["road"], size)
    masks["water"] &= ~masks["road"]
    masks["field"] &= ~(masks["road"] | masks["water"])
    if rng.random() < 0.25:
        canvas = _hazed(rng, canvas, size)
    return Scene(canvas, {name: masks[name] for name in names})


def _land(rng: np.random.Generator, size: tuple[int, int], with_fields: bool) -> tuple[Array, Mask]:
    """float32 (H, W, 3) of parcels and the bool (H, W) of those that are fields."""
    x, y = grid(size)
    height, width = extent(size)
    count = int(rng.integers(6, 18))
    turn = rng.uniform(0, np.pi)
    u = np.cos(turn) * x + np.sin(turn) * y + np.float32(0.01) * smooth_noise(rng, size, 6)
    v = np.cos(turn) * y - np.sin(turn) * x + np.float32(0.01) * smooth_noise(rng, size, 6)
    places = rng.uniform(-0.05, 1.05, (count, 2)) * [width, height]
    best: Array = np.full(size, 9.0, dtype=np.float32)
    parcel = np.zeros(size, dtype=np.int32)
    for number, (px, py) in enumerate(places):
        pu, pv = np.cos(turn) * px + np.sin(turn) * py, np.cos(turn) * py - np.sin(turn) * px
        distance = np.maximum(np.abs(u - np.float32(pu)), np.abs(v - np.float32(pv)))  # right-angled parcels
        nearer = distance < best
        parcel[nearer] = number
        best = np.where(nearer, distance, best)

    kinds = rng.choice(["wood", "dry", "houses"], size=count, p=[0.5, 0.3, 0.2])
    if with_fields:
        kinds[rng.permutation(count)[: max(1, round(count * rng.uniform(0.1, 0.6)))]] = "field"
    rough = smooth_noise(rng, size, 40, octaves=2)
    coarse = smooth_noise(rng, size, 8)
    wood = hsv(rng.uniform(0.22, 0.38), rng.uniform(0.25, 0.6), rng.uniform(0.15, 0.4))
    dry = hsv(rng.uniform(0.06, 0.13), rng.uniform(0.15, 0.4), rng.uniform(0.4, 0.75))
    crop = rng.uniform(0.08, 0.3)
    canvas = np.zeros((*size, 3), dtype=np.float32)
    fields = np.zeros(size, dtype=bool)
    for number, kind in enumerate(kinds):
        here = parcel == number
        if not here.any():
            continue
        if kind == "field":
            colour = hsv(crop + rng.normal(0, 0.04), rng.uniform(0.25, 0.6), rng.uniform(0.4, 0.85))
            along = turn + rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.02)
            period = rng.uniform(0.018, 0.045)
            furrow = np.sin((np.cos(along) * x[here] + np.sin(along) * y[here]) * np.float32(2 * np.pi / period))
            canvas[here] = colour * (1 + np.float32(rng.uniform(0.04, 0.14)) * furrow + 0.02 * rough[here])[:, None]
            fields |= here
        elif kind == "wood":
            canvas[here] = wood * (1 + 0.28 * rough[here] + 0.08 * coarse[here])[:, None]
        elif kind == "dry":
            canvas[here] = dry * (1 + 0.06 * rough[here] + 0.1 * coarse[here])[:, None]
        else:
            canvas[here] = _roofs(rng, u[here], v[here], dry)
    return canvas, fields


def _roofs(rng: np.random.Generator, u: Array, v: Array, ground: Array) -> Array:
    pitch = float(rng.uniform(0.03, 0.06))
    i, j = np.floor(u / pitch).astype(np.int64), np.floor(v / pitch).astype(np.int64)
    table = rng.random((32, 32), dtype=np.float32)
    number = table[i & 31, j & 31]
    a, b = np.mod(u / pitch, 1.0), np.mod(v / pitch, 1.0)
    roof = (np.abs(a - 0.5) < 0.2 + 0.15 * number) & (np.abs(b - 0.5) < 0.33 - 0.12 * number) & (number > 0.25)
    tile = hsv(rng.uniform(0, 0.08), rng.uniform(0.1, 0.55), 0.75) * (0.6 + 0.6 * number)[:, None]
    return np.where(roof[:, None], tile, ground * np.float32(0.85))


def _river(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """Signed distance to the bank of a winding river, negative in the water; float32 (H, W)."""
    x, y = grid(size)
    height, width = extent(size)
    turn = rng.uniform(0, np.pi)
    dx, dy = x - np.float32(width * rng.uniform(0.3, 0.7)), y - np.float32(height * rng.uniform(0.3, 0.7))
    along, across = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
    for order in (1, 2, 3):
        phase = rng.uniform(0, 2 * np.pi)
        across = across + np.float32(0.12 / order * rng.normal()) * np.sin(along * np.float32(order * 4) + phase)
    breadth = np.float32(np.exp(rng.uniform(np.log(0.012), np.log(0.13))))
    breadth = breadth * (1 + np.float32(0.25) * np.sin(along * np.float32(5) + rng.uniform(0, 6)))
    return (np.abs(across) - breadth + np.float32(0.006) * smooth_noise(rng, size, 12)).astype(np.float32)


def _lakes(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """Signed field of one to six lakes and ponds, negative in the water; float32 (H, W)."""
    x, y = grid(size)
    height, width = extent(size)
    rough = smooth_noise(rng, size, 5)
    field = np.full(size, 9.0, dtype=np.float32)
    radius = float(np.exp(rng.uniform(np.log(0.06), np.log(0.38))))
    for _ in range(int(rng.integers(1, 7))):
        dx, dy = x - np.float32(rng.uniform(0.1, 0.9) * width), y - np.float32(rng.uniform(0.1, 0.9) * height)
        turn, stretch = rng.uniform(0, np.pi), np.exp(rng.normal(0, 0.4))
        u, v = (np.cos(turn) * dx + np.sin(turn) * dy) * stretch, (np.cos(turn) * dy - np.sin(turn) * dx) / stretch
        field = np.minimum(field, np.hypot(u, v) - np.float32(radius) * (1 + np.float32(0.2) * rough))
        radius *= float(rng.uniform(0.25, 0.8))
    return field.astype(np.float32)


def _flooded(rng: np.random.Generator, canvas: Array, depth: Array, size: tuple[int, int]) -> Array:
    water = hsv(
        rng.choice([rng.uniform(0.45, 0.62), rng.uniform(0.1, 0.2)], p=[0.8, 0.2]),
        rng.uniform(0.2, 0.65),
        rng.uniform(0.12, 0.5),
    )
    surface = water * (1 + np.float32(0.04) * smooth_noise(rng, size, 30, octaves=1))[..., None]
    shore = np.exp(-((depth / np.float32(0.008)) ** 2)) * np.float32(rng.uniform(0, 0.5))
    canvas = mix(canvas, hsv(0.1, 0.25, 0.7), shore.astype(np.float32))
    pixel = np.float32(1 / np.sqrt(size[0] * size[1]))
    return mix(canvas, surface, np.clip(0.5 - depth / pixel, 0, 1).astype(np.float32))


def _roads(rng: np.random.Generator, size: tuple[int, int]) -> Mask:
    """A net of roads, bool (H, W): straight ones in a loose grid and winding ones across."""
    height, width = size
    layer = Image.new("1", (width, height))
    pen = ImageDraw.Draw(layer)
    main = max(2, round(float(np.exp(rng.uniform(np.log(0.012), np.log(0.05)))) * np.sqrt(height * width)))
    turn = rng.uniform(0, np.pi)
    reach = 1.5 * max(size)
    for number in range(int(rng.integers(2, 8))):
        angle = turn + (np.pi / 2 if number % 2 else 0.0) + rng.normal(0, 0.08)
        middle = rng.uniform(0.05, 0.95, 2) * [width, height]
        forward, side = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        t = np.linspace(-1, 1, 60)[:, None]
        bow = rng.normal(0, 0.05) * np.sin(t * rng.uniform(3, 9) + rng.uniform(0, 6)) if rng.random() < 0.6 else 0 * t
        start = 0 if rng.random() < 0.3 and number else -1  # some end at a crossing
        points = middle + np.maximum(t, start) * reach * forward + bow * max(size) * side
        breadth = main if number < 2 else max(2, round(main * rng.uniform(0.4, 1.0)))
        pen.line([(float(px), float(py)) for px, py in points], fill=1, width=breadth, joint="curve")
    return np.array(layer, dtype=bool)


def _paved(rng: np.random.Generator, canvas: Array, road: Mask, size: tuple[int, int]) -> Array:
    colour = hsv(rng.uniform(0.0, 0.15), rng.uniform(0.0, 0.15), rng.uniform(0.35, 0.9))
    surface = colour * (1 + np.float32(0.05) * smooth_noise(rng, size, 25))[..., None]
    weight = np.maximum(road * np.float32(0.75), blurred(road.astype(np.float32), 0.5))
    return mix(canvas, surface, weight)


def _hazed(rng: np.random.Generator, canvas: Array, size: tuple[int, int]) -> Array:
    """Thin cloud: it veils but hides nothing, so the masks stay as they are."""
    cloud = np.clip(smooth_noise(rng, size, 2) - 0.3, 0, 1) * np.float32(rng.uniform(0.15, 0.5))
    return mix(canvas, np.full(3, 0.95, dtype=np.float32), cloud.astype(np.float32))
