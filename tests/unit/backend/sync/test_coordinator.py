from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from backend.entities import Refusal
from backend.errors import LabelStudioNotFound, LabelStudioUnreachable
from backend.labelstudio.events import Event
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.coordinator import Coordinator
from backend.sync.schedule import AWAY_PAUSES, CHANGE_PAUSE, DOUBT_PAUSE, FOLLOW_UP_PAUSES, SYNC_PAUSE
from tests.support.fake_client import FakeClient, FakeClients, FakeClock

PROJECT, OTHER = 5, 6
BASE = "cavsam-0"


class Scene:
    """A coordinator whose thread is the test's, over two projects."""

    def __init__(self, store: Store):
        self.store, self.clock = store, FakeClock()
        self.client, self.other = FakeClient(), FakeClient()
        self.introduced: list[int] = []
        self.coordinator = Coordinator(
            Settings(quiet_period=10.0, push_interval=2.0, sync_interval=600.0),
            store,
            FakeClients({PROJECT: self.client, OTHER: self.other}),
            BASE,
            wake=lambda: None,
            introduce=self.introduced.append,
            clock=self.clock,
        )

    def turn(self, seconds: float = 0.0) -> list[str]:
        """Let time pass and have done what is due then; returns what Label Studio was asked for the project."""
        self.clock.advance(seconds)
        self.client.asked.clear()
        self.coordinator.turn(0.0)
        return self.client.asked

    def learned_from(self) -> set[int]:
        references = self.store.annotations(PROJECT).references()
        return set(references.tasks) if references else set()


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


@pytest.fixture
def known(scene: Scene) -> Scene:
    """The project is synchronised and learns from its first task."""
    scene.client.annotate(next(iter(scene.client.rows)))
    scene.coordinator.seen(PROJECT)
    scene.turn()
    return scene


def test_a_project_is_synchronised_when_label_studio_first_calls_for_it_and_then_from_time_to_time(scene: Scene):
    scene.coordinator.seen(PROJECT)
    assert scene.turn()[:2] == ["project", "tasks"]
    assert scene.coordinator.syncs(PROJECT) == 1
    scene.coordinator.seen(PROJECT)
    assert "tasks" not in scene.turn(SYNC_PAUSE - 1)
    scene.coordinator.seen(PROJECT)
    assert "tasks" in scene.turn(1)
    assert "tasks" not in scene.turn(590)
    assert "tasks" in scene.turn(10)


def test_a_webhook_without_a_project_has_everything_synchronised(known: Scene):
    known.coordinator.seen(OTHER)
    known.turn()
    known.coordinator.take_webhook({"action": "TASKS_CREATED"})
    known.turn()
    known.turn(CHANGE_PAUSE)
    assert known.coordinator.syncs(PROJECT) == known.coordinator.syncs(OTHER) == 2


def test_webhooks_that_anybody_may_have_sent_bring_about_a_sync_now_and_then(known: Scene):
    event = {"action": "ANNOTATION_CREATED", "project": {"id": PROJECT}, "annotation": {"id": 9, "task": 1}}
    asked: list[str] = []
    for _ in range(300):
        known.coordinator.take_doubtful_webhook(event)
        known.coordinator.take_doubtful_webhook(event | {"action": "START_TRAINING"})
        known.coordinator.take_doubtful_webhook({"action": "TASKS_CREATED"})
        known.coordinator.take_doubtful_webhook(None)
        asked += known.turn(DOUBT_PAUSE / 100)
    assert asked.count("tasks") in (2, 3)  # within three times the pause
    assert asked.count("annotations") == 0  # what it says of a task is not followed


def test_a_webhook_that_anybody_may_have_sent_asks_nothing_of_a_project_that_is_not_known(known: Scene):
    known.coordinator.take_doubtful_webhook({"action": "TASKS_CREATED", "project": {"id": OTHER}})
    known.turn()
    known.turn(DOUBT_PAUSE)
    assert known.other.asked == []


def test_while_label_studio_is_away_such_a_webhook_brings_about_nothing(known: Scene):
    known.client.error = LabelStudioUnreachable("It does not answer.")
    known.coordinator.send(Event(PROJECT))
    known.turn(CHANGE_PAUSE)
    assert known.turn(CHANGE_PAUSE) == ["project"]
    known.coordinator.take_doubtful_webhook({"action": "TASKS_CREATED", "project": {"id": PROJECT}})
    assert known.turn(AWAY_PAUSES[0] - 0.1) == []
    assert known.turn(0.1) == ["project"]


@pytest.mark.parametrize("raw", [b"[]", b"{", b"\xff"])
def test_a_large_webhook_is_read_by_the_thread_and_one_that_cannot_be_read_ends_nothing(known: Scene, raw: bytes):
    known.coordinator.take_webhook_later(raw)
    known.turn()
    known.coordinator.take_webhook_later(json.dumps({"action": "X", "project": {"id": PROJECT}}).encode())
    known.turn()
    known.turn()
    assert "tasks" in known.turn(CHANGE_PAUSE)


def test_an_annotation_that_is_announced_before_it_is_there_is_read_again(known: Scene):
    _, second, *_ = known.client.rows
    known.coordinator.send(Event(PROJECT, "touched", frozenset({second}), frozenset({99})))
    assert known.turn() == ["annotations"]
    assert known.turn() == []
    assert known.turn(FOLLOW_UP_PAUSES[0]) == ["annotations"]
    known.client.made[99] = dict(next(iter(known.client.made.values())), id=99, task=second)
    assert known.turn(FOLLOW_UP_PAUSES[1]) == ["annotations"]
    assert known.turn(FOLLOW_UP_PAUSES[2]) == []
    assert {one.annotation for one in known.store.annotations(PROJECT).judged(second)} == {99}


def test_an_annotation_of_a_task_that_is_not_known_takes_a_full_sync(known: Scene):
    new = known.client.add_task()
    known.coordinator.send(Event(PROJECT, "touched", frozenset({new})))
    known.turn()
    assert "tasks" in known.turn()


def test_a_changed_reference_is_learned_from_after_the_quiet_period(known: Scene):
    version = known.store.projects.find(PROJECT)
    assert version is not None
    (annotation,) = known.client.made
    known.client.edit(annotation, "dog")
    known.coordinator.send(Event(PROJECT, "touched", frozenset(known.learned_from())))
    known.turn()
    known.turn(9.0)
    assert known.store.projects.find(PROJECT) == version
    known.turn(1.0)
    changed = known.store.projects.find(PROJECT)
    assert changed is not None
    assert changed.version not in (version.version, BASE)


def test_a_refusal_is_an_event_and_the_next_annotation_is_learned_from(known: Scene):
    first, second, *_ = known.client.rows
    known.client.annotate(second)
    (one,) = known.store.annotations(PROJECT).judged(first)
    known.coordinator.refused(Refusal(PROJECT, one.annotation, one.key, "its mask is empty"))
    assert known.learned_from() == {first}
    known.turn()
    assert known.learned_from() == set()
    known.turn(CHANGE_PAUSE)
    assert known.learned_from() == {second}


def test_a_refusal_for_a_project_that_was_forgotten_ends_nothing(scene: Scene):
    scene.coordinator.refused(Refusal(PROJECT, 1, "key", "its mask is empty"))
    assert "tasks" in scene.turn()


def test_results_are_pushed_together_and_the_version_is_shown_when_all_are_there(known: Scene):
    while job := known.store.queue.take_next():
        known.store.queue.finish(job, "[]", 0.5, 1.0)
        known.coordinator.finished(PROJECT, job.task)
    assert known.turn() == []
    assert known.turn(2.0).count("import_predictions") == 1
    version = known.client.described["model_version"]
    assert [known.client.versions_of(task) for task in known.client.rows] == [[], [version], [version], [version]]


def test_trouble_puts_one_project_off_for_longer_each_time_and_holds_up_no_other(known: Scene):
    known.client.error = LabelStudioUnreachable("Label Studio is away.")
    known.coordinator.send(Event(PROJECT, "again"))
    known.coordinator.seen(OTHER)
    known.turn()
    assert known.coordinator.syncs(OTHER) == 1
    described = known.store.projects.find(PROJECT)
    assert described is not None
    assert described.error == "Label Studio is away."
    for pause in AWAY_PAUSES:
        assert known.turn(pause - 0.5) == []
        assert known.turn(0.5) == ["project"]
    known.client.error = None
    known.turn(AWAY_PAUSES[-1])
    described = known.store.projects.find(PROJECT)
    assert described is not None
    assert described.error is None


def test_a_project_that_stays_away_for_ten_minutes_is_forgotten(known: Scene):
    known.client.error = LabelStudioNotFound("There is no such project.")
    known.coordinator.send(Event(PROJECT, "again"))
    known.turn()
    for _ in range(9):
        known.turn(60.0)
        described = known.store.projects.find(PROJECT)
        assert described is not None
        assert "no such project" in str(described.error)
    known.turn(60.0)
    assert known.store.projects.find(PROJECT) is None
    assert known.turn(3600.0) == []


def test_a_project_that_was_away_for_less_keeps_all_it_had(known: Scene):
    learned = known.learned_from()
    for _ in range(3):  # each time anew
        known.client.error = LabelStudioNotFound("There is no such project.")
        known.coordinator.send(Event(PROJECT, "again"))
        for _ in range(8):
            known.turn(60.0)
        known.client.error = None
        known.turn(AWAY_PAUSES[-1])
    described = known.store.projects.find(PROJECT)
    assert described is not None
    assert described.error is None
    assert known.learned_from() == learned != set()


def test_a_fault_of_ours_puts_a_project_off_as_well(known: Scene, monkeypatch: pytest.MonkeyPatch):
    def fail(project: int) -> dict[str, Any]:
        raise RuntimeError("a fault that nobody foresaw")

    monkeypatch.setattr(known.client, "project", fail)
    known.coordinator.send(Event(PROJECT, "again"))
    known.turn()
    described = known.store.projects.find(PROJECT)
    assert described is not None
    assert "a fault that nobody foresaw" in str(described.error)


@pytest.mark.parametrize("call", [lambda c: c.begin_stop(), lambda c: c.stop()])
def test_nothing_is_begun_once_it_stops(known: Scene, call: Callable[[Coordinator], object]):
    known.coordinator.send(Event(PROJECT, "again"))
    call(known.coordinator)
    assert known.turn() == []
    assert known.coordinator.is_stopping
    assert not known.coordinator.thread.is_alive


def test_other_models_have_every_task_predicted_under_their_version(known: Scene):
    first = known.store.projects.find(PROJECT)
    assert first is not None
    known.coordinator.models_changed("cavsam-1")
    known.turn()  # at once: nobody is drawing
    present = known.store.projects.find(PROJECT)
    assert present is not None
    assert present.version == first.version.replace(BASE, "cavsam-1")
    assert known.learned_from()
    assert known.store.jobs(PROJECT, present.version).counts()["queued"] > 0
