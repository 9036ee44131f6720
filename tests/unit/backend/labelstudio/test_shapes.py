from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.draw import disk, ellipse, polygon2mask
from skimage.measure import euler_number, find_contours

from backend.errors import UnusableRegion
from backend.labelstudio.regions import Ellipse, Rectangle
from backend.labelstudio.shapes import (
    box_to_mask,
    ellipse_to_mask,
    mask_to_boxes,
    mask_to_png,
    mask_to_polygons,
    png_to_mask,
    polygon_to_mask,
)


def blobs(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((height, width)), 8)
    return ndimage.binary_fill_holes(noise > np.quantile(noise, 0.8))


def within_a_pixel(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two masks differ only in a band of a pixel and a half around the second's outline."""
    near = ndimage.binary_dilation(wanted, iterations=2) & ~ndimage.binary_erosion(wanted, iterations=2)
    return bool(((found ^ wanted) <= near).all())


def dense(corners: np.ndarray) -> np.ndarray:
    """Points on a closed line, a twentieth of a pixel apart."""
    sides = zip(corners, np.roll(corners, -1, 0), strict=True)
    return np.concatenate([np.linspace(a, b, 2 + int(20 * np.hypot(*(b - a)))) for a, b in sides])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grain", [1.5, 4, 8])
def test_outlines_stay_within_a_pixel_of_the_mask(seed: int, grain: float):
    """By the Hausdorff distance to the outlines that scikit-image finds, both ways and component by component."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((120, 160)), grain)
    mask = noise > np.quantile(noise, 0.75)
    components, count = ndimage.label(mask, np.ones((3, 3)))
    kept = [components == n for n in range(1, count + 1) if (components == n).sum() >= 0.01 * mask.sum()]
    outlines, holes = mask_to_polygons(mask)
    assert len(outlines) == len(kept)
    assert holes == sum(1 - euler_number(np.pad(component, 1), connectivity=2) for component in kept)
    corners = 0
    for outline, component in zip(outlines, kept, strict=True):
        points = outline.points
        assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in points)
        found = dense(np.array(points) * (160, 120) / 100)
        traced = find_contours(np.pad(component, 1).astype(float), 0.5, fully_connected="high")
        outer = max((line[:-1, ::-1] - 0.5 for line in traced), key=lambda line: np.ptp(line, 0).sum())
        true = dense(outer)
        assert cKDTree(true).query(found)[0].max() < 1.05
        assert cKDTree(found).query(true)[0].max() < 1.05
        corners += len(points)
    pixels = sum((component & ~ndimage.binary_erosion(component)).sum() for component in kept)
    assert corners < pixels / 2  # simplified


def test_parts_that_touch_at_a_corner_are_one_outline():
    mask = np.zeros((20, 20), bool)
    mask[2:8, 2:8] = mask[8:15, 8:15] = True
    ((outline,), holes) = mask_to_polygons(mask)
    points = outline.points
    assert holes == 0
    assert within_a_pixel(polygon_to_mask(points, 20, 20), mask)
    assert polygon_to_mask(points, 20, 20).sum() >= 0.9 * mask.sum()


def test_one_outline_per_component_and_specks_are_dropped():
    mask = np.zeros((100, 100), bool)
    mask[disk((25, 25), 15)] = True
    mask[disk((70, 70), 20)] = True
    mask[5, 90] = True
    outlines, _ = mask_to_polygons(mask)
    assert len(outlines) == 2
    drawn = np.zeros_like(mask)
    for outline in outlines:
        drawn |= polygon_to_mask(outline.points, 100, 100)
    mask[5, 90] = False
    assert within_a_pixel(drawn, mask)
    assert [round(box.x) for box in mask_to_boxes(mask)] == [11, 51]


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2)])
def test_tiny_masks_have_an_outline(size: tuple[int, int]):
    (outline,), _ = mask_to_polygons(np.ones(size, bool))
    assert len(outline.points) >= 3


def test_filling_a_polygon_agrees_with_scikit_image():
    points = [(10, 15), (80, 5), (95, 70), (40, 92)]
    ours = polygon_to_mask(points, 90, 130)
    theirs = polygon2mask((90, 130), np.array([(y * 0.9 - 0.5, x * 1.3 - 0.5) for x, y in points]))
    assert (ours ^ theirs).sum() <= 3  # centres that an edge goes through


def test_a_turned_box():
    """Turned by 90 degrees clockwise around its top left corner, a box lies to the left of it."""
    mask = box_to_mask(Rectangle(50, 20, 30, 10, 90), 100, 100)
    expected = np.zeros((100, 100), bool)
    expected[20:50, 40:50] = True
    assert (mask ^ expected).sum() == 0


@pytest.mark.parametrize("rotation", [0, 30, 90, -120])
def test_filling_an_ellipse_agrees_with_scikit_image(rotation: float):
    """Label Studio turns clockwise on the screen, scikit-image the other way."""
    ours = ellipse_to_mask(Ellipse(40, 55, 25, 15, rotation), 120, 160)
    rows, columns = ellipse(
        0.55 * 120 - 0.5, 0.4 * 160 - 0.5, 0.15 * 120, 0.25 * 160, (120, 160), rotation=-np.deg2rad(rotation)
    )
    theirs = np.zeros((120, 160), bool)
    theirs[rows, columns] = True
    assert (ours ^ theirs).sum() <= 4  # centres on the outline


def test_an_ellipse_of_no_size_is_empty_and_one_over_the_border_is_cut():
    assert not ellipse_to_mask(Ellipse(50, 50, 0, 10), 20, 20).any()
    assert ellipse_to_mask(Ellipse(0, 0, 200, 200), 20, 30).all()


def test_a_straight_box_is_exact():
    mask = np.zeros((64, 96), bool)
    mask[8:30, 20:50] = True
    (box,) = mask_to_boxes(mask)
    assert (box_to_mask(box, 64, 96) == mask).all()


def test_a_bitmask_is_transparent_outside():
    mask = blobs(0)
    address = mask_to_png(mask)
    picture = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    assert picture.mode == "RGBA"
    alpha = np.asarray(picture)[..., 3]
    assert set(np.unique(alpha)) == {0, 255}
    assert ((alpha == 255) == mask).all()
    assert (png_to_mask(address, *mask.shape) == mask).all()


def test_a_bitmask_without_transparency_counts_where_it_is_bright():
    stream = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [200, 10]], np.uint8)).save(stream, "PNG")
    address = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    assert png_to_mask(address, 2, 2).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://elsewhere/mask.png", "holds no picture"),
        ("data:image/png;base64,AAAA", "damaged"),
        ("data:image/png;base64,?", "damaged"),
        (mask_to_png(np.ones((3, 3), bool)), "says 5x4 pixels but its picture has 3x3"),
    ],
)
def test_bitmasks_that_are_none(address: str, words: str):
    with pytest.raises(UnusableRegion, match=words):
        png_to_mask(address, 4, 5)


def test_a_bitmask_in_a_format_that_no_browser_shows_is_damaged():
    stream = io.BytesIO()
    Image.fromarray(np.full((2, 2), 255, np.uint8)).save(stream, "PCX")
    with pytest.raises(UnusableRegion, match="damaged"):
        png_to_mask("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode(), 2, 2)
