"""The cues of colour and form, on pictures whose answers can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cavsam.scoring.appearance import GRID, Form, appearance_cues, appearances, palette, pictures_of

SIZE = 256
RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9)


def disc(radius: float, row: float = 128, column: float = 128, size: int = SIZE) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] + 0.5
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 < radius**2)


def bar(height: int, width: int, size: int = SIZE) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    top, left = (size - height) // 2, (size - width) // 2
    mask[top : top + height, left : left + width] = True
    return mask


def painted(mask: np.ndarray, colour: tuple[float, ...], ground: tuple[float, ...]) -> torch.Tensor:
    """float (1, 3, SIZE, SIZE)"""
    picture = np.where(mask[..., None], colour, ground)
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float()


def one(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None]


def cues_of(reference: np.ndarray, target: torch.Tensor, predicted: np.ndarray) -> dict[str, float]:
    known = appearances(pictures_of(painted(reference, RED, BLUE)), one(reference)[None])
    (cues,) = appearance_cues(known, pictures_of(target), one(predicted))
    return cues


def test_forms_of_shapes_with_known_measures() -> None:
    circle, stick, ring = disc(90), bar(12, 240), disc(90) & ~disc(45)
    assert math.exp(Form.of(circle).thickness) == pytest.approx(1 / math.sqrt(math.pi), rel=0.03)
    assert math.exp(Form.of(stick).thickness) == pytest.approx(6 / math.sqrt(12 * 240), rel=0.15)
    # the ellipse with the moments of a disc is the disc; that of a rectangle is pi / 3 times as large
    assert math.exp(Form.of(circle).fullness) == pytest.approx(1, rel=0.02)
    assert math.exp(Form.of(stick).fullness) == pytest.approx(3 / math.pi, rel=0.02)
    assert Form.of(circle).holes == 0
    assert math.exp(Form.of(ring).holes) == pytest.approx(4 / 3, rel=0.03)
    assert Form.of(circle).compactness > Form.of(stick).compactness
    # of several components each has its own ellipse
    assert Form.of(disc(30, 60, 60) | disc(30, 200, 200)).fullness == pytest.approx(Form.of(disc(30)).fullness, abs=0.1)


@pytest.mark.parametrize("mask", [np.ones((9, 9), bool), np.eye(9) == 1, bar(1, 1, 9), bar(1, 8, 9)])
def test_every_mask_has_a_form(mask: np.ndarray) -> None:
    assert all(math.isfinite(value) for value in vars(Form.of(mask)).values())


def test_the_same_again_is_as_alike_as_can_be() -> None:
    mask = disc(60, 100, 110)
    cues = cues_of(mask, painted(mask, RED, BLUE), mask)
    for name in ("colour", "palette", "picture", "distinct", "thickness", "fullness", "holes", "inside"):
        assert cues[name] == pytest.approx(1, abs=0.1), name
    assert math.exp(cues["area"]) == pytest.approx(mask.mean(), rel=0.02)


def test_another_colour_another_form_and_the_border_are_told() -> None:
    mask, away = disc(60), disc(30, 45, 45)
    scene = painted(mask, RED, BLUE)
    assert cues_of(mask, scene, away)["colour"] == 0
    assert cues_of(mask, scene, away)["palette"] < 0.1
    assert cues_of(mask, scene, away)["distinct"] < 0.2  # the rest is mostly of the same colour
    half = disc(60, 128, 100)
    expected = (half & mask).sum() / (half | mask).sum()
    assert cues_of(mask, scene, half)["colour"] == pytest.approx(expected, abs=0.03)
    other = cues_of(mask, painted(mask, GREEN, BLUE), mask)
    assert other["palette"] < 0.1
    assert other["picture"] == pytest.approx(1 - mask.mean(), abs=0.03), "the blue around it is the same"
    assert other["distinct"] > 0.9
    thin = cues_of(mask, scene, bar(8, 200))
    ratio = math.log((4 / math.sqrt(1600)) / (1 / math.sqrt(math.pi)))
    assert thin["thickness"] == pytest.approx(math.exp(-2 * abs(ratio)), rel=0.2)
    assert cues_of(mask, scene, disc(60) & ~disc(30))["holes"] == pytest.approx((3 / 4) ** 2, abs=0.03)
    touching = np.zeros((SIZE, SIZE), dtype=bool)
    touching[:, : SIZE // 4] = True
    assert cues_of(mask, scene, touching)["inside"] == pytest.approx(1 - (1 + 2 / 4) / 4, abs=0.02)


def test_of_several_references_the_most_alike_counts_and_one_may_lack_the_label() -> None:
    thick, thin = disc(60), bar(10, 200)
    pictures = pictures_of(torch.cat([painted(mask, RED, BLUE) for mask in (thick, thin, thin)]))
    masks = torch.stack([one(thick), one(thin), one(np.zeros_like(thin))])
    for mask in (thick, thin):
        (cues,) = appearance_cues(appearances(pictures, masks), pictures[:1], one(mask))
        assert cues["thickness"] == pytest.approx(1)


def test_labels_have_their_own_looks_and_one_that_was_not_found_has_no_cues() -> None:
    left, right = disc(30, 128, 60), disc(30, 128, 190)
    picture = np.where(left[..., None], RED, np.where(right[..., None], GREEN, BLUE))
    image = pictures_of(torch.from_numpy(picture).permute(2, 0, 1)[None])
    masks = torch.from_numpy(np.stack([left, right]))
    first, second = appearance_cues(appearances(image, masks[None]), image, masks)
    assert min(first["palette"], second["palette"]) > 0.9
    first, second = appearance_cues(
        appearances(image, masks[None]), image, masks & torch.tensor([True, False])[:, None, None]
    )
    assert first
    assert second == {}


def test_a_mask_thinner_than_a_cell_is_not_lost() -> None:
    line = np.zeros((1024, 1024), dtype=bool)
    line[500, 100:900] = True
    known = appearances(pictures_of(torch.rand(1, 3, 1024, 1024)), one(line)[None])
    (cues,) = appearance_cues(known, torch.zeros(1, 3, GRID, GRID, dtype=torch.uint8), one(line))
    assert all(math.isfinite(value) for value in cues.values())
    assert cues["thickness"] == pytest.approx(1)


def test_palettes_sum_to_one_and_near_colours_meet() -> None:
    near, far = palette(np.full((5, 3), 0.49)), palette(np.full((7, 3), 0.95))
    beside = palette(np.full((3, 3), 0.51))
    assert near.sum() == pytest.approx(1)
    assert np.minimum(near, beside).sum() > 0.2 > np.minimum(near, far).sum()
