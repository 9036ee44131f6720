"""The backend as real processes: `cavsam-backend serve` under gunicorn, its worker and its model process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests

from backend.settings import Settings
from backend.store.store import Store
from tests.support.backend import THRESHOLD, wait_for
from tests.support.backend_process import ENDLESS, ROOT, SERVE, SLOW, BackendProcess, family, running
from tests.support.fake_label_studio import FakeLabelStudio, brush, picture, png
from tests.support.threshold import DEADLY_ONCE

pytestmark = pytest.mark.integration

BOX = (8, 30, 20, 50)


@pytest.fixture
def project(label_studio: FakeLabelStudio) -> int:
    number = label_studio.add_project()
    for index in range(6):
        label_studio.add_task(number, picture((8, 30, 20, 50 + index)))
    return number


def predicted(label_studio: FakeLabelStudio, project: int) -> int:
    return sum(bool(label_studio.versions_of(task)) for task in label_studio.tasks_of(project))


def annotate(label_studio: FakeLabelStudio, project: int) -> None:
    label_studio.annotate(label_studio.tasks_of(project)[0], [brush(BOX, "cat")])


def test_the_command_serves_the_bundled_models_and_leaves_nothing_behind(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int
):
    backend = serve(command=[sys.executable, "-m", "backend.cli", "serve"])
    health = backend.health()  # answered while the model is being loaded
    assert health["status"] == "UP"
    assert "try-out" in health["warning"]
    assert "nano" in label_studio.setup(project, backend.url)["model_version"]
    backend.wait_until_idle()
    everyone = family(backend.process.pid)
    assert len(everyone) == 3  # gunicorn, its worker, the model process
    assert backend.model_process in everyone
    (worker,) = everyone - {backend.process.pid, backend.model_process}
    assert "torch" not in Path(f"/proc/{worker}/maps").read_text()
    resident = int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text())[0])
    assert resident < 400_000
    assert backend.stop() == 0
    wait_for(lambda: not running(everyone), "all processes to end", 20)
    assert "try-out models" in backend.log.read_text()


def test_the_wsgi_entry_serves_as_well(serve: Callable[..., BackendProcess], tmp_path: Path):
    gunicorn = [sys.executable, "-m", "gunicorn", "--workers", "1", "--threads", "8", "--bind", "127.0.0.1:0"]
    log = tmp_path / "backend.log"
    environment = os.environ | {"CAVSAM_MODEL": "nano", "CAVSAM_DATA_DIR": str(tmp_path / "data")}
    with log.open("wb") as stream:
        process = subprocess.Popen([*gunicorn, "backend._wsgi:app"], env=environment, stderr=stream, cwd=ROOT)
    try:
        wait_for(lambda: "Listening at" in log.read_text(), "gunicorn")
        (url,) = re.findall(r"Listening at: (http://\S+)", log.read_text())
        assert requests.get(f"{url}/health", timeout=30).json()["status"] == "UP"
        everyone = family(process.pid)
    finally:
        process.terminate()
        process.wait(60)
    wait_for(lambda: not running(everyone), "all processes to end", 20)


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_listens_on_ipv6_where_the_status_command_finds_it(serve: Callable[..., BackendProcess], host: str):
    backend = serve(CAVSAM_HOST=host, CAVSAM_OPEN_TO_NETWORK="yes")
    port = str(urlsplit(backend.url).port)
    assert requests.get(f"http://[::1]:{port}/health", timeout=5).json()["status"] == "UP"
    command = [sys.executable, "-m", "backend.cli", "status", "--host", host, "--port", port]
    status = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert status.returncode == 0, status.stderr
    assert "try-out models" in status.stdout


def test_answers_while_the_model_process_works_and_stops_in_the_middle(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int
):
    backend = serve(ENDLESS)
    label_studio.connect(project, backend.url)
    annotate(label_studio, project)
    wait_for(lambda: backend.health()["work"] == "working", "work")
    answers: list[list] = []
    asking = threading.Thread(target=lambda: answers.append(label_studio.retrieve(project)))
    asking.start()
    for _ in range(10):
        assert backend.health()["status"] == "UP"  # each within its budget of 1 s
        assert "-r" in label_studio.setup(project)["model_version"]
    everyone = family(backend.process.pid)
    assert backend.stop() == 0
    asking.join(30)
    assert answers == [[[]] * 6]  # the open request was answered, not cut
    wait_for(lambda: not running(everyone), "all processes to end", 20)


def test_a_killed_model_process_is_replaced_and_nothing_is_lost(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int
):
    label_studio.add_task(project, png(np.full((64, 96, 3), DEADLY_ONCE, np.uint8)))
    backend = serve(SLOW)
    label_studio.connect(project, backend.url)
    annotate(label_studio, project)
    wait_for(lambda: predicted(label_studio, project) >= 2, "the first predictions")
    first = backend.model_process
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: predicted(label_studio, project) == 6, "all predictions")
    assert backend.model_process != first
    assert backend.health()["status"] == "UP"
    assert all(len(label_studio.versions_of(task)) <= 1 for task in label_studio.tasks_of(project))


def test_a_process_whose_thread_keeps_failing_is_replaced_by_gunicorn(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int, tmp_path: Path
):
    fault = tmp_path / "fault"
    fault.touch()
    code = (
        "import pathlib, sys; import backend.supervision as s; s.PAUSES = (0.1, 0.1)\n"
        "from backend.worker.worker import Worker; real = Worker.work_once\n"
        f"Worker.work_once = lambda self: 1 / 0 if pathlib.Path({str(fault)!r}).exists() else real(self)\n"
    )
    backend = serve(command=[sys.executable, "-c", code + SERVE.format(segmenter=THRESHOLD)])
    wait_for(lambda: "exited with code 70" in backend.log.read_text(), "the process to give itself up")
    assert "The worker failed 3 times within 10 minutes, the last time by ZeroDivisionError" in backend.log.read_text()
    fault.unlink()
    wait_for(lambda: backend.answers("/ready") == 200, "another worker process to be ready")
    label_studio.connect(project, backend.url)
    annotate(label_studio, project)
    wait_for(lambda: predicted(label_studio, project) == 5, "all predictions")
    assert backend.stop() == 0


@pytest.mark.parametrize("victim", ["master", "worker"])
def test_no_model_process_outlives_a_killed_server(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int, victim: str
):
    backend = serve(ENDLESS)
    label_studio.connect(project, backend.url)
    annotate(label_studio, project)
    wait_for(lambda: backend.health()["work"] == "working", "work")
    model_process = backend.model_process
    (worker,) = family(backend.process.pid) - {backend.process.pid, model_process}
    os.kill(backend.process.pid if victim == "master" else worker, signal.SIGKILL)
    wait_for(lambda: not running({model_process, worker}), "the model process and the worker to end", 60)


def test_a_killed_server_goes_on_where_it_was(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int, tmp_path: Path
):
    first = serve(SLOW)
    label_studio.connect(project, first.url)
    annotate(label_studio, project)
    wait_for(lambda: predicted(label_studio, project) >= 2, "the first predictions")
    everyone = family(first.process.pid)
    first.process.kill()
    first.process.wait()
    wait_for(lambda: not running(everyone), "all processes to end", 60)
    second = serve(SLOW)
    label_studio.connected[project] = second.url  # nobody calls it: it knows the project from its ledger
    wait_for(lambda: predicted(label_studio, project) == 5, "all predictions")
    version = label_studio.setup(project)["model_version"]
    assert all(label_studio.versions_of(t) == [version] for t in label_studio.tasks_of(project)[1:])
    assert second.stop() == 0
    store = Store(tmp_path / "data" / "ledger.sqlite3")
    attempts = [job.attempts for job in store.jobs(project, version).all().values()]
    store.close()
    assert sum(attempts) <= 5 + 1  # only the task in work when the server was killed was begun twice


def test_wrong_settings_end_with_a_sentence(tmp_path: Path):
    environment = os.environ | {"CAVSAM_MODEL": "huge", "CAVSAM_PORT": "port"}
    command = [sys.executable, "-m", "backend.cli", "serve"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ended.returncode == 2
    assert "CAVSAM_PORT must be a whole number" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_two_servers_do_not_share_a_data_folder(serve: Callable[..., BackendProcess]):
    serve()
    second = serve()
    assert second.process.wait(60) != 0
    assert "Another backend works with" in second.log.read_text()
    assert "Traceback" not in second.log.read_text()


def test_more_requests_than_threads_leave_health_and_setup_free(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int
):
    backend = serve(ENDLESS, CAVSAM_PREDICT_DEADLINE="20")
    label_studio.connect(project, backend.url)
    annotate(label_studio, project)
    wait_for(lambda: backend.health()["work"] == "working", "work")
    asking = [threading.Thread(target=label_studio.retrieve, args=(project,)) for _ in range(3 * Settings.threads)]
    for thread in asking:
        thread.start()
    for _ in range(10):
        assert backend.health()["status"] == "UP"  # within its budget of 1 s
        label_studio.setup(project)
    backend.stop()
    for thread in asking:
        thread.join(30)


def test_long_requests_do_not_end_the_worker(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int
):
    """gunicorn's own timeout counts a silent worker, not a long request."""
    backend = serve(ENDLESS, CAVSAM_PREDICT_DEADLINE="4")
    label_studio.connect(project, backend.url)
    annotate(label_studio, project)
    started = time.monotonic()
    assert label_studio.retrieve(project) == [[]] * 6
    assert time.monotonic() - started >= 3
    assert backend.health()["status"] == "UP"


def test_the_log_as_json_says_which_task_each_line_is_about(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int
):
    backend = serve(CAVSAM_LOG_FORMAT="json")
    label_studio.connect(project, backend.url)
    annotate(label_studio, project)
    wait_for(lambda: predicted(label_studio, project) == 5, "predictions", 120)
    assert backend.stop() == 0
    lines = [json.loads(line) for line in backend.log.read_text().splitlines()]
    assert {line.get("project") for line in lines} == {None, project}
    others = set(label_studio.tasks_of(project)[1:])
    assert {line["task"] for line in lines if "task" in line} == others
