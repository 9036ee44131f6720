"""Clients that send half a request, against the real server with its threads."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.support.backend_process import BackendProcess
from tests.support.fake_label_studio import FakeLabelStudio

pytestmark = pytest.mark.integration

HALVES = {
    "nothing": b"",
    "half a line": b"POST /setup HT",
    "half a header": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ",
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
