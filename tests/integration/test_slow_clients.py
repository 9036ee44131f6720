"""Clients that send half a request, against the real server with its threads."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from random import random
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.support.backend import wait_for
from tests.support.backend_process import BackendProcess
from tests.support.fake_label_studio import FakeLabelStudio, brush, picture

pytestmark = pytest.mark.integration

HALVES = {
    "nothing": b"",
    "half a line": b"POST /setup HT",
    "half a header": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ",
    "half a body of a health check": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n\r\nGET ",
    "half a body": b"POST /setup HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{",
}


@pytest.fixture
def connections() -> Iterator[Callable[[str, bytes], socket.socket]]:
    with ExitStack() as stack:

        def connect(url: str, sent: bytes) -> socket.socket:
            parts = urlsplit(url)
            opened = stack.enter_context(socket.create_connection((parts.hostname, parts.port), 30))
            opened.sendall(sent)
            return opened

        yield connect


@pytest.mark.parametrize("half", HALVES)
def test_forty_half_sent_requests_silence_nobody(
    serve: Callable[..., BackendProcess],
    label_studio: FakeLabelStudio,
    connections: Callable[[str, bytes], socket.socket],
    half: str,
):
    backend = serve()
    for _ in range(40):
        connections(backend.url, HALVES[half])
    for _ in range(5):
        assert backend.health()["status"] == "UP"  # within Label Studio's patience of a second
    project = label_studio.add_project()
    assert "model_version" in label_studio.setup(project, backend.url)


def test_a_client_that_is_a_little_slow_is_answered(
    serve: Callable[..., BackendProcess], connections: Callable[[str, bytes], socket.socket]
):
    backend = serve()
    body = b'{"project": "1.1", "tasks": []}'
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    slow = connections(backend.url, head[:20])
    assert backend.health()["status"] == "UP"
    slow.sendall(head[20:] + body[:5])
    assert backend.health()["status"] == "UP"
    slow.sendall(body[5:])
    answer = b""
    while b"results" not in answer:
        received = slow.recv(4096)
        assert received, answer
        answer += received
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_body_that_looks_like_a_health_check_takes_no_thread_of_theirs(
    serve: Callable[..., BackendProcess], connections: Callable[[str, bytes], socket.socket]
):
    backend = serve()
    opened = [connections(backend.url, HALVES["half a body of a health check"]) for _ in range(4)]
    for connection in opened:
        assert connection.recv(4096)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")  # still the first one's body
    for _ in range(5):
        assert backend.health()["status"] == "UP"


def test_health_is_answered_at_once_while_every_thread_waits_for_label_studio(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio
):
    """Sixty callers of /predict and of small pictures, and each answer of Label Studio takes a second."""
    backend = serve(CAVSAM_THREADS="8")
    project = label_studio.add_project()
    tasks = [label_studio.add_task(project, picture((8, 30, 20, 50))) for _ in range(6)]
    label_studio.connect(project, backend.url)
    label_studio.annotate(tasks[0], [brush((8, 30, 20, 50), "cat")])
    wait_for(lambda: all(label_studio.versions_of(task) for task in tasks[1:]), "all predictions")
    label_studio.failures.slow = 1.0
    numbers = [{"id": task, "data": {}} for task in tasks]
    body: dict[str, Any] = {"project": label_studio.uid(project), "tasks": numbers}
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            with suppress(requests.RequestException):
                requests.post(f"{backend.url}/predict", json=body, timeout=60)

    def look() -> None:
        while not stop.is_set():
            with suppress(requests.RequestException):
                requests.get(f"{backend.url}/api/projects/{project}/tasks/{tasks[1]}/image?of={random()}", timeout=60)

    callers = [threading.Thread(target=work, daemon=True) for work in [ask] * 40 + [look] * 20]
    for caller in callers:
        caller.start()
    taken = []
    for _ in range(20):
        stop.wait(0.1)
        started = time.monotonic()
        assert backend.health()["status"] == "UP"
        taken.append(time.monotonic() - started)
    stop.set()
    for caller in callers:
        caller.join(60)
    assert statistics.median(taken) < 0.1, sorted(taken)
