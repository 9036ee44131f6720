"""The score: what the pieces say, on masks whose IoU is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cavsam.features import iou
from cavsam.observe.run import Run
from cavsam.scoring.cues import backward_consistency, joined, similarity_cues, track_cues
from cavsam.tracking import Prompt, Track, Tracker
from cavsam.video import Video


def test_consistency_is_the_iou_of_what_arrives_at_the_reference(tracker: Tracker) -> None:
    size = tracker.image_size
    video = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    trunk = tracker.trunk(video)
    predicted = torch.zeros(3, size, size, dtype=torch.bool)
    predicted[0, 40:120, 60:150] = True
    predicted[2, 10:50, 10:50] = True  # the second label was not found
    reference = torch.zeros(3, size, size, dtype=torch.bool)
    reference[0, 50:130, 60:150] = True
    reference[1, 150:200, 150:200] = True  # the third label is not on the reference
    result = backward_consistency(tracker, Video([0], trunk), predicted, reference, None, Run())
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
    first, second = similarity_cues(tracker, tracker.neck(trunk)[1], masks, predicted)
    assert second == {}
    for name, stride in (("similarity", 4), ("similarity_coarse", 16)):
        features = tracker.features(trunk, stride).numpy()
        inside = masks[:, 0, ::stride, ::stride].numpy()
        known = np.moveaxis(features[:2], 1, -1)[inside].mean(axis=0)
        own = np.moveaxis(features[2], 0, -1)[predicted[0, ::stride, ::stride].numpy()].mean(axis=0)
        expected = known @ own / np.linalg.norm(known) / np.linalg.norm(own)
        assert first[name] == pytest.approx(expected, abs=1e-4)


def test_cues_are_joined_and_what_is_not_known_is_left_out() -> None:
    track = Track(torch.zeros(2, 2, 2), torch.tensor([0.0, 100.0]), torch.tensor([0.25, 0.75]))
    assert joined(track_cues(track), torch.tensor([0.125, torch.nan])) == [
        {"presence": 0.5, "predicted_iou": 0.25, "consistency": 0.125},
        {"presence": 1.0, "predicted_iou": 0.75},
    ]
