"""Makes `ledger-before.sql`: a ledger stopped in the middle of jobs, as this version leaves it behind.

    PYTHONPATH=. python -m tools.golden.before

A backend lists the project, learns its reference and queues the tasks; the jobs then go through the calls that the
worker, the coordinator and /predict make, up to where a process could have ended. The version and the address become
names.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
from pathlib import Path

from backend.ledger import ALL_PROJECTS, Ledger
from backend.service import Service
from tools.golden import surface
from tools.golden.ledger import BASE, FIXTURE, PEER, WORK, result_of, scene
from tools.golden.surface import Peer


def main() -> None:
    peer = Peer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project, tasks = scene(peer)
        version = _queued(peer, folder, project)
        _in_the_middle(Ledger(surface.ledger_file(folder)), project, tasks, version)
        connection = sqlite3.connect(surface.ledger_file(folder))
        lines = "\n".join(connection.iterdump())
        connection.close()
        base = surface.present_base(peer, folder)
    FIXTURE.write_text(lines.replace(base, BASE).replace(peer.url, PEER) + "\n")
    peer.close()


def _queued(peer: Peer, folder: Path, project: int) -> str:
    """Have a backend that is paused learn the reference and queue the tasks; returns the version."""
    settings = surface._settings(peer, folder, {})
    service = Service(settings, segmenter=surface.THRESHOLD)
    service.ledger.set_paused(ALL_PROJECTS, True)
    service.start()
    peer.connected[project] = "http://127.0.0.1:9"
    service.setup(project, peer.url, surface.LEGACY_KEY)
    while service.ledger.counts(project, service.version_of(project))["queued"] < len(WORK):
        time.sleep(0.1)
    time.sleep(1.0)
    version = service.version_of(project)
    service.ledger.set_paused(project, True)
    service.ledger.set_paused(ALL_PROJECTS, False)
    service.stop()
    return version


def _in_the_middle(ledger: Ledger, project: int, tasks: dict[str, int], version: str) -> None:
    ledger.set_paused(project, False)
    for name, how in WORK.items():
        if how == "queued":
            continue
        job = ledger.take_next()
        assert job is not None
        assert job.task == tasks[name]
        if how == "failed":
            ledger.fail(job, "The model's process ended (killed by signal 9). It happened 2 times on this task.")
        elif how != "running":
            ledger.finish(job, json.dumps(result_of(name), separators=(",", ":")), 0.75, 1.5)
        time.sleep(0.01)  # the order in which they were finished is the order in which they are pushed
    numbers = {how: [tasks[name] for name, one in WORK.items() if one == how] for how in set(WORK.values())}
    ledger.mark_delivered(project, version, numbers["delivered"])
    both = numbers["pushing-arrived"] + numbers["pushing-lost"]
    assert [job.task for job in ledger.claim_push(project, version, len(both))] == both
    ledger.reserve(project, version, numbers["reserved"], "a request")
    answered = numbers["answered-arrived"] + numbers["answered-lost"]
    ledger.reserve(project, version, answered, "another request")
    assert len(ledger.answer(project, version, answered, "another request", 0.1)) == len(answered)
    ledger.set_paused(project, True)
    ledger.close()


if __name__ == "__main__":
    main()
