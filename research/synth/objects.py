"""One textured object: what it is (`Instance`), where it is (`Pose`), and how it is painted."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from research.synth.patterns import PATTERNS, Noise
from research.synth.raster import Array, Mask, hsv, mix
from research.synth.shapes import SHAPES

HUE_SPREAD = 0.09  # deviation of an instance's hue from its class's, as a part of the colour circle
ODD_COLOUR = 0.3  # part of the instances of a class whose hue is any (green apples among the red)
REACH = 1.75  # no form, however warped, reaches further than this from its centre in its own frame


@dataclass(frozen=True)
class Instance:
    """Everything that makes one object itself, whatever the frame it is seen in."""

    shape: str
    pattern: str
    knob: float
    stretch: float  # length of the object's u axis over its v axis
    waves: NDArray[np.float32]  # (3, 6): direction u, v, phase, amplitude u, v, tempo, of a smooth bending
    frequency: float  # periods of the pattern per radius
    direction: float  # of the pattern, radians
    offset: tuple[float, float]
    noise: Noise
    colours: NDArray[np.float32]  # (2, 3) RGB in 0..1
    relief: float  # strength of the shading
    area: float  # of the form at scale 1, in squared radii


@dataclass(frozen=True)
class Pose:
    """Where and how an instance is seen. Lengths are in units of sqrt(H * W), angles in radians."""

    x: float
    y: float
    scale: float
    angle: float
    bend: float = 0.0  # moves the smooth bending of the outline on
    light: float = 0.0  # direction the light comes from
    gain: float = 1.0  # brightness


def class_hue(shape: str, pattern: str) -> float:
    """The hue in 0..1 around which the instances of a class scatter; fixed by its name."""
    return zlib.crc32(f"{pattern} {shape}".encode()) / 2**32


def draw_instance(rng: np.random.Generator, shape: str, pattern: str, *, hue: float | None = None) -> Instance:
    """A new instance of the class (shape, pattern); `hue` overrides the class's own."""
    centre = class_hue(shape, pattern) if hue is None else hue
    own = rng.random() if rng.random() < ODD_COLOUR else centre + rng.normal(0.0, HUE_SPREAD)
    saturation, value = rng.uniform(0.3, 0.95), rng.uniform(0.45, 0.95)
    first = hsv(own, saturation, value)
    other_value = value * rng.uniform(0.5, 0.8) if value > 0.6 else min(1.0, value * rng.uniform(1.25, 1.7))
    second = hsv(own + rng.normal(0.0, 0.05), saturation * rng.uniform(0.6, 1.1), other_value)
    colours = np.stack([first, second] if rng.random() < 0.6 else [second, first])
    waves = np.concatenate(
        [
            rng.normal(0.0, 1.7, (3, 2)),
            rng.uniform(0, 2 * np.pi, (3, 1)),
            rng.normal(0.0, 0.075, (3, 2)),
            rng.uniform(-1, 1, (3, 1)),
        ],
        axis=1,
    ).astype(np.float32)
    instance = Instance(
        shape=shape,
        pattern=pattern,
        knob=float(rng.random()),
        stretch=float(np.exp(rng.uniform(-0.35, 0.35))),
        waves=waves,
        frequency=float(np.exp(rng.uniform(np.log(1.6), np.log(4.0)))),
        direction=float(rng.uniform(0, np.pi)),
        offset=(float(rng.uniform(0, 32)), float(rng.uniform(0, 32))),
        noise=Noise.draw(rng),
        colours=colours,
        relief=float(rng.uniform(0.1, 0.5)),
        area=1.0,
    )
    line = np.linspace(-REACH, REACH, 64, dtype=np.float32)
    u, v = np.meshgrid(line, line)
    inside = SHAPES[shape](*_bent(instance, u, v, 0.0), instance.knob) < 0
    return replace(instance, area=max(float(inside.mean()) * (2 * REACH) ** 2, 0.05))


def paint(canvas: Array, grid: tuple[Array, Array], instance: Instance, pose: Pose) -> Mask:
    """Paint the instance over `canvas` (float32 (H, W, 3), changed in place); returns its bool (H, W) mask.

    The mask is exact: a pixel belongs to the object when its centre lies inside the form. Only the colours of
    the outline's pixels are blended.
    """
    grid_x, grid_y = grid
    mask = np.zeros(grid_x.shape, dtype=bool)
    reach = pose.scale * REACH * max(instance.stretch, 1 / instance.stretch) ** 0.5
    rows = np.flatnonzero(np.abs(grid_y[:, 0] - pose.y) <= reach)
    columns = np.flatnonzero(np.abs(grid_x[0] - pose.x) <= reach)
    if not len(rows) or not len(columns):
        return mask
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))

    dx, dy = grid_x[window] - np.float32(pose.x), grid_y[window] - np.float32(pose.y)
    cosine, sine = np.float32(np.cos(pose.angle)), np.float32(np.sin(pose.angle))
    root = float(np.sqrt(instance.stretch))
    straight_u = (cosine * dx + sine * dy) / np.float32(pose.scale * root)
    straight_v = (cosine * dy - sine * dx) / np.float32(pose.scale / root)
    u, v = _bent(instance, straight_u, straight_v, pose.bend)
    field = SHAPES[instance.shape](u, v, instance.knob)
    pixel = grid_x[0, 1] - grid_x[0, 0]
    alpha = np.clip(0.5 - field * np.float32(pose.scale / pixel), 0.0, 1.0).astype(np.float32)
    if not alpha.any():
        return mask

    along = np.float32(np.cos(instance.direction) * instance.frequency)
    across = np.float32(np.sin(instance.direction) * instance.frequency)
    pattern = PATTERNS[instance.pattern](
        along * u + across * v + np.float32(instance.offset[0]),
        along * v - across * u + np.float32(instance.offset[1]),
        instance.noise,
    )
    colour = mix(instance.colours[0], instance.colours[1], pattern.astype(np.float32))
    towards = np.float32(np.cos(pose.light)) * dx + np.float32(np.sin(pose.light)) * dy
    shade = 1 + np.float32(instance.relief) * (towards / np.float32(pose.scale)) + np.clip(field, -0.5, 0) * -0.3
    colour *= (np.float32(pose.gain) * np.clip(shade, 0.35, 1.5))[..., None]
    canvas[window] += (colour - canvas[window]) * alpha[..., None]
    mask[window] = field < 0
    return mask


def _bent(instance: Instance, u: Array, v: Array, bend: float) -> tuple[Array, Array]:
    """The plane bent smoothly, differently for each instance: no two outlines of a class are equal."""
    bent_u, bent_v = u.copy(), v.copy()
    for direction_u, direction_v, phase, amplitude_u, amplitude_v, tempo in instance.waves:
        wave = np.sin(direction_u * u + direction_v * v + np.float32(phase + tempo * bend))
        bent_u += amplitude_u * wave
        bent_v += amplitude_v * wave
    return bent_u, bent_v
