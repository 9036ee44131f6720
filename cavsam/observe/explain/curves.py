"""Loss curves as points of an inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 440, 180
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 30
MOST_POINTS = 500
"""Of one line; longer curves are averaged over stretches of equal length."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place, in pixels of the SVG, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One diagram.

    Attributes:
        title: what is shown.
        points: "x,y x,y ..." of the losses.
        smooth: the same of their running mean.
        steps: ticks of the horizontal axis.
        values: ticks of the vertical axis.
        first: mean loss of the first tenth.
        last: mean loss of the last tenth.
    """

    title: str
    points: str
    smooth: str
    steps: list[Tick]
    values: list[Tick]
    first: float
    last: float


def curve(title: str, losses: Sequence[float]) -> Curve:
    """Draw the finite losses of at least one step."""
    every = math.ceil(len(losses) / MOST_POINTS)
    chunks = [losses[start : start + every] for start in range(0, len(losses), every)]
    values = np.array([np.mean(chunk) for chunk in chunks])
    steps = np.array([start * every + (len(chunk) + 1) / 2 for start, chunk in enumerate(chunks)])
    window = max(1, len(values) // 20)
    padded = np.pad(values, (window // 2, (window - 1) // 2), mode="edge")
    smooth = np.convolve(padded, np.full(window, 1 / window), mode="valid")
    low, high = float(values.min()), float(values.max())
    if low == high:  # a flat line runs through the middle
        low, high = low - 0.5, high + 0.5
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(step: float) -> float:
        return LEFT + (step - 1) / max(1, len(losses) - 1) * (right - LEFT)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - TOP)

    def line(heights: Sequence[float]) -> str:
        return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, heights, strict=True))

    marks = MaxNLocator(4, integer=True).tick_values(1, max(2, len(losses)))
    heights = MaxNLocator(4).tick_values(low, high)
    tenth = max(1, len(losses) // 10)
    return Curve(
        title,
        line(values.tolist()),
        line(smooth.tolist()),
        [Tick(round(x(mark), 1), f"{mark:g}") for mark in marks if 1 <= mark <= len(losses)],
        [Tick(round(y(mark), 1), f"{mark:.3g}") for mark in heights if low <= mark <= high],
        float(np.mean(losses[:tenth])),
        float(np.mean(losses[-tenth:])),
    )
