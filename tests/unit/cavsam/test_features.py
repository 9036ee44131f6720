"""Pure functions of tensors against loops, numpy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.filters import threshold_otsu

from cavsam.features import activation, guided_filter, iou, otsu, prototypes, separation, unlabelled, without_overlap
from cavsam.recipe import Recipe


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
    trust = Recipe.preset("bundled").min_separation
    assert separation(two, otsu(two)) > trust
    assert separation(one, otsu(one)) < trust
    assert separation(torch.rand(4000, generator=generator), 0.5) == pytest.approx(12**0.5, abs=0.1)


def test_prototypes_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 5, 4, 4, generator=generator)
    masks = (torch.rand(2, 3, 16, 16, generator=generator) > 0.6).float()
    masks[1, 2] = 0  # a label may be missing on one image
    results = prototypes(features, masks)
    assert results.shape == (3, 5)
    for label, result in enumerate(results):
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


def test_unlabelled_is_what_no_label_covers() -> None:
    """Two labels that meet in a corner of one of two pictures; a cell is 4 x 4 pixels."""
    masks = torch.zeros(2, 2, 24, 24)
    masks[0, 0, :8, :10] = 1
    masks[0, 1, 4:12, 8:16] = 1
    expected = np.zeros((2, 1, 6, 6))
    for image, row, column in np.ndindex(2, 6, 6):
        cells = masks[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].numpy()
        expected[image, 0, row, column] = (cells.max(axis=0) == 0).mean()
    np.testing.assert_allclose(unlabelled(torch.zeros(2, 3, 6, 6), masks).numpy(), expected, atol=1e-6)


def test_masks_without_overlap_give_a_pixel_to_the_highest_logit(rng: np.random.Generator) -> None:
    logits = rng.normal(size=(3, 9, 11)).round(1)  # some of them equal: the first label has those
    masks = without_overlap(torch.from_numpy(logits)).numpy()
    for row, column in np.ndindex(9, 11):
        own = logits[:, row, column]
        expected = [int(own.argmax())] if own.max() > 0 else []
        assert np.flatnonzero(masks[:, row, column]).tolist() == expected


def test_iou_against_numpy(rng: np.random.Generator) -> None:
    for _ in range(10):
        first, second = rng.random((2, 9, 11)) > 0.6
        expected = np.logical_and(first, second).sum() / np.logical_or(first, second).sum()
        assert iou(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(expected)
    empty = torch.zeros(3, 3, dtype=torch.bool)
    assert iou(empty, empty) == 1.0


def test_the_guided_filter_against_windows_one_by_one() -> None:
    """At half the size: in each window the ridge regression of the map on the colours, then the mean of the windows."""
    rng = np.random.default_rng(5)
    half, level = rng.random((3, 7, 8)), rng.normal(size=(7, 8))
    slopes, offsets = np.zeros((3, 7, 8)), np.zeros((7, 8))

    def window(row: int, column: int) -> tuple[slice, slice]:
        return slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)

    for row, column in np.ndindex(7, 8):
        colours, values = half[:, *window(row, column)].reshape(3, -1), level[window(row, column)].ravel()
        spread = np.cov(colours, ddof=0) + 0.01 * np.eye(3)
        shared = (colours * values).mean(axis=1) - colours.mean(axis=1) * values.mean()
        slopes[:, row, column] = np.linalg.solve(spread, shared)
        offsets[row, column] = values.mean() - slopes[:, row, column] @ colours.mean(axis=1)
    expected = np.zeros((7, 8))
    for row, column in np.ndindex(7, 8):
        mean = slopes[:, *window(row, column)].mean(axis=(1, 2))
        expected[row, column] = mean @ half[:, row, column] + offsets[window(row, column)].mean()
    picture, maps = (
        torch.from_numpy(one).float().repeat_interleave(2, -1).repeat_interleave(2, -2) for one in (half, level[None])
    )
    found = guided_filter(maps, picture, 2, 0.01)[0]
    # pixels of one colour: the mean over a cell takes back what scaling up has blurred, but for the second neighbours
    cells = F.avg_pool2d(found[None], 2)[0].numpy()
    assert np.corrcoef(cells.ravel(), expected.ravel())[0, 1] > 0.97


def test_the_guided_filter_moves_a_border_to_the_picture_s_edge() -> None:
    truth = torch.zeros(64, 64, dtype=torch.bool)
    truth[20:44, 13:51] = True
    picture = torch.where(truth, 0.8, 0.3).expand(3, -1, -1) + torch.linspace(0, 0.02, 64)
    coarse = torch.full((2, 64, 64), -1.0)
    coarse[0, 16:48, 8:56] = 1.0  # four pixels too large on every side
    coarse[1] = 0.7
    found = guided_filter(coarse, picture, 8)
    assert iou(coarse[0] > 0, truth) < 0.65
    assert iou(found[0] > 0, truth) > 0.8
    assert torch.allclose(found[1], coarse[1], atol=1e-4), "what does not change stays"
