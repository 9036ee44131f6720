from __future__ import annotations

from typing import Any

import pytest

from backend.entities import Refusal
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.connection import CONNECT_PAUSES
from backend.sync.project_sync import Due, ProjectSync
from backend.webhook_secret import HEADER
from tests.support.fake_client import BACKEND, FakeClient, FakeClock

PROJECT = 5
BASE = "cavsam-0"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


def sync_of(store: Store, client: FakeClient, clock: FakeClock, **settings: Any) -> ProjectSync:
    return ProjectSync(store, client, PROJECT, Settings(quiet_period=10.0, **settings), BASE, clock=clock)


@pytest.fixture
def sync(store: Store, client: FakeClient, clock: FakeClock) -> ProjectSync:
    return sync_of(store, client, clock)


def finish_all(store: Store) -> None:
    while job := store.queue.take_next():
        store.queue.finish(job, "[]", 0.5, 1.0)


def state_of(store: Store, version: str) -> dict[int, tuple[str, str]]:
    return {task: (job.state, job.delivery) for task, job in store.jobs(PROJECT, version).all().items()}


def test_without_an_annotation_there_is_nothing_to_predict(sync: ProjectSync, store: Store, client: FakeClient):
    assert sync.run() == Due()
    assert sync.version == BASE
    assert [task.id for task in store.tasks(PROJECT).all()] == list(client.rows)
    assert store.queue.length() == 0


def test_a_run_may_be_repeated_and_changes_nothing_then(sync: ProjectSync, store: Store, client: FakeClient):
    first, *others = client.rows
    client.annotate(first)
    sync.run()
    before = state_of(store, sync.version)
    assert before == dict.fromkeys(others, ("queued", "open"))
    client.asked.clear()
    assert sync.run() == Due()
    assert state_of(store, sync.version) == before
    assert client.asked == ["project", "tasks"]


def test_missing_tasks_are_queued_before_lost_ones_and_duplicates_are_seen_to(
    sync: ProjectSync, store: Store, client: FakeClient
):
    first, second, third, fourth = client.rows
    client.annotate(first)
    sync.run()
    finish_all(store)
    sync.delivery().run()
    for number in [number for number, one in client.given.items() if one["task"] == second]:
        del client.given[number]
    client.predict(third, sync.version)
    new = client.add_task()
    client.asked.clear()
    assert sync.run() == Due(confirm=True)
    assert client.asked == [
        *("project", "tasks"),
        *("backends", "tasks_with_prediction"),  # for the new task
        "tasks_with_prediction",  # for the lost one
        *("predictions", "delete_prediction"),
    ]
    states = state_of(store, sync.version)
    assert states[new] == ("queued", "open")
    assert states[second] == ("done", "open")
    assert [client.versions_of(task) for task in (third, fourth)] == [[sync.version]] * 2


def test_what_label_studio_has_already_is_not_computed_again(
    store: Store, sync: ProjectSync, client: FakeClient, clock: FakeClock
):
    first, second, *others = client.rows
    client.annotate(first)
    sync.read_project()
    sync.read_tasks()
    sync.adopt(sync.choose_references())
    client.predict(second, sync.version)
    sync_of(store, client, clock).run()
    assert state_of(store, sync.version)[second] == ("done", "delivered")
    assert store.queue.length() == len(others)


def test_a_changed_reference_waits_until_it_has_not_changed_for_a_while(
    sync: ProjectSync, client: FakeClient, clock: FakeClock
):
    annotation = client.annotate(next(iter(client.rows)))
    sync.run()
    former = sync.version
    assert former != BASE  # the first one waits for nothing
    client.edit(annotation, "dog")
    assert sync.run().choose_in == 10.0
    clock.advance(8.0)
    assert sync.run().choose_in == 2.0
    client.made[annotation]["result"] *= 2
    client.rows[client.made[annotation]["task"]]["updated_at"] = "later"
    assert sync.run().choose_in == 10.0  # changed again: the time starts anew
    clock.advance(9.0)
    assert sync.follow_reference().choose_in == 1.0
    assert sync.version == former
    clock.advance(1.0)
    assert sync.follow_reference() == Due()
    assert sync.version != former


def test_a_reference_that_is_as_before_again_waits_for_nothing(sync: ProjectSync, client: FakeClient):
    annotation = client.annotate(next(iter(client.rows)))
    sync.run()
    former = sync.version
    client.edit(annotation, "dog")
    assert sync.run().choose_in is not None
    client.edit(annotation, "cat")
    assert sync.run() == Due()
    assert sync.version == former


def test_at_once_there_is_no_quiet_period_and_failed_tasks_are_tried_again(
    sync: ProjectSync, store: Store, client: FakeClient
):
    annotation = client.annotate(next(iter(client.rows)))
    sync.run()
    job = store.queue.take_next()
    assert job is not None
    store.queue.fail(job, "no picture")
    sync.run(at_once=True)
    assert state_of(store, sync.version)[job.task][0] == "queued"
    former = sync.version
    client.edit(annotation, "dog")
    sync.run(at_once=True)
    assert sync.version != former
    assert state_of(store, former) == {}  # what was not finished is dropped


def test_without_a_backend_nothing_is_queued_and_it_is_looked_for_for_a_while(
    sync: ProjectSync, store: Store, client: FakeClient
):
    client.annotate(next(iter(client.rows)))
    connected, client.connected = client.connected, []
    pauses = [sync.run().sync_in for _ in range(len(CONNECT_PAUSES) + 1)]
    assert pauses == [*CONNECT_PAUSES, None]
    assert store.queue.length() == 0
    client.connected = connected
    assert sync.run() == Due()
    assert store.queue.length() == 3
    assert [hook["url"] for hook in client.hooks] == [f"{connected[0]['url']}/webhook"]


def test_the_webhook_carries_the_secret_beside_what_else_it_sends(store: Store, client: FakeClient, clock: FakeClock):
    sync = sync_of(store, client, clock, webhook_secret="0123456789abcdef")
    other = {"id": 1, "url": "http://elsewhere.example/webhook", "headers": {}, "actions": []}
    ours = {"id": 2, "url": f"{BACKEND['url']}/webhook", "headers": {"X-Route": "a"}, "actions": ["TASKS_CREATED"]}
    client.hooks = [dict(other), dict(ours)]
    sync.run()
    assert client.hooks == [other, ours | {"headers": {"X-Route": "a", HEADER: "0123456789abcdef"}}]
    sync.run()
    assert client.asked.count("set_webhook_headers") == client.asked.count("webhooks") == 1
    client.hooks = [dict(ours)]  # somebody made it anew, and an event came without the secret
    sync.run(check_webhook=True)
    assert client.hooks[0]["headers"][HEADER] == "0123456789abcdef"
    assert client.asked.count("add_webhook") == 0


def test_a_project_that_predicts_automatically_is_not_waited_for_while_its_tasks_are_listed(
    store: Store, client: FakeClient
):
    seen: list[tuple[str, bool]] = []
    made = ProjectSync(
        store, client, PROJECT, Settings(), BASE, changed=lambda: seen.append((client.asked[-1], made.is_listing))
    )
    made.run()
    assert seen == []
    client.described["evaluate_predictions_automatically"] = True
    made.run()
    assert seen == [("project", True)]
    assert not made.is_listing


def test_predict_again_begins_with_what_label_studio_has(sync: ProjectSync, store: Store, client: FakeClient):
    first, *others = client.rows
    client.annotate(first)
    sync.run()
    finish_all(store)
    sync.delivery().run()
    store.projects.want_again(PROJECT)
    sync.run()
    assert client.given == {}
    assert state_of(store, sync.version) == dict.fromkeys(others, ("queued", "open"))
    assert not sync.is_wanted_again


def test_predict_again_takes_nothing_from_a_project_without_a_backend(
    sync: ProjectSync, store: Store, client: FakeClient
):
    client.annotate(next(iter(client.rows)))
    sync.run()
    finish_all(store)
    sync.delivery().run()
    given, connected = dict(client.given), client.connected
    client.connected = []
    store.projects.want_again(PROJECT)
    sync.run()
    assert client.given == given
    assert not sync.is_wanted_again
    assert "Settings, Model" in str(store.projects.warnings(PROJECT))
    client.connected = connected
    client.add_task()
    sync.run()
    assert store.projects.warnings(PROJECT) == {}


def test_a_refused_annotation_makes_room_for_the_next(sync: ProjectSync, store: Store, client: FakeClient):
    first, second, *_ = client.rows
    refused = client.annotate(first)
    client.annotate(second)
    sync.run()
    (one,) = store.annotations(PROJECT).judged(first)
    store.annotations(PROJECT).refuse(Refusal(PROJECT, refused, one.key, "its mask is empty"), BASE)
    assert sync.version == BASE
    sync.run()
    references = store.annotations(PROJECT).references()
    assert references is not None
    assert references.tasks == {second}
    # told twice, and too late: another is learned from by now
    store.annotations(PROJECT).refuse(Refusal(PROJECT, refused, one.key, "its mask is empty"), BASE)
    assert store.annotations(PROJECT).references() == references


def test_extra_params_change_the_policy_and_what_cannot_be_used_is_warned_of(
    sync: ProjectSync, store: Store, client: FakeClient
):
    first, second, *_ = client.rows
    client.annotate(first)
    client.annotate(second)
    text = '{"reference_policy": "latest-k", "reference_shots": 1, "speed": 3}'
    sync.run(extra_params=text)  # somebody said so, but not Label Studio
    references = store.annotations(PROJECT).references()
    assert references is not None
    assert references.tasks == {first}
    client.connected = [BACKEND | {"extra_params": text}]
    sync.run(extra_params=text, at_once=True)
    references = store.annotations(PROJECT).references()
    assert references is not None
    assert references.tasks == {second}
    assert "'speed' is not known" in str(store.projects.warnings(PROJECT))
    client.connected = [BACKEND | {"extra_params": None}]
    sync.run(extra_params="")
    assert store.projects.warnings(PROJECT) == {}
