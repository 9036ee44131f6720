"""An exchange with Label Studio from connecting to the last deletion: what the backend asks, in order, with bodies.

Two things vary from run to run and are taken out:

- The coordinator asks the API while the worker fetches images, each in a fixed order of its own: requests to `/api/`
  and requests for files are two lists, and how they interleave is not compared.
- Finished predictions gather until a push comes, so how many travel together depends on the clock: the backend runs
  with batches of one.

Addresses with their random ports, and the hash of models and recipe in a version, are replaced by names.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from tools.golden import surface
from tools.golden.digests import text_of
from tools.golden.method import SHORT
from tools.golden.surface import Backend, Peer, Request

Entries = Iterator[tuple[str, str]]

PATIENCE = 180.0
QUIET = 1.0
"""Seconds without a request after the expected last one; shorter than any pause of the backend that brings on more."""
CAT_BOX = (8, 30, 20, 50)
DOG_BOX = (40, 60, 60, 90)


class Recorder:
    """Parts of an exchange, each begun by something done and ended by an expected request.

    Call `part` with a condition on the requests since the part began.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.names: dict[str, str] = {peer.url: "<label studio>"}
        self.begun = 0

    def connected(self, backend: Backend) -> None:
        """Put names in place of a backend's address and of the hash in its version."""
        self.names[backend.url] = "<backend>"
        self.names[backend.base] = "<base version>"

    def part(self, name: str, is_over: Callable[[list[Request]], bool], told: Any = None) -> Entries:
        """Wait for the end; gives the requests since the last part, and what the backend told meanwhile."""
        end = time.monotonic() + PATIENCE
        while not is_over(self.peer.requests[self.begun :]):
            if time.monotonic() >= end:
                got = "\n".join(self._line(one) for one in self.peer.requests[self.begun :])
                raise TimeoutError(f"{name} did not come to its end; it asked:\n{got}")
            time.sleep(0.05)
        count = -1
        while len(self.peer.requests) != count:
            count = len(self.peer.requests)
            time.sleep(QUIET)
        asked = self.peer.requests[self.begun : count]
        self.begun = count
        api = [self._line(one) for one in asked if one.path.startswith("/api/")]
        files = [self._line(one) for one in asked if not one.path.startswith("/api/")]
        yield f"{name}/api", "".join(f"\n  {one}" for one in api)
        yield f"{name}/files", "".join(f"\n  {one}" for one in files)
        if told is not None:
            yield f"{name}/told", self.named(text_of(told))

    def named(self, text: str) -> str:
        for address, name in self.names.items():
            text = text.replace(address, name)
        return text

    def _line(self, asked: Request) -> str:
        kind = asked.authorization.partition(" ")[0]
        query, body = json.dumps(asked.query, sort_keys=True), json.dumps(asked.body, sort_keys=True)
        return self.named(f"{asked.method} {asked.path} {query} {kind} {body}")


def asked_for(
    method: str, path: str, count: int = 1, *, body: str = "", query: str = ""
) -> Callable[[list[Request]], bool]:
    """Whether a request has come so often; `body` must be part of its body's JSON, `query` of its parameter query."""

    def is_so(asked: list[Request]) -> bool:
        found = [
            one
            for one in asked
            if (one.method, one.path) == (method, path)
            and query in one.query.get("query", "")
            and body in json.dumps(one.body)
        ]
        return len(found) >= count

    return is_so


def stored(peer: Peer) -> str:
    """What Label Studio has in the end: the predictions by task, without their numbers."""
    found = sorted(peer.predictions.values(), key=lambda one: (one["task"], one["model_version"]))
    return text_of([{name: value for name, value in one.items() if name != "id"} for one in found])


def threshold() -> Entries:
    """Connect, annotate, /predict, edit, annotate a second task, delete both annotations, have it predict again."""
    peer = Peer()
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield from _threshold(peer, Path(folder))
        finally:
            peer.close()


def _threshold(peer: Peer, folder: Path) -> Entries:
    project = peer.add_project()
    first = peer.add_task(project, surface.picture(CAT_BOX, DOG_BOX))
    others = [peer.add_task(project, surface.picture((5, 20 + n, 10, 40 + n))) for n in range(1, 4)]
    others.append(peer.add_task(project, surface.picture(None, (2, 20, 2, 20))))
    recorder = Recorder(peer)
    listed = asked_for("GET", "/api/tasks")
    shown = asked_for("PATCH", f"/api/projects/{project}/")
    with surface.running_backend(peer, folder) as backend:
        recorder.connected(backend)
        yield from recorder.part("connect", listed, peer.connect(project, backend.url))

        regions = [surface.brush(CAT_BOX, "cat"), surface.brush(DOG_BOX, "dog")]
        annotation = peer.annotate(first, regions)
        yield from recorder.part("annotate", shown)

        # a look just before leaves 15 seconds in which calls bring on no other
        project_event(backend, "PROJECT_UPDATED", peer, project)
        yield from recorder.part("look", listed)
        wanted = others[1]
        peer.predictions = {n: one for n, one in peer.predictions.items() if one["task"] != wanted}
        answers = peer.retrieve(project, [wanted])
        confirmed = asked_for("GET", "/api/tasks", 2, query="filter:tasks:id")
        yield from recorder.part("predict", confirmed, answers)

        peer.update_annotation(annotation, [surface.brush(CAT_BOX, "dog")])
        yield from recorder.part("edit", shown)

        second = peer.annotate(others[0], [surface.brush((6, 21, 11, 41), "cat")])
        yield from recorder.part("second", shown)

        peer.delete_annotation(annotation)
        yield from recorder.part("delete", shown)

        peer.add_task(project, surface.picture((1, 9, 1, 9)))
        project_event(backend, "TASKS_CREATED", peer, project)
        yield from recorder.part("new-task", asked_for("POST", f"/api/projects/{project}/import/predictions"))

        told = requests.post(f"{backend.url}/api/projects/{project}/predict-again", timeout=60)
        imports = asked_for("POST", f"/api/projects/{project}/import/predictions", len(others) + 1)
        yield from recorder.part("again", imports, told.status_code)

        peer.delete_annotation(second)
        yield from recorder.part("delete-last", listed)
        versions = requests.get(f"{backend.url}/versions", timeout=60).json()
        yield "end", recorder.named(text_of({"versions": versions, "setup": peer.setup(project)}))
        yield "stored", recorder.named(stored(peer))


def nano() -> Entries:
    """The bundled models behind the backend: one annotation of two labels, an edit, old predictions removed."""
    peer = Peer()
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield from _nano(peer, Path(folder))
        finally:
            peer.close()


def _nano(peer: Peer, folder: Path) -> Entries:
    names = surface.class_names("textures")[:2]
    project = peer.add_project()
    image, masks = surface.drawn("textures", names, 51)
    first = peer.add_task(project, surface.png(image))
    for seed in (52, 53):
        peer.add_task(project, surface.png(surface.drawn("textures", names, seed)[0]))
    cat, dog = (masks[name] for name in names)
    recorder = Recorder(peer)
    recipe = json.dumps(surface.renamed({**SHORT, "instances": "split"}))
    with surface.running_backend(
        peer, folder, threshold=False, mode="full", recipe=recipe, old_predictions="remove", review_below=1.0
    ) as backend:
        recorder.connected(backend)
        yield from recorder.part("connect", asked_for("GET", "/api/tasks"), peer.connect(project, backend.url))
        annotation = peer.annotate(first, [surface.region(cat, "cat"), surface.region(dog, "dog")])
        yield from recorder.part("annotate", asked_for("PATCH", f"/api/projects/{project}/"))
        peer.update_annotation(annotation, [surface.region(cat, "cat")])
        yield from recorder.part("edit", asked_for("DELETE", f"/api/projects/{project}/model-versions/"))
        yield "stored", recorder.named(stored(peer))


def project_event(backend: Backend, action: str, peer: Peer, project: int) -> None:
    event: Any = {"action": action, "project": peer.projects[project]}
    requests.post(f"{backend.url}/webhook", json=event, timeout=60).raise_for_status()
