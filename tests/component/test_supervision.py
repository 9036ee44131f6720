"""Faults that end threads and processes for real: work goes on, and nobody has to press anything."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from backend.labelstudio.client import LabelStudio
from backend.service import Service
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import FakeLabelStudio, brush, picture

BOX = (8, 30, 20, 50)
SMART = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="tag" toName="image"><Label value="cat"/></BrushLabels>'
    '<KeyPointLabels name="point" toName="image" smart="true"><Label value="cat"/></KeyPointLabels></View>'
)


class Absurd(BaseException):
    """What no `except Exception` sees."""


@pytest.fixture
def project(label_studio: FakeLabelStudio) -> int:
    number = label_studio.add_project()
    for index in range(6):
        label_studio.add_task(number, picture((8, 30, 20, 50 + index)))
    return number


def fail_at_first(monkeypatch: pytest.MonkeyPatch, service: Service, failures: list[BaseException]) -> None:
    """Have as many calls for a connection raise as there are failures, whoever asks."""
    of = service.clients.of

    def connection(project: int) -> LabelStudio:
        if failures:
            raise failures.pop()
        return of(project)

    monkeypatch.setattr(service.clients, "of", connection)


@pytest.mark.parametrize("failure", [Absurd("nobody foresaw this"), MemoryError(), SystemExit(1)])
def test_a_client_that_raises_something_absurd_stops_nothing_for_good(
    label_studio: FakeLabelStudio,
    project: int,
    start_backend: Callable[..., RunningBackend],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
):
    monkeypatch.setattr("backend.supervision.PAUSES", (0.05,) * 4)
    monkeypatch.setattr("backend.sync.schedule.AWAY_PAUSES", (0.05,))
    monkeypatch.setattr("backend.worker.decisions.IMAGE_DELAYS", (0.05,) * 3)
    monkeypatch.setattr("backend.worker.decisions.AWAY_DELAY", 0.05)
    last_words: list[str] = []
    backend = start_backend(give_up=last_words.append)
    failures = [failure, failure]
    fail_at_first(monkeypatch, backend.service, failures)
    label_studio.connect(project, backend.url)  # met by the coordinator
    wait_for(lambda: not failures, "the coordinator to fail twice")
    label_studio.annotate(label_studio.tasks_of(project)[0], [brush(BOX, "cat")])
    wait_for(lambda: backend.service.store.queue.length() or backend.service.worker.activity.task, "work")
    failures += [failure]  # met by whoever asks next
    targets = label_studio.tasks_of(project)[1:]
    wait_for(lambda: all(label_studio.versions_of(task) for task in targets), "all predictions")
    assert [len(label_studio.versions_of(task)) for task in targets] == [1] * 5
    assert backend.service.dead_threads() == []
    assert last_words == []


def test_the_process_for_clicks_is_started_again_when_it_ends(
    label_studio: FakeLabelStudio, start_backend: Callable[..., RunningBackend], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backend.worker.interactive.WATCH_PAUSE", 0.05)
    backend = start_backend()
    process = backend.service.interactive.process
    label_studio.connect(label_studio.add_project(SMART), backend.url)
    wait_for(lambda: process.device, "the process to be loaded")
    first = process.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: process.is_running and process.pid != first, "another process")
    assert backend.service.dead_threads() == []
