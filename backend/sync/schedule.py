"""When the coordinator does what for one project."""

from __future__ import annotations

from dataclasses import dataclass, field

from backend.labelstudio.events import Event
from backend.sync.project_sync import Due

SYNC_PAUSE = 15.0
"""Least seconds between two full syncs of a project that are due to calls without news (/setup, /predict)."""
SYNC_SHARE = 20.0
"""...and at least that many times what the last one took."""
DOUBT_PAUSE = 5.0
"""Least seconds between two full syncs that are due to events that anybody may have sent; or `SYNC_SHARE`, as above."""
CHANGE_PAUSE = 1.0
"""Seconds from a change to the full sync, for changes seldom come alone."""
FOLLOW_UP_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds until a task is read again whose new annotation Label Studio has announced but not committed."""
CONFIRM_PAUSE = 3.0
"""Seconds that Label Studio gets to store an answer before it is asked whether it did."""
GONE_TIMES, GONE_AFTER = 3, 600.0
"""How often, and over how many seconds, a project has to be missing before it is forgotten with its results."""
AWAY_PAUSES = (5.0, 10.0, 20.0, 60.0)
"""Seconds until the next try after the first, second, third and each further failure in a row."""


@dataclass(frozen=True)
class TouchedTask:
    """A task to read: annotations that should be there, how often they were not, and when it is read (next)."""

    expected: frozenset[int]
    tries: int
    at: float


@dataclass
class Schedule:
    """What is to be done for one project, and when: seconds of the caller's clock, `None` for never.

    The caller does what is due and says what came of it; nothing here reads a clock.
    """

    sync_at: float | None = None
    synced_at: float | None = None
    """When the last full sync ended."""
    sync_took: float = 0.0
    touched: dict[int, TouchedTask] = field(default_factory=dict)
    choose_at: float | None = None
    """When the quiet period of a changed reference is over."""
    push_at: float | None = None
    confirm_at: float | None = None
    failures: int = 0
    """Failures in a row."""
    gone: list[float] = field(default_factory=list)
    """When Label Studio said that it has no such project, since it last had one."""
    doubtful: bool = False
    """Whether an event came that did not show to be Label Studio's."""
    at_once: bool = False
    """Whether somebody wants a changed reference to be learned from without a quiet period."""

    def due_times(self) -> list[float]:
        """When something is due."""
        moments = [self.sync_at, self.choose_at, self.push_at, self.confirm_at]
        moments += [task.at for task in self.touched.values()]
        return [moment for moment in moments if moment is not None]

    def take(self, event: Event, now: float, push_interval: float) -> None:
        """Have done what an event asks for; `push_interval` is the seconds in which results gather for one push."""
        if event.doubtful:
            self._take_doubtful(event, now)
        elif event.kind == "finished":
            self.push_at = sooner(self.push_at, now + push_interval)
        elif event.kind == "touched":
            for task in event.tasks:
                known = self.touched.get(task)
                expected = event.annotations | known.expected if known else event.annotations
                self.touched[task] = TouchedTask(expected, 0, now)
        elif event.kind == "changed":
            pause = 0.0 if self.synced_at is None else CHANGE_PAUSE
            self.sync_at = sooner(self.sync_at, now + pause)
        elif event.kind == "seen":
            self.confirm_at = sooner(self.confirm_at, now + CONFIRM_PAUSE)
            pause = max(SYNC_PAUSE, SYNC_SHARE * self.sync_took)
            if self.synced_at is None or now >= self.synced_at + pause:
                self.sync_at = sooner(self.sync_at, now)
        else:
            self.sync_at = now
            self.at_once = self.at_once or event.kind == "train"

    def _take_doubtful(self, event: Event, now: float) -> None:
        """Synchronise for it if the last sync is some time ago; while Label Studio is away, that is planned anyway."""
        self.doubtful = True
        self.at_once = self.at_once or event.kind == "train"
        if not self.failures:
            pause = max(DOUBT_PAUSE, SYNC_SHARE * self.sync_took)
            earliest = now if self.synced_at is None else max(now, self.synced_at + pause)
            self.sync_at = sooner(self.sync_at, earliest)

    def task_was_read(self, task: int, missing: frozenset[int], now: float) -> None:
        """Read a task again if annotations are still `missing`, up to the last of `FOLLOW_UP_PAUSES`."""
        read = self.touched.pop(task)
        if missing and read.tries < len(FOLLOW_UP_PAUSES):
            self.touched[task] = TouchedTask(missing, read.tries + 1, now + FOLLOW_UP_PAUSES[read.tries])

    def plan(self, due: Due, now: float) -> None:
        """Do later what a sync has left."""
        self.at_once = False
        self.choose_at = None if due.choose_in is None else now + due.choose_in
        if due.confirm:
            self.confirm_at = sooner(self.confirm_at, now)
        if due.sync_in is not None:
            self.sync_at = sooner(self.sync_at, now + due.sync_in)

    def was_synced(self, started: float, now: float, interval: float) -> None:
        """Push what waits now; sync again after `interval` seconds, later if that takes long."""
        self.touched.clear()
        self.doubtful = False
        self.synced_at, self.sync_took = now, now - started
        self.push_at = sooner(self.push_at, now)
        self.sync_at = sooner(self.sync_at, now + max(interval, self.sync_took * SYNC_SHARE / 4))

    def is_gone_for_good(self, now: float) -> bool:
        """Note that Label Studio has no such project; whether it has said so often and long enough to be believed."""
        self.gone.append(now)
        return len(self.gone) >= GONE_TIMES and now - self.gone[0] >= GONE_AFTER

    def put_off(self, now: float) -> None:
        """Try all again later, which a full sync does; the pauses grow with the failures in a row."""
        self.sync_at = now + AWAY_PAUSES[min(self.failures, len(AWAY_PAUSES) - 1)]
        self.failures += 1
        self.touched.clear()
        self.choose_at = self.push_at = self.confirm_at = None


def is_due(moment: float | None, now: float) -> bool:
    """Whether a moment has come."""
    return moment is not None and now >= moment


def sooner(moment: float | None, other: float) -> float:
    """The earlier of two moments, of which the first may not be set."""
    return other if moment is None else min(moment, other)
