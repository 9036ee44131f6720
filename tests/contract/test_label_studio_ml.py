"""The contract with label-studio-ml 2.x: its own application over our service. Skipped where it is not installed.

Its package installs a `tests` of its own, which hides ours where both can be imported. So nothing here imports `tests`:
the helpers are taken by their own names from their folder.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.serving import make_server

from backend.service import Service
from backend.settings import Settings

SUPPORT = Path(__file__).resolve().parents[1] / "support"
CAT_BOX = (8, 30, 20, 50)


@dataclass
class Backend:
    """A service behind label-studio-ml's application, answering on a real socket."""

    service: Service
    url: str


@pytest.fixture
def support(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the peer that plays Label Studio; the model process finds its segmenter on the same path."""
    monkeypatch.syspath_prepend(str(SUPPORT))
    return importlib.import_module("fake_label_studio")


@pytest.fixture
def label_studio(support: Any) -> Iterator[Any]:
    fake = support.FakeLabelStudio()
    yield fake
    fake.close()


@pytest.fixture
def backend(label_studio: Any, support: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))  # where it keeps a file of its own
    pytest.importorskip("label_studio_ml", minversion="2.0", reason="label-studio-ml 2.x is not installed")
    model = importlib.import_module("backend.model")
    api = importlib.import_module("label_studio_ml.api")
    settings = Settings(
        label_studio_url=label_studio.url,
        label_studio_api_key=support.LEGACY_KEY,
        model="nano",
        data_dir=tmp_path / "data",
        push_interval=0.05,
    )
    service = Service(settings, segmenter="threshold:open_threshold")

    class Tested(model.CavSam):  # type: ignore[name-defined]
        service = staticmethod(lambda: service)

    server = make_server("127.0.0.1", 0, api.init_app(Tested), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service.start()
    yield Backend(service, f"http://127.0.0.1:{server.server_port}")
    service.stop()
    server.shutdown()
    server.server_close()


def test_label_studio_ml_serves_the_whole_round(backend: Backend, label_studio: Any, support: Any):
    """Connected with settings of the project's own, annotated, predicted, asked again, clicked."""
    project = label_studio.add_project()
    first, second = (label_studio.add_task(project, support.picture(CAT_BOX)) for _ in range(2))
    assert requests.get(f"{backend.url}/health", timeout=5).json()["status"] == "UP"
    label_studio.extra_params[project] = {"quiet_period": 1}
    assert label_studio.connect(project, backend.url)["model_version"] == backend.service.base_version
    annotation = label_studio.annotate(first, [support.brush(CAT_BOX, "cat")])
    event: dict[str, Any] = {"action": "ANNOTATION_UPDATED", "project": {"id": project, "label_config": support.CONFIG}}
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
        "label_config": support.CONFIG,
        "params": {"login": None, "password": None, "context": {"result": []}},
    }
    answer = requests.post(f"{backend.url}/predict", json=body, timeout=60).json()
    assert answer == {"results": [{"result": [], "score": 0.0, "model_version": version}]}


def test_label_studio_ml_tells_an_error_in_a_sentence(backend: Backend, support: Any):
    body: dict[str, Any] = {"tasks": [], "project": "none", "label_config": support.CONFIG, "params": {}}
    answer = requests.post(f"{backend.url}/predict", json=body, timeout=60)
    assert answer.status_code == 500
    assert "The request names no project." in answer.text


def wait_for(condition: Callable[[], Any], what: str, patience: float = 60.0) -> None:
    """Wait until something is so; the patience is only there to end a test that will never pass."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"in vain waited for: {what}"
        time.sleep(0.02)
