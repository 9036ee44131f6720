"""The backend at work: one coordinator thread for Label Studio, one worker thread for the lane, and what HTTP asks.

The threads share the ledger and nothing else; HTTP threads read it, wait for it, and leave notes for the coordinator.
"""

from __future__ import annotations

import fcntl
import logging
import queue
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from backend.delivery import confirm_answers, prediction_text, push_finished, remove_duplicates, remove_superseded
from backend.errors import (
    BackendError,
    DataFolderBusy,
    InvalidRequest,
    LabelStudioDenied,
    LabelStudioError,
    LabelStudioNotFound,
    LedgerError,
)
from backend.events import Note, read_event, webhook_notes
from backend.execution.process import CAVSAM, LaneProcess, LaneSpec
from backend.execution.worker import Hooks, Worker
from backend.images import ImageFolder
from backend.label_config import parse_label_config
from backend.label_studio import LabelStudio
from backend.ledger import Ledger, Project
from backend.reconcile import (
    REQUESTED,
    ensure_webhook,
    known_config,
    queue_tasks,
    read_annotations,
    read_tasks,
    resolve_reference,
    store_project,
    unqueued_tasks,
    why_no_reference,
)
from backend.settings import Settings
from backend.version import base_version, model_version

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
FAILED_PAUSE = 60.0
LOOKUP_TIMEOUT = 5.0
REFERENCE_PATIENCE = 15.0
UNREAD_LIMIT = 64_000_000
"""Bytes of large events that may wait to be read."""


@dataclass(frozen=True)
class Demand:
    """Work on one project only, whether or not it is connected; with a `limit`, on so many tasks, and push nothing."""

    project: int
    limit: int | None = None


@dataclass
class _Agenda:
    """What the coordinator has in mind for one project; times are of the monotonic clock."""

    look_at: float | None = None
    looked_at: float | None = None
    look_took: float = 0.0
    touched: dict[int, tuple[frozenset[int], int, float]] = field(default_factory=dict)
    settle_at: float | None = None
    pending_key: str | None = None
    push_at: float | None = None
    confirm_at: float | None = None
    failures: int = 0
    unconnected: int = 0
    webhook_seen_to: bool = False


class Service:
    """One backend; `start` it in the process that answers HTTP, after any fork."""

    def __init__(self, settings: Settings, *, segmenter: str = CAVSAM, demand: Demand | None = None):
        self.settings = settings
        self._demand = demand
        self.base_version = base_version(settings)
        sources = settings.sources()
        self.trial_models = sources.is_nano
        self._folder_lock = _locked(settings)
        self.ledger = Ledger(settings.data_dir / "ledger.sqlite3")
        options = {
            "sources": asdict(sources),
            "recipe": settings.method().to_dict(),
            "device": settings.device,
        }
        self.lane = LaneProcess(LaneSpec(segmenter, options, settings.log_level))
        images = ImageFolder(settings.data_dir / "images", int(settings.max_image_mb * 1e6))
        self.worker = Worker(self.ledger, self.lane, images, Hooks(self.client, self._finished, self._refused))
        self._notes: queue.SimpleQueue[Note | bytes | None] = queue.SimpleQueue()
        self._agendas: dict[int, _Agenda] = {}
        self._looked: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._unread = 0
        self._stopping = threading.Event()
        self._stopped = False
        # however many tasks are opened at once, some threads stay free to answer /health and /setup in time
        self._waiters = threading.BoundedSemaphore(max(1, settings.threads // 2))
        self._listing: set[int] = set()
        self._unreleased: deque[tuple[int, str]] = deque()  # project and owner of reservations
        self._granted = self.ledger.grants()  # project -> address and token that /setup handed over
        self._clients: dict[tuple[str, str, str], LabelStudio] = {}
        self._clients_lock = threading.Lock()
        self._thread = threading.Thread(target=self._coordinate, name="coordinator", daemon=True)

    # life

    def start(self) -> None:
        """Go on where the last process stopped."""
        requeued = self.ledger.recover(self.settings.answer_lease)
        if requeued:
            log.info("%d tasks that were in work when the backend stopped are queued again.", requeued)
        for project in self.ledger.projects():
            version = model_version(self.base_version, project.reference_key)
            if version != project.version:
                self.ledger.set_version(project.id, version)
            if self._demand is None:
                self._notes.put(Note(project.id))
        if self._demand is not None:
            self._notes.put(Note(self._demand.project))
        if self.trial_models:
            log.warning("The bundled nano models are for trying out only; set CAVSAM_MODEL=default for real work.")
        self._thread.start()
        self.worker.start()

    def begin_stop(self) -> None:
        """Have open /predict requests answer now; safe in a signal handler."""
        self._stopping.set()

    def stop(self) -> None:
        """End the lane and the threads; open /predict requests answer with what is finished."""
        self.begin_stop()
        if self._stopped:
            return
        self._stopped = True
        self._notes.put(None)
        self._notify()
        self.worker.stop()
        if self._thread.is_alive():
            self._thread.join(5.0)
        if not self._thread.is_alive() and not self.worker.is_alive:
            self.ledger.close()  # else a call to Label Studio is still waited for, and ends with the process
        self._folder_lock.close()

    # what HTTP asks

    def setup(self, project: int, hostname: str, token: str) -> str:
        """Take note of a project that Label Studio connects, and name the present version."""
        if hostname and token:
            with self._clients_lock:
                self._granted[project] = (hostname, token)
        self._notes.put(Note(project, "seen"))
        return self.version_of(project)

    def version_of(self, project: int) -> str:
        """The version that predictions for the project carry now."""
        known = self.ledger.project(project)
        return known.version if known and known.version else self.base_version

    def versions(self) -> list[str]:
        """All versions there are predictions of."""
        return self.ledger.versions() or [self.base_version]

    def note(self, note: Note) -> None:
        """Have the coordinator look at something; returns at once."""
        self._notes.put(note)

    def take_event(self, event: Mapping[str, Any]) -> None:
        """Take note of what a webhook's event says; without a project in it, of everything."""
        log.info("Webhook %s.", str(event.get("action"))[:60])
        notes = webhook_notes(event)
        for note in notes:
            self._notes.put(note)
        if not notes:
            self.note_all()

    def note_event(self, raw: bytes) -> None:
        """Have a large event read by the coordinator; returns at once.

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

    def note_all(self) -> None:
        """Have the coordinator look at every known project."""
        for project in self.ledger.projects():
            self._notes.put(Note(project.id))

    def predict(self, project: int, tasks: Sequence[int]) -> list[str]:
        """One JSON text per task, in order: a prediction, or `[]` where Label Studio shall store nothing now.

        What is not finished is queued before all others and waited for until the deadline. A result that is given
        here is not pushed, and one that is pushed is not given here.
        """
        if not tasks:
            return []
        owner = uuid.uuid4().hex
        waits = self._waiters.acquire(blocking=False)
        deadline = time.monotonic() + (self.settings.predict_deadline if waits else 0.0)
        try:
            version = self._await_reference(project, tasks, deadline)
            if version is None:
                return ["[]"] * len(tasks)
            self._request(project, version, tasks)
            mine = self._reserve(project, version, tasks, owner)
            self._await_results(project, version, mine, deadline)
            if self.version_of(project) != version:
                log.info("Project %d: the reference changed while /predict waited; nothing is answered.", project)
                return ["[]"] * len(tasks)
            return self._answer(project, version, tasks, mine, owner)
        finally:
            if waits:
                self._waiters.release()
            self._release(project, owner)

    def _release(self, project: int, owner: str) -> None:
        """Let go of what a request reserved and did not give."""
        try:
            released = self.ledger.release(owner)
        except LedgerError:
            self._unreleased.append((project, owner))  # the coordinator does it once the ledger can be written
            raise
        if released:
            self._finished(project, 0)

    def status(self) -> dict[str, Any]:
        """What the backend is doing, JSON-ready and without secrets."""
        work = asdict(self.worker.activity)
        del work["since"]
        return {"work": work, "projects": [self._project_status(project) for project in self.ledger.projects()]}

    def task_states(self, project: int) -> list[dict[str, Any]]:
        """What became of each task under the present version, those that failed first."""
        jobs = self.ledger.jobs(project, self.version_of(project)).values()
        ordered = sorted(jobs, key=lambda job: (job.state != "failed", job.task))
        return [
            {
                "task": job.task,
                "state": "delivered" if job.state == "done" and job.delivery == "delivered" else job.state,
                "score": job.score,
                "seconds": job.seconds,
                "error": job.error,
            }
            for job in ordered
        ]

    def _project_status(self, project: Project) -> dict[str, Any]:
        reference = self.ledger.reference(project.id)
        jobs = self.ledger.counts(project.id, project.version)
        config = known_config(self.ledger, project.id)
        waiting = jobs["queued"] + jobs["running"]
        mean = self.ledger.mean_seconds(project.id, project.version)
        return {
            "id": project.id,
            "title": project.title,
            "version": project.version,
            "reference": {"annotation": reference.annotation, "task": reference.task} if reference else None,
            "why_no_reference": None if reference else why_no_reference(self.ledger.candidates(project.id)),
            "error": project.error,
            "notices": list(config.notices) if config else [],
            "jobs": jobs,
            "total": waiting + jobs["done"] + jobs["failed"],
            "over": jobs["done"] + jobs["failed"],
            "seconds_left": None if mean is None or not waiting else round(mean * waiting, 1),
        }

    # /predict, step by step

    def _await_reference(self, project: int, tasks: Sequence[int], deadline: float) -> str | None:
        """The present version, once the project has a reference and the tasks are known."""
        self._notes.put(Note(project, "seen"))
        patience = min(deadline, time.monotonic() + REFERENCE_PATIENCE)
        looks_before: int | None = None
        while True:
            known, reference = self.ledger.project(project), self.ledger.reference(project)
            unknown = [task for task in tasks if self.ledger.task(project, task) is None]
            looks = self.looks(project)
            if known is not None and reference is not None and not unknown:
                return known.version
            if looks and not unknown:
                break
            if looks and looks_before is None:
                looks_before = looks
                self._notes.put(Note(project))  # tasks that came after the last look
            if looks_before is not None and looks > looks_before:
                break
            if self._stopping.is_set() or time.monotonic() >= patience or project in self._listing:
                break
            self._wait(min(patience, time.monotonic() + 1.0))
        if known is not None and reference is not None:
            return known.version
        why = (known.error if known else None) or why_no_reference(self.ledger.candidates(project))
        log.info("Project %d: nothing to answer to /predict yet. %s", project, why)
        return None

    def looks(self, project: int) -> int:
        """How many times the coordinator has looked at a project, or tried to."""
        return self._looked[project]

    def _request(self, project: int, version: str, tasks: Sequence[int]) -> None:
        """Have these tasks done next, those that failed a while ago once more."""
        reference = self.ledger.reference(project)
        wanted = [
            task
            for task in dict.fromkeys(tasks)
            if self.ledger.task(project, task) is not None and (reference is None or task != reference.task)
        ]
        self.ledger.queue(project, version, wanted, priority=REQUESTED)
        self.ledger.raise_priority(project, version, wanted, REQUESTED)
        self.ledger.retry_failed(project, version, wanted, older_than=FAILED_PAUSE)
        self.worker.wake()

    def _reserve(self, project: int, version: str, tasks: Sequence[int], owner: str) -> set[int]:
        """The tasks whose result this request may give."""
        jobs = self.ledger.jobs(project, version, tasks)
        delivered = [task for task, job in jobs.items() if job.delivery == "delivered"]
        if delivered:
            # Label Studio asks for what it was given: either it asked before that was stored, or it was deleted there
            try:
                there = self.client(project).tasks_with_prediction(
                    project, version, between=(min(delivered), max(delivered)), timeout=LOOKUP_TIMEOUT
                )
            except LabelStudioError as error:
                log.warning("Project %d: cannot look up what Label Studio has stored. %s", project, error)
            else:
                self.ledger.mark_open(project, version, [task for task in delivered if task not in there])
                self.worker.wake()
        return self.ledger.reserve(project, version, tasks, owner)

    def _await_results(self, project: int, version: str, tasks: set[int], deadline: float) -> None:
        """Wait until the reserved tasks are over, or nothing more can be finished before the deadline."""
        while not self._stopping.is_set() and project not in self._listing:
            jobs = self.ledger.jobs(project, version, tasks)
            if not any(job.state in ("queued", "running") for job in jobs.values()):
                return
            if self.version_of(project) != version or time.monotonic() >= deadline:
                return
            if self.worker.activity.state == "no model":
                log.info("Project %d: /predict cannot wait. %s", project, self.worker.activity.error)
                return
            if time.monotonic() + self._seconds_to_next_result(project, version, tasks) > deadline:
                return  # a person opening a task must not wait for what cannot come
            self._wait(min(deadline, time.monotonic() + 1.0))

    def _seconds_to_next_result(self, project: int, version: str, tasks: set[int]) -> float:
        """An estimate of when the first of some tasks is finished; 0 where there is nothing to go by."""
        mean = self.ledger.mean_seconds(project, version)
        if mean is None:
            return 0.0
        activity = self.worker.activity
        if activity.task is None:
            return mean
        left = max(0.0, mean - (time.monotonic() - activity.since))
        return left if activity.project == project and activity.task in tasks else left + mean

    def _answer(self, project: int, version: str, tasks: Sequence[int], mine: set[int], owner: str) -> list[str]:
        limit = int(self.settings.max_answer_mb * 1e6)
        answers: list[str] = []
        size = 0
        given = 0
        for task in tasks:
            text = "[]"
            if task in mine and size < limit:
                found = self.ledger.answer(project, version, [task], owner, self.settings.answer_lease)
                if task in found:
                    text = prediction_text(found[task], with_task=False)
                    size += len(text)
                    given += 1
            answers.append(text)
        log.info("Project %d: /predict asked for %d tasks, answered %d.", project, len(tasks), given)
        if given:
            self._notes.put(Note(project, "seen"))
        return answers

    def _wait(self, until: float) -> None:
        with self._changed:
            self._changed.wait(max(0.0, until - time.monotonic()))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # what the worker tells

    def client(self, project: int) -> LabelStudio:
        """A connection for a project; raises `LabelStudioDenied` where there is no address or key for one."""
        settings = self.settings
        with self._clients_lock:
            hostname, token = self._granted.get(project, ("", ""))
            url = settings.label_studio_url or hostname
            key = settings.label_studio_api_key or token
            if not url or not key:
                raise LabelStudioDenied(
                    "The backend has no address or key of Label Studio; set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY."
                )
            identity = (url, key, hostname)
            if identity not in self._clients:
                self._clients[identity] = LabelStudio(url, key, timeout=settings.api_timeout, public_url=hostname)
            return self._clients[identity]

    def _finished(self, project: int, task: int) -> None:
        self._notes.put(Note(project, "finished"))
        self._notify()

    def _refused(self, project: int) -> None:
        """The reference taught nothing: go on without one until the coordinator has chosen anew."""
        self.ledger.set_reference(project, self.base_version, None)
        self._notes.put(Note(project))

    # the coordinator

    def _coordinate(self) -> None:
        recover = False
        while not self._stopping.is_set():
            try:
                if recover:
                    self.ledger.settle_pushing(self.settings.answer_lease)
                    recover = False
                while self._unreleased:
                    project, owner = self._unreleased[0]
                    self.ledger.release(owner)
                    self._unreleased.popleft()
                    self._notes.put(Note(project, "finished"))
                self._coordinate_once()
            except LedgerError as error:
                # the thread must outlive a full disk; what is due stays due
                log.error("%s Trying again in %.0f s.", error, self.worker.ledger_pause)
                self._stopping.wait(self.worker.ledger_pause)
                recover = True

    def _coordinate_once(self) -> None:
        try:
            note = self._notes.get(timeout=self._pause())
        except queue.Empty:
            note = None
        while note is not None:
            self._take(note) if isinstance(note, Note) else self._read(note)
            try:
                note = self._notes.get_nowait()
            except queue.Empty:
                note = None
        for project in list(self._agendas):
            if self._stopping.is_set():
                return
            self._attend(project)

    def _pause(self) -> float:
        times = [t for agenda in self._agendas.values() for t in _due_times(agenda)]
        return max(0.0, min([*times, time.monotonic() + 30.0]) - time.monotonic())

    def _read(self, raw: bytes) -> None:
        with self._changed:
            self._unread -= len(raw)
        try:
            self.take_event(read_event(raw))
        except InvalidRequest as error:
            log.warning("A webhook of %d bytes cannot be read. %s", len(raw), error)

    def _take(self, note: Note) -> None:
        agenda = self._agendas.setdefault(note.project, _Agenda())
        now = time.monotonic()
        if note.kind == "finished":
            agenda.push_at = _sooner(agenda.push_at, now + self.settings.push_interval)
        elif note.kind == "touched":
            for task in note.tasks:
                expected = note.annotations | agenda.touched.get(task, (frozenset(), 0, 0.0))[0]
                agenda.touched[task] = (expected, 0, now)
        elif note.kind == "changed":
            first = agenda.looked_at is None
            agenda.look_at = _sooner(agenda.look_at, now if first else now + SETTLE_PAUSE)
        else:
            agenda.confirm_at = _sooner(agenda.confirm_at, now + CONFIRM_PAUSE)
            if agenda.looked_at is None or now >= agenda.looked_at + max(LOOK_PAUSE, LOOK_SHARE * agenda.look_took):
                agenda.look_at = _sooner(agenda.look_at, now)

    def _attend(self, project: int) -> None:
        """Do what is due for one project; trouble with Label Studio puts it off."""
        agenda = self._agendas[project]
        try:
            if _due(agenda.look_at):
                self._look(project, agenda)
            for task, (expected, tries, when) in list(agenda.touched.items()):
                if _due(when):
                    self._look_at_task(project, agenda, task, expected, tries)
            if _due(agenda.settle_at):
                agenda.settle_at = None
                self._settle(project, agenda)
            if _due(agenda.confirm_at):
                self._confirm(project, agenda)
            if _due(agenda.push_at):
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

    def _look(self, project: int, agenda: _Agenda) -> None:
        """Compare the whole project with the ledger."""
        started = time.monotonic()
        agenda.look_at = None
        client = self.client(project)
        found = client.project(project)
        known = store_project(self.ledger, project, found, self.base_version)
        granted = self._granted.get(project)
        if granted is not None and granted != self.ledger.grants().get(project):
            self.ledger.set_grant(project, *granted)
        config = parse_label_config(str(found.get("label_config") or ""))
        with self._while_listing(project, asks_meanwhile=bool(found.get("evaluate_predictions_automatically"))):
            counts = read_tasks(self.ledger, client, project, config)
        agenda.touched.clear()
        self._settle(project, agenda)
        remove_duplicates(self.ledger, client, project, counts)
        self.ledger.mark_reconciled(project)
        if self.ledger.has_deliveries(project):
            agenda.push_at = _sooner(agenda.push_at, time.monotonic())
            agenda.confirm_at = _sooner(agenda.confirm_at, time.monotonic())
        agenda.looked_at = time.monotonic()
        agenda.look_took = agenda.looked_at - started
        self._looked[project] += 1
        pause = max(self.settings.reconcile_interval, agenda.look_took * LOOK_SHARE / 4)
        agenda.look_at = _sooner(agenda.look_at, agenda.looked_at + pause)
        if known.error:
            log.info("Project %d: Label Studio answers again.", project)
        self._notify()

    def _look_at_task(self, project: int, agenda: _Agenda, task: int, expected: frozenset[int], tries: int) -> None:
        """Judge one task's annotations again; one that an event named may not be committed yet."""
        config = known_config(self.ledger, project)
        if agenda.looked_at is None or config is None or self.ledger.task(project, task) is None:
            agenda.touched.pop(task, None)
            agenda.look_at = time.monotonic()
            return
        found = read_annotations(self.ledger, self.client(project), project, task, config)
        missing = expected - {candidate.annotation for candidate in found}
        if missing and tries < len(FOLLOW_UP_PAUSES):
            agenda.touched[task] = (missing, tries + 1, time.monotonic() + FOLLOW_UP_PAUSES[tries])
        else:
            agenda.touched.pop(task, None)
        self._settle(project, agenda)

    def _settle(self, project: int, agenda: _Agenda) -> None:
        """Choose the reference, and queue what it is missing; a *changed* reference waits for the quiet period."""
        known = self.ledger.project(project)
        config = known_config(self.ledger, project)
        if known is None or config is None:
            return
        client = self.client(project)
        chosen = resolve_reference(self.ledger, client, known, config)
        key = chosen.key if chosen else None
        version = model_version(self.base_version, key)
        if (key, version) != (known.reference_key, known.version):
            if known.reference_key is not None and self.settings.quiet_period > 0:
                if agenda.pending_key != (key or "none"):
                    agenda.pending_key = key or "none"
                    agenda.settle_at = time.monotonic() + self.settings.quiet_period
                    return
                if agenda.settle_at is not None and not _due(agenda.settle_at):
                    return
            self.ledger.set_reference(project, version, chosen)
            if chosen is not None:
                log.info(
                    "Project %d: annotation %d on task %d is the reference; version %s.",
                    project,
                    chosen.annotation,
                    chosen.task,
                    version,
                )
            elif known.reference_key is not None:
                log.info("Project %d: there is no reference any more.", project)
        agenda.pending_key = agenda.settle_at = None
        if chosen is None:
            return
        if unqueued_tasks(self.ledger, project, version, chosen):
            self._queue(project, agenda, client, version)

    def _queue(self, project: int, agenda: _Agenda, client: LabelStudio, version: str) -> None:
        """Queue the tasks that are missing under the present version, unless Label Studio has them or left us."""
        reference = self.ledger.reference(project)
        if reference is None:
            return
        if self._demand is None and not self._is_connected(project, agenda, client):
            if agenda.unconnected < len(CONNECT_PAUSES):
                pause = CONNECT_PAUSES[agenda.unconnected]
                agenda.look_at = _sooner(agenda.look_at, time.monotonic() + pause)
            if agenda.unconnected == 0:
                log.info("Project %d has no machine learning backend connected (yet); nothing is queued.", project)
            agenda.unconnected += 1
            return
        agenda.unconnected = 0
        self.ledger.mark_delivered(project, version, client.tasks_with_prediction(project, version))
        queued = queue_tasks(self.ledger, project, version, reference, self._demand.limit if self._demand else None)
        if queued:
            log.info("Project %d: %d tasks are queued.", project, queued)
            self.worker.wake()
        self._notify()

    def _is_connected(self, project: int, agenda: _Agenda, client: LabelStudio) -> bool:
        """Whether Label Studio still has a backend for the project; its webhook is seen to once."""
        try:
            backends = client.backends(project)
        except LabelStudioDenied:
            return True  # a key that may label but not administrate cannot ask
        if backends and not agenda.webhook_seen_to:
            agenda.webhook_seen_to = True
            ensure_webhook(client, project, backends)
        return bool(backends)

    def _confirm(self, project: int, agenda: _Agenda) -> None:
        agenda.confirm_at = None
        known = self.ledger.project(project)
        if known is None or not known.version:
            return
        confirm_answers(self.ledger, self.client(project), project, known.version)
        if self.ledger.answered(project, known.version):
            agenda.confirm_at = time.monotonic() + CONFIRM_PAUSE
        agenda.push_at = _sooner(agenda.push_at, time.monotonic())

    def _push(self, project: int, agenda: _Agenda) -> None:
        agenda.push_at = None
        if self._demand is not None and self._demand.limit is not None:
            return
        known = self.ledger.project(project)
        if known is None or known.reference_key is None:
            return
        settings = self.settings
        pushed = push_finished(
            self.ledger, self.client(project), project, known.version, settings.push_batch, settings.answer_lease
        )
        if pushed:
            log.info("Project %d: %d predictions are in Label Studio.", project, pushed)
        if self.ledger.has_deliveries(project):
            agenda.push_at = time.monotonic() + max(settings.push_interval, 0.05)
        elif settings.old_predictions == "remove":
            remove_superseded(self.ledger, self.client(project), project)
        self._notify()

    def _is_gone(self, project: int) -> bool:
        """Whether it is the project that was not found, and not something in it."""
        try:
            self.client(project).project(project)
        except LabelStudioNotFound:
            return True
        except LabelStudioError:
            return False
        return False

    def _drop(self, project: int, error: str) -> None:
        """The project is gone, or the key may not see it."""
        if self.ledger.project(project) is not None:
            log.warning("Project %d is forgotten: %s", project, error)
            self.ledger.forget_project(project)
        del self._agendas[project]
        self._looked[project] += 1
        self._notify()

    def _put_off(self, project: int, agenda: _Agenda, error: str) -> None:
        pause = AWAY_PAUSES[min(agenda.failures, len(AWAY_PAUSES) - 1)]
        first = agenda.failures == 0
        agenda.failures += 1
        agenda.look_at = time.monotonic() + pause
        agenda.touched.clear()  # the next look sees them as well
        agenda.settle_at = agenda.push_at = agenda.confirm_at = None
        self._looked[project] += 1
        self._notify()
        # last, for the ledger itself may be the trouble
        known = self.ledger.project(project)
        if first or (known is not None and known.error != error):
            log.warning("Project %d: %s", project, error)
        self.ledger.set_project_error(project, error)

    @contextmanager
    def _while_listing(self, project: int, *, asks_meanwhile: bool) -> Iterator[None]:
        """Have /predict answer at once while we list the tasks of a project that predicts automatically.

        Label Studio then asks us for predictions before it answers us, so waiting for each other would be for nothing.
        """
        if not asks_meanwhile:
            yield
            return
        self._listing.add(project)
        self._notify()
        try:
            yield
        finally:
            self._listing.discard(project)


def _locked(settings: Settings) -> Any:
    """An open file that keeps a second backend out of the data folder."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        file = (settings.data_dir / "lock").open("a")
    except OSError as error:
        raise BackendError(
            f"The folder {settings.data_dir} cannot be written ({error.strerror}); set CAVSAM_DATA_DIR to one that can."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise DataFolderBusy(
            f"Another backend works with {settings.data_dir}; stop it, run only one worker process, or set another "
            "CAVSAM_DATA_DIR."
        ) from error
    return file


def _due(moment: float | None) -> bool:
    return moment is not None and time.monotonic() >= moment


def _sooner(moment: float | None, other: float) -> float:
    return other if moment is None else min(moment, other)


def _due_times(agenda: _Agenda) -> list[float]:
    moments = [agenda.look_at, agenda.settle_at, agenda.push_at, agenda.confirm_at]
    moments += [when for _, _, when in agenda.touched.values()]
    return [moment for moment in moments if moment is not None]
