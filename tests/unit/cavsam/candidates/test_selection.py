"""Which candidate is believed, on scores and masks made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from cavsam.candidates.base import Candidate, Proposal, Scene
from cavsam.candidates.selection import choose, comparable, enough, settled, strategies, with_consensus
from cavsam.diffusion import LatentDiffusion
from cavsam.features import without_overlap
from cavsam.observe.run import Run
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import Calibration
from cavsam.scoring.experience import Experience
from cavsam.tracking import Tracker
from cavsam.transition import DiffusionTransition
from tests.support.candidates import ALL_KNOWN, candidate


@dataclass(frozen=True)
class Tried:
    """A strategy that is only named."""

    kind: str
    generates_frames: bool

    def propose(self, scene: Scene, before: Sequence[Candidate], run: Run) -> Proposal:
        raise NotImplementedError


PUBLISHED = Recipe()
"""What the tests start from, whatever the defaults become."""


def test_auto_takes_the_highest_score_of_each_label() -> None:
    found = [candidate("concat", [0.3, 0.7], [4, 4]), candidate("activation", [0.5, 0.7], [4, 2])]
    assert choose(found, PUBLISHED.replace(mode="auto")) == [found[1], found[0]]


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
    recipe = PUBLISHED.replace(region_fallback=True, fallback_iou=0.5)
    assert choose(found, recipe) == [found[expected]]
    assert choose(found[::-1], recipe) == [found[expected]]
    assert choose(found[:1], recipe) == [found[0]]


def test_generated_frames_are_not_worth_it_where_every_label_is_trusted() -> None:
    found = [candidate("concat", [0.9, 0.1], [4, 4]), candidate("activation", [0.2, 0.6], [4, 4])]
    recipe = PUBLISHED.replace(mode="auto", auto_threshold=0.6)
    assert settled(found, recipe)
    assert not settled(found[:1], recipe)
    assert not settled([], recipe)
    assert not settled(found, recipe.replace(auto_threshold=0.7))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mode": "concat", "region_fallback": True}, ["concat"]),
        ({"mode": "dbst", "region_fallback": True}, ["dbst"]),
        ({"mode": "ttga"}, ["ttga"]),
        ({"mode": "full"}, ["full"]),
        ({"mode": "full", "region_fallback": True}, ["full", "activation"]),
        ({"mode": "auto"}, ["concat", "ttga", "activation", "linear", "pixels", "full"]),
        # one neck and nothing to correct: ttga would be concat over again
        ({"mode": "auto", "propagate_with": "original"}, ["concat", "activation", "linear", "pixels", "full"]),
        (
            {"mode": "auto", "propagate_with": "original", "target_prompt": "box"},
            ["concat", "ttga", "activation", "linear", "pixels", "full"],
        ),
    ],
)
def test_which_strategies_a_recipe_tries(
    tracker: Tracker, diffusion: LatentDiffusion, changes: dict[str, object], expected: list[str]
) -> None:
    recipe = PUBLISHED.replace(**changes)
    tried = strategies(recipe, tracker, DiffusionTransition(diffusion, recipe), ALL_KNOWN)
    assert [one.kind for one in tried] == expected
    assert [one.generates_frames for one in tried] == [kind in ("dbst", "full") for kind in expected]


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


@pytest.mark.parametrize("known", [(), ("full",), ("activation",)])
def test_no_region_stands_beside_a_tracked_mask_unless_both_scores_are_known(
    tracker: Tracker, diffusion: LatentDiffusion, known: tuple[str, ...]
) -> None:
    recipe = PUBLISHED.replace(region_fallback=True)
    calibration = Calibration({kind: ALL_KNOWN.overlap[kind] for kind in known})
    tried = strategies(recipe, tracker, DiffusionTransition(diffusion, recipe), calibration)
    assert [one.kind for one in tried] == ["full"]


def test_auto_ends_at_the_last_candidate_that_experience_found_worth_trying() -> None:
    found = [candidate("concat", [0.1], [4]), candidate("linear", [0.1], [4])]
    further = Tried("activation", False)
    auto, last = PUBLISHED.replace(mode="auto", auto_threshold=1.0), Experience(last="linear")
    assert enough(found, further, auto, last)
    assert not enough(found[:1], further, auto, last)
    assert not enough(found, further, auto, Experience())
    assert not enough(found, further, PUBLISHED, last)  # other modes have no ladder


def test_frames_are_left_out_if_every_label_is_trusted_whatever_was_learned() -> None:
    found = [candidate("concat", [0.9], [4])]
    auto = PUBLISHED.replace(mode="auto", auto_threshold=0.5)
    assert enough(found, Tried("full", True), auto, Experience())
    assert not enough(found, Tried("linear", False), auto, Experience())


def test_ways_agree_by_the_overlap_with_the_cheap_others() -> None:
    rows = {"concat": [4, 1], "ttga": [4, 2], "linear": [2, 4], "pixels": [8, 0], "full": [4, 8]}
    found = [candidate(kind, [0.0, 0.0], own) for kind, own in rows.items()]
    found = [replace(one, presence_of="concat") if one.kind in ("linear", "pixels") else one for one in found]
    expected = {
        "concat": [(2 / 4 + 4 / 8) / 2, (1 / 4 + 0) / 2],  # with the regions: what is tracked twice is one way
        "ttga": [(2 / 4 + 4 / 8) / 2, (2 / 4 + 0) / 2],
        "linear": [(2 / 4 + 2 / 8) / 2, (1 / 4 + 0) / 2],  # with the first tracked one and the other region
        "pixels": [(4 / 8 + 2 / 8) / 2, 0],
        "full": [(2 / 4 + 4 / 8) / 2, (4 / 8 + 0) / 2],
    }
    for one in with_consensus(found):
        assert [known["consensus"] for known in one.cues] == pytest.approx(expected[one.kind])
    cheap = with_consensus(found[:-1])
    assert [one.cues for one in cheap] == [one.cues for one in with_consensus(found)[:-1]], (
        "frames change no other score"
    )
    assert with_consensus(found[:1])[0].cues == found[0].cues, "alone there is nothing to agree with"


def test_bare_orders_of_different_kinds_are_not_compared() -> None:
    found = [replace(candidate("concat", [0.9], [4]), estimated=False), candidate("full", [0.1], [4])]
    auto = PUBLISHED.replace(mode="auto", auto_threshold=0.5)
    assert choose(found, auto) == [found[1]]
    assert not settled(found[:1], auto)
