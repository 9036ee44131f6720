"""What the coordinator has in mind for one project, and when."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Agenda:
    """What the coordinator has in mind for one project; times are of the monotonic clock."""

    look_at: float | None = None
    looked_at: float | None = None
    look_took: float = 0.0
    touched: dict[int, tuple[frozenset[int], int, float]] = field(default_factory=dict)
    settle_at: float | None = None
    pending_version: str | None = None
    push_at: float | None = None
    confirm_at: float | None = None
    failures: int = 0
    unconnected: int = 0
    webhook_seen_to: bool = False
    learn_now: bool = False

    def due_times(self) -> list[float]:
        """When something is due."""
        moments = [self.look_at, self.settle_at, self.push_at, self.confirm_at]
        moments += [when for _, _, when in self.touched.values()]
        return [moment for moment in moments if moment is not None]

    def is_quiet(self, version: str, seconds: float) -> bool:
        """Whether the reference that leads to `version` has not changed for so long; else it is settled later."""
        if seconds <= 0:
            return True
        if self.pending_version != version:
            self.pending_version = version
            self.settle_at = time.monotonic() + seconds
            return False
        return self.settle_at is None or is_due(self.settle_at)


def is_due(moment: float | None) -> bool:
    """Whether a moment of the monotonic clock has come."""
    return moment is not None and time.monotonic() >= moment


def sooner(moment: float | None, other: float) -> float:
    """The earlier of two moments, of which the first may not be set."""
    return other if moment is None else min(moment, other)
