"""The observer of one adaptation or of one target: progress, seconds, cancellation, and a trace if one is wanted."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cavsam.instances import Objects
from cavsam.observe.trace import CandidateTrace, Trace
from cavsam.pseudo_labels import PseudoLabel
from cavsam.tracking import Prompt
from cavsam.types import Progress


class Run:
    """What happens on the way, for whoever wants to know. Without arguments nobody does, and only seconds are counted.

    Attributes:
        trace: keeps what happens inside; None if nobody looks.
        seconds: step -> seconds.
    """

    def __init__(
        self,
        progress: Progress | None = None,
        trace: Trace | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.trace = trace
        self.seconds: dict[str, float] = defaultdict(float)
        self._progress = progress
        self._cancelled = cancelled
        self._raised: Exception | None = None
        self._started = time.perf_counter()
        self._watched: tuple[CandidateTrace, Objects] | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the step inside, add it to those of the same name, and tell of its begin and end."""
        if self.trace:
            self.trace.step_begins()
        start = time.perf_counter()
        self._tell(name, 0, 1)
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            self.seconds[name] += seconds
            if self.trace:
                self.trace.step_ends(name, seconds)
            self._tell(name, 1, 1)

    def within(self, name: str) -> Callable[[int, int], None] | None:
        """Make a callback (done, total) for the inner loop of a step; None if nobody listens."""
        return (lambda done, total: self._tell(name, done, total)) if self._progress else None

    def is_cancelled(self) -> bool:
        """Ask the caller whether to stop."""
        return self._cancelled is not None and self._cancelled()

    def raised(self, error: Exception) -> bool:
        """Tell whether an error is what the caller's own progress callback raised, and goes back to the caller."""
        return error is self._raised

    def total(self) -> float:
        """Count the seconds since the run was begun."""
        return time.perf_counter() - self._started

    def generated(self, frames: Tensor, losses: list[float]) -> None:
        """Note generated frames, float (n, 3, S, S), and the losses of the target's adapter."""
        if self.trace:
            self.trace.generated, self.trace.target_losses = frames.cpu(), losses

    def candidate(self, kind: str, frames: int, objects: Objects, origin: str = "") -> None:
        """Begin a candidate; what is noted until it is `proposed` is of its objects and of its video.

        Args:
            kind: what tells it from other candidates.
            frames: length of its video.
            objects: what is looked for.
            origin: in words, where its masks come from if they are not tracked.
        """
        if self.trace:
            self._watched = self.trace.candidate(kind, frames, origin), objects

    def decided(self, labels: Sequence[PseudoLabel]) -> None:
        """Note which activations may prompt."""
        if self._watched:
            self._watched[0].decided(labels)

    def tracked(self, frame: int, logits: Tensor) -> None:
        """Note the logits (objects, S, S) of a frame tracked forward."""
        if self._watched:
            candidate, objects = self._watched
            candidate.forward(frame, objects.per_label(logits))

    def tracked_backward(self, frame: int, masks: Tensor) -> None:
        """Note the masks (objects, S, S) of a frame tracked backward."""
        if self._watched:
            candidate, objects = self._watched
            candidate.back(frame, objects.per_label(masks))

    def proposed(self, prompts: Sequence[Prompt], masks: Tensor) -> None:
        """End a candidate: its prompts, of objects, and its masks on the target, bool (labels, S, S)."""
        if self._watched:
            candidate, objects = self._watched
            candidate.close(objects.to_labels(prompts), masks)
            self._watched = None

    def _tell(self, step: str, done: int, total: int) -> None:
        if not self._progress:
            return
        try:
            self._progress(step, done, total)
        except Exception as error:
            self._raised = error
            raise
