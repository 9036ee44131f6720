"""From proposals to candidates: scores, claims, and what is borrowed."""

from __future__ import annotations

import pytest
import torch

from cavsam.candidates.base import Candidate, Proposal, presence_said_by
from cavsam.instances import Objects
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import Calibration, Logistic
from cavsam.scoring.experience import Correction, Experience
from cavsam.video import Video
from tests.support.candidates import candidate


def proposal(owners: tuple[int, ...], cues: list[dict[str, float]]) -> Proposal:
    """Object i is the i-th column of a 4 x 4 square."""
    logits = torch.full((len(owners), 4, 4), -1.0)
    for index in range(len(owners)):
        logits[index, :, index] = 1.0
    video = Video([0], [torch.zeros(2, 1, 1, 1)])
    objects = Objects(owners, logits[None] > 0)
    return Proposal("concat", video, None, objects, logits, cues, "concat")


def test_cues_of_a_label_are_joined_and_an_unknown_consistency_is_left_out() -> None:
    told = [{"presence": 0.9, "predicted_iou": 0.5}, {"presence": 0.2, "predicted_iou": 0.1}]
    made = proposal((0, 1), told)
    shown = made.objects.masks[0]
    joined = Candidate.of(made, [{"area": -1.0}, {}], torch.tensor([0.25, torch.nan]), shown)
    assert joined.cues == [{"area": -1.0, **told[0], "consistency": 0.25}, told[1]]
    assert joined.instances == []
    assert torch.equal(joined.logits, made.logits)


def test_a_label_of_several_objects_is_as_present_as_one_of_them_and_keeps_each() -> None:
    told = [{"presence": p, "predicted_iou": q} for p, q in ((0.5, 0.75), (1.0, 0.25), (0.125, 0.0))]
    made = proposal((0, 0, 1), told)
    shown = made.objects.masks[0].clone()
    shown[1, :, 2] = True  # the second object is twice as large on the reference
    joined = Candidate.of(made, [{"area": -1.0}, {"area": -2.0}], torch.tensor([0.25, 1.0, 0.5]), shown)
    assert joined.cues[0] == {"area": -1.0, "presence": 1.0, "predicted_iou": 0.5, "consistency": pytest.approx(0.75)}
    assert joined.cues[1] == {"area": -2.0, **told[2], "consistency": 0.5}
    assert [len(own) for own in joined.instances] == [2, 1]
    assert joined.instances[0][1].cues == {**told[1], "consistency": 1.0}
    assert joined.masks[0].sum(dim=0).tolist() == [4, 4, 0, 0]


def test_presence_is_borrowed_from_the_candidate_that_is_named() -> None:
    first, second = candidate("concat", [0.5], [4]), candidate("ttga", [0.5], [4])
    first.cues[0]["presence"], second.cues[0]["presence"] = 0.25, 0.75
    for order in ([first, second], [second, first]):
        assert presence_said_by("concat", order) == [{"presence": 0.25}]
        assert presence_said_by("ttga", order) == [{"presence": 0.75}]


def test_only_what_has_a_mask_has_a_score() -> None:
    sure = Logistic(5.0, {}, {})
    scored = candidate("full", [], [3, 0]).scored(Calibration({"full": sure, "concat": Logistic(0.0, {}, {})}))
    assert scored.scores == [pytest.approx(sure({})), 0.0]


def test_experience_corrects_the_score_and_leaves_the_models_own_beside_it() -> None:
    known, taught = Calibration({"full": Logistic(2.0, {}, {})}), Correction(-1.0, 1.0)
    made = candidate("full", [], [3, 0])
    scored = made.scored(known, Experience({"full": taught}))
    own = known.score("full", {})
    assert scored.own == [own, 0.0]
    assert scored.scores == [taught(own, {}), 0.0]
    assert scored.taught
    assert scored.holds(Calibration(), Recipe())  # whatever the models were fitted on, this project was measured
    assert made.scored(known, Experience({"concat": taught})).scores == [own, 0.0]


def test_a_claim_is_what_the_candidate_itself_gives_to_the_label() -> None:
    found = candidate("linear", [0.5, 0.5], [8, 4])
    found.logits[1, :, :4] = 0.5  # the second label wants the first one's half too, with a lower logit
    for label in (0, 1):
        assert torch.equal(found.claim(label) > 0, found.masks[label])
    assert torch.equal(found.claim(1).abs(), found.logits[1].abs())
