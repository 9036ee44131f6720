"""The backend at work: a thread for Label Studio, a thread for the model process, and what HTTP asks of them.

The threads share the ledger, the connections to Label Studio, and what the worker says of its job (`Worker.activity`).
Those that answer HTTP read the ledger, reserve and answer results in it, wait for the others, and leave events for the
coordinator.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import asdict, replace
from typing import IO, Any

from backend.clients import Clients
from backend.entities import REQUESTED
from backend.errors import (
    BackendError,
    DataFolderBusy,
    LabelStudioDenied,
    LabelStudioError,
    LedgerDamaged,
    LedgerError,
    NotKnown,
)
from backend.image_folder import ImageFolder
from backend.labelstudio.events import Event
from backend.labelstudio.project_keys import may_be_of
from backend.settings import Settings
from backend.store.store import Store
from backend.supervision import EndProcess, LastingThread, end_process
from backend.sync.connection import extra_params_text
from backend.sync.coordinator import Coordinator
from backend.sync.delivery import prediction_text
from backend.sync.introductions import Introductions, Offer
from backend.sync.policy import why_no_reference
from backend.sync.reachability import Reachability
from backend.sync.rebuild import have_projects_named
from backend.sync.reviews import forget_lesson
from backend.version import base_of, base_version, model_version, taught_version
from backend.webhook_secret import with_webhook_secret
from backend.worker.interactive import Interactive
from backend.worker.messages import ModelSpec
from backend.worker.model_process import CAVSAM, CLICKS, DRAWING, DRAWINGS, SAM2, ModelProcess
from backend.worker.worker import Hooks, Worker

log = logging.getLogger(__name__)

FAILED_PAUSE = 60.0
LOOKUP_TIMEOUT = 5.0
NOT_SAID: Any = object()
DRAWING_MEMORY = 4_000_000_000
"""Bytes of address space that the drawing process may take."""
REFERENCE_PATIENCE = 15.0


class Service:
    """One backend; `start` it in the process that answers HTTP, after any fork."""

    def __init__(self, settings: Settings, *, segmenter: str = CAVSAM, give_up: EndProcess = end_process):
        self._folder_lock = lock_data_folder(settings)
        self.settings = settings = with_webhook_secret(settings)
        self.base_version = base_version(settings)
        self.trial_models = settings.sources().is_nano
        self.store = Store.of(settings)
        self.model_process = ModelProcess(model_spec(settings, segmenter), self._models_loaded)
        self.clients = Clients(settings, self.store)
        self.interactive = Interactive(
            self.store,
            self.clients,
            ImageFolder(settings.data_dir / "clicked", int(settings.max_image_mb * 1e6)),
            ModelProcess(replace(model_spec(settings, SAM2), runner=CLICKS)),
            most_at_once=max(2, settings.threads // 4),
            give_up=give_up,
        )
        self.coordinator = Coordinator(
            settings,
            self.store,
            self.clients,
            self.base_version,
            wake=lambda: self.worker.wake(),
            introduce=lambda number: self.introductions.ask(Offer(number)),
            give_up=give_up,
        )
        self.introductions = Introductions(self.store, self.clients, self.coordinator.seen)
        hooks = Hooks(
            self.clients.of,
            self.coordinator.finished,
            self.coordinator.refused,
            lambda project: self.store.projects.settings(project, settings).review_below,
        )
        self.worker = Worker(self.store, self.model_process, image_folder(settings), hooks, give_up=give_up)
        self.reachability = Reachability(self.clients.in_use)
        self._asking = LastingThread("reachability", self._ask, self.coordinator.stopping, give_up=give_up)
        self.drawing = ModelProcess(
            ModelSpec(DRAWING, {"memory": DRAWING_MEMORY}, settings.log_level, DRAWINGS, settings.log_format)
        )
        self._started = self._stopped = False
        # however many tasks are opened at once, some threads stay free to answer /setup and /webhook in time
        self._waiters = threading.BoundedSemaphore(max(1, settings.threads // 2))

    # life

    def start(self) -> None:
        """Go on where the last process stopped."""
        with suppress(LedgerDamaged):  # found only now; the empty one that took its place has nothing to go on with
            resume(self.store, self.settings, self.base_version)
        if self.trial_models:
            log.warning("The bundled nano models are for trying out only; set CAVSAM_MODEL=default for real work.")
        self.coordinator.start()
        self.worker.start()
        self._asking.start()
        self._started = True

    def begin_stop(self) -> None:
        """Have open /predict requests answer now; safe in a signal handler."""
        self.coordinator.begin_stop()

    def stop(self) -> None:
        """End the model process and the threads; open /predict requests answer with what is finished."""
        self.begin_stop()
        if self._stopped:
            return
        self._stopped = True
        self.coordinator.notify()
        self.introductions.stop()
        self.interactive.stop()
        self.drawing.stop()
        self.worker.stop()
        if self.coordinator.stop() and not self.worker.thread.is_alive:
            self.store.close()  # else a call to Label Studio is still waited for, and ends with the process
        self._folder_lock.close()

    def _models_loaded(self) -> None:
        """Name the version anew: only now it is sure what the hub's weights hold, which loading may have fetched."""
        try:
            present = base_version(self.settings)
            if present == self.base_version:
                return
            log.info("The weights were fetched: the model version is %s now, not %s.", present, self.base_version)
            self.base_version = present
            self.coordinator.models_changed(present)
            adopt_version(self.store, present)  # at once, so that no job of the former one is begun
        except BackendError as error:
            log.warning("The model version stays as it is. %s", error)

    # what HTTP asks

    def threads(self) -> list[LastingThread]:
        """The threads at work beside those that answer HTTP."""
        return [self.coordinator.thread, self.worker.thread, self._asking, self.interactive.thread]

    def _ask(self) -> None:
        while not self.coordinator.is_stopping:
            pause = self.reachability.ask()
            with suppress(LedgerError):  # the coordinator meets it, too
                self._rebuild()
            self.coordinator.stopping.wait(pause)

    def _rebuild(self) -> None:
        """Fill a store that took a damaged one's place, as far as Label Studio can be reached."""
        if self.store.damaged_file is None or self.reachability.trouble:
            return
        try:
            for connection in set(self.clients.in_use().values()):
                have_projects_named(connection)
        except LabelStudioError as error:
            log.warning("The projects of the damaged ledger are looked for again later. %s", error)
        else:
            self.store.mark_rebuilt()

    def dead_threads(self) -> list[str]:
        """The threads that should be at work and have ended, by name; empty as long as all is well."""
        if not self._started or self.coordinator.is_stopping:
            return []
        return [thread.name for thread in self.threads() if thread.has_ended]

    def setup(self, number: int, hostname: str, token: str, extra_params: Any = NOT_SAID) -> str:
        """Take note of a project that Label Studio connects, and name the present version.

        `extra_params` are settings of this project alone, see `Settings.for_project`; they stay as they are if the
        caller does not say.

        Raises:
            LabelStudioDenied: the key was not taken when it was tried last, so nothing can be predicted.
        """
        said = None if extra_params is NOT_SAID else extra_params_text(extra_params)
        project = self.introductions.take(Offer(number, hostname, token, said))
        refusal = self.reachability.refusal(number if project is None else project)
        if refusal:
            raise LabelStudioDenied(refusal)
        return self.base_version if project is None else self.version_of(project)

    def project_of(self, number: int, created: int | None) -> int:
        """The key of the project that a call means: that of its `number` which was made at the second `created`.

        Raises:
            NotKnown: there is one of that number, and it is another.
        """
        alike = self.store.projects.of_number(number)
        for project, uid in alike.items():
            if may_be_of(uid, created):
                return project
        for project in alike:
            self.coordinator.send(Event(project, doubtful=True))  # Label Studio may have been set up afresh
        if alike:
            raise NotKnown(
                f"The backend knows a project {number}, but of another Label Studio or time; connect this one "
                "under Settings, Model."
            )
        return number

    def version_of(self, project: int) -> str:
        """The version that predictions for the project carry now, with what was learned."""
        version = self._version(project)
        lesson = self.store.learning(project).lesson(base_of(version))
        return taught_version(version, lesson.name if lesson else "")

    def _version(self, project: int) -> str:
        """The version that the project's jobs have now."""
        known = self.store.projects.find(project)
        return known.version if known and known.version else self.base_version

    def versions(self) -> list[str]:
        """All versions there are predictions of."""
        return self.store.queue.carried_versions() or [self.base_version]

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
            if waits:
                self._reopen_deleted(project, version, tasks)
            mine = self.store.deliveries(project, version).reserve(tasks, owner)
            self._await_results(project, version, mine, deadline)
            if self._version(project) != version:
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
            released = self.store.release(owner)
        except LedgerError:
            self.coordinator.release_later(project, owner)
            raise
        if released:
            self.coordinator.finished(project)

    def why_no_reference(self, project: int) -> str:
        """Why nothing can be predicted yet, for people."""
        return why_no_reference(
            self.store.annotations(project).judged(), self.store.projects.settings(project, self.settings)
        )

    # /predict, step by step

    def _await_reference(self, project: int, tasks: Sequence[int], deadline: float) -> str | None:
        """The present version, once the project has a reference and the tasks are known."""
        patience = min(deadline, time.monotonic() + REFERENCE_PATIENCE)
        if not self.store.projects.is_known(project) and not self._introduce(project, patience):
            return None
        self.coordinator.send(Event(project, "seen"))
        syncs_before: int | None = None
        while True:
            known, reference = self.store.projects.find(project), self.store.annotations(project).references()
            unknown = [task for task in tasks if self.store.tasks(project).find(task) is None]
            syncs = self.coordinator.syncs(project)
            if known is not None and reference is not None and not unknown:
                return known.version
            if syncs and not unknown:
                break
            if syncs and syncs_before is None:
                syncs_before = syncs
                self.coordinator.send(Event(project))  # tasks that came after the last sync
            if syncs_before is not None and syncs > syncs_before:
                break
            if self.coordinator.is_stopping or time.monotonic() >= patience or self.coordinator.is_listing(project):
                break
            self.coordinator.wait(min(patience, time.monotonic() + 1.0))
        if known is not None and reference is not None:
            return known.version
        why = (known.error if known else None) or self.why_no_reference(project)
        log.info("Project %d: nothing to answer to /predict yet. %s", project, why)
        return None

    def _introduce(self, number: int, until: float) -> bool:
        """Wait until a project that is not known is found to be there, or not."""
        try:
            return self.introductions.ask(Offer(number)).result(max(0.0, until - time.monotonic())) is not None
        except (TimeoutError, CancelledError):
            return False

    def _request(self, project: int, version: str, tasks: Sequence[int]) -> None:
        """Have these tasks done next, those that failed a while ago once more."""
        references = self.store.annotations(project).references()
        learned_from = references.tasks if references else frozenset()
        wanted = [
            task
            for task in dict.fromkeys(tasks)
            if self.store.tasks(project).find(task) is not None and task not in learned_from
        ]
        self.store.jobs(project, version).queue(wanted, priority=REQUESTED)
        self.store.jobs(project, version).raise_priority(wanted, REQUESTED)
        self.store.jobs(project, version).retry_failed(wanted, older_than=FAILED_PAUSE)
        self.worker.wake()

    def _reopen_deleted(self, project: int, version: str, tasks: Sequence[int]) -> None:
        """Have given again what Label Studio was given, and asks for because it was deleted there.

        It may also have asked before what it was given was stored. The look-up takes as long as Label Studio likes, so
        only a request that may wait does it; a full sync finds the same.
        """
        jobs = self.store.jobs(project, version).all(tasks)
        delivered = [task for task, job in jobs.items() if job.delivery == "delivered"]
        if not delivered:
            return
        try:
            there = self.clients.of(project).tasks_with_prediction(
                project, version, between=(min(delivered), max(delivered)), timeout=LOOKUP_TIMEOUT
            )
        except LabelStudioError as error:
            log.warning("Project %d: cannot look up what Label Studio has stored. %s", project, error)
        else:
            self.store.deliveries(project, version).mark_open([task for task in delivered if task not in there])
            self.worker.wake()

    def _await_results(self, project: int, version: str, tasks: set[int], deadline: float) -> None:
        """Wait until the reserved tasks are over, or nothing more can be finished before the deadline."""
        while not self.coordinator.is_stopping and not self.coordinator.is_listing(project):
            jobs = self.store.jobs(project, version).all(tasks)
            if not any(job.state in ("queued", "running") for job in jobs.values()):
                return
            if self._version(project) != version or time.monotonic() >= deadline:
                return
            if self.store.projects.is_paused(project):
                log.info("Project %d is paused: /predict does not wait.", project)
                return
            if self.worker.activity.state == "no model":
                log.info("Project %d: /predict cannot wait. %s", project, self.worker.activity.error)
                return
            if time.monotonic() + self._seconds_to_next_result(project, version, tasks) > deadline:
                return  # a person opening a task must not wait for what cannot come
            self.coordinator.wait(min(deadline, time.monotonic() + 1.0))

    def _seconds_to_next_result(self, project: int, version: str, tasks: set[int]) -> float:
        """An estimate of when the first of some tasks is finished; 0 where there is nothing to go by."""
        times = self.store.jobs(project, version).times()
        if times is None:
            return 0.0
        mean = times.mean
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
                found = self.store.deliveries(project, version).answer([task], owner, self.settings.answer_lease)
                if task in found:
                    text = prediction_text(found[task], with_task=False)
                    size += len(text)
                    given += 1
            answers.append(text)
        log.info("Project %d: /predict asked for %d tasks, answered %d.", project, len(tasks), given)
        if given:
            self.coordinator.send(Event(project, "seen"))
        return answers


def model_spec(settings: Settings, segmenter: str) -> ModelSpec:
    """How the model process of some settings is started."""
    options = {"sources": asdict(settings.sources()), "recipe": settings.method().to_dict(), "device": settings.device}
    return ModelSpec(segmenter, options, settings.log_level, log_format=settings.log_format)


def image_folder(settings: Settings) -> ImageFolder:
    """The copies of the images that the worker's jobs need."""
    return ImageFolder(settings.data_dir / "images", int(settings.max_image_mb * 1e6))


def resume(store: Store, settings: Settings, base_version: str) -> None:
    """Go on where the last process stopped, which may have had other models or settings."""
    requeued = store.recover(settings.answer_lease)
    if requeued:
        log.info("%d tasks that were in work when the backend stopped are queued again.", requeued)
    adopt_version(store, base_version)
    for project in store.projects.all():
        if project.settings(settings).learn == "off":
            forget_lesson(store, project)


def adopt_version(store: Store, base_version: str) -> None:
    """Have every project's references lead to another version, under which nothing is queued yet."""
    for project in store.projects.all():
        version = model_version(base_version, project.reference_key)
        if version != project.version:
            annotations = store.annotations(project.id)
            annotations.set_references(version, annotations.references())


def lock_data_folder(settings: Settings) -> IO[str]:
    """An open file that keeps a second backend out of the data folder until it is closed.

    Raises:
        DataFolderBusy: another backend works with it.
        BackendError: the folder cannot be written.
    """
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # keys and images lie in it
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
