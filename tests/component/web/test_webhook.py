"""Who may send events: Label Studio with the secret that it was given, and what everybody else brings about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import requests

from backend.web.app import EVENT_READ_NOW
from backend.webhook_secret import HEADER
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import FakeLabelStudio, brush, picture

StartBackend = Callable[..., RunningBackend]
BOX = (8, 30, 20, 50)


def connected(label_studio: FakeLabelStudio, backend: RunningBackend, tasks: int = 2) -> int:
    """A project whose webhook carries the secret already."""
    project = label_studio.add_project()
    for _ in range(tasks):
        label_studio.add_task(project, picture(BOX))
    label_studio.connect(project, backend.url)
    wait_for(lambda: label_studio.webhook_headers(project), "the webhook to carry the secret")
    wait_for(lambda: backend.service.store.tasks(project).all(), "the first sync")
    return project


def test_the_secret_is_put_on_the_webhook_that_label_studio_made(
    label_studio: FakeLabelStudio, start_backend: StartBackend
):
    backend = start_backend()
    project = connected(label_studio, backend)
    (hook,) = label_studio.webhooks
    assert hook["headers"] == {HEADER: backend.service.settings.webhook_secret}
    answers = [requests.get(backend.url + path, timeout=5).text for path in ("/", "/health", "/api/status", "/metrics")]
    assert backend.service.settings.webhook_secret not in "".join(answers)
    before = backend.service.coordinator.syncs(project)
    label_studio.annotate(label_studio.tasks_of(project)[0], [brush(BOX, "cat")])
    wait_for(lambda: backend.service.store.annotations(project).references(), "the reference, without a full sync")
    assert backend.service.coordinator.syncs(project) == before


def test_2000_spoofed_events_cost_few_calls_and_keep_nobody_waiting(
    label_studio: FakeLabelStudio, start_backend: StartBackend
):
    backend = start_backend()
    target, other = (connected(label_studio, backend) for _ in range(2))
    calls = len(label_studio.calls)
    opened = requests.Session()
    bodies: list[Any] = [
        {"action": "START_TRAINING", "project": {"id": target}},
        {"action": "ANNOTATION_CREATED", "project": {"id": target}, "annotation": {"id": 7, "task": 8}},
        {"action": "TASKS_CREATED", "project": {"id": 10**6}},
        {"action": "TASKS_CREATED"},
    ]
    seconds = 0.0
    for number in range(2000):
        body = bodies[number % len(bodies)]
        if body.get("project", {}).get("id") == 10**6:
            body = body | {"project": {"id": 10**6 + number}}
        wrong = {HEADER: "x" * 43} if number % 2 else {}
        answer = opened.post(f"{backend.url}/webhook", json=body, headers=wrong, timeout=5)
        assert answer.status_code == 201
        seconds += answer.elapsed.total_seconds()
    label_studio.annotate(label_studio.tasks_of(other)[0], [brush(BOX, "cat")])
    wait_for(lambda: backend.service.store.annotations(other).references(), "the other project's reference", 5.0)
    made = Counter(path for _, path, _ in label_studio.calls[calls:])
    assert not [path for path in made if path.startswith("/api/projects/10")]  # nothing is asked of strangers
    syncs = 2 + seconds / 5  # of each project, from the first event to the last
    assert made[f"/api/projects/{target}/"] <= syncs
    assert sum(made.values()) <= 2 * 10 * syncs


@pytest.mark.parametrize("size", [1, 20 * EVENT_READ_NOW])
def test_without_the_secret_an_event_is_followed_all_the_same(
    label_studio: FakeLabelStudio, start_backend: StartBackend, size: int
):
    """As of a webhook whose headers the key may not change."""
    label_studio.forbidden_paths = {"/api/webhooks/"}
    backend = start_backend()
    project = label_studio.add_project()
    tasks = [label_studio.add_task(project, picture(BOX)) for _ in range(2)]
    label_studio.connect(project, backend.url)
    wait_for(lambda: backend.service.store.tasks(project).all(), "the first sync")
    label_studio.annotate(tasks[0], [brush(BOX, "cat")], filling="x" * size)
    wait_for(lambda: backend.service.store.annotations(project).references(), "the reference", 20.0)
    assert label_studio.webhook_headers(project) == {}


def test_a_webhook_that_somebody_made_anew_gets_the_secret_again(
    label_studio: FakeLabelStudio, start_backend: StartBackend
):
    backend = start_backend()
    project = connected(label_studio, backend)
    label_studio.webhooks[0]["headers"] = {}
    label_studio.annotate(label_studio.tasks_of(project)[0], [brush(BOX, "cat")])
    wait_for(lambda: label_studio.webhook_headers(project), "the secret", 20.0)


def test_with_a_password_start_training_comes_with_it_and_needs_no_secret(
    label_studio: FakeLabelStudio, start_backend: StartBackend
):
    backend = start_backend(basic_auth_user="me", basic_auth_password="pass")
    assert requests.post(f"{backend.url}/webhook", json={"action": "X"}, timeout=5).status_code == 201
    project = label_studio.add_project()
    event: dict[str, Any] = {"action": "TASKS_CREATED", "project": {"id": project}}
    for auth in (None, ("me", "wrong")):
        requests.post(f"{backend.url}/webhook", json=event, auth=auth, timeout=5)
    assert backend.service.coordinator.syncs(project) == 0
    requests.post(f"{backend.url}/webhook", json=event, auth=("me", "pass"), timeout=5)
    wait_for(lambda: backend.service.coordinator.syncs(project), "a sync of a project not known before")
