"""Threads that do not end unseen: work that fails is begun again, a few times, and then the whole process ends.

Whoever started the process starts another: gunicorn's master its worker, Compose its container, systemd its service.
A process that is started afresh has nothing left of what went wrong, and the store has everything that matters.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

PAUSES = (1.0, 5.0, 15.0)
"""Seconds until work that failed is begun again, the first, the second and the third time within `WINDOW`."""
WINDOW = 600.0
"""Seconds after which a failure counts no more."""
GIVEN_UP = 70
"""Exit status of a process that gave up; neither 3 nor 4, which make gunicorn's master end as well."""

EndProcess = Callable[[str], None]
"""Ends the process, with one sentence that says why."""


def end_process(sentence: str) -> None:
    """End this process at once, as a crash would: the store survives that, and waiting could be for ever."""
    log.critical(sentence)
    logging.shutdown()
    os._exit(GIVEN_UP)


class LastingThread:
    """A thread whose work is begun again, after a pause, whenever it fails; once too often, the process is given up.

    Any exception counts, also those that end a program.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], None],
        stopping: threading.Event,
        *,
        recover: Callable[[], None] = lambda: None,
        give_up: EndProcess = end_process,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Take what the thread works with; `start` begins.

        Args:
            name: what the log calls the thread.
            work: returns only once `stopping` is set.
            stopping: says that the work is meant to end; pauses are waited for on it.
            recover: puts right what the failed work may have left half done; a failure of it counts as one of the work.
            give_up: called in the thread, as its last act.
            clock: seconds.
        """
        self.name, self._work, self._recover = name, work, recover
        self._stopping, self._give_up, self._clock = stopping, give_up, clock
        self._failures: list[float] = []
        self._thread = threading.Thread(target=self._last, name=name, daemon=True)
        self.trouble = ""
        """Why the work waits to be begun again, in one sentence; empty if it goes on."""

    def start(self) -> None:
        """Begin the work."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, though it may be pausing after a failure."""
        return self._thread.is_alive()

    @property
    def has_ended(self) -> bool:
        """Whether the thread began its work and does it no more."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def join(self, patience: float) -> None:
        """Wait for the thread to end, which it does soon after `stopping` is set; returns at once if it never began."""
        if self._thread.is_alive():
            self._thread.join(patience)

    def _last(self) -> None:
        while True:
            failure = self._failure_of_work()
            if self._stopping.is_set():
                return
            pause = self._next_pause()
            if pause is None:
                self._give_up(
                    f"The {self.name} failed {len(self._failures)} times within {WINDOW / 60:.0f} minutes, the last "
                    f"time by {failure}; this process ends, to be started afresh."
                )
                return
            self.trouble = f"The backend's {self.name} failed by {failure}; the log says where. It is begun again."
            log.error("The %s is begun again in %.0f s.", self.name, pause)
            self._stopping.wait(pause)
            self.trouble = ""

    def _failure_of_work(self) -> str:
        """Do the work to its end; returns what ended it, which the log has with its traceback."""
        try:
            if self._failures:
                self._recover()
            self._work()
        except BaseException as error:
            if not self._stopping.is_set():  # else it was cut short, as when the store is closed
                log.exception("The %s failed.", self.name)
            return f"{type(error).__name__}: {error}"[:300]
        return "an end before its time"

    def _next_pause(self) -> float | None:
        """Seconds until the work is begun again; `None` if it failed too often."""
        now = self._clock()
        self._failures = [moment for moment in self._failures if now - moment < WINDOW] + [now]
        return PAUSES[len(self._failures) - 1] if len(self._failures) <= len(PAUSES) else None
