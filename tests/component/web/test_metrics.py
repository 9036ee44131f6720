from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import FakeLabelStudio, brush, picture

BOX = (8, 30, 20, 50)
ROOT = Path(__file__).parents[3]
TITLE = "a secret title"
CONFIG_LABEL = "cat"


@pytest.fixture
def backend(start_backend: Callable[..., RunningBackend]) -> RunningBackend:
    return start_backend()


def metrics(backend: RunningBackend) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Each sample by its name and labels, as Prometheus reads it."""
    answer = requests.get(f"{backend.url}/metrics", timeout=5)
    answer.raise_for_status()
    assert answer.headers["Content-Type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def sample(backend: RunningBackend, name: str, **labels: str) -> float | None:
    return metrics(backend).get((name, frozenset(labels.items())))


def test_nothing_is_there_yet(backend: RunningBackend):
    assert sample(backend, "cavsam_projects") == 0
    wait_for(lambda: sample(backend, "cavsam_healthy") == 1, "the model to be loaded")
    assert [sample(backend, "cavsam_jobs", state=state) for state in ("queued", "running", "done", "failed")] == [0] * 4
    assert sample(backend, "cavsam_oldest_queued_seconds") == 0
    assert sample(backend, "cavsam_score_count") == 0


def test_a_project_s_work_without_its_name(backend: RunningBackend, label_studio: FakeLabelStudio):
    project = label_studio.add_project()
    label_studio.projects[project]["title"] = TITLE
    first, *others = (label_studio.add_task(project, picture(BOX)) for _ in range(4))
    broken = label_studio.add_task(project, b"no picture")
    label_studio.connect(project, backend.url)
    label_studio.annotate(first, [brush(BOX, CONFIG_LABEL)])
    wait_for(lambda: all(label_studio.versions_of(task) for task in others), "predictions")
    wait_for(lambda: sample(backend, "cavsam_jobs", state="failed") == 1, "the broken task")
    wait_for(lambda: sample(backend, "cavsam_delivered") == 3, "the delivery to be written down")
    found = metrics(backend)

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert value("cavsam_projects") == 1
    assert value("cavsam_jobs", state="done") == value("cavsam_task_seconds_count") == value("cavsam_score_count") == 3
    scores = [p["score"] for p in label_studio.predictions.values()]
    assert value("cavsam_score_sum") == pytest.approx(sum(scores))
    for bound in range(1, 11):
        below = value("cavsam_score_bucket", le=str(bound / 10))
        assert below == sum(score <= bound / 10 for score in scores)
    assert value("cavsam_requests_total", method="POST", route="/setup", status="200") >= 1
    text = json.dumps([[name, sorted(labels)] for name, labels in found])
    for secret in (TITLE, CONFIG_LABEL, str(project), str(broken)):
        assert f'"{secret}"' not in text


def test_errors_are_counted_by_kind_and_made_up_addresses_as_one(backend: RunningBackend):
    for _ in range(2):
        assert requests.post(f"{backend.url}/predict", json={"tasks": 1}, timeout=5).status_code == 400
    for number in range(3):
        assert requests.get(f"{backend.url}/made-up/{number}", timeout=5).status_code == 404
    assert sample(backend, "cavsam_errors_total", kind="InvalidRequest") == 2
    assert sample(backend, "cavsam_requests_total", method="POST", route="/predict", status="400") == 2
    assert sample(backend, "cavsam_requests_total", method="none", route="none", status="404") == 3
    assert sample(backend, "cavsam_request_seconds_count", route="/predict") == 2


def test_the_dashboard_shows_metrics_that_there_are(backend: RunningBackend):
    requests.post(f"{backend.url}/predict", json={}, timeout=5)
    metrics(backend)
    names = {name for name, _ in metrics(backend)} | {"cavsam_model_memory_bytes"}  # of a model that is loaded
    dashboard = json.loads((ROOT / "docs" / "grafana" / "cavsam.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for expression in shown for name in re.findall(r"cavsam_\w+", expression)}
    assert len(asked) > 10
    assert asked <= names
    documented = (ROOT / "docs" / "monitoring.md").read_text()
    for name in names:
        assert re.sub(r"_(sum|count|bucket|created)$", "", name).removesuffix("_total") in documented, name
