"""The score: what the pieces say, on masks whose IoU is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cavsam.scoring import iou, reverse_consistency
from cavsam.tracking import Prompt, Tracker


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
