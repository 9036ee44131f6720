"""TTGA's parts against loops and scikit-image, and what it may and may not change."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.filters import threshold_otsu

from cavsam.alignment import (
    Alignment,
    activation,
    align,
    augment,
    background_regions,
    cycle_iou,
    cyclic_loss,
    otsu,
    prototypes,
    pseudo_prompts,
    separation,
)
from cavsam.errors import NumericalError
from cavsam.recipe import Recipe
from cavsam.tracking import Tracker
from tests.unit.cavsam.conftest import blob_picture

PAPER = Recipe.preset("paper")
"""What the tests start from, whatever the defaults become."""


@pytest.fixture
def reference(tracker: Tracker, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One picture (1, 3, S, S) and its two masks (1, 2, S, S)."""
    blobs = blob_picture(rng, tracker.image_size, tracker.image_size)
    image = torch.from_numpy(blobs.image).permute(2, 0, 1).float() / 255
    masks = torch.from_numpy(np.stack(list(blobs.masks.values()))).float()
    return image[None], masks[None]


@pytest.mark.parametrize("seed", range(6))
def test_otsu_against_scikit_image(seed: int) -> None:
    generator = np.random.default_rng(seed)
    low = generator.normal(0.1, 0.05 + 0.03 * seed, 300)
    values = np.concatenate([low, generator.normal(0.6, 0.1, 40 + 60 * seed)]).clip(-1, 1)
    threshold = otsu(torch.from_numpy(values))
    assert threshold == pytest.approx(threshold_otsu(values), abs=1e-9)
    below, above = values[values <= threshold], values[values > threshold]
    expected = (above.mean() - below.mean()) / np.sqrt((above.var() + below.var()) / 2)
    assert separation(torch.from_numpy(values), threshold) == pytest.approx(expected)


def test_a_constant_has_no_two_modes() -> None:
    constant = torch.full((4, 4), 0.3)
    assert otsu(constant) == pytest.approx(0.3)
    assert separation(constant, otsu(constant)) == 0.0


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_separation_tells_two_modes_from_one_whatever_their_size(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(4000, generator=generator)
    two = one.clone()
    two[: int(share * 4000)] += 12
    trust = Recipe().min_separation
    assert separation(two, otsu(two)) > trust
    assert separation(one, otsu(one)) < trust
    assert separation(torch.rand(4000, generator=generator), 0.5) == pytest.approx(12**0.5, abs=0.1)


def test_prototypes_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 5, 4, 4, generator=generator)
    masks = (torch.rand(2, 3, 16, 16, generator=generator) > 0.6).float()
    masks[1, 2] = 0  # a label may be missing on one image
    for label, result in enumerate(prototypes(features, masks)):
        total, weight = np.zeros(5), 0.0
        for image in range(2):
            for row in range(4):
                for column in range(4):
                    cell = masks[image, label, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean().item()
                    total += cell * features[image, :, row, column].numpy()
                    weight += cell
        mean = total / weight
        np.testing.assert_allclose(result.numpy(), mean / np.linalg.norm(mean), atol=1e-5)


def test_activation_is_the_cosine() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 5, 3, 4, generator=generator)
    unit = F.normalize(torch.randn(2, 5, generator=generator), dim=1)
    result = activation(features, unit)
    assert result.shape == (2, 2, 3, 4)
    expected = F.cosine_similarity(features[1, :, 2, 3], unit[0], dim=0)
    assert result[1, 0, 2, 3].item() == pytest.approx(expected.item(), abs=1e-6)


def test_contrast_is_against_the_nearest_other_prototype() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 5, 3, 4, generator=generator)
    labels = F.normalize(torch.randn(2, 5, generator=generator), dim=1)
    background = F.normalize(torch.randn(3, 5, generator=generator), dim=1)
    result = activation(features, labels, background)
    everything = torch.cat([labels, background])
    for cell in np.ndindex(2, 3, 4):
        cosines = F.cosine_similarity(features[cell[0], :, cell[1], cell[2]][None], everything).numpy()
        for label in range(2):
            expected = cosines[label] - np.delete(cosines, label).max()
            assert result[cell[0], label, cell[1], cell[2]].item() == pytest.approx(expected, abs=1e-6)


def test_background_regions_part_what_no_label_covers() -> None:
    """Two kinds of background beside an object that is on one of two pictures."""
    kinds = torch.tensor([[1.0, 0.2, 0.0], [0.0, 1.0, 0.1], [0.1, 0.0, 1.0]])
    grid = torch.full((2, 6, 6), 1)
    grid[:, :, 3:] = 2
    grid[0, 2:4, 2:4] = 0
    features = kinds[grid].permute(0, 3, 1, 2)
    masks = (grid == 0).float()[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert background_regions(features, masks, PAPER) is None
    one = background_regions(features, masks, PAPER.replace(activation="contrast"))
    assert one is not None
    torch.testing.assert_close(one, (grid != 0).float()[:, None])
    two = background_regions(features, masks, PAPER.replace(activation="contrast", background_prototypes=2))
    assert two is not None
    assert {tuple((two[:, part] > 0).flatten().tolist()) for part in range(2)} == {
        tuple((grid == kind).flatten().tolist()) for kind in (1, 2)
    }
    # more parts than there are cells: all of it is one
    everything = torch.ones_like(masks)
    none = background_regions(features, everything, PAPER.replace(activation="contrast", background_prototypes=2))
    assert none is not None
    assert none.shape[1] == 1


@pytest.mark.parametrize("changes", [{}, {"activation_threshold": "zero"}, {"background_prototypes": 3}])
def test_alignment_with_contrast_learns_and_keeps_its_background(
    tracker: Tracker, reference: tuple[torch.Tensor, torch.Tensor], changes: dict[str, Any]
) -> None:
    images, masks = reference
    recipe = PAPER.replace(mode="ttga", activation="contrast", temperature=0.1, ttga_steps=30, **changes)
    aligned = align(tracker, images, masks, tracker.trunk(images), recipe)
    assert aligned.background is not None
    assert aligned.background.shape == (recipe.background_prototypes, aligned.prototypes.shape[1])
    torch.testing.assert_close(aligned.background.norm(dim=1), torch.ones(recipe.background_prototypes))
    assert np.mean(aligned.losses[-8:]) < np.mean(aligned.losses[:8])


def test_only_the_two_coarse_laterals_learn_and_the_model_stays(
    tracker: Tracker, reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = reference
    before = {name: tensor.clone() for name, tensor in tracker.predictor.state_dict().items()}
    aligned = align(tracker, images, masks, tracker.trunk(images), PAPER.replace(mode="ttga", ttga_steps=5))
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
    tracker: Tracker, reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = reference
    trunk = tracker.trunk(images)
    recipe = PAPER.replace(mode="ttga", ttga_steps=40)
    aligned, again = (align(tracker, images, masks, trunk, recipe) for _ in range(2))
    assert aligned.losses == again.losses
    assert all(torch.equal(aligned.neck[name], again.neck[name]) for name in aligned.neck)
    assert np.mean(aligned.losses[-8:]) < np.mean(aligned.losses[:8])
    other = align(tracker, images, masks, trunk, recipe.replace(seed=1))
    assert other.losses != aligned.losses


@pytest.mark.parametrize("kind", ["foreground", "contrast"])
def test_loss_written_out(
    tracker: Tracker, reference: tuple[torch.Tensor, torch.Tensor], kind: Literal["foreground", "contrast"]
) -> None:
    """L_aug + L_cyc from numpy for one label, with scikit-image's Otsu on the way back."""
    images, masks = reference[0], reference[1][:, :1]
    generator = torch.Generator().manual_seed(3)
    changed, changed_masks = augment(images[0], masks[0], generator)
    trunk, changed_trunk = tracker.trunk(images), tracker.trunk(changed[None])
    weights = tracker.neck_weights
    recipe = PAPER.replace(mode="ttga", temperature=0.5, activation=kind)
    regions = background_regions(tracker.neck(trunk)[0], masks, recipe)
    loss = cyclic_loss(tracker, trunk, masks, changed_trunk, changed_masks[None], weights, recipe, regions)

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
    tracker: Tracker, reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = reference
    trunk = tracker.trunk(images)
    losses = [
        align(tracker, images, masks, trunk, PAPER.replace(mode="ttga", ttga_steps=3, cycle_mask=kind)).losses
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


def test_an_activation_without_contrast_gives_no_prompt(
    tracker: Tracker, reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = reference
    video = [torch.cat([level, level]) for level in tracker.trunk(images)]
    channels = tracker.neck(video)[0].shape[1]
    silent = Alignment({}, torch.zeros(2, channels), [])  # nothing is like it
    prompts, activations = pseudo_prompts(tracker, video, masks.bool(), silent, [1], PAPER, "mask")
    assert prompts == []
    assert activations.shape == (1, 2, tracker.image_size // 16, tracker.image_size // 16)
    assert float(activations.abs().max()) == 0


def test_pseudo_prompts_follow_the_activations(tracker: Tracker, reference: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, masks = reference
    trunk = tracker.trunk(images)
    aligned = align(tracker, images, masks, trunk, PAPER.replace(mode="ttga", ttga_steps=60))
    video = [torch.cat([level, level]) for level in trunk]
    recipe = PAPER.replace(min_separation=0.0, min_cycle_iou=0.0)
    prompts, maps = pseudo_prompts(tracker, video, masks.bool(), aligned, [1], recipe, "mask")
    assert [(prompt.frame, prompt.label) for prompt in prompts] == [(1, 0), (1, 1)]
    full = F.interpolate(maps, scale_factor=16, mode="bilinear")[0].numpy()
    for prompt in prompts:
        assert prompt.mask is not None
        threshold = np.float32(threshold_otsu(maps[0, prompt.label].double().numpy()))
        expected = (full[prompt.label] > threshold) & (full[prompt.label] >= full.max(axis=0))
        np.testing.assert_array_equal(prompt.mask.numpy(), expected)
    boxes, _ = pseudo_prompts(tracker, video, masks.bool(), aligned, [1], recipe, "box")
    assert all(prompt.box is not None and prompt.mask is None for prompt in boxes)
    for strict in ({"min_separation": 1e6}, {"min_cycle_iou": 1.0}):
        assert pseudo_prompts(tracker, video, masks.bool(), aligned, [1], recipe.replace(**strict), "mask")[0] == []


def test_cycle_iou_on_features_whose_answer_is_known() -> None:
    """Two kinds of cells: a pseudo-label of the object's kind finds exactly the object again."""
    kinds = torch.eye(3)[:, :, None, None]
    truth = torch.zeros(1, 8, 8, dtype=torch.bool)
    truth[0, 2:5, 1:6] = True
    known = torch.where(truth[:, None], kinds[:1], kinds[1:2]).expand(1, 3, 8, 8)
    elsewhere = torch.zeros(8, 8, dtype=torch.bool)
    elsewhere[5:, 5:] = True
    frame = torch.where(elsewhere[None], kinds[0], kinds[1])
    large = truth.repeat_interleave(16, 1).repeat_interleave(16, 2)
    right, wrong = (m.repeat_interleave(16, 0).repeat_interleave(16, 1) for m in (elsewhere, ~elsewhere))
    assert cycle_iou(known, large, frame, right, PAPER) == 1.0
    assert cycle_iou(known, large, frame, wrong, PAPER) == 0.0
    # a reference that does not show the label has no say
    two = torch.cat([known, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))])
    assert cycle_iou(two, torch.cat([large, torch.zeros_like(large)]), frame, right, PAPER) == 1.0


def test_a_loss_that_is_not_finite_is_an_error(tracker: Tracker, reference: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, masks = reference
    trunk = [level * torch.nan for level in tracker.trunk(images)]
    with pytest.raises(NumericalError, match="ttga_lr"):
        align(tracker, images, masks, trunk, PAPER.replace(mode="ttga", ttga_steps=1))
