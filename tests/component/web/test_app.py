"""The calls of Label Studio over a real socket, in the shapes that 1.20 to 1.23 send."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests

from backend.labelstudio.brush import encode_mask
from backend.web.app import EVENT_READ_NOW
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import LEGACY_KEY, FakeLabelStudio, brush, picture

StartBackend = Callable[..., RunningBackend]


@pytest.fixture
def backend(start_backend: StartBackend) -> RunningBackend:
    return start_backend()


def post(backend: RunningBackend, path: str, body: Any, **kwargs: Any) -> requests.Response:
    return requests.post(backend.url + path, json=body, timeout=30, **kwargs)


def test_health_and_front_page_announce_the_try_out_models(backend: RunningBackend):
    for path in ("/health", "/"):
        answer = requests.get(backend.url + path, timeout=5)
        assert answer.status_code == 200
        assert answer.json()["status"] == "UP"
        assert answer.json()["model_class"] == "CavSam"
        assert "try-out" in answer.json()["warning"]
        assert "nano" in answer.json()["model_version"]


def test_health_names_a_thread_that_failed_too_often_and_the_process_is_given_up(
    start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backend.supervision.PAUSES", (0.01, 0.01))
    last_words: list[str] = []
    backend = start_backend(give_up=last_words.append)
    assert requests.get(backend.url + "/health", timeout=5).status_code == 200

    def fail() -> None:
        raise RuntimeError("a fault that nobody foresaw")

    monkeypatch.setattr(backend.service.worker, "work_once", fail)
    backend.service.worker.wake()
    wait_for(lambda: requests.get(backend.url + "/health", timeout=5).status_code == 503, "the thread to end")
    answer = requests.get(backend.url + "/health", timeout=5).json()
    assert answer["status"] == "DOWN"
    assert answer["dead"] == ["worker"]
    assert "log" in answer["error"]
    assert ["a fault that nobody foresaw" in words for words in last_words] == [True]


def ready(backend: RunningBackend, **kwargs: Any) -> tuple[int, dict[str, str]]:
    """The status code of /ready, and what it says by subject."""
    answer = requests.get(backend.url + "/ready", timeout=5, **kwargs)
    body = answer.json()
    assert body["ready"] == (answer.status_code == 200)
    return answer.status_code, {problem["subject"]: problem.get("message") for problem in body["problems"]}


def test_ready_once_the_model_is_loaded(backend: RunningBackend):
    wait_for(lambda: ready(backend) == (200, {}), "the backend to be ready")


def test_not_ready_without_a_model_and_alive_all_the_same(start_backend: StartBackend):
    backend = start_backend(segmenter="tests.support.threshold:open_missing")
    wait_for(lambda: "set CAVSAM_MODEL" in ready(backend)[1].get("model", ""), "the model's error")
    assert ready(backend)[0] == 503
    assert requests.get(backend.url + "/health", timeout=5).status_code == 200


@pytest.mark.parametrize(("fault", "words"), [("deny", "does not accept the API key"), ("gone", "reached")])
def test_not_ready_while_label_studio_cannot_be_worked_with(
    start_backend: StartBackend,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    words: str,
):
    monkeypatch.setattr("backend.sync.reachability.PAUSE", 0.05)
    label_studio.failures.deny = fault == "deny"
    backend = start_backend(**({"label_studio_url": "http://127.0.0.1:9"} if fault == "gone" else {}))
    wait_for(lambda: words in ready(backend)[1].get("Label Studio", ""), "the trouble to be told")
    assert requests.get(backend.url + "/health", timeout=5).status_code == 200
    if fault == "deny":
        label_studio.failures.deny = False
        wait_for(lambda: ready(backend)[0] == 200, "the backend to be ready")


def test_ready_tells_strangers_no_addresses(start_backend: StartBackend):
    backend = start_backend(label_studio_url="http://127.0.0.1:9", basic_auth_user="me", basic_auth_password="secret")
    wait_for(lambda: ready(backend, auth=("me", "secret"))[1].get("Label Studio"), "the trouble to be told")
    status, told = ready(backend)
    assert (status, told["Label Studio"]) == (503, None)


def test_setup_with_a_refused_key_fails_with_the_sentence_that_label_studio_shows(
    start_backend: StartBackend, label_studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
):
    """Label Studio shows the text of the exception that `requests` makes of the status line."""
    monkeypatch.setattr("backend.sync.reachability.PAUSE", 0.05)
    project = label_studio.add_project()
    body = {"project": f"{project}.1767225600", "schema": "<View/>", "hostname": label_studio.url, "access_token": "x"}
    label_studio.failures.deny = True
    backend = start_backend()
    wait_for(lambda: ready(backend)[0] == 503 and "Label Studio" in ready(backend)[1], "the trouble to be told")
    answer = post(backend, "/setup", body)
    with pytest.raises(requests.HTTPError, match="does not accept the API key") as shown:
        answer.raise_for_status()
    assert answer.json()["error"] in str(shown.value)
    label_studio.failures.deny = False
    wait_for(lambda: post(backend, "/setup", body).ok, "the key to be taken")


def test_a_sentence_in_any_script_fits_the_status_line(backend: RunningBackend):
    answer = post(backend, "/setup", {"project": "1.2", "extra_params": None, "hostname": 5, "schema": "\n\u732b"})
    assert answer.ok
    answer = requests.post(f"{backend.url}/api/projects/9/\u732b%0d%0aX-Evil: 1", timeout=5)
    assert answer.status_code == 404
    assert "X-Evil" not in answer.headers


@pytest.mark.parametrize("extra", [None, {}, {"policy": "first", "nested": {"a": [1]}}, "text"])
def test_setup_takes_any_extra_params(backend: RunningBackend, label_studio: FakeLabelStudio, extra: object):
    project = label_studio.add_project()
    body = {
        "project": f"{project}.1767225600",
        "schema": "<View/>",
        "hostname": label_studio.url,
        "access_token": LEGACY_KEY,
        "extra_params": extra,
    }
    answer = post(backend, "/setup", body)
    assert answer.json()["model_version"] == backend.service.base_version
    assert ("warning" in answer.json()) == bool(extra)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/setup", {}, "project must be like"),
        ("/setup", {"project": "abc"}, "project must be like"),
        ("/setup", [1], "JSON object"),
        ("/predict", {"project": "1.2"}, "tasks must be a list"),
        ("/predict", {"project": "1.2", "tasks": [1]}, "tasks must be a list of tasks"),
        ("/predict", {"project": "1.2", "tasks": [{"data": {}}]}, "field id"),
        ("/predict", {"tasks": []}, "project must be like"),
        ("/webhook", "text", "JSON object"),
        ("/webhook", None, "not JSON"),
    ],
)
def test_malformed_calls_get_a_sentence_and_no_traceback(backend: RunningBackend, path: str, body: object, words: str):
    answer = post(backend, path, body)  # None: no body at all
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert "Traceback" not in answer.text


def test_not_json_and_unknown_paths(backend: RunningBackend):
    answer = requests.post(backend.url + "/predict", data=b"{", timeout=5)
    assert answer.status_code == 400
    assert requests.get(backend.url + "/nowhere", timeout=5).status_code == 404
    assert "error" in requests.get(backend.url + "/predict", timeout=5).json()


def test_an_internal_error_shows_the_client_nothing(
    backend: RunningBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*args: object) -> str:
        raise RuntimeError("the inner secret")

    monkeypatch.setattr(backend.service, "setup", fail)
    answer = post(backend, "/setup", {"project": "1.2"})
    assert answer.status_code == 500
    assert "inner secret" not in answer.text
    assert "inner secret" in caplog.text


def test_250_tasks_with_8_megabytes_pass(backend: RunningBackend, label_studio: FakeLabelStudio):
    project = label_studio.add_project()
    numbers = [label_studio.add_task(project, image=b"x") for _ in range(250)]
    label_studio.connected[project] = backend.url
    filling = {"predictions": [{"id": 1, "result": ["x" * 32_000], "model_version": "other"}]}
    body = {"project": label_studio.uid(project), "tasks": [{"id": n, "data": {}} | filling for n in numbers]}
    assert post(backend, "/predict", body).json() == {"results": [[]] * 250}


def test_a_body_over_the_limit_is_refused_in_words(start_backend: StartBackend):
    backend = start_backend(max_request_mb=0.1)
    answer = post(backend, "/predict", {"project": "1.1", "tasks": [], "filling": "x" * 200_000})
    assert answer.status_code == 413
    assert "CAVSAM_MAX_REQUEST_MB" in answer.json()["error"]


def test_no_tasks_no_results(backend: RunningBackend):
    assert post(backend, "/predict", {"project": "1.2", "tasks": []}).json() == {"results": []}


def test_basic_auth_guards_all_but_health_and_webhook(start_backend: StartBackend):
    backend = start_backend(basic_auth_user="me", basic_auth_password="päss")
    body = {"project": "1.2"}
    assert post(backend, "/setup", body).status_code == 401
    assert post(backend, "/setup", body, auth=("me", "wrong")).status_code == 401
    assert post(backend, "/setup", body, headers={"Authorization": "Bearer x"}).status_code == 401
    assert post(backend, "/setup", body, auth=(b"me", "päss".encode())).status_code == 200
    assert requests.get(backend.url + "/health", timeout=5).status_code == 200
    assert post(backend, "/webhook", {"action": "PROJECT_UPDATED"}).status_code == 201


def test_secrets_stay_out_of_log_and_answers(
    backend: RunningBackend, label_studio: FakeLabelStudio, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    project = label_studio.add_project()
    label_studio.connect(project, backend.url)
    label_studio.annotate(label_studio.add_task(project, picture((1, 9, 1, 9))), [brush((1, 9, 1, 9), "cat")])
    wait_for(lambda: backend.service.store.annotations(project).references(), "the reference, found with the key")
    answers = [requests.get(backend.url + path, timeout=5).text for path in ("/", "/health", "/versions")]
    assert "is the reference" in caplog.text
    assert LEGACY_KEY not in caplog.text + "".join(answers)


def test_answers_while_label_studio_is_slow(start_backend: StartBackend):
    """The coordinator hangs in a call that never ends; the HTTP side does not notice."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hostname = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # no configured address, so the one that never answers is used
        backend = start_backend(label_studio_url="", label_studio_api_key="", api_timeout=20.0)
        post(backend, "/setup", {"project": "7.1", "hostname": hostname, "access_token": "x"})
        connection, _ = silent.accept()
        started = time.monotonic()
        for _ in range(5):
            assert requests.get(backend.url + "/health", timeout=1).ok
            assert post(backend, "/setup", {"project": "7.1"}).ok
            assert post(backend, "/webhook", {"action": "PROJECT_UPDATED", "project": {"id": 7}}).ok
        assert time.monotonic() - started < 19  # that is: none of the fifteen waited for the silent server
        connection.close()


def test_half_a_surrogate_pair_kills_nothing(
    start_backend: StartBackend, label_studio: FakeLabelStudio, caplog: pytest.LogCaptureFixture
):
    """It is legal in JSON, but neither the ledger nor a socket takes it."""
    backend = start_backend(label_studio_url="", label_studio_api_key="")
    handed_over = rb'"hostname": "http://\ud800.com", "access_token": "\udfff", "extra_params": "{\"\ud800\": 1}"'
    raw = rb'{"project": "7.1", ' + handed_over + b"}"
    assert requests.post(backend.url + "/setup", data=raw, timeout=5).ok
    wait_for(lambda: "Label Studio cannot be reached at http://\\ud800.com" in caplog.text, "the word of it")
    project = label_studio.add_project()
    label_studio.connect(project, backend.url)
    wait_for(lambda: backend.service.store.projects.find(project), "another project, read by the same thread")
    assert requests.get(backend.url + "/health", timeout=5).json()["status"] == "UP"


HOLD = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('BEGIN IMMEDIATE'); "
    "print('held', flush=True); sys.stdin.readline(); db.execute('ROLLBACK')"
)


def test_setup_answers_while_another_process_holds_the_ledger(
    label_studio: FakeLabelStudio, start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backend.store.database.LOCK_PATIENCE", 600.0)  # longer than any request of this test waits
    backend = start_backend()
    project = label_studio.add_project()
    label_studio.connect(project, backend.url)
    store = backend.service.store
    wait_for(lambda: store.projects.find(project), "the project in the ledger")
    path = backend.service.settings.data_dir / "ledger.sqlite3"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        writer = threading.Thread(target=store.projects.set_error, args=(project, "held up"))
        writer.start()
        assert label_studio.setup(project)["model_version"] == backend.service.base_version
        assert post(backend, "/webhook", {"action": "PROJECT_UPDATED"}).status_code == 201
        assert requests.get(backend.url + "/api/status", timeout=30).ok
        assert requests.get(backend.url + "/versions", timeout=30).ok
        assert writer.is_alive()  # and whoever writes still waits: the answers came before the file was free
        assert other.poll() is None
        other.stdin.write("\n")
        other.stdin.flush()
        writer.join(30)
    assert not writer.is_alive()


@pytest.mark.parametrize("size", [100, 2 * EVENT_READ_NOW])
def test_a_webhook_is_acknowledged_before_its_work_is_done(
    label_studio: FakeLabelStudio, start_backend: StartBackend, size: int
):
    """Label Studio answers our questions only once our acknowledgement is there: work within the call would hang."""
    backend = start_backend()
    project = label_studio.add_project()
    first, _ = (label_studio.add_task(project, picture((1, 9, 1, 9))) for _ in range(2))
    label_studio.connect(project, backend.url)
    wait_for(lambda: backend.service.coordinator.syncs(project), "the first sync")
    acknowledged = threading.Event()
    order: list[str] = []

    def before_answer() -> None:
        acknowledged.wait(120)
        order.append("asked")

    label_studio.connected.pop(project)  # the event is sent from here, not by the stand-in
    number = label_studio.annotate(first, [brush((1, 9, 1, 9), "cat")])
    label_studio.failures.before_answer = before_answer
    filling = [{"type": "textarea", "value": {"text": ["x" * size]}}]
    annotation = {"id": number, "task": first, "result": filling}
    event = {"action": "ANNOTATION_CREATED", "project": {"id": project}, "annotation": annotation}
    assert post(backend, "/webhook", event).status_code == 201
    order.append("acknowledged")
    acknowledged.set()
    wait_for(lambda: backend.service.store.annotations(project).references(), "the reference")
    assert order[0] == "acknowledged"
    assert "asked" in order


def test_a_large_event_is_noted_as_a_small_one_is(backend: RunningBackend, label_studio: FakeLabelStudio):
    project = label_studio.add_project()
    tasks = [label_studio.add_task(project, picture((1, 9, 1, 9))) for _ in range(2)]
    label_studio.connect(project, backend.url)
    ragged = np.random.default_rng(0).random((800, 900)) > 0.5
    region = brush((0, 1, 0, 1), "cat")
    region["value"]["rle"] = encode_mask(ragged)
    drawn = [brush((1, 9, 1, 9), "cat"), {"type": "textarea", "value": {"text": ["x" * 500_000]}}, region]
    assert len(json.dumps(drawn)) > 10 * EVENT_READ_NOW
    label_studio.annotate(tasks[0], drawn)
    wait_for(lambda: backend.service.store.annotations(project).references(), "the reference")
    assert post(backend, "/webhook", "x" * (2 * EVENT_READ_NOW)).status_code == 201
    assert requests.get(backend.url + "/health", timeout=5).ok


@pytest.mark.parametrize(
    "raw", [b"[" * (2 * EVENT_READ_NOW), b'{"action": "PROJECT_UPDATED", "project": {"id": %d}}' % 10**30]
)
def test_no_webhook_ends_the_coordinator(backend: RunningBackend, label_studio: FakeLabelStudio, raw: bytes):
    """Anybody may call /webhook, also without a password."""
    requests.post(backend.url + "/webhook", data=raw, timeout=5)
    project = label_studio.add_project()
    label_studio.connect(project, backend.url)
    wait_for(
        lambda: backend.service.coordinator.syncs(project) or backend.service.dead_threads(),
        "a look, or the thread's end",
    )
    assert backend.service.dead_threads() == []


@pytest.mark.parametrize("project", ["9" * 5000, str(10**30), "9" * 19, "0"])
def test_a_project_number_that_no_ledger_holds_is_refused(backend: RunningBackend, project: str):
    assert post(backend, "/setup", {"project": project, "hostname": "http://x"}).status_code == 400
    assert post(backend, "/predict", {"project": project, "tasks": []}).status_code == 400
    assert post(backend, "/predict", {"project": "1.1", "tasks": [{"id": int(project[:40])}]}).status_code == 400
    assert requests.get(f"{backend.url}/api/projects/{project}", timeout=30).status_code == 404
