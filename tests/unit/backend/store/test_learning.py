"""Candidates, reviews and lessons in the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.entities import Task
from backend.learning.candidates import KeptCandidate, Place, pack
from backend.learning.lessons import Lesson
from backend.learning.measure import MeasuredCandidate, MeasuredLabel, Review, Verdict
from backend.store import learning
from backend.store.store import Store
from backend.version import base_of, taught_version, untaught
from cavsam.scoring.experience import Correction, Experience

BASE = "cavsam-0.1.0-nano-auto-3f2a9c1b"
VERSION = f"{BASE}-r8d1e22f0"
PLACE = Place("tag", "image", "cat")
CANDIDATE = KeptCandidate(PLACE, "full", 0.5, True, 1.0, {"seen": 0.25}, True, True, 1.5, pack(np.ones((4, 4), bool)))
LABEL = MeasuredLabel(PLACE, Verdict.CORRECTED, 0.75, (MeasuredCandidate("full", 0.5, {}, True, 1.5, True, 0.75),))
LESSON = Lesson("0a1b2c3d", 12, Experience({"full": Correction(0.1, 0.9)}, "full", 12), ("It is better so.",))


def review(task: int, digest: str = "d", version: str = VERSION) -> Review:
    return Review(task, version, digest, 0.5, "", 0.25, (LABEL,))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "ledger.sqlite3")
    made.projects.add(1, "made on Monday")
    made.tasks(1).replace([Task(1, n, {}, n < 4, "") for n in range(1, 7)])
    made.annotations(1).set_references(VERSION, None)
    made.jobs(1, VERSION).queue(range(1, 7))
    yield made
    made.close()


def finish_all(store: Store) -> None:
    while (job := store.queue.take_next()) is not None:
        store.queue.finish(job, "[]", 0.5, 1.0)
        store.learning(1).keep(job, [CANDIDATE], last="", seconds=0.25)


def test_only_the_latest_candidates_of_a_project_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learning, "KEPT", 2)
    finish_all(store)
    kept = {task for task in range(1, 7) if store.learning(1).kept(task)}
    assert len(kept) == 2
    assert store.learning(1).kept_under(VERSION) == dict.fromkeys(kept, (CANDIDATE,))


def test_what_was_stored_comes_back(store: Store):
    finish_all(store)
    found = store.learning(1)
    found.add_review(review(1))
    found.add_review(review(1, "edited"))
    found.add_review(review(2, version=f"another-base-r1{'0' * 7}"))
    assert found.review(1) == review(1, "edited")
    assert found.reviews(BASE) == [review(1, "edited")]
    found.set_lesson(BASE, LESSON)
    assert found.lesson(BASE) == LESSON
    assert found.lesson("another-base") is None
    found.set_lesson(BASE, None)
    assert found.lesson(BASE) is None
    assert found.evaluation() is None
    found.set_evaluation({"reviews": 3})
    assert found.evaluation() == {"reviews": 3}


def test_tasks_to_measure_are_annotated_predicted_and_not_measured(store: Store):
    assert store.learning(1).unmeasured(VERSION) == []
    finish_all(store)
    assert store.learning(1).unmeasured(VERSION) == [1, 2, 3]
    store.learning(1).add_review(review(2))
    store.learning(1).add_review(review(3, version="other-models-r11111111"))
    assert store.learning(1).unmeasured(VERSION) == [1, 3]


def test_new_scores_are_for_finished_predictions_only(store: Store):
    job = store.queue.take_next()
    assert job is not None
    store.queue.finish(job, "[]", 0.5, 1.0)
    store.learning(1).rescore(VERSION, dict.fromkeys(range(1, 7), (0.875, True)))
    found = [job for _, job in sorted(store.jobs(1, VERSION).all().items())]
    assert [job.score for job in found] == [0.875, *[None] * 5]
    assert [job.calibrated for job in found] == [True, *[False] * 5]


def test_a_deleted_task_and_a_forgotten_project_take_all_with_them(store: Store):
    finish_all(store)
    for task in (1, 2):
        store.learning(1).add_review(review(task))
    store.learning(1).set_lesson(BASE, LESSON)
    store.tasks(1).replace([Task(1, n, {}, True, "") for n in range(2, 7)])
    assert store.learning(1).review(1) is None
    assert store.learning(1).kept(1) is None
    store.projects.forget(1)
    assert store.learning(1).review(2) is None
    assert store.learning(1).kept(2) is None
    assert store.learning(1).lesson(BASE) is None


def test_reviewed_tasks_are_found_and_leave_those_to_check(store: Store):
    finish_all(store)
    jobs = store.jobs(1, VERSION)
    assert jobs.to_check(0.6) == 6
    store.learning(1).add_review(review(2))
    assert jobs.to_check(0.6) == 5
    (found,), count = jobs.task_states(show="reviewed")
    assert (found.task, found.verdict, found.iou, count) == (2, "corrected", 0.75, 1)
    assert 2 not in {state.task for state in jobs.task_states(show="low", low=0.6)[0]}


def test_the_lesson_of_most_tasks_to_come_is_named_first(store: Store):
    for number in range(6):
        job = store.queue.take_next()
        assert job is not None
        # tasks 1 to 3 are annotated
        store.queue.finish(replace(job, lesson="0a1b2c3d" if number >= 4 else ""), "[]", 0.5, 1.0)
    assert store.jobs(1, VERSION).lessons() == ["0a1b2c3d", ""]
    assert set(store.queue.carried_versions()) == {VERSION, f"{VERSION}-l0a1b2c3d"}
    assert store.queue.versions() == [VERSION]


@pytest.mark.parametrize("lesson", ["", "0a1b2c3d"])
def test_a_version_tells_its_base_and_its_lesson(lesson: str):
    taught = taught_version(VERSION, lesson)
    assert untaught(taught) == VERSION
    assert base_of(taught) == BASE
    assert base_of(BASE) == BASE
