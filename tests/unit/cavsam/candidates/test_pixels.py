"""The forest of pixels on pictures whose objects differ from the rest in colour or in texture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cavsam.candidates.pixels import pixel_logits
from cavsam.features import iou

SIDE, SQUARE = 64, 256
RED, GREEN = (200, 60, 40), (60, 160, 60)


def scene(rng: np.random.Generator, box: tuple[slice, slice], colour: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """A box of a colour on noisy grey: uint8 (3, SIDE, SIDE), bool (SQUARE, SQUARE)."""
    picture = rng.integers(90, 130, (SIDE, SIDE, 3))
    picture[box] = np.array(colour) + rng.integers(-15, 15, picture[box].shape)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[box] = True
    scale = SQUARE // SIDE
    full = mask.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    return torch.from_numpy(picture.astype(np.uint8)).permute(2, 0, 1), full


LOW, HIGH = (slice(40, 60), slice(5, 30)), (slice(8, 24), slice(30, 60))


def test_an_object_is_found_by_its_colour_at_another_place() -> None:
    rng = np.random.default_rng(0)
    known, mask = scene(rng, LOW, RED)
    target, truth = scene(rng, HIGH, RED)
    (logits,) = pixel_logits(known[None], mask[None, None], target, seed=0)
    assert logits.shape == (SQUARE, SQUARE)
    assert iou(logits > 0, truth) > 0.85


def test_each_label_has_a_forest_of_its_own_and_may_lack_on_a_reference() -> None:
    rng = np.random.default_rng(1)
    (first, red), (second, green) = scene(rng, LOW, RED), scene(rng, LOW, GREEN)
    none = torch.zeros_like(red)
    masks = torch.stack([torch.stack([red, none]), torch.stack([none, green])])
    known = torch.stack([first, second])
    for label, colour in enumerate((RED, GREEN)):
        target, truth = scene(rng, HIGH, colour)
        logits = pixel_logits(known, masks, target, seed=0)
        assert iou(logits[label] > 0, truth) > 0.7
        assert iou(logits[1 - label] > 0, truth) < 0.1


def test_a_texture_of_the_same_mean_colour_is_told_apart() -> None:
    rng = np.random.default_rng(2)
    pictures, masks = [], []
    for box in (LOW, HIGH):
        picture = np.full((SIDE, SIDE, 3), 110, dtype=np.int64)
        rows, columns = np.indices((SIDE, SIDE))
        stripes = np.where((rows + columns) % 4 < 2, 60, 160)[..., None].repeat(3, axis=2)
        picture[box] = stripes[box]
        noisy = picture + rng.integers(-5, 5, picture.shape)
        mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        mask[box] = True
        pictures.append(torch.from_numpy(noisy.astype(np.uint8)).permute(2, 0, 1))
        masks.append(mask.repeat_interleave(4, 0).repeat_interleave(4, 1))
    (logits,) = pixel_logits(pictures[0][None], masks[0][None, None], pictures[1], seed=0)
    assert iou(logits > 0, masks[1]) > 0.7


def test_the_seed_alone_decides_what_is_drawn() -> None:
    rng = np.random.default_rng(3)
    (known, mask), (target, _) = scene(rng, LOW, RED), scene(rng, HIGH, RED)
    first, again, other = (pixel_logits(known[None], mask[None, None], target, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_mask_of_everything_or_of_one_pixel_is_learned_from(everywhere: bool) -> None:
    known, mask = scene(np.random.default_rng(4), LOW, RED)
    mask[:] = everywhere
    mask[0, 0] = True
    (logits,) = pixel_logits(known[None], mask[None, None], known, seed=0)
    assert logits.isfinite().all()
    assert bool((logits > 0).all()) is everywhere
