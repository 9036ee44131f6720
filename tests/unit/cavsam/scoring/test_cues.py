"""The score: what the pieces say, on masks whose IoU is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cavsam.scoring.cues import iou, joined, reverse_consistency, similarity_signs, track_signs
from cavsam.tracking import Prompt, Track, Tracker


def test_iou_against_numpy(rng: np.random.Generator) -> None:
    for _ in range(10):
        first, second = rng.random((2, 9, 11)) > 0.6
        expected = np.logical_and(first, second).sum() / np.logical_or(first, second).sum()
        assert iou(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(expected)
    empty = torch.zeros(3, 3, dtype=torch.bool)
    assert iou(empty, empty) == 1.0


def test_reverse_consistency_is_the_iou_of_the_way_back(tracker: Tracker) -> None:
    size = tracker.image_size
    video = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    trunk = tracker.trunk(video)
    predicted = torch.zeros(3, size, size, dtype=torch.bool)
    predicted[0, 40:120, 60:150] = True
    predicted[2, 10:50, 10:50] = True  # the second label was not found
    reference = torch.zeros(3, size, size, dtype=torch.bool)
    reference[0, 50:130, 60:150] = True
    reference[1, 150:200, 150:200] = True  # the third label is not on the reference
    result = reverse_consistency(tracker, trunk, predicted, reference, 0, None)
    back = tracker.track(trunk, [Prompt(2, 0, mask=predicted[0])], 1, read=0, reverse=True).logits[0] > 0
    assert result[0].item() == pytest.approx(iou(back, reference[0]))
    assert result[1].item() == 0
    assert result[2].isnan()


def test_similarity_is_the_cosine_of_masked_means(tracker: Tracker) -> None:
    size = tracker.image_size
    trunk = tracker.trunk(torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(2)))
    masks = torch.zeros(2, 2, size, size, dtype=torch.bool)
    masks[0, 0, 32:96, 32:96] = masks[1, 0, 64:160, 0:64] = masks[1, 1, 160:224, 128:256] = True
    predicted = torch.zeros(2, size, size, dtype=torch.bool)
    predicted[0, 16:80, 64:192] = True
    first, second = similarity_signs(tracker, tracker.neck(trunk)[1], masks, predicted)
    assert second == {}
    for name, stride in (("similarity", 4), ("similarity_coarse", 16)):
        features = tracker.features(trunk, stride).numpy()
        inside = masks[:, 0, ::stride, ::stride].numpy()
        known = np.moveaxis(features[:2], 1, -1)[inside].mean(axis=0)
        own = np.moveaxis(features[2], 0, -1)[predicted[0, ::stride, ::stride].numpy()].mean(axis=0)
        expected = known @ own / np.linalg.norm(known) / np.linalg.norm(own)
        assert first[name] == pytest.approx(expected, abs=1e-4)


def test_signs_are_joined_and_what_is_not_known_is_left_out() -> None:
    track = Track(torch.zeros(2, 2, 2), torch.tensor([0.0, 100.0]), torch.tensor([0.25, 0.75]))
    signs = joined([{"area": 0.5}, {}], track_signs(track), torch.tensor([0.125, torch.nan]))
    assert signs == [
        {"area": 0.5, "presence": 0.5, "predicted_iou": 0.25, "consistency": 0.125},
        {"presence": 1.0, "predicted_iou": 0.75},
    ]
