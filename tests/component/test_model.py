"""The contract with label-studio-ml 2.x: its own application over our service. Skipped where it is not installed."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.serving import make_server

from backend.service import Service
from backend.settings import Settings
from tests.support.backend import THRESHOLD, RunningBackend, wait_for
from tests.support.fake_label_studio import CONFIG, FakeLabelStudio, brush, picture

CAT_BOX = (8, 30, 20, 50)


@pytest.fixture
def backend(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningBackend]:
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))  # where it keeps a file of its own
    pytest.importorskip("label_studio_ml", minversion="2.0", reason="label-studio-ml 2.x is not installed")
    model = importlib.import_module("backend.model")
    api = importlib.import_module("label_studio_ml.api")
    service = Service(make_settings(), segmenter=THRESHOLD)

    class Tested(model.CavSam):  # type: ignore[name-defined]
        service = staticmethod(lambda: service)

    server = make_server("127.0.0.1", 0, api.init_app(Tested), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service.start()
    yield RunningBackend(service, f"http://127.0.0.1:{server.server_port}")
    service.stop()
    server.shutdown()
    server.server_close()


def test_the_whole_round(backend: RunningBackend, label_studio: FakeLabelStudio):
    """Connected with settings of the project's own, annotated, predicted, asked again, clicked."""
    project = label_studio.add_project()
    first, second = (label_studio.add_task(project, picture(CAT_BOX)) for _ in range(2))
    assert requests.get(f"{backend.url}/health", timeout=5).json()["status"] == "UP"
    label_studio.extra_params[project] = {"quiet_period": 1}
    assert label_studio.connect(project, backend.url)["model_version"] == backend.service.base_version
    annotation = label_studio.annotate(first, [brush(CAT_BOX, "cat")])
    event: dict[str, Any] = {"action": "ANNOTATION_UPDATED", "project": {"id": project, "label_config": CONFIG}}
    event |= {"annotation": {"id": annotation, "task": first}}
    told = requests.post(f"{backend.url}/webhook", json=event, timeout=5)
    assert (told.status_code, told.json()["result"]) == (201, {"status": "noted"})
    wait_for(lambda: label_studio.versions_of(second), "a prediction")
    version = label_studio.setup(project)["model_version"]
    assert label_studio.versions_of(second) == [version] == [backend.service.version_of(project)]

    label_studio.predictions.clear()
    wait_for(lambda: label_studio.retrieve(project) and label_studio.versions_of(second) == [version], "what was lost")

    body: dict[str, Any] = {
        "tasks": [{"id": second, "data": label_studio.tasks[second]["data"]}],
        "project": f"{project}.1700000000",
        "label_config": CONFIG,
        "params": {"login": None, "password": None, "context": {"result": []}},
    }
    answer = requests.post(f"{backend.url}/predict", json=body, timeout=60).json()
    assert answer == {"results": [{"result": [], "score": 0.0, "model_version": version}]}


def test_an_error_is_a_sentence(backend: RunningBackend):
    body: dict[str, Any] = {"tasks": [], "project": "none", "label_config": CONFIG, "params": {}}
    answer = requests.post(f"{backend.url}/predict", json=body, timeout=60)
    assert answer.status_code == 500
    assert "The request names no project." in answer.text
