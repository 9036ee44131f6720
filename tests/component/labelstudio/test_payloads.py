"""Label Studio's calls as they were recorded (see payloads/README.md), replayed to a running backend."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import FakeLabelStudio, picture

StartBackend = Callable[..., RunningBackend]
Payloads = dict[str, dict[str, Any]]
RECORDED: Payloads = json.loads((Path(__file__).parents[1] / "payloads" / "label-studio-1.23.2.json").read_text())
NEW_IN_1_23 = {"annotator_evaluation_enabled", "control_weights"}
NEW_IN_1_22 = {"allow_skip", "precomputed_agreement", "deleted_at", "deleted_by", "purge_at"}
ABSENT = {"1.20 and 1.21": NEW_IN_1_22 | NEW_IN_1_23, "1.22": NEW_IN_1_23, "1.23": set()}

WITH_STATES = "1.23 with states"


def without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: without(part, names) for name, part in value.items() if name not in names}
    return [without(part, names) for part in value] if isinstance(value, list) else value


@pytest.fixture(params=[*ABSENT, WITH_STATES])
def payloads(request: pytest.FixtureRequest) -> Payloads:
    found: Payloads = without(copy.deepcopy(RECORDED), ABSENT.get(request.param, set()))
    if request.param == WITH_STATES:
        for payload in found.values():
            for name in ("annotation", "task"):
                if isinstance(payload["body"].get(name), dict):
                    payload["body"][name]["state"] = "COMPLETED"
    return found


@pytest.fixture
def label_studio(payloads: Payloads) -> Iterator[FakeLabelStudio]:
    """A peer that holds the project and the tasks of the recording, as they were before the first annotation."""
    fake = FakeLabelStudio()
    project = payloads["ANNOTATION_CREATED"]["body"]["project"]
    fake.projects[project["id"]] = project
    for task in payloads["predict"]["body"]["tasks"]:
        image = f"/data/upload/{task['id']}.png"
        fake.files[image] = picture((8, 30, 20, 50 + task["id"]))
        fake.tasks[task["id"]] = {
            "id": task["id"],
            "project": project["id"],
            "data": {"image": image},
            "updated_at": task["updated_at"],
        }
    yield fake
    fake.close()


def replay(backend: RunningBackend, label_studio: FakeLabelStudio, payload: dict[str, Any]) -> requests.Response:
    body = payload["body"]
    if "hostname" in body:
        body = body | {"hostname": label_studio.url}  # what was recorded is not there
    return requests.post(backend.url + payload["path"], json=body, timeout=30)


def test_calls_are_answered_and_events_lead_to_predictions(
    payloads: Payloads, label_studio: FakeLabelStudio, start_backend: StartBackend
):
    backend = start_backend()
    (project,) = label_studio.projects
    label_studio.connected[project] = backend.url
    setup = replay(backend, label_studio, payloads["setup"])
    assert setup.json() == {"model_version": backend.service.base_version}
    asked = payloads["predict"]["body"]["tasks"]
    assert replay(backend, label_studio, payloads["predict"]).json() == {"results": [[]] * len(asked)}
    # recorded with a brush for the smart tool, which Label Studio passes on; clicks are in test_interactive.py
    interactive = replay(backend, label_studio, payloads["predict interactive"])
    assert interactive.status_code == 400
    assert "choose the smart point or rectangle" in interactive.json()["error"]

    created = payloads["ANNOTATION_CREATED"]["body"]
    annotation = created["annotation"]
    label_studio.annotations[annotation["id"]] = annotation
    assert replay(backend, label_studio, payloads["ANNOTATION_CREATED"]).status_code == 201
    others = [task["id"] for task in asked if task["id"] != annotation["task"]]
    wait_for(lambda: all(label_studio.versions_of(task) for task in others), "a prediction on every other task")
    version = replay(backend, label_studio, payloads["setup"]).json()["model_version"]
    assert version.startswith(f"{backend.service.base_version}-r")

    answers = replay(backend, label_studio, payloads["predict"]).json()["results"]
    assert len(answers) == len(asked)
    for name, payload in payloads.items():
        if payload["path"] == "/webhook":
            assert replay(backend, label_studio, payload).status_code == 201, name
    assert requests.get(f"{backend.url}/health", timeout=5).json()["status"] == "UP"


def test_an_updated_annotation_is_learned_anew(
    payloads: Payloads, label_studio: FakeLabelStudio, start_backend: StartBackend
):
    created, updated = (payloads[name]["body"]["annotation"] for name in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED"))
    label_studio.annotations[created["id"]] = created
    backend = start_backend()
    (project,) = label_studio.projects
    label_studio.connected[project] = backend.url
    replay(backend, label_studio, payloads["setup"])
    service = backend.service
    wait_for(lambda: service.version_of(project) != service.base_version, "the first reference")
    first = service.version_of(project)
    label_studio.annotations[created["id"]] = updated
    label_studio.tasks[created["task"]]["updated_at"] = updated["updated_at"]
    replay(backend, label_studio, payloads["ANNOTATION_UPDATED"])
    wait_for(lambda: service.version_of(project) not in (first, service.base_version), "the changed reference")
