"""TTGA's parts against loops and scikit-image, and what it may and may not change."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.filters import threshold_otsu

from cavsam.alignment import align, augment, cyclic_loss
from cavsam.errors import NumericalError
from cavsam.recipe import Recipe
from cavsam.tracking import Tracker

PUBLISHED = Recipe()
"""What the tests start from, whatever the defaults become."""


@pytest.fixture
def tracker(small_tracker: Tracker) -> Tracker:
    return small_tracker


def test_alignment_with_contrast_learns_and_keeps_its_background(
    tracker: Tracker, square_reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = square_reference
    recipe = PUBLISHED.replace(mode="ttga", activation="contrast", temperature=0.1, ttga_steps=30)
    aligned = align(tracker, images, masks, tracker.trunk(images), recipe)
    assert aligned.background is not None
    assert aligned.background.shape == (1, aligned.prototypes.shape[1])
    torch.testing.assert_close(aligned.background.norm(dim=1), torch.ones(1))
    assert np.mean(aligned.losses[-8:]) < np.mean(aligned.losses[:8])


def test_only_the_two_coarse_laterals_learn_and_the_model_stays(
    tracker: Tracker, square_reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = square_reference
    before = {name: tensor.clone() for name, tensor in tracker.predictor.state_dict().items()}
    aligned = align(tracker, images, masks, tracker.trunk(images), PUBLISHED.replace(mode="ttga", ttga_steps=5))
    after = tracker.predictor.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in tracker.predictor.parameters())
    changed = {
        name.split(".")[1]
        for name, tensor in tracker.neck_weights.items()
        if not torch.equal(tensor, aligned.neck[name])
    }
    assert changed == {"0", "1"}  # convs.0 is the coarsest level
    assert set(aligned.neck) == set(tracker.neck_weights)


def test_alignment_lowers_the_loss_and_is_reproducible(
    tracker: Tracker, square_reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = square_reference
    trunk = tracker.trunk(images)
    recipe = PUBLISHED.replace(mode="ttga", ttga_steps=24)
    aligned, again = (align(tracker, images, masks, trunk, recipe) for _ in range(2))
    assert aligned.losses == again.losses
    assert all(torch.equal(aligned.neck[name], again.neck[name]) for name in aligned.neck)
    assert np.mean(aligned.losses[-8:]) < np.mean(aligned.losses[:8])
    other = align(tracker, images, masks, trunk, recipe.replace(seed=1))
    assert other.losses != aligned.losses


@pytest.mark.parametrize("kind", ["foreground", "contrast"])
def test_loss_written_out(
    tracker: Tracker, square_reference: tuple[torch.Tensor, torch.Tensor], kind: Literal["foreground", "contrast"]
) -> None:
    """L_aug + L_cyc from numpy for one label, with scikit-image's Otsu in the second half."""
    images, masks = square_reference[0], square_reference[1][:, :1]
    generator = torch.Generator().manual_seed(3)
    changed, changed_masks = augment(images[0], masks[0], generator)
    trunk, changed_trunk = tracker.trunk(images), tracker.trunk(changed[None])
    weights = tracker.neck_weights
    recipe = PUBLISHED.replace(mode="ttga", temperature=0.5, activation=kind)
    loss = cyclic_loss(tracker, trunk, masks, changed_trunk, changed_masks[None], weights, recipe)

    def flat(features: torch.Tensor) -> np.ndarray:
        return features[0].flatten(1).numpy().astype(np.float64).T  # (cells, C)

    def cosine(features: np.ndarray, prototype: np.ndarray) -> np.ndarray:
        return features @ prototype / np.linalg.norm(features, axis=1) / np.linalg.norm(prototype)

    def bce(similarity: np.ndarray, target: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-similarity / 0.5))
        return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())

    with torch.no_grad():
        f, g = flat(tracker.neck(trunk)[0]), flat(tracker.neck(changed_trunk)[0])
    grid = tracker.image_size // 16
    m, n = (F.avg_pool2d(x, 16).reshape(grid * grid).numpy() for x in (masks, changed_masks[None]))
    forward = cosine(g, (f * m[:, None]).sum(0) / m.sum())
    if kind == "contrast":
        forward -= cosine(g, (f * (1 - m)[:, None]).sum(0) / (1 - m).sum())
    predicted = forward > threshold_otsu(forward)
    backward = cosine(f, g[predicted].mean(0))
    if kind == "contrast":
        backward -= cosine(f, g[~predicted].mean(0))
    assert loss.item() == pytest.approx(bce(forward, n) + bce(backward, m), rel=1e-4)


def test_true_mask_on_the_way_back_is_another_loss(
    tracker: Tracker, square_reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = square_reference
    trunk = tracker.trunk(images)
    losses = [
        align(tracker, images, masks, trunk, PUBLISHED.replace(mode="ttga", ttga_steps=3, cycle_mask=kind)).losses
        for kind in ("predicted", "true")
    ]
    assert losses[0] != losses[1]


def test_augmentation_moves_image_and_mask_together() -> None:
    """A picture that shows its own mask still shows it after the change."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.zeros(1, 96, 96)
    mask[0, 20:60, 30:80] = 1
    moved = []
    for _ in range(10):
        image, masks = augment(mask.repeat(3, 1, 1), mask, generator)
        assert set(masks.unique().tolist()) <= {0.0, 1.0}
        # away from the edge, which interpolation blurs, the picture is bright exactly on the mask
        inner, outer = 1 - F.max_pool2d(1 - masks, 5, 1, 2), F.max_pool2d(masks, 5, 1, 2)
        assert image[0][inner[0] > 0].min() > image[0][outer[0] == 0].max() + 0.2
        moved.append(masks)
    assert not torch.equal(moved[0], moved[1])


def test_a_loss_that_is_not_finite_is_an_error(
    tracker: Tracker, square_reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = square_reference
    trunk = [level * torch.nan for level in tracker.trunk(images)]
    with pytest.raises(NumericalError, match="ttga_lr"):
        align(tracker, images, masks, trunk, PUBLISHED.replace(mode="ttga", ttga_steps=1))
