"""One thread that keeps the ledger and Label Studio in line, project by project.

Others leave notes for it: HTTP threads what Label Studio told, the worker what is finished. Whoever waits for the work
waits here too (`wait`).
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from backend.entities import Project, References, Refusal
from backend.errors import (
    BackendError,
    InvalidRequest,
    LabelStudioDenied,
    LabelStudioError,
    LabelStudioNotFound,
    LedgerError,
)
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.clients import Clients
from backend.labelstudio.events import Note, read_event, webhook_notes
from backend.labelstudio.label_config import parse_label_config
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.delivery import confirm_answers, push_finished, remove_duplicates, remove_superseded, show_version
from backend.sync.project_sync import (
    ensure_webhook,
    known_config,
    known_settings,
    queue_tasks,
    read_annotations,
    read_tasks,
    reopen_missing,
    resolve_references,
    store_project,
    unqueued_tasks,
)
from backend.sync.schedule import Agenda, is_due, sooner
from backend.version import model_version

log = logging.getLogger(__name__)

LOOK_PAUSE = 15.0
"""Least seconds between two looks at a project that calls without news (/setup, /predict) bring about."""
LOOK_SHARE = 20.0
"""...and at least that many times what the last look took."""
SETTLE_PAUSE = 1.0
FOLLOW_UP_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
CONNECT_PAUSES = (2.0, 4.0, 8.0, 16.0)
CONFIRM_PAUSE = 3.0
AWAY_PAUSES = (5.0, 10.0, 20.0, 60.0)
LEDGER_PAUSE = 10.0
UNREAD_LIMIT = 64_000_000
"""Bytes of large events that may wait to be read."""
NOT_SAID: Any = object()
AGAIN = "predict again"
NOT_AGAIN = (
    "Nothing was removed or predicted again: Label Studio has no machine learning backend connected to the project; "
    "connect it under Settings, Model."
)


@dataclass(frozen=True)
class Demand:
    """Work on one project only, whether or not it is connected; with a `limit`, on so many tasks, and push nothing."""

    project: int
    limit: int | None = None


class Coordinator:
    """The thread, its notes, and what it has in mind for each project. `wake` has the worker look for jobs."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        clients: Clients,
        base_version: str,
        *,
        demand: Demand | None,
        wake: Callable[[], None],
    ):
        self._settings, self._store, self._clients = settings, store, clients
        self._base_version = base_version
        self._demand = demand
        self._wake = wake
        self._notes: queue.SimpleQueue[Note | Refusal | bytes | None] = queue.SimpleQueue()
        self._agendas: dict[int, Agenda] = {}
        self._looked: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._unread = 0
        self._stopping = threading.Event()
        self._listing: set[int] = set()
        self._unreleased: deque[tuple[int, str]] = deque()  # project and owner of reservations
        self._extra_params: dict[int, str] = {}  # project -> what /setup handed over, as JSON
        self.ledger_pause = LEDGER_PAUSE
        self._thread = threading.Thread(target=self._coordinate, name="coordinator", daemon=True)

    # life

    def start(self) -> None:
        """Look at the projects that are known, or at the one that is demanded."""
        if self._demand is None:
            self.note_all()
        else:
            self.note(Note(self._demand.project))
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
        """End the thread; returns whether it has ended, for a call to Label Studio may still be waited for."""
        self.begin_stop()
        self._notes.put(None)
        self.notify()
        if self._thread.is_alive():
            self._thread.join(patience)
        return not self._thread.is_alive()

    # notes

    def note(self, note: Note) -> None:
        """Have something looked at; returns at once."""
        self._notes.put(note)

    def note_all(self) -> None:
        """Have every known project looked at."""
        for project in self._store.projects.all():
            self._notes.put(Note(project.id))

    def take_event(self, event: Mapping[str, Any]) -> None:
        """Take note of what a webhook's event says; without a project in it, of everything."""
        log.info("Webhook %s.", str(event.get("action"))[:60])
        notes = webhook_notes(event)
        for note in notes:
            self._notes.put(note)
        if not notes:
            self.note_all()

    def note_event(self, raw: bytes) -> None:
        """Have a large event read later; returns at once.

        Where many wait already, it is let go and everything is looked at instead: an event is only a hint.
        """
        with self._changed:
            room = self._unread + len(raw) <= UNREAD_LIMIT
            if room:
                self._unread += len(raw)
        if room:
            self._notes.put(raw)
        else:
            self.note_all()

    def seen(self, project: int, extra_params: Any = NOT_SAID) -> None:
        """Label Studio called for a project, with these extra params of its connection, if it said which."""
        if extra_params is NOT_SAID:
            self._notes.put(Note(project, "seen"))
            return
        # Label Studio's form hands on what was typed as it is, its API an object
        typed = isinstance(extra_params, str)
        text = extra_params.strip() if typed else json.dumps(extra_params) if extra_params else ""
        known = self._store.projects.find(project)
        news = known is not None and text != known.extra_params
        self._extra_params[project] = text
        self._notes.put(Note(project, "changed" if news else "seen"))

    def finished(self, project: int, task: int = 0) -> None:
        """A job is over, or a result is free to be pushed."""
        self._notes.put(Note(project, "finished"))
        self.notify()

    def refused(self, refusal: Refusal) -> None:
        """Have an annotation left out that teaches nothing; returns at once."""
        self._notes.put(refusal)

    def release_later(self, project: int, owner: str) -> None:
        """Release a request's reservations once the ledger can be written again."""
        self._unreleased.append((project, owner))

    # what others wait for

    def looks(self, project: int) -> int:
        """How many times a project has been looked at, or it was tried."""
        return self._looked[project]

    def is_listing(self, project: int) -> bool:
        """Whether waiting for a project would be waiting for ourselves; see `_while_listing`."""
        return project in self._listing

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
        recover = False
        while not self._stopping.is_set():
            try:
                if recover:
                    self._store.doubt_pushing(self._settings.answer_lease)
                    recover = False
                while self._unreleased:
                    project, owner = self._unreleased[0]
                    self._store.release(owner)
                    self._unreleased.popleft()
                    self._notes.put(Note(project, "finished"))
                self._coordinate_once()
            except LedgerError as error:
                # the thread must outlive a full disk; what is due stays due
                log.error("%s Trying again in %.0f s.", error, self.ledger_pause)
                self._stopping.wait(self.ledger_pause)
                recover = True

    def _coordinate_once(self) -> None:
        try:
            note = self._notes.get(timeout=self._pause())
        except queue.Empty:
            note = None
        while note is not None:
            match note:
                case Note():
                    self._take(note)
                case Refusal():
                    self._refuse(note)
                case bytes():
                    self._read(note)
            try:
                note = self._notes.get_nowait()
            except queue.Empty:
                note = None
        for project in list(self._agendas):
            if self._stopping.is_set():
                return
            self._attend(project)

    def _pause(self) -> float:
        times = [t for agenda in self._agendas.values() for t in agenda.due_times()]
        return max(0.0, min([*times, time.monotonic() + 30.0]) - time.monotonic())

    def _read(self, raw: bytes) -> None:
        with self._changed:
            self._unread -= len(raw)
        try:
            self.take_event(read_event(raw))
        except InvalidRequest as error:
            log.warning("A webhook of %d bytes cannot be read. %s", len(raw), error)

    def _refuse(self, refusal: Refusal) -> None:
        """Go on without a reference until another is chosen, unless another has been chosen already."""
        annotations = self._store.annotations(refusal.project)
        present = annotations.references()
        learned_from = {(one.annotation, one.key) for one in present.annotations} if present else set()
        if (refusal.annotation, refusal.key) in learned_from:
            annotations.refuse(refusal.annotation, refusal.key, refusal.reason)
            annotations.set_references(self._base_version, None)
            self._take(Note(refusal.project))

    def _take(self, note: Note) -> None:
        agenda = self._agendas.setdefault(note.project, Agenda())
        now = time.monotonic()
        if note.kind == "finished":
            agenda.push_at = sooner(agenda.push_at, now + self._settings.push_interval)
        elif note.kind == "touched":
            for task in note.tasks:
                expected = note.annotations | agenda.touched.get(task, (frozenset(), 0, 0.0))[0]
                agenda.touched[task] = (expected, 0, now)
        elif note.kind == "changed":
            first = agenda.looked_at is None
            agenda.look_at = sooner(agenda.look_at, now if first else now + SETTLE_PAUSE)
        elif note.kind == "again":
            agenda.look_at = now  # `_settle` begins it
        elif note.kind == "train":
            agenda.look_at = now
            agenda.learn_now = True
        else:
            agenda.confirm_at = sooner(agenda.confirm_at, now + CONFIRM_PAUSE)
            if agenda.looked_at is None or now >= agenda.looked_at + max(LOOK_PAUSE, LOOK_SHARE * agenda.look_took):
                agenda.look_at = sooner(agenda.look_at, now)

    def _attend(self, project: int) -> None:
        """Do what is due for one project; trouble with Label Studio puts it off."""
        agenda = self._agendas[project]
        try:
            if is_due(agenda.look_at):
                self._look(project, agenda)
            for task, (expected, tries, when) in list(agenda.touched.items()):
                if is_due(when):
                    self._look_at_task(project, agenda, task, expected, tries)
            if is_due(agenda.settle_at):
                agenda.settle_at = None
                self._settle(project, agenda)
            if is_due(agenda.confirm_at):
                self._confirm(project, agenda)
            if is_due(agenda.push_at):
                self._push(project, agenda)
        except LabelStudioNotFound as error:
            if self._is_gone(project):
                self._drop(project, str(error))
            else:
                self._put_off(project, agenda, str(error))
        except LedgerError as error:
            self._put_off(project, agenda, str(error))
            raise
        except BackendError as error:
            self._put_off(project, agenda, str(error))
        except Exception as error:
            log.exception("Project %d: the coordinator failed.", project)
            self._put_off(project, agenda, f"The backend failed ({type(error).__name__}: {error}).")
        else:
            agenda.failures = 0

    def _look(self, project: int, agenda: Agenda) -> None:
        """Compare the whole project with the ledger."""
        started = time.monotonic()
        agenda.look_at = None
        client = self._clients.of(project)
        found = client.project(project)
        known = store_project(self._store, project, found, self._base_version)
        self._clients.keep(project)
        self._keep_extra_params(project, known)
        config = parse_label_config(str(found.get("label_config") or ""))
        with self._while_listing(project, asks_meanwhile=bool(found.get("evaluate_predictions_automatically"))):
            counts = read_tasks(self._store, client, project, config)
        agenda.touched.clear()
        self._settle(project, agenda)
        self._see_to_predictions(project, client, counts)
        self._store.projects.mark_synced(project)
        agenda.push_at = sooner(agenda.push_at, time.monotonic())
        if self._store.deliveries(project, known.version).are_waiting():
            agenda.confirm_at = sooner(agenda.confirm_at, time.monotonic())
        agenda.looked_at = time.monotonic()
        agenda.look_took = agenda.looked_at - started
        self._looked[project] += 1
        pause = max(self._settings.reconcile_interval, agenda.look_took * LOOK_SHARE / 4)
        agenda.look_at = sooner(agenda.look_at, agenda.looked_at + pause)
        if known.error:
            log.info("Project %d: Label Studio answers again.", project)
        self.notify()

    def _keep_extra_params(self, project: int, known: Project) -> None:
        text = self._extra_params.get(project)
        if text is None:
            return  # /setup was not called since the start; the ledger has what was handed over before
        if text != known.extra_params:
            self._store.projects.set_extra_params(project, text)
        _, problems = self._settings.for_project(text)
        for problem in self._store.projects.set_warnings(project, "extra params", problems):
            log.warning("Project %d: %s", project, problem)

    def _see_to_predictions(self, project: int, client: LabelStudio, counts: Mapping[int, int]) -> None:
        """Compare the predictions that Label Studio has with those it was given; `counts` is how many per task."""
        known = self._store.projects.find(project)
        if known is not None and known.reference_key is not None:
            missing = reopen_missing(self._store, client, project, known.version, counts)
            if missing:
                log.info("Project %d: %d predictions are not there any more; giving them again.", project, len(missing))
                self._wake()
        remove_duplicates(self._store, client, project, counts)

    def _begin_again(self, project: int, agenda: Agenda, client: LabelStudio, version: str | None) -> None:
        """Remove a version's predictions here and there, so that all tasks are queued anew; or leave all as it is.

        That is where there is no reference (`version` is None), or nobody to queue them for.
        """
        if version is None:
            log.warning("Project %d: there is no reference any more, so nothing is predicted again.", project)
            self._store.projects.forget_again(project)
            return
        if self._demand is None and not self._is_connected(project, agenda, client):
            self._store.projects.forget_again(project)
            for text in self._store.projects.set_warnings(project, AGAIN, [NOT_AGAIN]):
                log.warning("Project %d: %s", project, text)
            return
        # first there: what is removed there only is asked for again, what is forgotten here only would stay there
        removed = client.delete_version(project, version)
        self._store.jobs(project, version).begin_again()
        log.info("Project %d: removed %d predictions of %s to predict again.", project, removed, version)

    def _look_at_task(self, project: int, agenda: Agenda, task: int, expected: frozenset[int], tries: int) -> None:
        """Judge one task's annotations again; one that an event named may not be committed yet."""
        config = known_config(self._store, project)
        if agenda.looked_at is None or config is None or self._store.tasks(project).find(task) is None:
            agenda.touched.pop(task, None)
            agenda.look_at = time.monotonic()
            return
        found = read_annotations(self._store, self._clients.of(project), project, task, config)
        missing = expected - {candidate.annotation for candidate in found}
        if missing and tries < len(FOLLOW_UP_PAUSES):
            agenda.touched[task] = (missing, tries + 1, time.monotonic() + FOLLOW_UP_PAUSES[tries])
        else:
            agenda.touched.pop(task, None)
        self._settle(project, agenda)

    def _settle(self, project: int, agenda: Agenda) -> None:
        """Choose the reference, and queue what it is missing; a *changed* reference waits for the quiet period.

        What is to be predicted again begins here: by now it is known that there is a reference to do it from.
        """
        known = self._store.projects.find(project)
        config = known_config(self._store, project)
        if known is None or config is None:
            return
        client = self._clients.of(project)
        settings = known_settings(self._store, self._settings, project)
        chosen = resolve_references(self._store, client, project, config, settings)
        version = model_version(self._base_version, chosen.key if chosen else None)
        if version != known.version or (chosen is None) != (known.reference_key is None):
            at_once = known.reference_key is None or agenda.learn_now or self._demand is not None
            if not agenda.is_quiet(version, 0.0 if at_once else settings.quiet_period):
                return
            self._store.annotations(project).set_references(version, chosen)
            if chosen is not None:
                log.info("Project %d: %s; version %s.", project, _told(chosen), version)
            elif known.reference_key is not None:
                log.info("Project %d: there is no reference any more.", project)
        agenda.pending_version = agenda.settle_at = None
        if agenda.learn_now:
            agenda.learn_now = False
            if self._store.jobs(project, version).retry_failed():
                self._wake()
        if project in self._store.projects.wanted_again():
            self._begin_again(project, agenda, client, version if chosen else None)
        if chosen is not None and unqueued_tasks(self._store, project, version, chosen):
            self._queue(project, agenda, client, version)

    def _queue(self, project: int, agenda: Agenda, client: LabelStudio, version: str) -> None:
        """Queue the tasks that are missing under the present version, unless Label Studio has them or left us."""
        references = self._store.annotations(project).references()
        if references is None:
            return
        if self._demand is None and not self._is_connected(project, agenda, client):
            if agenda.unconnected < len(CONNECT_PAUSES):
                pause = CONNECT_PAUSES[agenda.unconnected]
                agenda.look_at = sooner(agenda.look_at, time.monotonic() + pause)
            if agenda.unconnected == 0:
                log.info("Project %d has no machine learning backend connected (yet); nothing is queued.", project)
            agenda.unconnected += 1
            return
        agenda.unconnected = 0
        self._store.deliveries(project, version).mark_delivered(client.tasks_with_prediction(project, version))
        queued = queue_tasks(self._store, project, version, references, self._demand.limit if self._demand else None)
        if queued:
            log.info("Project %d: %d tasks are queued.", project, queued)
            self._wake()
        self.notify()

    def _is_connected(self, project: int, agenda: Agenda, client: LabelStudio) -> bool:
        """Whether Label Studio still has a backend for the project; its webhook is seen to once."""
        try:
            backends = client.backends(project)
        except LabelStudioDenied:
            return True  # a key that may label but not administrate cannot ask
        if backends:
            self._store.projects.set_warnings(project, AGAIN, [])
        if backends and not agenda.webhook_seen_to:
            agenda.webhook_seen_to = True
            ensure_webhook(client, project, backends)
        return bool(backends)

    def _confirm(self, project: int, agenda: Agenda) -> None:
        agenda.confirm_at = None
        known = self._store.projects.find(project)
        if known is None or not known.version:
            return
        confirm_answers(self._store, self._clients.of(project), project, known.version)
        if self._store.deliveries(project, known.version).answered():
            agenda.confirm_at = time.monotonic() + CONFIRM_PAUSE
        agenda.push_at = sooner(agenda.push_at, time.monotonic())

    def _push(self, project: int, agenda: Agenda) -> None:
        agenda.push_at = None
        if self._demand is not None and self._demand.limit is not None:
            return
        known = self._store.projects.find(project)
        if known is None or known.reference_key is None:
            return
        client = self._clients.of(project)
        settings = known_settings(self._store, self._settings, project)
        pushed = push_finished(self._store, client, project, known.version, settings.push_batch, settings.answer_lease)
        if pushed:
            log.info("Project %d: %d predictions are in Label Studio.", project, pushed)
        deliveries = self._store.deliveries(project, known.version)
        if deliveries.are_waiting():
            agenda.push_at = time.monotonic() + max(settings.push_interval, 0.05)
        elif deliveries.are_complete():
            if settings.project_version == "follow" and known.version != known.shown_version:
                show_version(self._store, client, project, known.version)
            if settings.old_predictions == "remove":
                remove_superseded(self._store, client, project, known.version)
        self.notify()

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
        """The project is gone, or the key may not see it."""
        if self._store.projects.find(project) is not None:
            log.warning("Project %d is forgotten: %s", project, error)
            self._store.projects.forget(project)
        del self._agendas[project]
        self._looked[project] += 1
        self.notify()

    def _put_off(self, project: int, agenda: Agenda, error: str) -> None:
        pause = AWAY_PAUSES[min(agenda.failures, len(AWAY_PAUSES) - 1)]
        first = agenda.failures == 0
        agenda.failures += 1
        agenda.look_at = time.monotonic() + pause
        agenda.touched.clear()  # the next look sees them as well
        agenda.settle_at = agenda.push_at = agenda.confirm_at = None
        self._looked[project] += 1
        self.notify()
        # last, for the ledger itself may be the trouble
        known = self._store.projects.find(project)
        if first or (known is not None and known.error != error):
            log.warning("Project %d: %s", project, error)
        self._store.projects.set_error(project, error)

    @contextmanager
    def _while_listing(self, project: int, *, asks_meanwhile: bool) -> Iterator[None]:
        """Have /predict answer at once while we list the tasks of a project that predicts automatically.

        Label Studio then asks us for predictions before it answers us, so waiting for each other would be for nothing.
        """
        if not asks_meanwhile:
            yield
            return
        self._listing.add(project)
        self.notify()
        try:
            yield
        finally:
            self._listing.discard(project)


def _told(references: References) -> str:
    """What is learned from, for the log."""
    told = [f"annotation {one.annotation} on task {one.task}" for one in references.annotations]
    if len(told) == 1:
        return f"{told[0]} is the reference"
    among = f"the {references.shots} most similar to a task" if references.shots else "all"
    return f"{len(told)} annotations are the reference, {among} at a time: {', '.join(told)}"
