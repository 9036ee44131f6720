"""The score: what the pieces say, on masks whose IoU is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cavsam.recipe import Recipe
from cavsam.scoring import feature_signs, iou, joined, reverse_consistency, track_signs
from cavsam.tracking import Prompt, Track, Tracker

PAPER = Recipe.preset("paper")
"""What the tests start from, whatever the defaults become."""


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


def test_feature_signs_on_features_whose_answer_is_known() -> None:
    """Cells of three pure kinds: two objects and the rest."""
    kinds = torch.eye(3)
    known_map, target_map = torch.full((2, 8, 8), 2)
    known_map[1:4, 1:4], known_map[5:7, 2:6] = 0, 1
    target_map[0:2, 0:6], target_map[4:8, 4:8] = 0, 1
    known, target = (kinds[grid].permute(2, 0, 1)[None] for grid in (known_map, target_map))
    scale = torch.ones(16, 16, dtype=torch.bool)

    def full(grid: torch.Tensor) -> torch.Tensor:
        return torch.kron(grid.byte(), scale.byte()).bool()

    reference = torch.stack([full(known_map == label) for label in (0, 1, 2)])[None, :2]
    wrong = torch.zeros(8, 8, dtype=torch.bool)
    wrong[0, 6:] = True  # two cells of the rest
    # of three kinds Otsu may part the wrong two; against the background the border is 0
    for recipe in (PAPER, PAPER.replace(activation="contrast", activation_threshold="zero")):
        right, none = feature_signs(
            known, reference, target, torch.stack([full(target_map == 0), full(wrong & ~wrong)]), recipe
        )
        assert none == {}
        assert right["cycle"] == 1.0
        assert right["similarity"] == pytest.approx(1.0)
        assert right["contrast"] == pytest.approx(1.0)
        assert right["separation"] == 1.0
        assert right["size"] == pytest.approx(9 / 12)
        assert right["activation"] > 0.6  # but for the blur of its edge
        bad, _ = feature_signs(known, reference, target, torch.stack([full(wrong), full(wrong)]), recipe)
        assert bad["cycle"] == 0.0
        assert bad["similarity"] == pytest.approx(0.0, abs=1e-6)
        assert bad["contrast"] == pytest.approx(-1.0)
        assert bad["activation"] < 0.05
        assert bad["size"] == pytest.approx(2 / 9)


def test_signs_are_joined_and_what_is_not_known_is_left_out() -> None:
    track = Track(torch.zeros(2, 2, 2), torch.tensor([0.0, 100.0]), torch.tensor([0.25, 0.75]))
    signs = joined([{"cycle": 0.5}, {}], track_signs(track), torch.tensor([0.125, torch.nan]))
    assert signs == [
        {"cycle": 0.5, "presence": 0.5, "predicted_iou": 0.25, "consistency": 0.125},
        {"presence": 1.0, "predicted_iou": 0.75},
    ]
