"""Pictures of the page: frames with masks, boxes, points and heat maps drawn on them, as data URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from cavsam.images import Mask, resize_mask

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

LARGEST = 320
"""Longest side of a picture on the page, in pixels."""
COLOURS: tuple[Colour, ...] = (
    (255, 0, 200),
    (0, 200, 255),
    (255, 170, 0),
    (60, 220, 60),
    (150, 90, 255),
    (255, 70, 70),
)
"""Of the labels; they begin again after the last."""
WHITE: Colour = (255, 255, 255)
GREY: Colour = (190, 190, 190)
FILL, HEAT = 0.5, 0.6
"""Opacities of a mask and of a heat map over a picture."""
RING = 8
"""Radius in pixels of the ring around a point."""


def shrunk(picture: Picture) -> Picture:
    """Shrink uint8 (H, W, 3) so that no side is longer than `LARGEST`; smaller ones stay as they are."""
    small = Image.fromarray(picture)
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.BICUBIC)
    return np.asarray(small)


def with_mask(picture: Picture, mask: Mask, colour: Colour) -> Picture:
    """Draw a mask of any size, bool (h, w), filled and outlined over uint8 (H, W, 3)."""
    covered = _fitted(mask, picture)
    drawn = picture.astype(np.float64)
    drawn[covered] += (np.array(colour) - drawn[covered]) * FILL
    return with_outline(drawn.round().astype(np.uint8), mask, colour)


def with_outline(picture: Picture, mask: Mask, colour: Colour) -> Picture:
    """Draw the edge of a mask of any size over uint8 (H, W, 3)."""
    covered = _fitted(mask, picture)
    drawn = picture.copy()
    drawn[covered & ~ndimage.binary_erosion(covered)] = colour
    return drawn


def _fitted(mask: Mask, picture: Picture) -> Mask:
    return resize_mask(mask, (picture.shape[0], picture.shape[1]))


def with_box(picture: Picture, box: Sequence[float], size: int, colour: Colour) -> Picture:
    """Draw a box (x0, y0, x1, y1), in pixels of a square of side `size`, over uint8 (H, W, 3)."""
    height, width = picture.shape[:2]
    drawn = Image.fromarray(picture)
    scale = (width / size, height / size, width / size, height / size)
    x0, y0, x1, y1 = (edge * factor for edge, factor in zip(box, scale, strict=True))
    ImageDraw.Draw(drawn).rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=2)
    return np.asarray(drawn)


def with_point(picture: Picture, point: tuple[float, float], size: int, colour: Colour) -> Picture:
    """Draw a dot in a ring at (x, y), in pixels of a square of side `size`, over uint8 (H, W, 3)."""
    height, width = picture.shape[:2]
    column, row = int(point[0] * width / size), int(point[1] * height / size)
    drawn = Image.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    draw.ellipse((column - RING, row - RING, column + RING, row + RING), outline=colour, width=2)
    draw.ellipse((column - 2, row - 2, column + 2, row + 2), fill=colour)
    return np.asarray(drawn)


def with_heat(picture: Picture, values: NDArray[np.float32], low: float, high: float) -> Picture:
    """Draw a map (h, w), `low` dark and `high` bright, scaled up as the method does, over uint8 (H, W, 3)."""
    height, width = picture.shape[:2]
    large = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    heat = matplotlib.colormaps["inferno"](np.clip((large - low) / max(high - low, 1e-9), 0, 1))[..., :3] * 255
    return (picture * (1 - HEAT) + heat * HEAT).round().astype(np.uint8)


def data_url(picture: Picture) -> str:
    """Write uint8 (H, W, 3) as a JPEG in a URL; colours are not subsampled, so that thin outlines keep theirs."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
