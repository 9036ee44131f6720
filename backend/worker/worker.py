"""The thread that takes jobs from the store, one after the other, and has the model process do them."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from backend.entities import ODD_REFERENCES, Job, ReferenceAnnotation, References, Refusal
from backend.errors import (
    ImageUnavailable,
    LabelStudioError,
    LedgerError,
    ModelProcessDied,
    ModelProcessStopped,
    ModelUnavailable,
)
from backend.image_folder import ImageFolder, name_tasks
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.label_config import LabelConfig
from backend.learning.candidates import seconds_of
from backend.store.store import Store
from backend.supervision import EndProcess, LastingThread, end_process
from backend.version import base_of
from backend.worker.decisions import (
    MODEL_DELAYS,
    Away,
    Cancelled,
    Decision,
    Failure,
    GiveUp,
    ModelNotLoaded,
    NotListed,
    ProcessDied,
    ProcessStopped,
    ReferenceChanged,
    ReferenceFault,
    TaskFault,
    TryAgain,
    decide,
    reference_image_failure,
    task_image_failure,
)
from backend.worker.messages import Answer, BadReference, Example, Failed, Result, SegmentTask
from backend.worker.model_process import ModelProcess

log = logging.getLogger(__name__)

LEDGER_PAUSE = 10.0
IDLE = 30.0


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


@dataclass(frozen=True)
class Pause:
    """Seconds until there may be something to do; `until_woken` if news may end it earlier."""

    seconds: float = 0.0
    until_woken: bool = False


_Key = tuple[int, int, str]
"""Project, task and version of a job."""


class _NotDone(Exception):
    """A job has no result, and why."""

    def __init__(self, failure: Failure):
        super().__init__(str(failure))
        self.failure = failure


class Worker:
    """Takes jobs, fetches their images, hands them to the model process, and stores what comes back."""

    def __init__(
        self,
        store: Store,
        process: ModelProcess,
        images: ImageFolder,
        hooks: Hooks,
        *,
        give_up: EndProcess = end_process,
    ):
        self._store, self._process, self._images, self._hooks = store, process, images, hooks
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="fetch-ahead")
        self._ahead: Future[None] | None = None
        # by job and by what happened: an image that came late must not cost the task its second try with the model
        self._attempts: Counter[tuple[type[Failure], _Key | None]] = Counter()
        self._job: Job | None = None  # in work, and whether it was cancelled; both under the lock
        self._cancelled = threading.Event()
        self._job_lock = threading.Lock()
        self._recover = False
        self._loading_failed, self._load_again_at = 0, 0.0  # while there was nothing else to do
        self.ledger_pause = LEDGER_PAUSE
        self.thread = LastingThread("worker", self._work, self._stopping, recover=self._recover_jobs, give_up=give_up)
        self.activity = Activity()

    # life

    def start(self) -> None:
        """Begin to take jobs."""
        self.thread.start()

    def wake(self) -> None:
        """Look for jobs now."""
        self._wake.set()

    def cancel(self, project: int, task: int) -> bool:
        """Stop the job in work, if it is this task's; it counts as failed until somebody asks for it again.

        The model process ends with it, for nothing less stops a computation that hangs; the next job loads the model.
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
        self.thread.join(10.0)
        self._fetcher.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        self.load_ahead()
        while not self._stopping.is_set():
            pause = self.work_once()
            (self._wake if pause.until_woken else self._stopping).wait(pause.seconds)

    def load_ahead(self) -> None:
        """Load the model before the first job, so that a missing checkpoint is known at once."""
        self.activity = Activity("loading the model")
        try:
            self._process.load(self._progress)
        except ModelUnavailable as error:
            self._loading_failed += 1
            pause = MODEL_DELAYS[min(self._loading_failed, len(MODEL_DELAYS)) - 1]
            self._load_again_at = self._store.now() + pause
            self.activity = Activity("no model", error=str(error))
            log.error("The model cannot be loaded: %s", error)
        except ModelProcessStopped:
            return
        else:
            self._loading_failed = 0
            self.activity = Activity()

    def _recover_jobs(self) -> None:
        self._recover = True  # with the next turn
        with suppress(LedgerError):  # the next turn meets it again, and waits
            self._store.queue.give_up_running()

    # one job

    def work_once(self) -> Pause:
        """Do the most urgent job, if there is one; returns what to wait for before the next call."""
        try:
            return self._take_job()
        except LedgerError as error:
            # the job stays as it is in the ledger; the thread must outlive a full disk
            log.error("%s Trying again in %.0f s.", error, self.ledger_pause)
            self.activity = Activity("no ledger", error=str(error))
            self._recover = True
            return Pause(self.ledger_pause)

    def _take_job(self) -> Pause:
        if self._recover:
            self._store.queue.requeue_running()
            self._recover = False
        self._wake.clear()
        job = self._store.queue.take_next()
        if job is None:
            return self._rest()
        with self._job_lock:
            self._job = job
            self._cancelled.clear()
        try:
            pause = self._try(job)
        except LedgerError:
            raise
        except Exception as error:
            log.exception("Project %d, task %d: the job failed.", job.project, job.task)
            failure = TaskFault(f"The backend failed on this task ({type(error).__name__}: {error}).", passes=True)
            pause = self._resolve(job, failure)
        finally:
            with self._job_lock:
                self._job = None
        self._hooks.finished(job.project, job.task)
        return pause

    def _rest(self) -> Pause:
        """Wait for jobs; a model that could not be loaded, or whose process has ended, is loaded meanwhile."""
        if not self._process.is_running and self._store.now() >= self._load_again_at:
            self.load_ahead()
        elif self.activity.state != "no model":
            self.activity = Activity()
        pauses = [IDLE]
        seconds = self._store.queue.seconds_to_next()
        if seconds is not None:
            pauses.append(seconds + 0.05)
        if not self._process.is_running:
            pauses.append(max(0.0, self._load_again_at - self._store.now()))
        return Pause(min(pauses), until_woken=True)

    def _try(self, job: Job) -> Pause:
        try:
            self._do(job)
        except _NotDone as error:
            return self._resolve(job, error.failure)
        return Pause()

    def _do(self, job: Job) -> None:
        """Bring one job to its result.

        Raises:
            _NotDone: there is none.
        """
        self.activity = Activity("fetching", job.project, job.task, since=time.monotonic())
        references, config = self._store.annotations(job.project).references(), self._config(job.project)
        if references is None or config is None or not job.version.endswith(f"-r{references.key}"):
            raise _NotDone(ReferenceChanged())
        lesson = self._store.learning(job.project).lesson(base_of(job.version))
        request = self._request(job, references, config)
        if lesson is not None and lesson.name:
            job = replace(job, lesson=lesson.name)
            request = replace(request, experience=lesson.for_task(job.task))
        self._fetch_ahead()
        self.activity = replace(self.activity, state="working")
        answer = self._ask(job, request)
        match _with_tasks_named(answer, job, references, request):
            case Result() as result:
                self._keep(job, result, last=request.experience.last if request.experience else "")
            case Failed(message):
                self._images.discard(request.images.values())
                raise _NotDone(TaskFault(message))
            case BadReference(annotation, message):
                (refused,) = (one for one in references.annotations if one.annotation == annotation)
                raise _NotDone(ReferenceFault(message, refused))
        self._images.discard(request.images.values())

    def _request(self, job: Job, references: References, config: LabelConfig) -> SegmentTask:
        """Fetch the images of a job and of what it learns from; raises `_NotDone` if one is missing."""
        if self._ahead is not None:
            wait([self._ahead])
            self._ahead = None
        try:
            client = self._hooks.client(job.project)
        except LabelStudioError as error:
            raise _NotDone(Away(str(error))) from error
        try:
            images = self._fetch(client, config, job.project, job.task, references.annotations)
        except (ImageUnavailable, LabelStudioError) as error:
            raise _NotDone(task_image_failure(error)) from error
        examples = []
        for one in references.annotations:
            try:
                shown = self._fetch(client, config, job.project, one.task, [one])
            except (ImageUnavailable, LabelStudioError) as error:
                raise _NotDone(reference_image_failure(error, one)) from error
            examples.append(Example(one.annotation, one.regions, shown))
        return SegmentTask(references.key, references.shots, tuple(examples), images)

    def _fetch(
        self,
        client: LabelStudio,
        config: LabelConfig,
        project: int,
        number: int,
        drawn: Iterable[ReferenceAnnotation],
    ) -> dict[str, str]:
        """Fetch those of a task's images that annotations are drawn on; returns their paths by image tag."""
        task = self._store.tasks(project).find(number)
        if task is None:
            raise _NotDone(NotListed())
        return self._images.fetch(client, config, task, _to_names(drawn))

    def _fetch_ahead(self) -> None:
        """Fetch the next job's images while the model works."""
        upcoming = self._store.queue.peek_next()
        if upcoming is not None:
            self._ahead = self._fetcher.submit(self._fetch_quietly, upcoming)

    def _fetch_quietly(self, job: Job) -> None:
        references, config = self._store.annotations(job.project).references(), self._config(job.project)
        if references is None or config is None:
            return
        try:
            client = self._hooks.client(job.project)
            self._fetch(client, config, job.project, job.task, references.annotations)
        except (_NotDone, ImageUnavailable, LabelStudioError) as error:
            log.debug("Project %d, task %d: %s", job.project, job.task, error)  # met again when its turn comes

    def _ask(self, job: Job, request: SegmentTask) -> Answer:
        try:
            answer = self._process.run(request, self._progress, is_cancelled=self._cancelled.is_set)
        except ModelProcessStopped as error:
            raise _NotDone(ProcessStopped()) from error
        except ModelUnavailable as error:
            raise _NotDone(Cancelled() if self._cancelled.is_set() else ModelNotLoaded(str(error))) from error
        except ModelProcessDied as error:
            raise _NotDone(Cancelled() if self._cancelled.is_set() else ProcessDied(str(error))) from error
        self._attempts.pop((ModelNotLoaded, None), None)
        return answer

    def _keep(self, job: Job, result: Result, *, last: str) -> None:
        """Store what was found, and the other ways to it; `last` is the one at which a lesson ended them."""
        regions = self._flagged(job, result)
        text = json.dumps(regions, separators=(",", ":"))
        self._store.queue.finish(job, text, result.score, result.seconds, result.remarks, calibrated=result.calibrated)
        if result.candidates:
            shared = result.seconds - seconds_of(result.candidates)
            self._store.learning(job.project).keep(job, result.candidates, last=last, seconds=max(0.0, shared))
        self._forget_attempts(job)
        self._store.projects.set_warnings(job.project, ODD_REFERENCES, result.oddities)
        for warning in (*result.warnings, *result.remarks):
            log.info("Project %d, task %d: %s", job.project, job.task, warning)
        log.info(
            "Project %d, task %d: %d regions, score %.2f (%s), %.1f s.",
            job.project,
            job.task,
            len(regions),
            result.score,
            "calibrated" if result.calibrated else "not calibrated",
            result.seconds,
        )

    def _flagged(self, job: Job, result: Result) -> list[dict[str, Any]]:
        """The regions, those that a person should check with a text that says so.

        A score that estimates no IoU cannot be compared with a bound: of these the lowest tenth is to be checked.
        """
        below = self._hooks.review_below(job.project)
        if result.calibrated:
            return flag_low_scores(result.regions, below)
        if below > 0 and self._store.jobs(job.project, job.version).is_in_lowest_tenth(result.score):
            return flag_low_scores(result.regions, math.nextafter(result.score, 1.0), "in the project's lowest tenth")
        return [dict(region) for region in result.regions]

    # what went wrong

    def _resolve(self, job: Job, failure: Failure) -> Pause:
        """Put a job back or give it up, as `decide` says."""
        counted = type(failure), None if isinstance(failure, ModelNotLoaded) else _key(job)
        self._attempts[counted] += 1
        decision = decide(failure, self._attempts[counted])
        _log_decision(job, failure, decision)
        match decision:
            case GiveUp(error):
                self._store.queue.fail(job, error)
                self._forget_attempts(job)  # whoever asks for it again gives it all its tries back
                return Pause()
            case TryAgain(error, delay, counts, pause):
                self._store.queue.put_back(job, error=error, delay=delay, counts=counts)
        match failure:
            case ModelNotLoaded(message):
                self.activity = Activity("no model", error=message)
            case ReferenceFault(message, reference, passes=False):
                self._store.jobs(job.project, job.version).hold(delay)
                self._hooks.refused(Refusal(job.project, reference.annotation, reference.key, message))
        return Pause(pause)

    def _forget_attempts(self, job: Job) -> None:
        for counted in [one for one in self._attempts if one[1] == _key(job)]:
            del self._attempts[counted]

    def _config(self, project: int) -> LabelConfig | None:
        known = self._store.projects.find(project)
        return known.config if known is not None else None

    def _progress(self, step: str, done: int, total: int) -> None:
        self.activity = replace(self.activity, step=step, done=done, total=total)


def flag_low_scores(regions: Iterable[Mapping[str, Any]], below: float, why: str = "") -> list[dict[str, Any]]:
    """Add a text to the regions whose score is below `below`; the editor shows it beside a region that is selected."""
    because = f", {why}" if why else ""
    return [
        {**region, "meta": {"text": [f"Low score {region['score']:.2f}{because}: check this mask."]}}
        if region["score"] < below
        else dict(region)
        for region in regions
    ]


def _with_tasks_named(answer: Answer, job: Job, references: References, request: SegmentTask) -> Answer:
    """An answer whose message names tasks, which people know, in place of the paths of our copies."""
    if isinstance(answer, Result):
        return answer
    copies = dict.fromkeys(request.images.values(), job.task)
    for one, example in zip(references.annotations, request.examples, strict=True):
        copies |= dict.fromkeys(example.images.values(), one.task)
    return replace(answer, message=name_tasks(answer.message, copies))


def _log_decision(job: Job, failure: Failure, decision: Decision) -> None:
    match failure, decision:
        case (Cancelled(), _):
            log.info("Project %d, task %d: cancelled.", job.project, job.task)
        case (ReferenceFault(message, reference, passes=False), _):
            log.warning(
                "Project %d: annotation %d cannot be the reference: %s", job.project, reference.annotation, message
            )
        case (ModelNotLoaded(message), TryAgain(pause=pause)):
            log.error("The model cannot be loaded: %s Trying again in %.0f s.", message, pause)
        case (ReferenceFault(message) | TaskFault(message) | Away(message), TryAgain(delay=delay)):
            log.warning("Project %d, task %d: %s Trying again in %.0f s.", job.project, job.task, message, delay)
        case (ProcessDied(message), TryAgain()):
            log.error("Project %d, task %d: %s Trying once more.", job.project, job.task, message)
        case (_, GiveUp(error)):
            log.error("Project %d, task %d: %s Giving it up.", job.project, job.task, error)


def _to_names(references: Iterable[ReferenceAnnotation]) -> set[str]:
    """The image tags that some references draw on."""
    return {region.to_name for reference in references for region in reference.regions}


def _key(job: Job) -> _Key:
    return job.project, job.task, job.version
