"""What becomes of a task whose image's server has a fault for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from flask import Flask
from werkzeug.serving import make_server

from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import FakeLabelStudio, brush, picture

BOX, OTHER = (8, 30, 20, 50), (10, 20, 10, 30)
PAGES = 6
"""More than the tries that an image has whose own fault it is."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.worker.decisions.AWAY_DELAY", 0.02)
    monkeypatch.setattr("backend.worker.decisions.IMAGE_DELAYS", (0.02, 0.02, 0.02))


@pytest.mark.usefixtures("impatient")
def test_label_studios_log_in_page_is_waited_out(
    label_studio: FakeLabelStudio, start_backend: Callable[..., RunningBackend]
):
    label_studio.failures.pages_for_files = PAGES
    project = label_studio.add_project()
    first, task = (label_studio.add_task(project, picture(box)) for box in (BOX, OTHER))
    backend = start_backend()
    label_studio.connect(project, backend.url)
    label_studio.annotate(first, [brush(BOX, "cat")])
    wait_for(lambda: label_studio.versions_of(task), "the prediction, without anybody's help")
    assert label_studio.failures.pages_for_files == 0


@pytest.mark.usefixtures("impatient")
def test_the_page_of_another_host_is_waited_out(
    label_studio: FakeLabelStudio, start_backend: Callable[..., RunningBackend]
):
    asked: list[str] = []
    app = Flask("ingress")

    @app.get("/<path:name>")
    def serve(name: str):
        asked.append(name)
        return "<html>This service is being started</html>" if len(asked) <= PAGES else picture(OTHER)

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        project = label_studio.add_project()
        first, task = label_studio.add_task(project, picture(BOX)), label_studio.add_task(project)
        label_studio.tasks[task]["data"] = {"image": f"http://localhost:{server.server_port}/a.png"}
        backend = start_backend(private_image_hosts="localhost")
        label_studio.connect(project, backend.url)
        label_studio.annotate(first, [brush(BOX, "cat")])
        wait_for(lambda: label_studio.versions_of(task), "the prediction, without anybody's help")
    finally:
        server.shutdown()
        server.server_close()
    assert len(asked) > PAGES
