"""What is learned from masks whose truth is drawn by chance from a law that the test knows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from cavsam.scoring.experience import LEAST, Correction, Experience, Measured, learn


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def project(seed: int, targets: int, *, slope: float, bias: float, cue: float = 0.0) -> list[Measured]:
    """Masks of two kinds on some targets: the truth's logit is bias + slope * own logit + cue * the cue."""
    rng = np.random.default_rng(seed)
    masks = []
    for target in range(targets):
        for kind in ("concat", "full"):
            own, seen = rng.normal(0, 1.5), rng.normal()
            masks.append(Measured(target, kind, sigmoid(own), {"seen": seen}, sigmoid(bias + slope * own + cue * seen)))
    return masks


def error(masks: list[Measured], experience: Experience) -> float:
    return float(np.mean([abs(experience.score(m.kind, m.own, m.cues) - m.iou) for m in masks]))


@pytest.mark.parametrize("law", [{"slope": 0.4, "bias": -1.5}, {"slope": 1.0, "bias": 0.0, "cue": 1.5}])
def test_scores_come_nearer_to_the_truth_of_targets_that_were_never_seen(law: dict[str, float]):
    experience = Experience(learn(project(0, 40, **law)).corrections)
    others = project(1, 200, **law)
    assert error(others, experience) < error(others, Experience()) / 2


def test_what_the_models_say_is_kept_where_it_is_right():
    learned = learn(project(0, 30, slope=1.0, bias=0.0))
    assert learned.corrections == {}
    assert learned.error == learned.own_error == 0


def test_chance_teaches_little():
    """IoU that no cue tells: the best guess is the mean, and no estimate may be far from it."""
    rng = np.random.default_rng(3)
    masks = [Measured(t, "full", 0.5, {"seen": rng.normal()}, rng.uniform(0.5, 0.9)) for t in range(LEAST)]
    experience = Experience(learn(masks).corrections)
    assert experience.score("full", 0.5, {"seen": 0.0}) == pytest.approx(0.65, abs=0.1)


def test_fewer_targets_than_needed_teach_nothing():
    assert learn(project(0, LEAST - 1, slope=0.4, bias=-1.5)).corrections == {}
    assert learn([]).corrections == {}


def test_an_estimate_of_a_left_out_target_does_not_know_it():
    masks = project(0, 30, slope=0.4, bias=-1.5)
    changed = [m if m.target else Measured(0, m.kind, m.own, m.cues, 1 - m.iou) for m in masks]
    first, second = learn(masks).held_out, learn(changed).held_out
    assert first[:2] == pytest.approx(second[:2])
    assert first[-2:] != pytest.approx(second[-2:])


def test_the_fit_is_the_one_that_a_general_minimiser_finds():
    masks = [replace(one, cues={}) for one in project(0, 25, slope=0.5, bias=-1.0)]
    learned = learn(masks)
    (one,) = {(c.bias, c.slope) for kind, c in learned.corrections.items() if kind == "full"}
    own = np.log([m.own / (1 - m.own) for m in masks])
    truth = np.array([m.iou for m in masks])
    full = np.array([m.kind == "full" for m in masks], float)
    candidates = []
    for shrinkage in (1.0, 4.0, 16.0):

        def loss(x: np.ndarray, shrinkage: float = shrinkage) -> float:
            value = x[0] + (1 + x[1]) * own + x[2] * (1 - full) + x[3] * full
            return float(np.sum(np.logaddexp(0, value) - truth * value) / 2 + shrinkage / 2 * x @ x)

        x = minimize(loss, np.zeros(4), tol=1e-10).x
        candidates.append((x[0] + x[3], 1 + x[1]))
    assert any(one == pytest.approx(other, abs=1e-3) for other in candidates)


def test_a_missing_cue_counts_as_the_usual_one():
    correction = Correction(0.0, 1.0, {"seen": 2.0}, {"seen": 0.3})
    assert correction(0.6, {}) == correction(0.6, {"seen": 0.3}) == pytest.approx(0.6)
    assert correction(0.6, {"seen": 0.8}) == pytest.approx(sigmoid(np.log(0.6 / 0.4) + 1.0))


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_a_score_at_an_end_stays_a_probability(own: float):
    assert 0 <= Correction(-3.0, 2.0)(own, {}) <= 1


def test_a_kind_that_was_never_measured_keeps_its_score():
    experience = Experience({"full": Correction(1.0, 1.0)})
    assert experience.score("concat", 0.3, {}) == 0.3
    assert not experience.corrects("concat")


def test_experience_survives_json():
    experience = Experience({"full": Correction(0.1, 0.9, {"seen": 0.5}, {"seen": 0.2})}, "full", 12)
    assert Experience.from_json(json.loads(json.dumps(experience.to_json()))) == experience
