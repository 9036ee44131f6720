"""How long each step takes, and who is told of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from cavsam.observe.trace import Trace
from cavsam.types import Progress


class Clock:
    """Seconds per step, and the caller's progress callback.

    Attributes:
        refused: what the callback raised, if it did: the caller's own error, which goes back to the caller.
    """

    def __init__(self, progress: Progress | None, trace: Trace | None = None) -> None:
        self.progress = progress
        self.trace = trace
        self.refused: Exception | None = None
        self.seconds: dict[str, float] = defaultdict(float)
        self.started = time.perf_counter()

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time the step inside, add it to those of the same name, and tell of its begin and end."""
        if self.trace:
            self.trace.step_begins()
        start = time.perf_counter()
        self._tell(step, 0, 1)
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            self.seconds[step] += seconds
            if self.trace:
                self.trace.step_ends(step, seconds)
            self._tell(step, 1, 1)

    def steps(self, step: str) -> Callable[[int, int], None] | None:
        """A callback for the inner loop of `step`, or None when nobody listens."""
        return (lambda done, total: self._tell(step, done, total)) if self.progress else None

    def _tell(self, step: str, done: int, total: int) -> None:
        if not self.progress:
            return
        try:
            self.progress(step, done, total)
        except Exception as error:
            self.refused = error
            raise

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.started
