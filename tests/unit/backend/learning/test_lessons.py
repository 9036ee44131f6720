"""Lessons and evaluations of reviews made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from backend.learning.candidates import KeptCandidate, Place
from backend.learning.evaluation import Evaluation, Figure, summary
from backend.learning.lessons import CLIMBS_ALL, is_due, score_of, teach
from backend.learning.measure import MeasuredCandidate, MeasuredLabel, Review, Verdict
from cavsam.scoring.experience import LEAST, Correction, Experience

PLACE = Place("tag", "image", "cat")


def review(task: int, cheap: float, costly: float, *, shown: str = "full", last: str = "") -> Review:
    """A task whose candidates came to these IoU; own scores are 0.5 whatever they are worth."""
    tried = [("concat", cheap, 0.4), ("full", costly, 8.0)][: 1 if last else 2]
    candidates = tuple(
        MeasuredCandidate(kind, 0.5, {"seen": iou}, kind == shown, seconds, True, iou) for kind, iou, seconds in tried
    )
    iou = cheap if shown == "concat" else costly
    verdict = Verdict.UNCHANGED if iou == 1 else Verdict.CORRECTED if iou >= 0.5 else Verdict.REDRAWN
    return Review(task, "v", "d", 0.5, last, 0.1, (MeasuredLabel(PLACE, verdict, iou, candidates),))


def reviews(count: int, gain: float) -> list[Review]:
    """The costly candidate is better by `gain`."""
    return [review(n, 0.4 + 0.03 * (n % 10), 0.4 + 0.03 * (n % 10) + gain) for n in range(count)]


def test_too_few_reviews_teach_nothing():
    lesson = teach(reviews(LEAST - 1, 0.0), ladder=True)
    assert (lesson.name, lesson.told, lesson.experience.corrections, lesson.experience.last) == ("", (), {}, "")


@pytest.mark.parametrize(("gain", "last"), [(0.0, "concat"), (-0.1, "concat"), (0.2, "")])
def test_the_ladder_ends_where_nothing_better_comes(gain: float, last: str):
    assert teach(reviews(LEAST, gain), ladder=True).experience.last == last


def test_modes_without_a_ladder_learn_scores_only():
    lesson = teach(reviews(LEAST, 0.0), ladder=False)
    assert lesson.experience.last == ""
    assert lesson.experience.corrects("full")


def test_a_lesson_is_named_by_what_it_says():
    first, same = teach(reviews(LEAST, 0.0), ladder=True), teach(reviews(LEAST, 0.0), ladder=True)
    assert first.name == same.name != teach(reviews(LEAST, 0.1), ladder=True).name
    assert len(first.name) == 8


def test_what_a_short_ladder_left_out_says_nothing_about_it():
    """Reviews of tasks that ended at `concat` must not make `full` look superfluous."""
    short = [replace(review(100 + n, 0.5, 0.5, shown="concat", last="concat")) for n in range(50)]
    assert teach([*reviews(LEAST, 0.2), *short], ladder=True).experience.last == ""
    assert teach([*reviews(LEAST - 1, -0.2), *short], ladder=True).experience.last == ""  # too few climbed all


def test_every_so_many_tasks_climb_all():
    lesson = teach(reviews(LEAST, 0.0), ladder=True)
    climbing = [task for task in range(1, 41) if not lesson.for_task(task).last]
    assert len(climbing) == 40 / CLIMBS_ALL


def test_the_next_lesson_waits_for_a_third_more():
    lesson = teach(reviews(20, 0.0), ladder=True)
    assert not is_due(LEAST - 1, None)
    assert is_due(LEAST, None)
    assert not is_due(25, lesson)
    assert is_due(26, lesson)


def kept(label: str, own: float, *, shown: bool, to_name: str = "image") -> KeptCandidate:
    return KeptCandidate(Place("tag", to_name, label), "full", own, False, 1.0, {}, shown, shown, 1.0, "")


def test_a_prediction_is_scored_by_its_worst_label_as_the_model_process_does():
    found = [kept("cat", 0.8, shown=True), kept("cat", 0.1, shown=False), kept("dog", 0.6, shown=True)]
    assert score_of(found, Experience()) == (0.6, False)
    halved = Experience({"full": Correction(-1.0, 1.0)})
    assert score_of(found, halved) == (pytest.approx(halved.score("full", 0.6, {})), True)
    assert score_of([replace(one, calibrated=True) for one in found], Experience()) == (0.6, True)
    assert score_of([*found, kept("cat", 0.9, shown=False, to_name="second")], Experience()) == (0, False)
    assert score_of([], Experience()) == (0, True)


def test_an_evaluation_counts_what_a_person_would():
    given = [review(1, 0.8, 1.0), review(2, 0.9, 0.6), review(3, 0.2, 0.2), review(4, 0.7, 1.0)]
    found = Evaluation.of(given, Experience(), mode="auto")
    assert found.verdicts == {"unchanged": 2, "corrected": 1, "rejected": 1}
    assert found.iou.value == pytest.approx(0.7)
    assert found.unchanged.value == 0.5
    assert {way.name: way.iou.value for way in found.kinds} == pytest.approx({"concat": 0.65, "full": 0.7})
    assert {way.name: way.seconds for way in found.kinds} == pytest.approx({"concat": 0.5, "full": 8.1})
    assert found.seconds == pytest.approx(8.5)
    assert found.gap == pytest.approx((0.5 + 0.1 + 0.3 + 0.5) / 4)
    assert found.worst[0] == (3, 0.2)
    text = summary(json.loads(json.dumps(found.to_json())))
    assert text == (
        "4 reviewed: mean IoU 0.70, 50% accepted unchanged; concat alone would have had 0.65 in 1/17 of the time."
    )
    assert str(LEAST) in found.advice[0]  # nothing is recommended on four tasks


def test_settings_are_recommended_when_they_would_pay():
    cheap = Evaluation.of(reviews(LEAST, -0.1), Experience(), mode="full")
    assert any(sentence.startswith("CAVSAM_MODE=concat would have had") for sentence in cheap.advice)
    dear = Evaluation.of(reviews(LEAST, 0.3), Experience(), mode="full")
    assert not any("CAVSAM_MODE" in sentence for sentence in dear.advice)


def test_reviews_without_candidates_are_evaluated_too():
    bare = [replace(review(n, 0.5, 0.5), labels=(MeasuredLabel(PLACE, Verdict.CORRECTED, 0.7),)) for n in range(12)]
    found = Evaluation.of(bare, Experience(), mode="auto")
    assert (found.kinds, found.ladder) == ([], [])
    assert summary(found.to_json()) == "12 reviewed: mean IoU 0.70, 0% accepted unchanged."
    assert teach(bare, ladder=True).name == ""


def test_an_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        figure = Figure.of(rng.uniform(0, 1, 40))
        held += figure.low <= 0.5 <= figure.high
    assert 0.88 < held / 200 < 0.99
