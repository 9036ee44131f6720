"""A ledger that the version before left in the middle of jobs: whether it opens, and goes on as it did then.

`ledger-before.sql` is the ledger, dumped after a backend had listed the project, learned its reference and queued the
tasks, and the jobs had gone through the calls that the worker, the coordinator and /predict make. The script that made
it is in the history of this folder (`before.py`); the times were moved to the past. The project is paused.

A first start settles what was under way with Label Studio; a second one is resumed and works.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from tools.golden import surface
from tools.golden.digests import text_of
from tools.golden.exchange import Recorder, asked_for, project_event, stored
from tools.golden.surface import Backend, Peer

Entries = Iterator[tuple[str, str]]

FIXTURE = Path(__file__).parent / "ledger-before.sql"
BASE, PEER = "<base version>", "<label studio>"
CAT_BOX = (8, 30, 20, 50)

WORK = {
    "a": "pushing-arrived",
    "b": "pushing-lost",
    "c": "delivered",
    "d": "open",
    "e": "open-refused",
    "f": "open",
    "g": "answered-arrived",
    "h": "answered-lost",
    "i": "reserved",
    "j": "failed",
    "k": "running",
    "l": "running",
    "m": "queued",
    "n": "queued",
}
"""Tasks, and where the last process left each."""
ARRIVED = ("a", "c", "g")
LEASE = 2.9
"""Seconds until an import cut short counts as lost: less than the 3 seconds from one lookup of it to the next, so that
the second lookup always finds it lost; the first look at the project must take less."""


def scene(peer: Peer) -> tuple[int, dict[str, int]]:
    """A project with an annotated task and one for each of `WORK`; returns their numbers."""
    project = peer.add_project()
    first = peer.add_task(project, surface.picture(CAT_BOX))
    tasks = {name: peer.add_task(project, surface.picture(_box(name))) for name in WORK}
    peer.annotate(first, [surface.brush(CAT_BOX, "cat")])
    return project, tasks


def _box(name: str) -> tuple[int, int, int, int]:
    number = list(WORK).index(name)
    return (5, 20 + number, 10, 40 + number)


def result_of(name: str) -> list[dict[str, Any]]:
    """What was found on a task; a label that Label Studio does not take on the one that is refused."""
    found: dict[str, Any] = surface.brush(_box(name), "dog" if WORK[name] == "open-refused" else "cat", score=0.75)
    return [found]


def goes_on() -> Entries:
    """Start twice on the ledger: first paused, then resumed."""
    peer = Peer()
    peer.failures.invalid_labels = {"dog"}
    project, tasks = scene(peer)
    recorder = Recorder(peer)
    imports = f"/api/projects/{project}/import/predictions"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = surface.present_base(peer, folder)
        version = _restore(peer, folder, project, base)
        for task in ARRIVED:
            peer.store(tasks[task], result_of(task), 0.75, version)
        try:
            with surface.running_backend(peer, folder, push_batch=50, answer_lease=LEASE) as backend:
                peer.connected[project] = backend.url
                recorder.connected(backend)
                lost = tasks["b"]
                pushed_late = asked_for("POST", imports, body=f'"task": {lost}')
                yield from recorder.part("paused", pushed_late)
                yield "paused/states", recorder.named(_states(backend, project))
            with surface.running_backend(peer, folder, push_batch=1, answer_lease=LEASE) as backend:
                peer.connected[project] = backend.url
                recorder.connected(backend)
                yield from recorder.part("restarted", asked_for("GET", "/api/tasks"))
                requests.post(f"{backend.url}/api/projects/{project}/resume", timeout=60).raise_for_status()
                yield from recorder.part("resumed", asked_for("PATCH", f"/api/projects/{project}/"))
                project_event(backend, "PROJECT_UPDATED", peer, project)  # see `exchange`
                yield from recorder.part("look", asked_for("GET", "/api/tasks"))
                answers = peer.retrieve(project, [tasks["j"]])
                yield "asked-for-failed", recorder.named(text_of(answers))
                confirmed = asked_for("GET", "/api/tasks", query="filter:tasks:id")
                yield from recorder.part("confirmed", confirmed)
                yield "resumed/states", recorder.named(_states(backend, project))
            yield "stored", recorder.named(stored(peer))
        finally:
            peer.close()


def _restore(peer: Peer, folder: Path, project: int, base: str) -> str:
    """Lay the ledger into a data folder under the version that this release gives; returns the project's."""
    connection = sqlite3.connect(surface.ledger_file(folder))
    connection.executescript(FIXTURE.read_text().replace(BASE, base).replace(PEER, peer.url))
    connection.close()
    ((version,),) = surface.ledger_rows(folder, f"SELECT version FROM projects WHERE id = {project}")
    return str(version)


def _states(backend: Backend, project: int) -> str:
    return text_of(surface.task_states(backend, project))
