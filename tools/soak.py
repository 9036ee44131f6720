"""`make soak`: kill the backend's processes again and again while it works; nothing is lost, doubled or failed.

Everything runs on loopback: the peer that plays Label Studio in the tests, the real server under gunicorn, and a model
process with a segmenter that needs no models. Nobody presses anything; only a killed master is started again, as
Compose or systemd would.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from backend.store.store import Store
from tests.support.backend_process import BackendProcess, backends, command_of, family, wait_until_ended
from tests.support.fake_label_studio import LEGACY_KEY, FakeLabelStudio, brush, picture

SEGMENTER = "tests.support.threshold:open_unhurried"
BOX = (8, 30, 20, 50)


@dataclass
class Soak:
    """A backend at work on one project, to which tasks are added all along, and what was done to it."""

    label_studio: FakeLabelStudio
    start: Callable[[], BackendProcess]
    project: int
    deadline: float
    tasks: list[int] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    """Seconds from a kill of each kind to the next prediction, at most."""

    def __post_init__(self) -> None:
        self.backend = self.start()

    def add_tasks(self, count: int) -> None:
        """Import tasks, of which a webhook tells; it is lost if nobody takes it."""
        for _ in range(count):
            image = picture((8, 30, 20, 50 + len(self.tasks) % 40))
            self.tasks.append(self.label_studio.add_task(self.project, image))
        event: dict[str, Any] = {"action": "TASKS_CREATED", "project": {"id": self.project}}
        with suppress(requests.RequestException):
            requests.post(f"{self.backend.url}/webhook", json=event, timeout=1)

    def predicted(self) -> int:
        """How many tasks have a prediction."""
        return sum(bool(self.label_studio.versions_of(task)) for task in self.tasks)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something is so; raises `TimeoutError` when the time is over."""
        while not condition():
            if time.monotonic() > self.deadline:
                raise TimeoutError(f"In vain waited for {what}; {self.predicted()} of {len(self.tasks)} predicted.")
            time.sleep(0.02)

    def kill(self, kind: str) -> None:
        """Kill one kind of process in the middle of what it does, and wait for the next prediction."""
        before, began = self.predicted(), time.monotonic()
        KINDS[kind](self)
        self.killed[kind] += 1
        self.wait_for(lambda: self.predicted() > before or before == len(self.tasks), "the next prediction")
        self.longest[kind] = max(self.longest.get(kind, 0.0), time.monotonic() - began)

    # the kinds

    def kill_working_model(self) -> None:
        """The model process, in the middle of a task if there is one."""
        self._kill(self._model())

    def kill_loading_model(self) -> None:
        """The model process, and its successor before that has loaded the model."""
        first = self._model()
        self._kill(first)
        self._kill(self._model(but=first))

    def kill_web_process(self) -> None:
        """The process that answers HTTP and owns the threads; gunicorn's master starts another."""
        self.wait_for(lambda: len(self._web()) > 0, "a web process")
        self._kill(self._web()[0])

    def kill_all(self) -> None:
        """All processes at once; whoever started them starts them again."""
        everyone = family(self.backend.process.pid)
        for pid in everyone:
            self._kill(pid)
        self.backend.process.wait()
        wait_until_ended(everyone)
        self.backend = self.start()

    def _model(self, but: int = 0) -> int:
        found: list[int] = []

        def is_there() -> bool:
            pids = family(self.backend.process.pid) - {but}
            found[:] = [pid for pid in pids if "backend.worker.model_server" in command_of(pid)]
            return bool(found)

        self.wait_for(is_there, "a model process")
        return found[0]

    def _web(self) -> list[int]:
        pids = family(self.backend.process.pid) - {self.backend.process.pid}
        return [pid for pid in pids if "backend.worker.model_server" not in command_of(pid)]

    def _kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


KINDS: dict[str, Callable[[Soak], None]] = {
    "model, working": Soak.kill_working_model,
    "model, loading": Soak.kill_loading_model,
    "web process": Soak.kill_web_process,
    "all processes": Soak.kill_all,
}


def main() -> int:
    """Kill so often while so many tasks are predicted; 0 if each has one prediction in the end and none failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="how often something is killed (default: 30)")
    parser.add_argument("--tasks", type=int, default=60, help="how many tasks are predicted (default: 60)")
    parser.add_argument("--minutes", type=float, default=20.0, help="when it is given up (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which things are killed (default: 0)")
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    label_studio = FakeLabelStudio()
    with tempfile.TemporaryDirectory() as folder, backends(Path(folder), label_studio.url, LEGACY_KEY) as start:
        port = str(_free_port())  # the same after a restart
        project = label_studio.add_project()
        first = label_studio.add_task(project, picture(BOX))
        deadline = time.monotonic() + options.minutes * 60
        soak = Soak(label_studio, lambda: start(SEGMENTER, CAVSAM_PORT=port), project, deadline)
        label_studio.connect(project, soak.backend.url)
        label_studio.annotate(first, [brush(BOX, "cat")])
        began = time.monotonic()
        try:
            _kill_all_along(soak, options.kills, options.tasks, random.Random(options.seed))
        except TimeoutError as error:
            print(error, file=sys.stderr)
        finished = time.monotonic() - began
        time.sleep(10)  # whatever might still be given twice would be given now
        soak.backend.stop()
        store = Store(Path(folder) / "data" / "ledger.sqlite3")
        version = store.projects.all()[0].version
        failed = store.jobs(project, version).counts()["failed"]
        store.close()
    label_studio.close()
    return _report(soak, finished, failed)


def _kill_all_along(soak: Soak, kills: int, tasks: int, order: random.Random) -> None:
    """Spread the kills over the work, and wait for its end."""
    kinds = [list(KINDS)[number % len(KINDS)] for number in range(kills)]
    order.shuffle(kinds)
    for number, kind in enumerate(kinds, 1):
        soak.add_tasks(tasks * number // kills - len(soak.tasks))
        time.sleep(order.uniform(0.0, 3.0))  # from before a job is queued to after it is pushed
        soak.kill(kind)
    soak.wait_for(lambda: soak.predicted() == len(soak.tasks), "all predictions")


def _report(soak: Soak, seconds: float, failed: int) -> int:
    counts = Counter(len(soak.label_studio.versions_of(task)) for task in soak.tasks)
    for kind in KINDS:
        longest = f", at most {soak.longest[kind]:.1f} s to the next prediction" if kind in soak.longest else ""
        print(f"killed, {kind}: {soak.killed[kind]} times{longest}")
    print(f"tasks with one prediction {counts[1]} of {len(soak.tasks)}, none {counts[0]}, ", end="")
    print(f"several {sum(count for given, count in counts.items() if given > 1)}, failed {failed}")
    print(f"{seconds:.0f} s in all")
    return 0 if counts[1] == len(soak.tasks) and not failed else 1


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
