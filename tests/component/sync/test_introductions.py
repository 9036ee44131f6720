"""What /setup hands over: believed once it opens the project, and of no harm to a project that is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import requests

from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import LEGACY_KEY, FakeLabelStudio, brush, picture

StartBackend = Callable[..., RunningBackend]
BOX = (8, 30, 20, 50)


@pytest.fixture
def second() -> Iterator[FakeLabelStudio]:
    """Another Label Studio, whose numbers are those of the first."""
    fake = FakeLabelStudio()
    fake.legacy_key = "b" * 40
    yield fake
    fake.close()


def filled(label_studio: FakeLabelStudio, label: str) -> int:
    """A project of three tasks, of which the first is annotated."""
    project = label_studio.add_project()
    tasks = [label_studio.add_task(project, picture(BOX)) for _ in range(3)]
    label_studio.annotate(tasks[0], [brush(BOX, label)])
    return project


def wait_until_predicted(label_studio: FakeLabelStudio, project: int) -> None:
    wait_for(lambda: [len(label_studio.versions_of(t)) for t in label_studio.tasks_of(project)] == [0, 1, 1], "all")


def has_one(label_studio: FakeLabelStudio, task: int) -> bool:
    return len(label_studio.versions_of(task)) == 1


def labels_of(label_studio: FakeLabelStudio) -> list[list[str]]:
    return [r["value"]["brushlabels"] for p in label_studio.predictions.values() for r in p["result"]]


def setup(backend: RunningBackend, **fields: Any) -> requests.Response:
    return requests.post(f"{backend.url}/setup", json=fields, timeout=10)


def test_two_label_studios_with_the_same_numbers_are_served_side_by_side(
    label_studio: FakeLabelStudio, second: FakeLabelStudio, start_backend: StartBackend
):
    backend = start_backend(label_studio_url="", label_studio_api_key="")
    project = filled(label_studio, "cat")
    label_studio.connect(project, backend.url)
    wait_until_predicted(label_studio, project)
    before = dict(label_studio.predictions)
    second.offset = 3600.0
    other = filled(second, "dog")
    assert other == project
    second.connect(other, backend.url)
    wait_until_predicted(second, other)
    assert label_studio.predictions == before
    assert labels_of(label_studio) == [["cat"]] * 2
    assert labels_of(second) == [["dog"]] * 2
    states = requests.get(f"{backend.url}/api/projects", timeout=5).json()["projects"]
    assert [state["number"] for state in states] == [project, project]
    assert [state["link"].partition("/projects/")[0] for state in states] == [label_studio.url, second.url]
    assert len({state["id"] for state in states}) == 2

    for fake in (label_studio, second):  # each is answered with its own, and told of its own tasks
        task = fake.add_task(project, picture(BOX))
        fake.retrieve(project)
        wait_for(partial(has_one, fake, task), "the prediction of a new task")
    assert label_studio.regions_of(task)[0]["value"]["brushlabels"] == ["cat"]
    assert second.regions_of(task)[0]["value"]["brushlabels"] == ["dog"]


def test_with_an_address_another_label_studio_of_that_number_gets_nothing(
    label_studio: FakeLabelStudio, second: FakeLabelStudio, start_backend: StartBackend
):
    backend = start_backend()
    project = filled(label_studio, "cat")
    label_studio.connect(project, backend.url)
    wait_until_predicted(label_studio, project)
    second.offset = 3600.0
    assert filled(second, "dog") == project
    second.setup(project, backend.url)
    tasks = [{"id": task} for task in second.tasks_of(project)]
    answer = requests.post(f"{backend.url}/predict", json={"project": second.uid(project), "tasks": tasks}, timeout=30)
    assert answer.status_code == 404
    assert "of another Label Studio" in answer.json()["error"]
    (state,) = requests.get(f"{backend.url}/api/projects", timeout=5).json()["projects"]
    assert state["link"].startswith(label_studio.url)  # nobody is sent to the address that a stranger named
    assert state["jobs"]["done"] == 2


@pytest.mark.parametrize("configured", [True, False])
def test_a_setup_that_opens_nothing_changes_nothing(
    label_studio: FakeLabelStudio, start_backend: StartBackend, configured: bool
):
    settings = {} if configured else {"label_studio_url": "", "label_studio_api_key": ""}
    backend = start_backend(**settings)
    project = filled(label_studio, "cat")
    label_studio.connect(project, backend.url)
    wait_until_predicted(label_studio, project)
    for hostname, token in (
        ("http://127.0.0.1:9", LEGACY_KEY),
        (label_studio.url, "0" * 40),
        (label_studio.url.replace("127.0.0.1", "localhost"), "f" * 40),
        ("javascript:alert(1)", "x"),
    ):
        extra = {"old_predictions": "remove", "reference_policy": "latest-k"}
        answer = setup(backend, project=str(project), hostname=hostname, access_token=token, extra_params=extra)
        assert answer.ok
    task = label_studio.add_task(project, picture(BOX))
    label_studio.retrieve(project)
    wait_for(lambda: len(label_studio.versions_of(task)) == 1, "a prediction all the same")
    (state,) = requests.get(f"{backend.url}/api/projects", timeout=5).json()["projects"]
    assert state["link"] == f"{label_studio.url}/projects/{project}/data"
    assert (state["policy"], state["error"]) == ("first", None)


def test_a_token_that_was_reset_is_believed_once_it_opens_the_project(
    label_studio: FakeLabelStudio, start_backend: StartBackend
):
    backend = start_backend(label_studio_api_key="")
    project = filled(label_studio, "cat")
    label_studio.connect(project, backend.url)
    wait_until_predicted(label_studio, project)
    label_studio.legacy_key = "a" * 40
    label_studio.setup(project)
    task = label_studio.add_task(project, picture(BOX))
    wait_for(lambda: label_studio.retrieve(project) is not None and label_studio.versions_of(task), "the new token")


def test_strangers_cost_few_calls_and_keep_nobody_waiting(label_studio: FakeLabelStudio, start_backend: StartBackend):
    backend = start_backend()
    project = filled(label_studio, "cat")
    calls, started = len(label_studio.calls), time.monotonic()
    opened = requests.Session()
    for number in range(1000):
        body = {"project": f"{10**6 + number}.1", "hostname": f"http://{number}.example", "access_token": "x" * 40}
        assert opened.post(f"{backend.url}/setup", json=body, timeout=5).ok
    seconds = time.monotonic() - started
    made = [path for _, path, _ in label_studio.calls[calls:] if path.startswith("/api/projects/1000")]
    assert len(made) <= 2 + 4 * seconds
    assert backend.service.store.projects.all() == []
    first = label_studio.connect(project, backend.url)
    assert first["model_version"]
    wait_until_predicted(label_studio, project)
    assert [known.id for known in backend.service.store.projects.all()] == [project]


def test_a_project_that_only_predict_names_is_found_at_the_configured_address(
    label_studio: FakeLabelStudio, start_backend: StartBackend
):
    backend = start_backend()
    project = filled(label_studio, "cat")
    label_studio.connected[project] = backend.url
    body: dict[str, Any] = {
        "project": label_studio.uid(project),
        "tasks": [{"id": task} for task in label_studio.tasks_of(project)],
    }
    answer = requests.post(f"{backend.url}/predict", json=body, timeout=60)
    assert [bool(result) for result in answer.json()["results"]] == [False, True, True]
    started = time.monotonic()
    answer = requests.post(f"{backend.url}/predict", json=body | {"project": "777.1"}, timeout=60)
    assert answer.json()["results"] == [[], [], []]
    assert time.monotonic() - started < 10
