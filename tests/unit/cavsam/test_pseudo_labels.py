"""Pseudo-labels against their activations, and when one is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.filters import threshold_otsu

from cavsam.alignment import Alignment, align
from cavsam.pseudo_labels import cycle_iou, pseudo_labels
from cavsam.recipe import Recipe
from cavsam.tracking import Tracker

PUBLISHED = Recipe()
"""What the tests start from, whatever the defaults become."""


@pytest.fixture
def tracker(small_tracker: Tracker) -> Tracker:
    return small_tracker


def test_an_activation_without_contrast_gives_no_prompt(
    tracker: Tracker, square_reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = square_reference
    video = [torch.cat([level, level]) for level in tracker.trunk(images)]
    channels = tracker.neck(video)[0].shape[1]
    silent = Alignment({}, torch.zeros(2, channels), [])  # nothing is like it
    labels = pseudo_labels(tracker, video, masks.bool(), silent, [1], PUBLISHED)
    assert [(one.frame, one.label) for one in labels] == [(1, 0), (1, 1)]
    assert [one.refused for one in labels] == ["the activation marks nothing"] * 2
    assert [one.threshold for one in labels] == [0, 0]


def test_pseudo_labels_follow_the_activations(
    tracker: Tracker, square_reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = square_reference
    trunk = tracker.trunk(images)
    aligned = align(tracker, images, masks, trunk, PUBLISHED.replace(mode="ttga", ttga_steps=60))
    video = [torch.cat([level, level]) for level in trunk]
    recipe = PUBLISHED.replace(min_separation=0.0, min_cycle_iou=0.0)
    labels = pseudo_labels(tracker, video, masks.bool(), aligned, [1], recipe)
    assert [(one.frame, one.label, one.refused) for one in labels] == [(1, 0, ""), (1, 1, "")]
    maps = aligned.activations(tracker, [level[1:] for level in video], recipe)
    full = F.interpolate(maps, scale_factor=16, mode="bilinear")[0].numpy()
    for one in labels:
        threshold = np.float32(threshold_otsu(maps[0, one.label].double().numpy()))
        expected = (full[one.label] > threshold) & (full[one.label] >= full.max(axis=0))
        np.testing.assert_array_equal(one.mask.numpy(), expected)
        assert one.prompt("mask").mask is one.mask
        rows, columns = np.nonzero(expected)
        assert one.prompt("box").box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        point = one.prompt("point").point
        assert point is not None
        assert full[one.label][int(point[1]), int(point[0])] == full[one.label][expected].max()
    for strict, reason in (
        ({"min_separation": 1e6}, "not clearly bimodal"),
        ({"min_cycle_iou": 1.0}, "find the reference again"),
    ):
        refused = pseudo_labels(tracker, video, masks.bool(), aligned, [1], recipe.replace(**strict))
        assert len(refused) == 2
        assert all(reason in one.refused for one in refused)


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
    assert cycle_iou(known, large, frame, right, PUBLISHED) == 1.0
    assert cycle_iou(known, large, frame, wrong, PUBLISHED) == 0.0
    # a reference that does not show the label has no say
    two = torch.cat([known, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))])
    assert cycle_iou(two, torch.cat([large, torch.zeros_like(large)]), frame, right, PUBLISHED) == 1.0
