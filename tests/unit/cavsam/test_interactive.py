"""Clicks and boxes: the same as SAM2's own predictor, and only where a person points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.measure import label as components

from cavsam.interactive import LEAST_REACH, REACH, WHOLE_REACH, Click, Refiner
from cavsam.tracking import Tracker
from cavsam.weights.loading import load_tracker
from cavsam.weights.sources import ModelSources
from research.benchmarks.clicks import next_click


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An orange disc on noise, and its mask."""
    rng = np.random.default_rng(4)
    rows, columns = np.mgrid[:height, :width]
    disc = ((rows / height - 0.45) / 0.22) ** 2 + ((columns / width - 0.4) / 0.22) ** 2 < 1
    image = rng.normal(110, 10, (height, width, 3))
    image[disc] = np.array([235, 140, 20]) + rng.normal(0, 6, (int(disc.sum()), 3))
    return image.clip(0, 255).astype(np.uint8), disc


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.fixture(scope="module")
def nano() -> Refiner:
    """The bundled weights, which know what an object is."""
    return Refiner(load_tracker(ModelSources.named("nano"), torch.device("cpu")))


@pytest.mark.parametrize(
    ("clicks", "box"),
    [
        ([Click(100, 115)], None),
        ([Click(100, 115), Click(20, 30, positive=False)], None),
        ([], (45.0, 60.0, 160.0, 172.0)),
        ([Click(100, 115)], (45.0, 60.0, 160.0, 172.0)),
    ],
)
def test_prompts_mean_what_they_mean_to_the_video_predictor(
    tracker: Tracker, clicks: list[Click], box: tuple[float, float, float, float] | None
) -> None:
    size = tracker.image_size
    image, _ = scene(size, size)
    refiner = Refiner(tracker)
    found, _ = refiner.decode(refiner.encode(image), clicks, box=box)
    state = tracker.state(tracker.trunk(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255))
    _, _, logits = tracker.predictor.add_new_points_or_box(
        state,
        0,
        0,
        points=[(click.x, click.y) for click in clicks] if clicks else None,
        labels=[int(click.positive) for click in clicks] if clicks else None,
        box=box,
    )
    expected = (logits[0, 0] > 0).numpy()
    assert expected.any()
    assert (found == expected).mean() > 0.999  # interpolated in one step instead of two


def test_a_mask_and_clicks_are_what_the_video_predictor_makes_of_them(tracker: Tracker) -> None:
    size = tracker.image_size
    image, disc = scene(size, size)
    refiner = Refiner(tracker)
    clicks = [Click(100, 115), Click(20, 30, positive=False)]
    found, _ = refiner.decode(refiner.encode(image), clicks, start=disc)
    state = tracker.state(tracker.trunk(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255))
    tracker.predictor.add_new_mask(state, 0, 0, torch.from_numpy(disc))
    _, _, logits = tracker.predictor.add_new_points_or_box(
        state, 0, 0, points=[(c.x, c.y) for c in clicks], labels=[int(c.positive) for c in clicks]
    )
    assert (found == (logits[0, 0] > 0).numpy()).mean() > 0.999


@pytest.mark.parametrize("size", [(256, 256), (150, 400), (333, 90)])
def test_a_click_finds_the_object_in_a_picture_of_any_shape(nano: Refiner, size: tuple[int, int]) -> None:
    image, disc = scene(*size)
    mask, score = nano.refine(nano.encode(image), [Click(0.4 * size[1], 0.45 * size[0])])
    assert mask.shape == size
    assert iou(mask, disc) > 0.8
    assert 0 <= score <= 1


def test_a_box_finds_the_object_and_replaces_what_the_mask_had_there(nano: Refiner) -> None:
    image, disc = scene(200, 300)
    rows, columns = np.nonzero(disc)
    box = (columns.min() - 3, rows.min() - 3, columns.max() + 4, rows.max() + 4)
    start = np.zeros_like(disc)
    start[:, int(box[0]) : int(box[0]) + 20] = True  # wrong in the box, and something far from it
    start[190:, 250:] = True
    mask, _ = nano.refine(nano.encode(image), [], [box], start)
    assert mask[190:, 250:].all()
    inside = np.zeros_like(disc)
    inside[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    assert iou(mask & inside, disc) > 0.8


def test_a_click_repairs_the_part_it_points_at_and_leaves_the_others(nano: Refiner) -> None:
    image, disc = scene(200, 300)
    other = np.zeros_like(disc)
    other[180:198, 270:298] = True  # another object of the mask, which SAM2 does not answer with this one
    half = disc.copy()
    half[:, :120] = False
    stray = np.zeros_like(disc)
    stray[5:25, 10:30] = True
    start = half | other | stray
    encoded = nano.encode(image)
    left = Click(100, 90)
    assert disc[90, 100]
    assert not half[90, 100]
    added, _ = nano.refine(encoded, [left], start=start)
    assert added[other | stray].all()
    assert iou(added & ~other & ~stray, disc) > iou(half, disc) + 0.2
    removed, _ = nano.refine(encoded, [left, Click(20, 15, positive=False)], start=start)
    assert removed[other].all()
    assert not removed[stray].any()
    assert iou(removed & ~other, disc) > iou(half, disc) + 0.2


def drawn_start(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Blobs, or nothing, or everything."""
    kind = generator.integers(8)
    if kind < 2:
        return np.full(size, bool(kind))
    return ndimage.gaussian_filter(generator.random(size), 6) > 0.5


def drawn_click(generator: np.random.Generator, size: tuple[int, int]) -> Click:
    """Anywhere on a picture, its very edge included."""
    x, y = generator.uniform(0, size[1]), generator.uniform(0, size[0])
    return Click(float(generator.choice([x, 0.0, size[1]], p=[0.8, 0.1, 0.1])), float(y), bool(generator.integers(2)))


@pytest.mark.parametrize("seed", range(12))
def test_each_click_holds_its_point_and_changes_nothing_else_far_from_it(tracker: Tracker, seed: int) -> None:
    """With random weights, whose answer is anything. The distance to what is right is that of another library."""
    generator = np.random.default_rng(seed)
    size = (int(generator.integers(40, 120)), int(generator.integers(40, 170)))
    refiner = Refiner(tracker)
    encoded = refiner.encode(generator.integers(0, 255, (*size, 3), dtype=np.uint8))
    start = drawn_start(generator, size)
    clicks = [drawn_click(generator, size) for _ in range(5)]
    before = start
    for number, click in enumerate(clicks, 1):
        after, score = refiner.refine(encoded, clicks[:number], start=start)
        row, column = min(int(click.y), size[0] - 1), min(int(click.x), size[1] - 1)
        assert 0 <= score <= 1
        if before.any() or click.positive:
            assert after[row, column] == click.positive
        if before.any():  # else the first answer is the mask
            assert not (before & ~after if click.positive else after & ~before).any()
            to_right = ndimage.distance_transform_edt(before != click.positive)[row, column]
            reach = max(REACH * to_right, LEAST_REACH * np.hypot(*size))
            rows, columns = np.nonzero(after != before)
            far = np.hypot(rows - row, columns - column)
            beyond = (before != click.positive)[rows, columns] & (far > reach + 1e-9)
            assert (far[beyond] <= WHOLE_REACH * to_right + 1e-9).all() or not (before == click.positive).any()
            parts = components(after != before, connectivity=1)
            assert parts.max() <= 1
        for other in clicks[: number - 1]:  # earlier clicks still hold
            where = min(int(other.y), size[0] - 1), min(int(other.x), size[1] - 1)
            if start.any() and where != (row, column):
                assert after[where] == other.positive or before[where] != other.positive
        before = after


@pytest.mark.parametrize("seed", range(4))
def test_taking_the_last_click_back_gives_what_was_before_it(nano: Refiner, seed: int) -> None:
    generator = np.random.default_rng(seed)
    image, disc = scene(90, 130)
    encoded = nano.encode(image)
    start = ndimage.shift(disc.astype(np.uint8), (9, 5), order=0) > 0
    clicks = [drawn_click(generator, disc.shape) for _ in range(4)]
    steps = [nano.refine(encoded, clicks[:number], start=start)[0] for number in (1, 2, 3, 4)]
    for number, step in enumerate(steps, 1):
        assert (nano.refine(encoded, clicks[:number], start=start)[0] == step).all()
        assert (nano.refine(nano.encode(image), clicks[:number], start=start)[0] == step).all()
    assert (steps[3] != steps[1]).any()


def test_what_was_heard_of_one_mask_is_not_taken_for_another(nano: Refiner) -> None:
    image, disc = scene(90, 130)
    encoded, clicks = nano.encode(image), [Click(20, 20), Click(70, 40, False)]
    first = nano.refine(encoded, clicks, start=disc)[0]
    first[:] = True  # the caller's own
    for start in (disc, np.roll(disc, 9, axis=1)):
        found, score = nano.refine(encoded, clicks, start=start)
        fresh, expected = nano.refine(nano.encode(image), clicks, start=start)
        assert (found == fresh).all()
        assert score == pytest.approx(expected)


def test_clicks_into_the_largest_error_repair_a_mask_step_by_step(nano: Refiner) -> None:
    image, disc = scene(200, 300)
    start = ndimage.shift(disc.astype(np.uint8), (25, 30), order=0) > 0
    encoded, clicks, mask = nano.encode(image), list[Click](), start
    overlaps = [iou(mask, disc)]
    for _ in range(3):
        click = next_click(mask, disc)
        assert click is not None
        clicks.append(click)
        mask, _ = nano.refine(encoded, clicks, start=start)
        overlaps.append(iou(mask, disc))
    assert overlaps == sorted(overlaps)
    assert overlaps[-1] > overlaps[0] + 0.25


def test_the_same_mask_comes_back_where_a_click_agrees_with_it(nano: Refiner) -> None:
    image, disc = scene(200, 300)
    mask, _ = nano.refine(nano.encode(image), [Click(120, 90), Click(5, 5, positive=False)], start=disc)
    assert (mask == disc).all()


def test_nothing_to_go_by_is_refused(nano: Refiner) -> None:
    image, disc = scene(60, 60)
    with pytest.raises(ValueError, match="neither a click nor a box"):
        nano.refine(nano.encode(image), [], start=disc)
