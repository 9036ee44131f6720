"""Masks as the other shapes of Label Studio: bitmask pictures, polygons and rectangles, and back.

Polygons and rectangles are in percent of the displayed image. The geometry is that of the libraries: contourpy traces,
OpenCV simplifies, SciPy tells components apart, matplotlib fills.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from contourpy import LineType, contour_generator
from matplotlib.path import Path
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from backend.errors import UnusableRegion
from backend.labelstudio.regions import Ellipse, Polygon, Rectangle

BoolMask = NDArray[np.bool_]

TOLERANCE = 1.0
"""Pixels by which a simplified outline may leave the mask's."""
LEVEL = 0.499
"""Where an outline runs from a centre inside, 1, to one outside, 0; below a half, pixels that touch at corners join."""
SPECK = 0.01
"""Components smaller than this share of the mask are noise to a polygon or rectangle."""
THRESHOLD = 128
FORMATS = ("PNG", "WEBP", "JPEG", "GIF", "BMP")
"""Pictures of a bitmask that are read, by PIL's names; the editor writes PNG."""
ROWS_AT_ONCE = 256
"""Rows of a polygon filled together, which bounds the memory."""


def mask_to_png(mask: BoolMask) -> str:
    """The mask as the data address of a PNG: opaque inside, transparent outside."""
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[mask] = 255
    stream = io.BytesIO()
    Image.fromarray(rgba).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def png_to_mask(address: str, height: int, width: int) -> BoolMask:
    """The mask of shape (H, W) where the picture is opaque; raises `UnusableRegion`.

    A picture without transparency counts where it is bright.
    """
    head, _, body = address.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise UnusableRegion("A bitmask region holds no picture; draw the region again.")
    try:
        with Image.open(io.BytesIO(base64.b64decode(body, validate=True)), formats=FORMATS) as picture:
            if picture.size != (width, height):
                raise UnusableRegion(
                    f"A bitmask region says {width}x{height} pixels but its picture has "
                    f"{picture.width}x{picture.height}; draw it again."
                )
            transparent = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
            values = np.asarray(picture.convert("RGBA"))[..., 3] if transparent else np.asarray(picture.convert("L"))
    except (binascii.Error, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UnusableRegion("A bitmask region's picture is damaged; draw the region again.") from error
    return values >= THRESHOLD


def mask_to_polygons(mask: BoolMask) -> tuple[list[Polygon], int]:
    """The outline of each component, simplified within a pixel; and how many holes were filled."""
    height, width = mask.shape
    outlines: list[Polygon] = []
    holes = 0
    for top, left, component in _components(mask):
        # padded, so that outlines close at the border
        traced = contour_generator(z=np.pad(component, 1).astype(np.float32), line_type=LineType.Separate).lines(LEVEL)
        lines = sorted((np.asarray(line, np.float64) for line in traced), key=_area, reverse=True)
        holes += len(lines) - 1
        # centres of pixels lie half a pixel inside; the padding moved them by a whole one
        outline = lines[0][:-1] + np.array([left - 0.5, top - 0.5])
        outline = np.clip(_simplified(outline), 0, (width, height))
        outlines.append(Polygon(tuple((100 * float(x) / width, 100 * float(y) / height) for x, y in outline)))
    return outlines, holes


def polygon_to_mask(points: Sequence[Sequence[float]], height: int, width: int) -> BoolMask:
    """The mask of shape (H, W) inside a polygon in percent."""
    return _filled([(float(x) * width / 100, float(y) * height / 100) for x, y in points], height, width)


def mask_to_boxes(mask: BoolMask) -> Iterator[Rectangle]:
    """The box around each component."""
    height, width = mask.shape
    for top, left, component in _components(mask):
        yield Rectangle(
            100 * left / width,
            100 * top / height,
            100 * component.shape[1] / width,
            100 * component.shape[0] / height,
        )


def box_to_mask(box: Rectangle, height: int, width: int) -> BoolMask:
    """The mask of shape (H, W) inside a box."""
    return _filled(box_corners(box, height, width), height, width)


def box_corners(box: Rectangle, height: int, width: int) -> list[tuple[float, float]]:
    """The corners (x, y) of a box, in pixels of an image of that size."""
    left, top = box.x * width / 100, box.y * height / 100
    across, down = box.width * width / 100, box.height * height / 100
    turn = math.radians(box.rotation)
    cos, sin = math.cos(turn), math.sin(turn)
    return [
        (left + dx * cos - dy * sin, top + dx * sin + dy * cos)
        for dx, dy in ((0, 0), (across, 0), (across, down), (0, down))
    ]


def ellipse_to_mask(ellipse: Ellipse, height: int, width: int) -> BoolMask:
    """The mask of shape (H, W) inside an ellipse."""
    across, down = ellipse.radius_x * width / 100, ellipse.radius_y * height / 100
    if across <= 0 or down <= 0:
        return np.zeros((height, width), bool)
    rows, columns = np.ogrid[:height, :width]
    dx, dy = columns + 0.5 - ellipse.x * width / 100, rows + 0.5 - ellipse.y * height / 100
    turn = math.radians(ellipse.rotation)
    along, beside = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
    inside: BoolMask = (along / across) ** 2 + (beside / down) ** 2 <= 1
    return inside


def _components(mask: BoolMask) -> Iterator[tuple[int, int, BoolMask]]:
    """Top, left and mask of each connected component (diagonal neighbours connect), cut out; specks left out."""
    labelled, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    least = SPECK * mask.sum()
    for number, window in enumerate(ndimage.find_objects(labelled), 1):
        component = labelled[window] == number
        if component.sum() >= least:
            yield window[0].start, window[1].start, component


def _simplified(outline: NDArray[np.float64]) -> NDArray[np.float64]:
    simple = cv2.approxPolyDP(outline.astype(np.float32)[:, None], TOLERANCE, True)[:, 0]
    return simple.astype(np.float64) if len(simple) >= 3 else outline


def _area(line: NDArray[Any]) -> float:
    return abs(float(cv2.contourArea(np.asarray(line, np.float32)[:, None])))


def _filled(corners: Iterable[tuple[float, float]], height: int, width: int) -> BoolMask:
    """The mask of shape (H, W) of the pixels whose centre lies inside a polygon given in pixels."""
    points = np.array(list(corners), np.float64)
    outline = Path(points)
    mask = np.zeros((height, width), bool)
    (left, top), (right, bottom) = np.floor(points.min(0)), np.ceil(points.max(0))
    columns = np.arange(max(0, int(left)), min(width, int(right)))
    for start in range(max(0, int(top)), min(height, int(bottom)), ROWS_AT_ONCE):
        rows = np.arange(start, min(height, int(bottom), start + ROWS_AT_ONCE))
        x, y = np.meshgrid(columns + 0.5, rows + 0.5)
        inside = outline.contains_points(np.column_stack([x.ravel(), y.ravel()]))
        mask[rows[:, None], columns] = inside.reshape(len(rows), len(columns))
    return mask
