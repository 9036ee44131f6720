"""The thread that takes jobs from the store, one after the other, and has the model process do them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from backend.entities import Job, ReferenceAnnotation, References, Refusal
from backend.errors import (
    BackendError,
    ImageNotKept,
    ImageServerFault,
    ImageUnavailable,
    LabelStudioError,
    LedgerError,
    ModelProcessDied,
    ModelProcessStopped,
    ModelUnavailable,
)
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.images import ImageFolder, name_tasks
from backend.labelstudio.label_config import LabelConfig
from backend.store.store import Store
from backend.worker.model_process import ModelProcess

log = logging.getLogger(__name__)

PROCESS_ATTEMPTS = 2
FETCH_DELAYS = (5.0, 20.0, 60.0)
AWAY_DELAY = 20.0
LEDGER_PAUSE = 10.0
REFUSAL_PAUSE = 10.0
"""Seconds that a version's jobs wait for another reference to be chosen, which drops them."""
MODEL_DELAYS = (15.0, 30.0, 60.0, 300.0)
IDLE = 30.0
CANCELLED = "The task was cancelled; retry it when it shall be predicted after all."


@dataclass(frozen=True)
class Activity:
    """What the worker is doing, for people to see."""

    state: str = "idle"
    project: int | None = None
    task: int | None = None
    step: str = ""
    done: int = 0
    total: int = 0
    error: str = ""
    since: float = 0.0
    """When the job began, on the monotonic clock."""


@dataclass(frozen=True)
class Hooks:
    """What the worker needs of the service: a client for a project, and someone to tell.

    `finished(project, task)` after each job, whatever came of it; `refused` when a reference taught nothing;
    `review_below(project)` is the score below which a region is flagged.
    """

    client: Callable[[int], LabelStudio]
    finished: Callable[[int, int], None]
    refused: Callable[[Refusal], None]
    review_below: Callable[[int], float]


class Worker:
    """Takes jobs, fetches their images, hands them to the model process, and stores what comes back."""

    def __init__(self, store: Store, process: ModelProcess, images: ImageFolder, hooks: Hooks):
        self._store, self._process, self._images, self._hooks = store, process, images, hooks
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="fetch-ahead")
        self._ahead: Future[None] | None = None
        self._model_failures = 0
        # per job and counted apart: an image that came late must not cost the task its second try in the model process
        self._fetch_failures: Counter[tuple[int, int, str]] = Counter()
        self._crashes: Counter[tuple[int, int, str]] = Counter()
        self._job: Job | None = None  # in work, and whether it was cancelled; both under the lock
        self._cancelled = threading.Event()
        self._job_lock = threading.Lock()
        self._recover = False
        self.ledger_pause = LEDGER_PAUSE
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self.activity = Activity()

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Look for jobs now."""
        self._wake.set()

    def cancel(self, project: int, task: int) -> bool:
        """Stop the job in work, if it is this task's; it counts as failed until somebody asks for it again.

        The model's process ends with it, for nothing less stops a computation that hangs; the next job loads the model.
        """
        with self._job_lock:
            if self._job is None or (self._job.project, self._job.task) != (project, task):
                return False
            self._cancelled.set()
            self._process.interrupt()
            return True

    def stop(self) -> None:
        """End the model process and the thread; the job in work goes back into the queue."""
        self._stopping.set()
        self._wake.set()
        self._process.stop()
        if self._thread.is_alive():
            self._thread.join(10.0)
        self._fetcher.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        self._load_ahead()
        while not self._stopping.is_set():
            try:
                self._work_once()
            except LedgerError as error:
                # the job stays as it is in the ledger; the thread must outlive a full disk
                log.error("%s Trying again in %.0f s.", error, self.ledger_pause)
                self.activity = Activity("no ledger", error=str(error))
                self._stopping.wait(self.ledger_pause)
                self._recover = True

    def _work_once(self) -> None:
        if self._recover:
            self._store.queue.requeue_running()
            self._recover = False
        self._wake.clear()
        job = self._store.queue.take_next()
        if job is None:
            self.activity = Activity(error=self.activity.error if self.activity.state == "no model" else "")
            pause = self._store.queue.seconds_to_next()
            self._wake.wait(IDLE if pause is None else min(pause + 0.05, IDLE))
            return
        with self._job_lock:
            self._job = job
            self._cancelled.clear()
        try:
            self._do(job)
        except LedgerError:
            raise
        except Exception as error:
            log.exception("Project %d, task %d: the job failed.", job.project, job.task)
            self._fail(job, f"The backend failed on this task ({type(error).__name__}: {error}).")
        finally:
            with self._job_lock:
                self._job = None
        self._hooks.finished(job.project, job.task)

    def _load_ahead(self) -> None:
        """Load the model before the first job, so that a missing checkpoint is known at once."""
        self.activity = Activity("loading the model")
        try:
            self._process.load(self._progress)
        except ModelUnavailable as error:
            self.activity = Activity("no model", error=str(error))
            log.error("The model cannot be loaded: %s", error)
        except ModelProcessStopped:
            return

    def _do(self, job: Job) -> None:
        self.activity = Activity("fetching", job.project, job.task, since=time.monotonic())
        references = self._store.annotations(job.project).references()
        config = self._store.projects.config(job.project)
        if references is None or config is None or not job.version.endswith(f"-r{references.key}"):
            self._store.queue.put_back(job, counts=False, delay=1.0)  # the reference changed under us
            return
        paths = self._fetch(job, references, config)
        if paths is None:
            return
        reference_images, images = paths
        self._fetch_ahead()
        examples = [
            {"annotation": one.annotation, "regions": [region.to_json() for region in one.regions], "images": shown}
            for one, shown in zip(references.annotations, reference_images, strict=True)
        ]
        request = {
            "reference": {"key": references.key, "shots": references.shots, "examples": examples},
            "images": images,
        }
        self.activity = replace(self.activity, state="working")
        try:
            answer = self._process.run(request, self._progress, is_cancelled=self._cancelled.is_set)
        except ModelProcessStopped:
            self._store.queue.put_back(job, counts=False)
            return
        except (ModelUnavailable, ModelProcessDied) as error:
            if self._cancelled.is_set():
                log.info("Project %d, task %d: cancelled.", job.project, job.task)
                self._fail(job, CANCELLED)
            elif isinstance(error, ModelUnavailable):
                self._wait_for_model(job, str(error))
            else:
                self._after_crash(job, str(error))
            return
        self._model_failures = 0
        if "message" in answer:
            copies = dict.fromkeys(images.values(), job.task)
            for one, shown in zip(references.annotations, reference_images, strict=True):
                copies |= dict.fromkeys(shown.values(), one.task)
            answer["message"] = name_tasks(answer["message"], copies)
        if self._settle(job, references, answer):
            self._images.discard(images.values())

    def _settle(self, job: Job, references: References, answer: dict[str, Any]) -> bool:
        """Store the model process's answer; returns whether the job is over."""
        if answer["event"] == "bad_reference":
            self._store.queue.put_back(job, counts=False, delay=REFUSAL_PAUSE)
            for one in references.annotations:
                if one.annotation == answer["annotation"]:
                    self._refuse(job, one, answer["message"])
            return False
        if answer["event"] == "failed":
            log.error("Project %d, task %d: %s", job.project, job.task, answer["message"])
            self._fail(job, answer["message"])
            return True
        flag_low_scores(answer["regions"], self._hooks.review_below(job.project))
        text = json.dumps(answer["regions"], separators=(",", ":"))
        self._store.queue.finish(job, text, answer["score"], answer["seconds"])
        self._fetch_failures.pop(_key(job), None)
        self._crashes.pop(_key(job), None)
        for note in answer["notes"]:
            log.info("Project %d, task %d: %s", job.project, job.task, note)
        log.info(
            "Project %d, task %d: %d regions, score %.2f, %.1f s.",
            job.project,
            job.task,
            len(answer["regions"]),
            answer["score"],
            answer["seconds"],
        )
        return True

    def _refuse(self, job: Job, reference: ReferenceAnnotation, message: str) -> None:
        """Have another reference chosen; until then no job of the version need be tried."""
        log.warning("Project %d: annotation %d cannot be the reference: %s", job.project, reference.annotation, message)
        self._store.jobs(job.project, job.version).hold(REFUSAL_PAUSE)
        self._hooks.refused(Refusal(job.project, reference.annotation, reference.key, message))

    def _fetch(
        self, job: Job, references: References, config: LabelConfig
    ) -> tuple[list[dict[str, str]], dict[str, str]] | None:
        """Paths of each reference's and of the task's images; `None` where the job was put back or failed."""
        if self._ahead is not None:
            wait([self._ahead])
            self._ahead = None
        try:
            client = self._hooks.client(job.project)
        except LabelStudioError as error:
            self._without_fault(job, error)
            return None
        task = self._store.tasks(job.project).find(job.task)
        if task is None:
            self._store.queue.put_back(job, counts=False, delay=5.0)  # deleted, or not listed yet
            return None
        try:
            images = self._images.fetch(client, config, task, _to_names(references.annotations))
        except ImageUnavailable as error:
            self._without_image(job, error)
            return None
        except LabelStudioError as error:
            self._without_fault(job, error)
            return None
        reference_images = []
        for reference in references.annotations:
            found = self._fetch_reference(job, reference, client, config)
            if found is None:
                return None
            reference_images.append(found)
        return reference_images, images

    def _fetch_reference(
        self, job: Job, reference: ReferenceAnnotation, client: LabelStudio, config: LabelConfig
    ) -> dict[str, str] | None:
        """Paths of one reference's images; `None` where the job was put back."""
        task = self._store.tasks(job.project).find(reference.task)
        if task is None:
            self._store.queue.put_back(job, counts=False, delay=5.0)  # deleted, or not listed yet
            return None
        try:
            return self._images.fetch(client, config, task, _to_names([reference]))
        except ImageUnavailable as error:
            delay = REFUSAL_PAUSE if error.permanent else FETCH_DELAYS[1]
            self._store.queue.put_back(job, counts=False, delay=delay)
            if error.permanent:
                self._refuse(job, reference, f"Its image cannot be used. {error}")
            else:
                log.warning("Project %d: %s Trying again in %.0f s.", job.project, error, delay)
        except LabelStudioError as error:
            self._without_fault(job, error)
        return None

    def _without_image(self, job: Job, error: ImageUnavailable) -> None:
        if isinstance(error, ImageNotKept | ImageServerFault):
            self._without_fault(job, error)
            return
        failures = self._fetch_failures[_key(job)] = self._fetch_failures[_key(job)] + 1
        if error.permanent or failures > len(FETCH_DELAYS):
            log.error("Project %d, task %d: %s", job.project, job.task, error)
            self._fail(job, str(error))
            return
        delay = FETCH_DELAYS[failures - 1]
        log.warning("Project %d, task %d: %s Trying again in %.0f s.", job.project, job.task, error, delay)
        self._store.queue.put_back(job, error=str(error), delay=delay, counts=False)

    def _without_fault(self, job: Job, error: BackendError) -> None:
        """Label Studio is away or refuses us, or the disk is full, which is no fault of the task: it waits."""
        log.warning("Project %d, task %d: %s Trying again in %.0f s.", job.project, job.task, error, AWAY_DELAY)
        self._store.queue.put_back(job, error=str(error), delay=AWAY_DELAY, counts=False)

    def _fetch_ahead(self) -> None:
        """Fetch the next job's images while the model process works."""
        upcoming = self._store.queue.peek_next()
        if upcoming is not None:
            self._ahead = self._fetcher.submit(self._fetch_quietly, upcoming)

    def _fetch_quietly(self, job: Job) -> None:
        task = self._store.tasks(job.project).find(job.task)
        references = self._store.annotations(job.project).references()
        config = self._store.projects.config(job.project)
        if task is None or references is None or config is None:
            return
        try:
            self._images.fetch(self._hooks.client(job.project), config, task, _to_names(references.annotations))
        except (ImageUnavailable, LabelStudioError) as error:
            log.debug("Project %d, task %d: %s", job.project, job.task, error)  # met again when its turn comes

    def _after_crash(self, job: Job, error: str) -> None:
        crashes = self._crashes[_key(job)] = self._crashes[_key(job)] + 1
        if crashes >= PROCESS_ATTEMPTS:
            log.error("Project %d, task %d: %s Giving this task up.", job.project, job.task, error)
            self._fail(job, f"{error} It happened {crashes} times on this task.")
        else:
            log.error("Project %d, task %d: %s Trying once more.", job.project, job.task, error)
            self._store.queue.put_back(job, error=error)

    def _fail(self, job: Job, error: str) -> None:
        """Give a task up; whoever asks for it again gives it all its tries back."""
        self._store.queue.fail(job, error)
        self._fetch_failures.pop(_key(job), None)
        self._crashes.pop(_key(job), None)

    def _wait_for_model(self, job: Job, error: str) -> None:
        delay = MODEL_DELAYS[min(self._model_failures, len(MODEL_DELAYS) - 1)]
        self._model_failures += 1
        self._store.queue.put_back(job, error=error, counts=False)
        self.activity = Activity("no model", error=error)
        log.error("The model cannot be loaded: %s Trying again in %.0f s.", error, delay)
        self._stopping.wait(delay)

    def _progress(self, step: str, done: int, total: int) -> None:
        self.activity = replace(self.activity, step=step, done=done, total=total)


def flag_low_scores(regions: Iterable[dict[str, Any]], below: float) -> None:
    """Add a note to the regions whose score is below `below`; the editor shows it beside a region that is selected."""
    for region in regions:
        if region["score"] < below:
            region["meta"] = {"text": [f"Low score {region['score']:.2f}: check this mask."]}


def _to_names(references: Iterable[ReferenceAnnotation]) -> set[str]:
    """The image tags that some references draw on."""
    return {region.to_name for reference in references for region in reference.regions}


def _key(job: Job) -> tuple[int, int, str]:
    return job.project, job.task, job.version
