"""What a target's result holds, on candidates made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cavsam.candidates.base import Candidate
from cavsam.recipe import Recipe
from cavsam.result import to_result
from cavsam.scoring.calibration import Calibration, Logistic
from cavsam.types import TargetResult

RECIPE = Recipe(mode="auto", min_presence=0.0, min_score=0.0)


def candidate(kind: str, scores: list[float], presence: list[float], columns: list[tuple[int, int]]) -> Candidate:
    """Each label's mask is a stripe of an 8 x 8 square."""
    logits = torch.full((len(columns), 8, 8), -1.0)
    for label, (first, last) in enumerate(columns):
        logits[label, :, first:last] = 1.0 + 0.1 * label
    return Candidate(kind, logits, [{} for _ in columns], kind, scores=scores, presence=presence)


def result(found: list[Candidate], chosen: list[Candidate], recipe: Recipe = RECIPE) -> TargetResult:
    fitted = Calibration({"concat": Logistic(0.0, {}, {})}, recipe=recipe.to_dict())
    return to_result(("left", "right"), found, chosen, (16, 24), recipe, fitted)


def test_masks_have_the_targets_size_and_a_contested_pixel_one_owner() -> None:
    one = candidate("concat", [0.6, 0.8], [1.0, 1.0], [(0, 4), (2, 8)])
    found = result([one], [one, one])
    assert found.size == (16, 24)
    assert found.masks["left"].shape == (16, 24)
    assert not (found.masks["left"] & found.masks["right"]).any()
    assert (found.masks["left"] | found.masks["right"]).all()
    assert found.contested == {("left", "right"): pytest.approx(2 / 8)}
    assert found.scores == {"left": 0.6, "right": 0.8}
    assert found.calibrated


def test_each_label_has_the_mask_of_the_candidate_chosen_for_it() -> None:
    first = candidate("concat", [0.9, 0.1], [1.0, 1.0], [(0, 4), (4, 6)])
    second = candidate("linear", [0.2, 0.7], [1.0, 1.0], [(0, 2), (5, 8)])
    found = result([first, second], [first, second])
    assert found.sources == {"left": "concat", "right": "linear"}
    assert [[way.chosen for way in ways] for ways in found.candidates.values()] == [[True, False], [False, True]]
    assert found.masks["left"].mean() == pytest.approx(4 / 8, abs=0.03)
    assert found.masks["right"].mean() == pytest.approx(3 / 8, abs=0.03)
    assert not found.calibrated  # `linear` was never fitted


def test_a_mask_below_a_bound_is_held_back_and_contests_nothing() -> None:
    one = candidate("concat", [0.6, 0.05], [0.3, 1.0], [(0, 5), (3, 8)])
    found = result([one], [one, one], RECIPE.replace(min_presence=0.5))
    assert set(found.masks) == {"right"}
    assert found.scores == {"left": 0.3, "right": 0.05}  # no more than the probability that it is there
    assert list(found.held_back) == ["left"]
    assert "min_presence 0.5" in found.held_back["left"]
    assert found.contested == {}
    assert found.masks["right"].mean() == pytest.approx(5 / 8, abs=0.03)  # it has the contested pixels
    found = result([one], [one, one], RECIPE.replace(min_score=0.1))
    assert set(found.masks) == {"left"}
    assert "min_score 0.1" in found.held_back["right"]


def test_a_label_without_a_mask_is_left_out_and_not_held_back() -> None:
    one = candidate("concat", [0.6, 0.0], [1.0, 0.2], [(0, 5), (0, 0)])
    found = result([one], [one, one], RECIPE.replace(min_presence=0.5))
    assert set(found.masks) == {"left"}
    assert found.held_back == {}
    assert set(found.scores) == {"left", "right"}
    assert found.score == found.scores["left"]
    np.testing.assert_array_equal(found.candidates["right"][0].mask, np.zeros((8, 8), dtype=bool))


def test_each_candidate_says_whether_its_own_score_was_fitted() -> None:
    one, other = (candidate(kind, [0.6, 0.8], [1.0, 1.0], [(0, 4), (4, 8)]) for kind in ("concat", "linear"))
    found = result([one, other], [one, one])
    assert [c.calibrated for c in found.candidates["left"]] == [True, False]  # the calibration knows `concat` only
    taught = replace(other, taught=True)
    found = result([one, taught], [taught, taught])
    assert found.calibrated
    assert [c.calibrated for c in found.candidates["left"]] == [True, False]
