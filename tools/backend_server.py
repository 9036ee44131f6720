"""The backend as a process of its own on loopback, for the demo and the integration tests."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tools.servers import free_port, running


@dataclass(frozen=True)
class Backend:
    """A running `cavsam-backend serve`. `url` has no trailing slash."""

    url: str
    data: Path
    log: Path
    process: subprocess.Popen[bytes]

    def alive(self) -> bool:
        """Whether its process still runs."""
        return self.process.poll() is None

    def activity(self) -> str:
        """What it is doing, in a few words, from its own page; empty when it is too busy to say."""
        try:
            work = requests.get(f"{self.url}/", timeout=2).json()["work"]
        except requests.RequestException:
            return ""
        if work["state"] != "working":
            return str(work["error"] or work["state"])
        return f"task {work['task']}: {work['step']} {work['done']}/{work['total']}"

    def seconds_by_task(self, project: int) -> dict[int, float]:
        """Task -> seconds that the model worked on it, as the ledger has it."""
        (ledger,) = self.data.glob("*.sqlite*[!lm]")
        with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
            found = connection.execute(
                "SELECT task, seconds FROM jobs WHERE project = ? AND state = 'done'", (project,)
            )
            return {task: seconds for task, seconds in found if seconds is not None}


@contextmanager
def backend(
    scratch: Path, *, model: str = "nano", port: int | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[Backend]:
    """The backend with its data and log in `scratch`, stopped when the block is left; start it again to see a restart.

    Args:
        scratch: folder for its data.
        model: `CAVSAM_MODEL`.
        port: where it listens; a free port without it.
        settings: further variables of its environment.

    Raises:
        ServerError: it did not start.
    """
    port = port or free_port()
    data, log = scratch / "backend-data", scratch / "backend.log"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CAVSAM_", "LABEL_STUDIO_"))}
    env = inherited | {
        "CAVSAM_MODEL": model,
        "CAVSAM_DATA_DIR": str(data),
        "CAVSAM_HOST": "127.0.0.1",
        "CAVSAM_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),  # spinning threads starve shared cores
        **(settings or {}),
    }
    url = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [Path(sys.executable).parent / "cavsam-backend", "serve"]
    with running(command, name="The backend", health=f"{url}/health", env=env, log=log, start_seconds=120) as process:
        yield Backend(url, data, log, process)
