"""The domain "textures": textured forms on noise and clutter. The only domain anything is trained on.

A class is a pair of words, a pattern and a form ("striped star"). Its instances share these and, loosely, a
hue; colours, the pattern's scale and direction, the outline, pose, size and lighting differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from research.synth.objects import Instance, Pose, class_hue, draw_instance, paint
from research.synth.patterns import PATTERNS
from research.synth.raster import Array, Mask, extent, grid, hsv, mix, photometric, smooth_noise, to_uint8
from research.synth.scenes import ATTEMPTS, LARGEST, SMALLEST, Scene, finished
from research.synth.shapes import SHAPES
from research.synth.splits import CLASS_COUNTS, CLASS_ORDER_SEED, SPLITS, Split
from research.synth.types import SynthClip, SynthImage

DOMAIN = "textures"
SPANS = (0.03, 0.5)  # drawn area of the main object, log-uniform


def _split_classes() -> dict[Split, tuple[str, ...]]:
    names = [f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS]
    order = np.random.default_rng(CLASS_ORDER_SEED).permutation(len(names))
    result: dict[Split, tuple[str, ...]] = {}
    start = 0
    for split in SPLITS:
        stop = start + CLASS_COUNTS[split]
        result[split] = tuple(sorted(names[i] for i in order[start:stop]))
        start = stop
    return result


CLASSES: dict[Split, tuple[str, ...]] = _split_classes()


def generate(names: Sequence[str], *, seed: int, size: tuple[int, int], avoid: Sequence[str] = ()) -> SynthImage:
    """A still with one object of each class in `names` (sometimes two), none where it is empty.

    Around them are look-alikes of the classes in `names` and `avoid` that belong to none of these.
    """
    rng = np.random.default_rng([seed, 1])
    excluded = (*names, *avoid)
    return finished(lambda r: _still(r, names, excluded, size), names, domain=DOMAIN, seed=seed, rng=rng)


def clip(
    class_name: str, *, seed: int, size: tuple[int, int], length: int, motion: str, absent: bool = True
) -> SynthClip:
    """A clip of one object of `class_name` among look-alikes.

    motion "smooth": small steps of place, scale, angle and light before a panning background; "far": a new
    place, scale and angle in every frame, often before another background. With `absent`, the object may be out
    of the picture or wholly covered in some of the frames after the first.
    """
    rng = np.random.default_rng([seed, 2])
    for _ in range(ATTEMPTS):
        frames, masks = _moving(rng, class_name, size, length, motion, absent)
        if SMALLEST <= masks[0].mean() <= LARGEST:
            return SynthClip(frames=frames, masks=masks, motion=motion, class_name=class_name, seed=seed)
    raise RuntimeError(f"No clip of {class_name} came out at seed {seed}.")


def _words(name: str) -> tuple[str, str]:
    """(shape, pattern) of a class name."""
    pattern, _, shape = name.partition(" ")
    return shape, pattern


def _still(rng: np.random.Generator, names: Sequence[str], excluded: Sequence[str], size: tuple[int, int]) -> Scene:
    canvas = background(rng, size, excluded)
    cells = grid(size)
    masks: dict[str, Mask] = {name: np.zeros(size, dtype=bool) for name in names}
    light = rng.uniform(0, 2 * np.pi)

    painted: list[tuple[str | None, Instance, Pose]] = []
    for name in names:
        area = float(np.exp(rng.uniform(*np.log(SPANS)))) / max(1, len(names))
        for _ in range(2 if rng.random() < 0.15 else 1):
            instance = draw_instance(rng, *_words(name))
            painted.append((name, instance, _pose(rng, instance, area, size, light)))
            area *= rng.uniform(0.3, 0.9)
    for _ in range(int(rng.integers(0, 3))):
        instance = _look_alike(rng, excluded)
        area = float(np.exp(rng.uniform(np.log(0.01), np.log(0.12))))
        painted.insert(_depth(rng, painted), (None, instance, _pose(rng, instance, area, size, light)))

    for name_or_none, instance, pose in painted:
        covered = paint(canvas, cells, instance, pose)
        for mask in masks.values():
            mask &= ~covered
        if name_or_none is not None:
            masks[name_or_none] |= covered
    return Scene(canvas, masks)


def _depth(rng: np.random.Generator, painted: list) -> int:
    """Look-alikes mostly lie behind; one in four may cover a part of an object."""
    return len(painted) if rng.random() < 0.25 else 0


def _pose(rng: np.random.Generator, instance: Instance, area: float, size: tuple[int, int], light: float) -> Pose:
    height, width = extent(size)
    scale = float(np.sqrt(area / instance.area))
    margin = min(0.5, 0.75 * scale)
    return Pose(
        x=float(rng.uniform(margin, 1 - margin)) * width,
        y=float(rng.uniform(margin, 1 - margin)) * height,
        scale=scale,
        angle=float(rng.uniform(0, 2 * np.pi)),
        light=light + rng.normal(0, 0.3),
        gain=float(rng.uniform(0.75, 1.15)),
    )


def _look_alike(rng: np.random.Generator, excluded: Sequence[str]) -> Instance:
    """An object of a class outside `excluded` that shares form, pattern or colour with one of them."""
    shapes, patterns = list(SHAPES), list(PATTERNS)
    while True:
        shape, pattern = str(rng.choice(shapes)), str(rng.choice(patterns))
        hue = None
        if excluded and rng.random() < 0.7:
            like_shape, like_pattern = _words(excluded[int(rng.integers(len(excluded)))])
            shared = rng.integers(3)
            if shared == 0:
                shape = like_shape
            elif shared == 1:
                pattern = like_pattern
            if shared == 2 or rng.random() < 0.5:
                hue = class_hue(like_shape, like_pattern)
        if f"{pattern} {shape}" not in excluded:
            return draw_instance(rng, shape, pattern, hue=hue)


def background(rng: np.random.Generator, size: tuple[int, int], excluded: Sequence[str] = ()) -> Array:
    """float32 (H, W, 3): two or three colours mixed by noise, often with clutter of flat patches.

    No patch is of a class in `excluded`.
    """
    hue, value = rng.random(), rng.uniform(0.25, 0.85)
    colours = [
        hsv(hue + rng.normal(0, 0.1), rng.uniform(0.05, 0.5), np.clip(value + rng.normal(0, 0.12), 0.1, 0.95))
        for _ in range(3)
    ]
    coarse = np.clip(0.5 + 0.35 * smooth_noise(rng, size, float(rng.uniform(1.5, 6))), 0, 1)
    canvas = mix(colours[0], colours[1], coarse.astype(np.float32))
    fine = smooth_noise(rng, size, float(np.exp(rng.uniform(np.log(8), np.log(60)))), octaves=2)
    if rng.random() < 0.5:
        canvas = mix(canvas, colours[2], np.clip(0.3 * fine, 0, 0.7))
    else:
        canvas *= (1 + np.float32(rng.uniform(0.02, 0.1)) * fine)[..., None]
    if rng.random() < 0.4:
        cells = grid(size)
        shapes = [shape for shape in SHAPES if f"plain {shape}" not in excluded]
        for _ in range(int(rng.integers(1, 5))):
            shape = str(rng.choice(shapes))
            patch = draw_instance(rng, shape, "plain", hue=rng.random())
            area = float(np.exp(rng.uniform(np.log(0.003), np.log(0.1))))
            paint(canvas, cells, patch, _pose(rng, patch, area, size, 0.0))
    return canvas


def _moving(
    rng: np.random.Generator, name: str, size: tuple[int, int], length: int, motion: str, absent: bool
) -> tuple[np.ndarray, np.ndarray]:
    height, width = size
    instance = draw_instance(rng, *_words(name))
    light = float(rng.uniform(0, 2 * np.pi))
    pose = _pose(rng, instance, float(np.exp(rng.uniform(*np.log(SPANS)))), size, light)

    others: list[tuple[Instance, Pose, bool]] = []
    for _ in range(int(rng.integers(0, 3))):
        same_class = rng.random() < 0.1  # another instance of the class is not the tracked one
        other = draw_instance(rng, *_words(name)) if same_class else _look_alike(rng, (name,))
        area = float(np.exp(rng.uniform(np.log(0.01), np.log(0.12))))
        others.append((other, _pose(rng, other, area, size, light), rng.random() < 0.25))

    wide = (int(height * 1.3), int(width * 1.3))
    scenery = background(rng, wide, (name,))
    pan = np.array([rng.uniform(0, wide[0] - height), rng.uniform(0, wide[1] - width)])
    velocity = rng.normal(0, 0.035, 2)
    pan_velocity = rng.normal(0, 0.03, 2) * [height, width]
    growth, spin = rng.normal(0, 0.06), rng.normal(0, 0.12)
    gone = _gone_frames(rng, length) if absent else set()
    covering = rng.random() < 0.5  # whether the object, when gone, is covered rather than out of the picture

    cells = grid(size)
    frames = np.zeros((length, height, width, 3), dtype=np.uint8)
    masks = np.zeros((length, height, width), dtype=bool)
    finish_seed = int(rng.integers(2**32))
    for t in range(length):
        if t and motion == "far":
            area = float(np.clip(pose.scale**2 * instance.area * np.exp(rng.normal(0, 0.5)), SPANS[0], SPANS[1]))
            new = _pose(rng, instance, area, size, light)
            pose = replace(new, angle=pose.angle + rng.normal(0, 0.8), bend=pose.bend + rng.normal(0, 0.8))
            others = [(o, _pose(rng, o, p.scale**2 * o.area, size, light), f) for o, p, f in others]
            if rng.random() < 0.4:
                scenery = background(rng, wide, (name,))
            pan = np.array([rng.uniform(0, wide[0] - height), rng.uniform(0, wide[1] - width)])
        elif t:
            velocity = velocity + rng.normal(0, 0.01, 2)
            pose = _stepped(rng, pose, velocity, growth, spin)
            others = [(o, _stepped(rng, p, rng.normal(0, 0.02, 2), 0.0, 0.03), f) for o, p, f in others]
            pan = pan + pan_velocity
        top, left = (int(np.clip(p, 0, w - s)) for p, w, s in zip(pan, wide, size, strict=True))
        canvas = scenery[top : top + height, left : left + width].copy()

        for other, other_pose, in_front in others:
            if not in_front:
                paint(canvas, cells, other, other_pose)
        if t not in gone:
            masks[t] = paint(canvas, cells, instance, pose)
        elif covering:
            cover = draw_instance(rng, "hexagon" if name == "plain disc" else "disc", "plain")
            paint(canvas, cells, cover, replace(pose, scale=pose.scale * 1.4 * instance.stretch**0.5))
        for other, other_pose, in_front in others:
            if in_front:
                masks[t] &= ~paint(canvas, cells, other, other_pose)
        frames[t] = to_uint8(photometric(np.random.default_rng(finish_seed), _lit(rng, canvas, motion)))
    return frames, masks


def _gone_frames(rng: np.random.Generator, length: int) -> set[int]:
    """The frames without the object: in a quarter of the clips, one stretch after the first frame."""
    if length < 2 or rng.random() > 0.25:
        return set()
    start = int(rng.integers(1, length))
    return set(range(start, min(length, start + int(rng.integers(1, 3)))))


def _stepped(rng: np.random.Generator, pose: Pose, velocity: np.ndarray, growth: float, spin: float) -> Pose:
    return replace(
        pose,
        x=pose.x + velocity[1],
        y=pose.y + velocity[0],
        scale=pose.scale * float(np.exp(growth + rng.normal(0, 0.02))),
        angle=pose.angle + spin + rng.normal(0, 0.03),
        bend=pose.bend + 0.15,
        light=pose.light + rng.normal(0, 0.1),
        gain=float(np.clip(pose.gain * np.exp(rng.normal(0, 0.05)), 0.6, 1.3)),
    )


def _lit(rng: np.random.Generator, canvas: Array, motion: str) -> Array:
    """The frame under its own light: barely changing in a smooth clip, changing much between far frames."""
    strength = 0.18 if motion == "far" else 0.04
    return canvas * np.exp(rng.normal(0, strength, 3) * 0.5 + rng.normal(0, strength)).astype(np.float32)
