"""Odd requests over every route of a running backend: each gets an answer, and none that blames us.

`ODD_REQUESTS` in the environment says how many are made of each kind.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from werkzeug.serving import make_server

from backend.service import Service
from backend.settings import Settings
from backend.web.app import create_app
from backend.webhook_secret import HEADER
from tests.support.backend import THRESHOLD, RunningBackend, wait_for
from tests.support.fake_label_studio import CONFIG, LEGACY_KEY, FakeLabelStudio, brush, picture

BOX = (8, 42, 20, 60)
NUMBER = int(os.environ.get("ODD_REQUESTS", "60"))
LONGEST = 20.0
"""Seconds in which every answer has to be there."""
ODD = settings(
    max_examples=NUMBER,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # a failing request is small enough as it is
    suppress_health_check=list(HealthCheck),
)

numbers = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63 - 1, 2**63, 10**12, 10**12 + 1, 10**30, -(2**63)]),
    st.floats(),
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "\ud800", "\x00", "image", "tag", "cat", "data:image/png;base64,AAAA", "http://[::1", "//x/y"]
    ),
    st.sampled_from(["../" * 20, "%00", "a" * 20_000, "<View>" * 500, "<!DOCTYPE a [<!ENTITY b 'c'>]>", "file:///etc"]),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
things = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


class Peer:
    """The running backend, Label Studio beside it, and calls as that makes them."""

    def __init__(self, label_studio: FakeLabelStudio, backend: RunningBackend, project: int, app: Any):
        self.backend, self.project = backend, project
        self.host, _, port = backend.url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.rules = sorted({(rule.rule, method) for rule in app.url_map.iter_rules() for method in rule.methods})
        self.task = label_studio.tasks_of(project)[1]
        self.uid = label_studio.uid(project)
        self.hostname = label_studio.url

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> int:
        """The status of the answer, which may only blame the caller, or name a time to come back."""
        started = time.monotonic()
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=LONGEST)) as connection:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
        assert time.monotonic() - started < LONGEST
        assert answer.status < 500 or (answer.status == 503 and answer.headers["Retry-After"]), (path, body, content)
        assert b"Traceback" not in content
        return answer.status

    def call(self, path: str, body: Any, headers: dict[str, str] | None = None) -> int:
        return self.ask("POST", path, json.dumps(body).encode("utf-8", "surrogatepass"), headers)

    def click(self) -> dict[str, Any]:
        value = {"x": 40, "y": 24, "width": 0.5, "keypointlabels": ["cat"]}
        region = {"id": "c", "type": "keypointlabels", "to_name": "image", "from_name": "p", "value": value}
        drawn = brush(BOX, "cat")
        drawn["value"]["rle"] = drawn["value"]["rle"][:200]
        return {
            "tasks": [
                {
                    "id": self.task,
                    "data": {"image": f"/data/upload/{self.task}.png"},
                    "predictions": [{"id": 1, "result": [drawn], "model_version": "v"}],
                    "annotations": [{"id": 2, "result": [drawn], "was_cancelled": False}],
                    "drafts": [{"id": 3, "result": [drawn], "updated_at": "2026-01-01"}],
                }
            ],
            "project": self.uid,
            "label_config": CONFIG,
            "params": {"login": None, "password": None, "context": {"result": [region]}},
        }

    def predict(self) -> dict[str, Any]:
        return self.click() | {"params": {"login": None, "password": None, "context": None}}

    def setup(self) -> dict[str, Any]:
        given = {"project": self.uid, "hostname": self.hostname, "access_token": LEGACY_KEY, "schema": CONFIG}
        return given | {"extra_params": {"reference_policy": "first"}}

    def event(self) -> dict[str, Any]:
        annotation = {"id": 2, "task": self.task, "result": [brush(BOX, "cat")], "was_cancelled": False}
        return {"action": "ANNOTATION_CREATED", "annotation": annotation, "project": {"id": self.project}}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    fake = FakeLabelStudio()
    made = Settings(
        label_studio_url=fake.url,
        label_studio_api_key=LEGACY_KEY,
        model="nano",
        data_dir=tmp_path_factory.mktemp("odd") / "data",
        quiet_period=0.1,
        push_interval=0.05,
        predict_deadline=1.0,
        api_timeout=5.0,
    )
    service = Service(made, segmenter=THRESHOLD)
    app = create_app(made, service)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service.start()
    backend = RunningBackend(service, f"http://127.0.0.1:{server.server_port}")
    project = fake.add_project(CONFIG)
    tasks = [fake.add_task(project, picture(BOX)) for _ in range(3)]
    fake.connect(project, backend.url)
    fake.annotate(tasks[0], [brush(BOX, "cat")])
    wait_for(lambda: all(fake.versions_of(task) for task in tasks[1:]), "the predictions")
    peer = Peer(fake, backend, project, app)
    assert requests.post(f"{backend.url}/predict", json=peer.click(), timeout=120).status_code == 200  # loads SAM2
    yield peer
    assert service.dead_threads() == []
    task = fake.add_task(project, picture(BOX))
    service.coordinator.sync_all()
    service.store.projects.set_paused(0, False)
    service.store.projects.set_paused(project, False)
    wait_for(lambda: len(fake.versions_of(task)) == 1, "a prediction of a new task after all that")
    service.stop()
    server.shutdown()
    server.server_close()
    fake.close()


def places(body: Any) -> Iterator[tuple[Any, Any]]:
    """Every part of a body, as what holds it and its name or place there; of long lists the first."""
    names = list(body) if isinstance(body, dict) else list(range(len(body)))[:3] if isinstance(body, list) else []
    for name in names:
        yield body, name
        yield from places(body[name])


def mutated(body: dict[str, Any], draw: Callable[[Any], Any]) -> dict[str, Any]:
    """A body with one to three of its parts replaced by odd ones, or left out; most of it stays as it should be."""
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(body))
        holder, name = found[draw(st.integers(0, len(found) - 1))]
        if isinstance(holder, dict) and draw(st.integers(0, 4)) == 0:
            del holder[name]
        else:
            holder[name] = draw(things)
    return body


@ODD
@given(data=st.data())
def test_odd_clicks(peer: Peer, data: st.DataObject):
    assert peer.call("/predict", mutated(peer.click(), data.draw)) != 401


@ODD
@given(data=st.data())
def test_odd_predictions(peer: Peer, data: st.DataObject):
    peer.call("/predict", mutated(peer.predict(), data.draw))


@ODD
@given(data=st.data())
def test_odd_setups(peer: Peer, data: st.DataObject):
    peer.call("/setup", mutated(peer.setup(), data.draw))


@ODD
@given(data=st.data(), trusted=st.booleans())
def test_odd_events(peer: Peer, data: st.DataObject, trusted: bool):
    secret = {HEADER: peer.backend.service.settings.webhook_secret} if trusted else {}
    peer.call("/webhook", mutated(peer.event(), data.draw), secret)


@ODD
@given(
    route=st.data(),
    values=st.lists(st.one_of(numbers.map(str), texts, st.sampled_from(["image", "masks", "retry"])), min_size=3),
    query=st.dictionaries(
        st.sampled_from(["page", "per_page", "show", "order", "project", "of", "x"]),
        st.one_of(numbers.map(str), texts.map(lambda text: text[:2000]), st.sampled_from(["low", "score", "failed"])),
    ),
    headers=st.dictionaries(
        st.sampled_from(["Accept", "Host", "Origin", "Range", "Cookie", "Content-Type", "Authorization", "X-Odd"]),
        st.one_of(
            st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=30),
            st.sampled_from(["text/html", "evil.example", "bytes=0-1", "*/*;q=x", "Basic ÿÿ", "a" * 5000, "[::1"]),
        ),
        max_size=3,
    ),
    body=st.one_of(st.none(), st.binary(max_size=200), things.map(lambda thing: json.dumps(thing).encode())),
)
def test_odd_requests_of_every_route(
    peer: Peer,
    route: st.DataObject,
    values: list[str],
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes | None,
):
    rule, method = route.draw(st.sampled_from(peer.rules))
    parts = iter(values)
    path = "/".join(
        quote(next(parts)[:2000].encode("utf-8", "surrogatepass"), safe="") if "<" in part else part
        for part in rule.split("/")
    )
    pairs = "&".join(f"{name}={quote(value.encode('utf-8', 'surrogatepass'))}" for name, value in query.items())
    peer.ask(method, f"{path}?{pairs}", body, headers)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"1" * 100_000, b'{"project": 1e999}', b"NaN", b"null"],
)
@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
def test_bodies_that_are_no_calls(peer: Peer, path: str, raw: bytes):
    assert peer.ask("POST", path, raw) in (201, 400)


def test_a_picture_in_the_address_that_claims_to_be_huge(peer: Peer):
    """60000 x 50000 pixels in 57 bytes; and a rectangle on a picture that says it is as large."""
    header = b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d49484452 0000ea60 0000c350 0802000000") + b"\0" * 24
    click = peer.click()
    click["tasks"][0] |= {"id": 10**6, "data": {"image": f"data:image/png;base64,{base64.b64encode(header).decode()}"}}
    assert peer.call("/predict", click) == 422
    click = peer.click()
    value = {"x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0, "rectanglelabels": ["cat"]}
    huge = {"type": "rectanglelabels", "original_width": 60_000, "original_height": 50_000, "value": value}
    click["tasks"][0]["drafts"] = [{"id": 3, "result": [brush(BOX, "cat") | huge]}]
    assert peer.call("/predict", click) in (200, 422)
