"""The description at /openapi.json against the routes, and against what they answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator

from backend.service import Service
from backend.settings import Settings
from backend.store.jobs import TaskFilter, TaskOrder
from backend.web.app import create_app
from backend.web.status_page import ACTIONS, TASK_ACTIONS
from tests.support.backend import THRESHOLD, RunningBackend, wait_for
from tests.support.fake_label_studio import CONFIG, LEGACY_KEY, FakeLabelStudio, brush, picture

StartBackend = Callable[..., RunningBackend]
BOX = (8, 30, 20, 50)


@pytest.fixture
def backend(label_studio: FakeLabelStudio, start_backend: StartBackend) -> RunningBackend:
    return start_backend()


@pytest.fixture
def described(backend: RunningBackend) -> dict[str, Any]:
    return requests.get(f"{backend.url}/openapi.json", timeout=10).json()


def predicted_project(label_studio: FakeLabelStudio, backend: RunningBackend) -> int:
    """A connected project of three tasks: an annotated one, a predicted one, and one whose image cannot be read."""
    project = label_studio.add_project(CONFIG)
    first, second, broken = (label_studio.add_task(project, picture(BOX)) for _ in range(3))
    label_studio.files[f"/data/upload/{broken}.png"] = b"no picture"
    label_studio.connect(project, backend.url)
    label_studio.annotate(first, [brush(BOX, "cat")])
    wait_for(lambda: label_studio.versions_of(second), "the prediction")
    return project


def assert_described(described: dict[str, Any], route: str, answer: requests.Response, method: str = "get") -> None:
    """Hold an answer against the description of its route and status."""
    entry = described["paths"][route][method]["responses"][str(answer.status_code)]
    if "$ref" in entry:
        entry = described["components"]["responses"][entry["$ref"].rsplit("/", 1)[1]]
    schema = entry["content"]["application/json"]["schema"] | {"components": described["components"]}
    Draft202012Validator(schema).validate(answer.json())


def test_every_route_is_described_and_nothing_else(make_settings: Callable[..., Settings]) -> None:
    service = Service(make_settings(), segmenter=THRESHOLD)
    app = create_app(service.settings, service)
    routes = {
        (re.sub(r"<(?:[^:<>]+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    document = app.test_client().get("/openapi.json", headers={"Host": "localhost"}).get_json()
    service.stop()
    described = {
        (path, method) for path, entry in document["paths"].items() for method in entry if method != "parameters"
    }
    assert described == routes
    for path, entry in document["paths"].items():
        named = {one["name"] for one in entry.get("parameters", ()) if one["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), path


def test_every_choice_is_described(described: dict[str, Any]) -> None:
    tasks = described["paths"]["/api/projects/{project}/tasks"]["get"]["parameters"]
    choices = {one["name"]: one["schema"].get("enum") for one in tasks}
    assert choices["show"] == list(TaskFilter.__args__)  # type: ignore[attr-defined]
    assert choices["order"] == list(TaskOrder.__args__)  # type: ignore[attr-defined]
    for path, actions in (("/api/{action}", ACTIONS), ("/api/projects/{project}/tasks/{task}/{action}", TASK_ACTIONS)):
        action = next(one for one in described["paths"][path]["parameters"] if one["name"] == "action")
        assert action["schema"]["enum"] == list(actions)


def test_answers_are_as_described(
    label_studio: FakeLabelStudio, backend: RunningBackend, described: dict[str, Any]
) -> None:
    project = predicted_project(label_studio, backend)
    for route in ("/", "/health", "/ready", "/versions", "/api/status", "/api/model", "/api/projects"):
        assert_described(described, route, requests.get(f"{backend.url}{route}", timeout=10))
    one = f"{backend.url}/api/projects/{project}"
    assert_described(described, "/api/projects/{project}", requests.get(one, timeout=10))
    listed = requests.get(f"{one}/tasks", timeout=10)
    assert_described(described, "/api/projects/{project}/tasks", listed)
    assert {"reference", "delivered"} <= {task["state"] for task in listed.json()["tasks"]}
    unknown = requests.get(f"{backend.url}/api/projects/999", timeout=10)
    assert unknown.status_code == 404
    assert_described(described, "/api/projects/{project}", unknown)


def test_calls_of_label_studio_are_answered_as_described(
    label_studio: FakeLabelStudio, backend: RunningBackend, described: dict[str, Any]
) -> None:
    project = predicted_project(label_studio, backend)
    uid = label_studio.uid(project)
    for body in (
        {"project": uid, "hostname": label_studio.url, "access_token": LEGACY_KEY, "schema": CONFIG},
        {"project": "none"},
    ):
        answer = requests.post(f"{backend.url}/setup", json=body, timeout=10)
        assert_described(described, "/setup", answer, "post")
    tasks: list[Any] = [{"id": number, "data": {}} for number in label_studio.tasks_of(project)[1:2]]
    found = requests.post(f"{backend.url}/predict", json={"project": uid, "tasks": tasks}, timeout=30)
    assert_described(described, "/predict", found, "post")
    refused = requests.post(f"{backend.url}/predict", json={"project": uid, "tasks": 3}, timeout=10)
    assert refused.status_code == 400
    assert_described(described, "/predict", refused, "post")
    for path, route in (("/api/pause", "/api/{action}"), ("/api/resume", "/api/{action}")):
        assert_described(described, route, requests.post(f"{backend.url}{path}", timeout=10), "post")
    event = requests.post(f"{backend.url}/webhook", json={"action": "PROJECT_UPDATED"}, timeout=10)
    assert_described(described, "/webhook", event, "post")
