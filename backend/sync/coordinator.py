"""The thread that says when each project is brought into line with Label Studio.

Other threads leave events for it: those that answer HTTP what Label Studio said, the worker what is finished. Whoever
waits for its work calls `wait`. What a sync and a delivery do is `ProjectSync`'s and `Delivery`'s.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from backend.entities import Refusal
from backend.errors import BackendError, InvalidRequest, LabelStudioError, LabelStudioNotFound, LedgerError
from backend.labelstudio.clients import Clients
from backend.labelstudio.events import Event, read_webhook, webhook_events
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.inbox import Inbox
from backend.sync.project_sync import ProjectSync
from backend.sync.schedule import CONFIRM_PAUSE, Schedule, is_due, sooner

log = logging.getLogger(__name__)

LEDGER_PAUSE = 10.0
"""Seconds until the store is tried again after it could not be written."""
LONGEST_PAUSE = 30.0
NOT_SAID: Any = object()


class Coordinator:
    """The thread, what others left for it, and each project's schedule.

    Any thread may call its methods, but for `turn`: that is what the thread does again and again. Only `turn` writes to
    the store and asks Label Studio.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        clients: Clients,
        base_version: str,
        *,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        """Take what the thread works with; `start` begins.

        Args:
            settings: those of the backend.
            store: the ledger.
            clients: gives the connection for a project.
            base_version: the version of predictions without a reference.
            wake: has the worker look for jobs.
            clock: seconds; the one that `wait` goes by is always the monotonic clock.
        """
        self._settings, self._store, self._clients = settings, store, clients
        self._base_version, self._wake, self._clock = base_version, wake, clock
        self._inbox = Inbox()
        self._schedules: dict[int, Schedule] = {}  # the thread's own
        self._syncs: dict[int, ProjectSync] = {}  # the thread's own, though others read `is_listing`
        self._in_doubt = False  # whether the outcome of an import may not have been stored
        self._unreleased: deque[tuple[int, str]] = deque()  # project and owner of reservations
        self._extra_params: dict[int, str] = {}  # project -> what /setup handed over, as JSON
        self._counts: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self.ledger_pause = LEDGER_PAUSE
        self._thread = threading.Thread(target=self._coordinate, name="coordinator", daemon=True)

    # life

    def start(self) -> None:
        """Begin with a full sync of the projects that are known."""
        self.sync_all()
        self._thread.start()

    def begin_stop(self) -> None:
        """Have those that wait stop waiting; safe in a signal handler."""
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        """Whether `begin_stop` was called."""
        return self._stopping.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self, patience: float = 5.0) -> bool:
        """End the thread; returns whether it has ended, for it may still wait for Label Studio's answer."""
        self.begin_stop()
        self._inbox.wake()
        self.notify()
        if self._thread.is_alive():
            self._thread.join(patience)
        return not self._thread.is_alive()

    # what others leave; all return at once

    def send(self, event: Event) -> None:
        """Have an event looked into."""
        self._inbox.put(event)

    def sync_all(self) -> None:
        """Have every known project synchronised."""
        for project in self._store.projects.all():
            self.send(Event(project.id))

    def take_webhook(self, body: Mapping[str, Any]) -> None:
        """Have looked into what a webhook says; without a project in it, have everything synchronised."""
        log.info("Webhook %s.", str(body.get("action"))[:60])
        events = webhook_events(body)
        for event in events:
            self.send(event)
        if not events:
            self.sync_all()

    def take_webhook_later(self, raw: bytes) -> None:
        """Have a large webhook read by the thread.

        If many wait already, it is dropped and everything is synchronised instead: an event is only a hint.
        """
        if not self._inbox.put_unread(raw):
            self.sync_all()

    def seen(self, project: int, extra_params: Any = NOT_SAID) -> None:
        """Label Studio called for a project, with these extra params of its connection if it said which."""
        if extra_params is NOT_SAID:
            self.send(Event(project, "seen"))
            return
        # Label Studio's form hands on what was typed as it is, its API an object
        typed = isinstance(extra_params, str)
        text = extra_params.strip() if typed else json.dumps(extra_params) if extra_params else ""
        known = self._store.projects.find(project)
        news = known is not None and text != known.extra_params
        self._extra_params[project] = text
        self.send(Event(project, "changed" if news else "seen"))

    def finished(self, project: int, task: int = 0) -> None:
        """A job is over, or a result is free to be pushed."""
        self.send(Event(project, "finished"))
        self.notify()

    def refused(self, refusal: Refusal) -> None:
        """Have an annotation left out that teaches nothing."""
        self._inbox.put(refusal)

    def release_later(self, project: int, owner: str) -> None:
        """Release a request's reservations once the ledger can be written again."""
        self._unreleased.append((project, owner))

    # what others wait for

    def syncs(self, project: int) -> int:
        """How many full syncs of a project have ended, failed ones included."""
        return self._counts[project]

    def is_listing(self, project: int) -> bool:
        """Whether waiting for a project would be waiting for ourselves; see `ProjectSync.is_listing`."""
        sync = self._syncs.get(project)
        return sync is not None and sync.is_listing

    def wait(self, until: float) -> None:
        """Wait until something changes, or until a moment of the monotonic clock."""
        with self._changed:
            self._changed.wait(max(0.0, until - time.monotonic()))

    def notify(self) -> None:
        """Something has changed."""
        with self._changed:
            self._changed.notify_all()

    # the thread

    def _coordinate(self) -> None:
        while not self._stopping.is_set():
            try:
                self.turn()
            except LedgerError as error:
                # the thread must outlive a full disk; what is due stays due
                log.error("%s Trying again in %.0f s.", error, self.ledger_pause)
                self._stopping.wait(self.ledger_pause)
                self._in_doubt = True

    def turn(self, patience: float | None = None) -> None:
        """Take what others have left, and do what is due.

        Args:
            patience: seconds to wait for the first message; without it, until something is due.

        Raises:
            LedgerError: the ledger cannot be read or written; what is due stays due.
        """
        if self._in_doubt:
            self._store.doubt_pushing(self._settings.answer_lease)
            self._in_doubt = False
        while self._unreleased:
            project, owner = self._unreleased[0]
            self._store.release(owner)
            self._unreleased.popleft()
            self.send(Event(project, "finished"))
        for message in self._inbox.take_all(self._pause() if patience is None else patience):
            match message:
                case Event():
                    self._take(message)
                case Refusal():
                    self._refuse(message)
                case bytes():
                    self._read(message)
        for project in list(self._schedules):
            if not self._stopping.is_set():
                self._attend(project)

    def _pause(self) -> float:
        now = self._clock()
        times = [moment for schedule in self._schedules.values() for moment in schedule.due_times()]
        return max(0.0, min([*times, now + LONGEST_PAUSE]) - now)

    def _read(self, raw: bytes) -> None:
        try:
            self.take_webhook(read_webhook(raw))
        except InvalidRequest as error:
            log.warning("A webhook of %d bytes cannot be read. %s", len(raw), error)

    def _refuse(self, refusal: Refusal) -> None:
        self._store.annotations(refusal.project).refuse(refusal, self._base_version)
        self._take(Event(refusal.project))

    def _take(self, event: Event) -> None:
        schedule = self._schedules.setdefault(event.project, Schedule())
        schedule.take(event, self._clock(), self._settings.push_interval)

    def _sync_of(self, project: int) -> ProjectSync:
        """The project's sync, a new one if Label Studio is reached in another way now."""
        client = self._clients.of(project)
        known = self._syncs.get(project)
        if known is None or known.client is not client:
            known = self._syncs[project] = ProjectSync(
                self._store,
                client,
                project,
                self._settings,
                self._base_version,
                clock=self._clock,
                changed=self._tell_others,
            )
        return known

    def _tell_others(self) -> None:
        self._wake()
        self.notify()

    def _attend(self, project: int) -> None:
        """Do what is due for one project; trouble with Label Studio puts it off."""
        schedule = self._schedules[project]
        if not any(is_due(moment, self._clock()) for moment in schedule.due_times()):
            return
        try:
            self._do_due(self._sync_of(project), schedule)
        except LabelStudioNotFound as error:
            if self._is_gone(project):
                self._drop(project, str(error))
            else:
                self._put_off(project, str(error))
        except LedgerError as error:
            self._put_off(project, str(error))
            raise
        except BackendError as error:
            self._put_off(project, str(error))
        except Exception as error:
            log.exception("Project %d: the coordinator failed.", project)
            self._put_off(project, f"The backend failed ({type(error).__name__}: {error}).")
        else:
            schedule.failures = 0

    def _do_due(self, sync: ProjectSync, schedule: Schedule) -> None:
        """Do what is due, in the order in which one brings about the next."""
        if is_due(schedule.sync_at, self._clock()):
            self._sync(sync, schedule)
        for task, touched in list(schedule.touched.items()):
            if is_due(touched.at, self._clock()):
                self._read_task(sync, schedule, task)
        if is_due(schedule.choose_at, self._clock()):
            schedule.plan(sync.follow_reference(at_once=schedule.at_once), self._clock())
        if is_due(schedule.confirm_at, self._clock()):
            self._confirm(sync, schedule)
        if is_due(schedule.push_at, self._clock()):
            self._push(sync, schedule)

    def _sync(self, sync: ProjectSync, schedule: Schedule) -> None:
        started = self._clock()
        schedule.sync_at = None
        before = self._store.projects.find(sync.project)
        due = sync.run(at_once=schedule.at_once, extra_params=self._extra_params.get(sync.project))
        self._clients.keep(sync.project)
        schedule.plan(due, self._clock())
        schedule.was_synced(started, self._clock(), self._settings.sync_interval)
        self._counts[sync.project] += 1
        if before is not None and before.error:
            log.info("Project %d: Label Studio answers again.", sync.project)
        self.notify()

    def _read_task(self, sync: ProjectSync, schedule: Schedule, task: int) -> None:
        """Read a task that an event named; one that is not known yet takes a full sync."""
        if schedule.synced_at is None or not sync.knows(task):
            del schedule.touched[task]
            schedule.sync_at = self._clock()
            return
        missing = sync.read_task(task, schedule.touched[task].expected)
        schedule.task_was_read(task, missing, self._clock())
        schedule.plan(sync.follow_reference(at_once=schedule.at_once), self._clock())

    def _confirm(self, sync: ProjectSync, schedule: Schedule) -> None:
        schedule.confirm_at = None
        delivery = sync.delivery()
        delivery.confirm()
        if delivery.is_unconfirmed:
            schedule.confirm_at = self._clock() + CONFIRM_PAUSE
        schedule.push_at = sooner(schedule.push_at, self._clock())

    def _push(self, sync: ProjectSync, schedule: Schedule) -> None:
        schedule.push_at = None
        if sync.delivery().run():
            schedule.push_at = self._clock() + max(self._settings.push_interval, 0.05)
        self.notify()

    # trouble

    def _is_gone(self, project: int) -> bool:
        """Whether it is the project that was not found, and not something in it."""
        try:
            self._clients.of(project).project(project)
        except LabelStudioNotFound:
            return True
        except LabelStudioError:
            return False
        return False

    def _drop(self, project: int, error: str) -> None:
        """Forget a project that is gone, or that the key may not see."""
        if self._store.projects.find(project) is not None:
            log.warning("Project %d is forgotten: %s", project, error)
            self._store.projects.forget(project)
        del self._schedules[project]
        self._syncs.pop(project, None)
        self._counts[project] += 1
        self.notify()

    def _put_off(self, project: int, error: str) -> None:
        schedule = self._schedules[project]
        first = schedule.failures == 0
        schedule.put_off(self._clock())
        self._counts[project] += 1
        self.notify()
        # last, for the ledger itself may be the trouble
        known = self._store.projects.find(project)
        if first or (known is not None and known.error != error):
            log.warning("Project %d: %s", project, error)
        self._store.projects.set_error(project, error)
