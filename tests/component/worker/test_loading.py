"""A model process that dies while it loads the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from backend.entities import Job, JobState
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import FakeLabelStudio, brush, picture

BOX, OTHER = (8, 30, 20, 50), (10, 20, 10, 30)


def test_no_task_fails_with_it_and_health_names_it(
    label_studio: FakeLabelStudio,
    start_backend: Callable[..., RunningBackend],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    allowed = tmp_path / "allowed"
    monkeypatch.setenv("LOADING_ALLOWED", str(allowed))
    monkeypatch.setattr("backend.worker.decisions.MODEL_DELAYS", (0.05,))
    project = label_studio.add_project()
    first, *others = (label_studio.add_task(project, picture(box)) for box in (BOX, OTHER, BOX))
    backend = start_backend(segmenter="tests.support.threshold:open_once_allowed")
    label_studio.connect(project, backend.url)
    label_studio.annotate(first, [brush(BOX, "cat")])

    def health() -> dict:
        return requests.get(f"{backend.url}/health", timeout=5).json()

    def jobs() -> list[Job]:
        version = backend.service.version_of(project)
        return list(backend.service.store.jobs(project, version).all().values())

    wait_for(lambda: any("loading the model" in (job.error or "") for job in jobs()), "a put-off task")
    tries = allowed.with_suffix(".tries")
    before = tries.read_text()
    wait_for(lambda: tries.read_text().count("one") >= before.count("one") + 3, "more crashes than a task has tries")
    wait_for(lambda: "loading the model" in health().get("error", ""), "health to name the crash")
    assert JobState.FAILED not in {job.state for job in jobs()}
    allowed.touch()
    wait_for(lambda: all(label_studio.versions_of(task) for task in others), "the predictions, by themselves")
