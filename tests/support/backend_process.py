"""Running the backend as the real processes it is, with a segmenter of the test's choice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.support.backend import THRESHOLD, wait_for

ROOT = Path(__file__).parents[2]
SLOW = "tests.support.threshold:open_slow"
ENDLESS = "tests.support.threshold:open_endless"
SERVE = (
    "import sys; from backend.server import serve; from backend.settings import Settings; "
    "sys.exit(serve(Settings.from_environment(), segmenter={segmenter!r}))"
)


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = set(), [pid]
    while waiting:
        found.add(current := waiting.pop())
        waiting += children.get(current, [])
    return found


def running(pids: set[int]) -> set[int]:
    """Those of some processes that are there and no zombies."""
    alive = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            alive.add(pid)
    return alive


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class BackendProcess:
    def __init__(self, command: list[str], environment: dict[str, str], log: Path):
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)
        wait_for(lambda: "Listening on" in log.read_text() or self.process.poll() is not None, "the server", 120)
        addresses = re.findall(r"Listening on (http://\S+);", log.read_text())
        self.url = addresses[-1] if addresses else ""

    @property
    def model_process(self) -> int:
        def found() -> list[int]:
            return [pid for pid in family(self.process.pid) if "backend.worker.model_server" in command_of(pid)]

        wait_for(found, "a model process")
        return found()[0]

    def health(self) -> dict:
        return requests.get(f"{self.url}/health", timeout=1).json()

    def answers(self, path: str) -> int | None:
        """The status of an answer; `None` if there is none."""
        try:
            return requests.get(self.url + path, timeout=1).status_code
        except requests.RequestException:
            return None

    def wait_until_idle(self) -> None:
        wait_for(lambda: self.health()["work"] == "idle", "the model", 180)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def wait_until_ended(pids: set[int]) -> None:
    wait_for(lambda: not running(pids), "all processes to end")


@contextmanager
def backends(folder: Path, label_studio_url: str, label_studio_key: str) -> Iterator[Callable[..., BackendProcess]]:
    """A function that starts backends over one data folder; those that still run at the end are killed."""
    started: list[BackendProcess] = []

    def start(segmenter: str = THRESHOLD, command: list[str] | None = None, **variables: str) -> BackendProcess:
        usual = {n: v for n, v in os.environ.items() if not n.startswith(("CAVSAM_", "LABEL_STUDIO_"))}
        environment = usual | {
            "LABEL_STUDIO_URL": label_studio_url,
            "LABEL_STUDIO_API_KEY": label_studio_key,
            "CAVSAM_MODEL": "nano",
            "CAVSAM_PORT": "0",
            "CAVSAM_DATA_DIR": str(folder / "data"),
        }
        log = folder / f"backend-{len(started)}.log"
        usual_command = [sys.executable, "-c", SERVE.format(segmenter=segmenter)]
        started.append(BackendProcess(command or usual_command, environment | variables, log))
        return started[-1]

    try:
        yield start
    finally:
        for backend in started:
            if backend.process.poll() is None:
                everyone = family(backend.process.pid)
                backend.process.kill()
                backend.process.wait()
                wait_until_ended(everyone)
