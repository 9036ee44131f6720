"""Which candidate is believed, on scores and masks made by hand."""

from __future__ import annotations

import pytest
import torch

from cavsam.candidates.selection import Candidate, choose, comparable, kinds, settled, without_overlap
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import Calibration, Logistic

PAPER = Recipe.preset("paper")
"""What the tests start from, whatever the defaults become."""


def candidate(kind: str, scores: list[float], rows: list[int]) -> Candidate:
    """Each label's mask is the first `rows` rows of its own half of a picture of 8 x 8."""
    logits = torch.full((len(rows), 8, 8), -1.0)
    width = 8 // len(rows)
    for label, count in enumerate(rows):
        logits[label, :count, width * label : width * (label + 1)] = 1.0
    return Candidate(kind, logits, [{} for _ in rows], scores=scores, presence=[1.0] * len(rows))


def test_auto_takes_the_highest_score_of_each_label() -> None:
    found = [candidate("concat", [0.3, 0.7], [4, 4]), candidate("activation", [0.5, 0.7], [4, 2])]
    assert choose(found, PAPER.replace(mode="auto")) == [1, 0]


@pytest.mark.parametrize(
    ("score", "rows", "expected"),
    [
        (0.9, 2, 1),  # disagrees (IoU 1/4) and scores higher
        (0.9, 7, 0),  # agrees: the tracked mask has the finer edge
        (0.2, 2, 0),  # disagrees, but scores lower
    ],
)
def test_the_activation_steps_in_where_it_disagrees_and_scores_higher(score: float, rows: int, expected: int) -> None:
    found = [candidate("full", [0.4], [8]), candidate("activation", [score], [rows])]
    recipe = PAPER.replace(region_fallback=True, fallback_iou=0.5)
    assert choose(found, recipe) == [expected]
    assert choose(found[:1], recipe) == [0]


def test_auto_is_settled_by_trust_in_every_label_or_by_no_hope_for_any() -> None:
    found = [candidate("concat", [0.9, 0.1], [4, 4]), candidate("activation", [0.2, 0.6], [4, 4])]
    recipe = PAPER.replace(mode="auto", auto_threshold=0.6)
    assert settled(found, recipe)
    assert not settled(found, recipe.replace(auto_threshold=0.7))
    assert not settled(found, recipe.replace(auto_threshold=0.95, auto_floor=0.9))
    assert settled(found, recipe.replace(auto_threshold=0.95, auto_floor=0.91))


def test_only_what_has_a_mask_has_a_score() -> None:
    sure = Logistic(5.0, {}, {})
    scored = candidate("full", [], [3, 0]).scored(Calibration({"full": sure, "concat": Logistic(0.0, {}, {})}))
    assert scored.scores == [pytest.approx(sure({})), 0.0]


def test_which_candidates_a_recipe_makes() -> None:
    assert kinds(PAPER.replace(mode="concat", region_fallback=True)) == ("concat",)
    assert kinds(PAPER.replace(mode="full")) == ("full",)
    assert kinds(PAPER.replace(mode="full", region_fallback=True)) == ("full", "activation")
    assert kinds(PAPER.replace(mode="auto")) == ("concat", "ttga", "activation", "linear")
    # one neck and nothing to correct: ttga would be concat over again
    assert kinds(PAPER.replace(mode="auto", propagate_with="original")) == ("concat", "activation", "linear")
    assert kinds(PAPER.replace(mode="auto", propagate_with="original", target_prompt="box")) == (
        "concat",
        "ttga",
        "activation",
        "linear",
    )


def test_between_kinds_the_higher_score_takes_what_is_contested() -> None:
    """A label's logits may be larger by their kind's scale alone."""
    logits = torch.full((2, 1, 4), -1.0)
    logits[0, 0, :3], logits[1, 0, 1:] = 9.0, 0.1
    apart = without_overlap(comparable(logits, [0.2, 0.6]))
    assert apart[:, 0].tolist() == [[True, False, False, False], [False, True, True, True]]
    apart = without_overlap(comparable(logits, [0.6, 0.0]))
    assert apart[:, 0].tolist() == [[True, True, True, False], [False, False, False, True]]
    # no score makes a pixel of one that was not claimed
    assert not without_overlap(comparable(-logits.abs(), [0.9, 0.9])).any()


def test_a_claim_is_what_the_candidate_itself_gives_to_the_label() -> None:
    found = candidate("linear", [0.5, 0.5], [8, 4])
    found.logits[1, :, :4] = 0.5  # the second label wants the first one's half too, with a lower logit
    for label in (0, 1):
        assert torch.equal(found.claim(label) > 0, found.masks[label])
    assert torch.equal(found.claim(1).abs(), found.logits[1].abs())
