"""The thread that brings projects into line with Label Studio.

Other threads leave events for it: those that answer HTTP what Label Studio said, the worker what is finished. Whoever
waits for its work calls `wait`. When a project has its turn is up to `Turns`, what is done then to `ProjectSync` and
`Delivery`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from backend.clients import Clients
from backend.entities import Refusal
from backend.errors import InvalidRequest, LedgerError
from backend.labelstudio.events import Event, doubted, read_webhook, webhook_events
from backend.settings import Settings
from backend.store.store import Store
from backend.supervision import EndProcess, LastingThread, end_process
from backend.sync.inbox import Inbox, NewModels
from backend.sync.turns import Turns

log = logging.getLogger(__name__)

LEDGER_PAUSE = 10.0
"""Seconds until the store is tried again after it could not be written."""


class Coordinator:
    """The thread, and what others leave for it.

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
        introduce: Callable[[int], object],
        clock: Callable[[], float] = time.monotonic,
        give_up: EndProcess = end_process,
    ):
        """Take what the thread works with; `start` begins.

        Args:
            settings: those of the backend.
            store: the ledger.
            clients: gives the connection for a project.
            base_version: the version of predictions without a reference.
            wake: has the worker look for jobs.
            introduce: finds out about a project that is not known, given by its number.
            clock: seconds; the one that `wait` goes by is always the monotonic clock.
            give_up: ends the process if the thread keeps failing.
        """
        self._settings, self._store = settings, store
        self._wake, self._introduce = wake, introduce
        self._inbox = Inbox()
        self._turns = Turns(settings, store, clients, base_version, clock, self._tell_others)
        self._generation = store.generation
        self._in_doubt = False  # whether the outcome of an import may not have been stored
        self._unreleased: deque[tuple[int, str]] = deque()  # project and owner of reservations
        self._changed = threading.Condition()
        self.stopping = threading.Event()
        """Set once `begin_stop` was called."""
        self.ledger_pause = LEDGER_PAUSE
        self.thread = LastingThread(
            "coordinator", self._coordinate, self.stopping, recover=self._recover, give_up=give_up
        )

    # life

    def start(self) -> None:
        """Begin with a full sync of the projects that are known."""
        self.sync_all()
        self.thread.start()

    def begin_stop(self) -> None:
        """Have those that wait stop waiting; safe in a signal handler."""
        self.stopping.set()

    @property
    def is_stopping(self) -> bool:
        """Whether `begin_stop` was called."""
        return self.stopping.is_set()

    def stop(self, patience: float = 5.0) -> bool:
        """End the thread; returns whether it has ended, for it may still wait for Label Studio's answer."""
        self.begin_stop()
        self._inbox.wake()
        self.notify()
        self.thread.join(patience)
        return not self.thread.is_alive

    # what others leave; all return at once

    def send(self, event: Event) -> None:
        """Have an event looked into."""
        self._inbox.put(event)

    def sync_all(self, *, doubtful: bool = False) -> None:
        """Have every known project synchronised."""
        for project in self._store.projects.numbers():
            self.send(Event(project, doubtful=doubtful))

    def take_webhook(self, body: Mapping[str, Any]) -> None:
        """Have looked into what a webhook says; without a project in it, have everything synchronised."""
        log.info("Webhook %s.", str(body.get("action"))[:60])
        events = webhook_events(body)
        for event in events:
            projects = self._store.projects.of_number(event.project)
            for project in projects:
                self.send(replace(event, project=project))
            if not projects:
                self._introduce(event.project)
        if not events:
            self.sync_all()

    def take_doubtful_webhook(self, body: Mapping[str, Any] | None) -> None:
        """Take a webhook that anybody may have sent: it has known projects synchronised, but seldom.

        `None` is one that was not read, as it is large.
        """
        events = webhook_events(body) if body is not None else []
        for event in events:
            for project in self._store.projects.of_number(event.project):
                self.send(doubted(replace(event, project=project)))
        if not events:
            self.sync_all(doubtful=True)

    def take_webhook_later(self, raw: bytes) -> None:
        """Have a large webhook read by the thread.

        If many wait already, it is dropped and everything is synchronised instead: an event is only a hint.
        """
        if not self._inbox.put_unread(raw):
            self.sync_all()

    def seen(self, project: int, extra_params: str | None = None) -> None:
        """Label Studio called for a project, with this JSON text of its connection's extra params if it said which."""
        known = self._store.projects.find(project)
        if extra_params is not None:
            self._turns.extra_params[project] = extra_params
            if known is not None and extra_params != known.extra_params:
                self.send(Event(project, doubtful=True))
        self.send(Event(project, "seen"))

    def finished(self, project: int, task: int = 0) -> None:
        """A job is over, or a result is free to be pushed."""
        self.send(Event(project, "finished"))
        self.notify()

    def refused(self, refusal: Refusal) -> None:
        """Have an annotation left out that teaches nothing."""
        self._inbox.put(refusal)

    def models_changed(self, base_version: str) -> None:
        """Have every project predicted under another version."""
        self._inbox.put(NewModels(base_version))

    def release_later(self, project: int, owner: str) -> None:
        """Release a request's reservations once the ledger can be written again."""
        self._unreleased.append((project, owner))

    # what others wait for

    def syncs(self, project: int) -> int:
        """How many full syncs of a project have ended, failed ones included."""
        return self._turns.counts[project]

    def is_listing(self, project: int) -> bool:
        """Whether waiting for a project would be waiting for ourselves; see `ProjectSync.is_listing`."""
        return self._turns.is_listing(project)

    def wait(self, until: float) -> None:
        """Wait until something changes, or until a moment of the monotonic clock."""
        with self._changed:
            self._changed.wait(max(0.0, until - time.monotonic()))

    def notify(self) -> None:
        """Something has changed."""
        with self._changed:
            self._changed.notify_all()

    def _tell_others(self) -> None:
        self._wake()
        self.notify()

    # the thread

    def _coordinate(self) -> None:
        while not self.stopping.is_set():
            try:
                self.turn()
            except LedgerError as error:
                # the thread must outlive a full disk; what is due stays due
                log.error("%s Trying again in %.0f s.", error, self.ledger_pause)
                self.stopping.wait(self.ledger_pause)
                self._in_doubt = True

    def _recover(self) -> None:
        """Make up for what a failure cut short: the messages that were taken are lost, but were only hints."""
        self._in_doubt = True
        self.sync_all()

    def turn(self, patience: float | None = None) -> None:
        """Take what others have left, and do what is due.

        Args:
            patience: seconds to wait for the first message; without it, until something is due.

        Raises:
            LedgerError: the ledger cannot be read or written; what is due stays due.
        """
        if self._generation != self._store.generation:
            self._generation = self._store.generation
            self._turns.begin_anew()
        if self._in_doubt:
            self._store.doubt_pushing(self._settings.answer_lease)
            self._in_doubt = False
        while self._unreleased:
            project, owner = self._unreleased[0]
            self._store.release(owner)
            self._unreleased.popleft()
            self.send(Event(project, "finished"))
        for message in self._inbox.take_all(self._turns.seconds_to_next() if patience is None else patience):
            match message:
                case Event():
                    self._turns.take(message)
                case Refusal():
                    self._turns.refuse(message)
                case NewModels(base_version):
                    self._turns.follow_models(base_version)
                case bytes():
                    self._read(message)
        self._turns.attend(self.stopping.is_set)

    def _read(self, raw: bytes) -> None:
        try:
            self.take_webhook(read_webhook(raw))
        except InvalidRequest as error:
            log.warning("A webhook of %d bytes cannot be read. %s", len(raw), error)
