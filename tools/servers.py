"""Run a server as a child process for as long as a `with` block lasts, for the demo and the integration tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil
import requests


class ServerError(RuntimeError):
    """A server that did not start or died; the message is one sentence with the path of its log."""


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    name: str,
    health: str,
    env: Mapping[str, str],
    log: Path,
    start_seconds: float,
    check: Callable[[], None] = lambda: None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `command`, wait until a GET of `health` answers 200, stop it when the block is left, however that is.

    Args:
        command: program and arguments.
        name: what messages call the server.
        health: URL that answers 200 once the server is ready.
        env: its whole environment.
        log: file that takes its output; appended to, so that a restarted server keeps its history.
        start_seconds: how long the start may take.
        check: called while waiting; raises to give up early.

    Raises:
        ServerError: it ended by itself, or was not ready in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        # A session of its own: Ctrl-C in the terminal reaches us alone, and stopping reaches its worker processes too.
        process = subprocess.Popen(
            [str(part) for part in command],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + start_seconds
        while not _answers(health):
            check()
            if process.poll() is not None:
                raise ServerError(f"{name} ended while starting (status {process.returncode}); its log is {log}.")
            if time.monotonic() > deadline:
                raise ServerError(f"{name} was not ready after {start_seconds:.0f} s; its log is {log}.")
            time.sleep(0.2)
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes], patience: float = 20.0) -> None:
    """End a server and every process that it started; they are gone when this returns.

    Args:
        process: leader of a process group of its own.
        patience: seconds that it has to end by itself, and that killed processes have to disappear.

    Raises:
        ServerError: a killed process does not disappear, because it waits for a disk or a driver.
    """
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what is left of its group, if anything
    process.wait()
    deadline = time.monotonic() + patience
    while left := _living(process.pid):
        if time.monotonic() > deadline:
            raise ServerError(f"The processes {left} were killed but do not end; look at what they wait for.")
        time.sleep(0.02)


def _living(group: int) -> list[int]:
    """List the processes of a group, without those that have ended and only wait for their parent to notice."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that `with` blocks stop their servers as they do on Ctrl-C."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).status_code == 200
    except requests.RequestException:
        return False
