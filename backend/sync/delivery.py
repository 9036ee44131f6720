"""Giving predictions to Label Studio, each exactly once.

Label Studio never rejects a duplicate, and there are two ways in: our import, and what it stores itself of a /predict
answer, at a moment we do not see. The store's delivery states decide who may give a result; the API tells what
arrived. If both fail (an answer stored later than its lease), the duplicate is removed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Container, Mapping, Sequence
from contextlib import suppress

from backend.entities import Job, Project
from backend.errors import LabelStudioDenied, LabelStudioNotFound, LabelStudioRejected, LabelStudioUnreachable
from backend.labelstudio.client import LabelStudio
from backend.settings import Settings
from backend.store.store import Store
from backend.version import VERSION_PREFIX, taught_version, untaught

log = logging.getLogger(__name__)

RETRY_PUSH = 10.0
"""Seconds until results are pushed again that Label Studio did not take."""
DROPPED = (
    "Label Studio dropped the prediction without a reason; most likely it does not fit the project's labelling "
    "configuration."
)


def prediction_text(job: Job, *, with_task: bool) -> str:
    """A finished job as the JSON text of one prediction; the regions are already text and stay so."""
    head = {"task": job.task} if with_task else {}
    fields = json.dumps({**head, "score": job.score, "model_version": job.carried_version})
    return f'{fields[:-1]}, "result": {job.result}}}'


class Delivery:
    """The results of one project under its present version, on their way to Label Studio."""

    def __init__(self, store: Store, client: LabelStudio, project: Project, settings: Settings):
        """Take what is worked with; nothing is read yet.

        Args:
            store: the ledger.
            client: a connection to Label Studio that may see the project.
            project: the project as the ledger has it now.
            settings: the project's own.
        """
        self._store, self._client, self._project, self._settings = store, client, project, settings
        self.project, self.version = project.id, project.version
        self._results = store.deliveries(self.project, self.version)

    def run(self) -> bool:
        """Push one batch, or bring to an end what is complete; returns whether more waits to be pushed or confirmed."""
        if self._project.reference_key is None:
            return False
        pushed = self.push()
        if pushed:
            log.info("Project %d: %d predictions are in Label Studio.", self.project, pushed)
        if self.is_waiting:
            return True
        if self._results.are_complete():
            if self._settings.project_version == "follow" and self.sorting_version != self._project.shown_version:
                self.show_version()
            if self._settings.old_predictions == "remove":
                self.remove_superseded()
        return False

    @property
    def sorting_version(self) -> str:
        """The version that predictions of most tasks carry that nobody has annotated."""
        return taught_version(self.version, self._store.jobs(self.project, self.version).lessons()[0])

    @property
    def is_waiting(self) -> bool:
        """Whether a result waits to be pushed or confirmed."""
        return self._results.are_waiting()

    @property
    def is_unconfirmed(self) -> bool:
        """Whether Label Studio may be storing a result that it was given."""
        return bool(self._results.answered())

    def push(self) -> int:
        """Import one batch of finished predictions that nobody else gives; returns how many Label Studio took.

        Raises:
            LabelStudioUnreachable, LabelStudioDenied, LabelStudioNotFound: nothing was pushed, or the outcome is
                unknown and will be looked up when the lease is over.
        """
        jobs = self._results.claim(self._settings.push_batch)
        if not jobs:
            return 0
        numbers = [job.task for job in jobs]
        try:
            there = self._there(numbers)
        except BaseException:
            self._results.mark_open(numbers, delay=RETRY_PUSH)
            raise
        self._results.mark_delivered(there)
        jobs = [job for job in jobs if job.task not in there]
        return self._import(jobs) if jobs else 0

    def _there(self, tasks: Collection[int]) -> set[int]:
        """Which of some tasks have a prediction of the version in Label Studio."""
        between = (min(tasks), max(tasks))
        return self._client.tasks_with_prediction(self.project, self.version, between=between) & set(tasks)

    def _import(self, jobs: Sequence[Job]) -> int:
        numbers = [job.task for job in jobs]
        body = "[" + ",".join(prediction_text(job, with_task=True) for job in jobs) + "]"
        try:
            created = self._client.import_predictions(self.project, body)
        except LabelStudioRejected as error:
            return self._import_halves(jobs, str(error))
        except LabelStudioUnreachable as error:
            if error.sent:
                self._results.mark_in_doubt(numbers, self._settings.answer_lease)
            else:
                self._results.mark_open(numbers, delay=RETRY_PUSH)
            raise
        except (LabelStudioDenied, LabelStudioNotFound):
            self._results.mark_open(numbers, delay=RETRY_PUSH)
            raise
        except BaseException:
            self._results.mark_in_doubt(numbers, self._settings.answer_lease)
            raise
        if created == len(jobs):
            self._results.mark_delivered(numbers)
        else:
            self._resolve_short_import(numbers, created)
        return created

    def _import_halves(self, jobs: Sequence[Job], error: str) -> int:
        """One prediction spoilt the import and none was stored: find which."""
        if len(jobs) == 1:
            self._reject(jobs[0].task, error)
            return 0
        first, second = jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]
        try:
            pushed = self._import(first)
        except BaseException:
            self._results.mark_open([job.task for job in second], delay=RETRY_PUSH)
            raise
        return pushed + self._import(second)

    def _resolve_short_import(self, tasks: Collection[int], created: int) -> None:
        """Label Studio answered that it stored fewer than it was given: the others are invalid to it."""
        try:
            there = self._there(tasks)
        except BaseException:
            self._results.mark_in_doubt(tasks, self._settings.answer_lease)
            raise
        self._results.mark_delivered(there)
        for task in tasks:
            if task not in there:
                self._reject(task, DROPPED)
        log.warning("Project %d: Label Studio stored %d of %d pushed predictions.", self.project, created, len(tasks))

    def _reject(self, task: int, reason: str) -> None:
        self._results.mark_rejected(task, reason)
        log.error("Project %d, task %d: %s", self.project, task, reason)

    def confirm(self) -> int:
        """Look up whether Label Studio stored what /predict answered; what it did not store in time is pushed next.

        Returns how many were confirmed.
        """
        waiting = self._results.answered()
        if not waiting:
            return 0
        now = self._store.now()  # before asking: a prediction stored after that must not count as missing
        there = self._there(waiting)
        self._results.mark_delivered(there)
        lost = [task for task, until in waiting.items() if task not in there and until <= now]
        if lost:
            log.warning(
                "Project %d: Label Studio did not store %d predictions that it was given; pushing them.",
                self.project,
                len(lost),
            )
            self._results.mark_open(lost)
        return len(there)

    def show_version(self) -> None:
        """Have the project show, sort and sample by our `sorting_version`, unless somebody chose another model's.

        A project whose version is the name of its backend, as it is after connecting, asks the backend itself but
        finds no scores: Label Studio compares that name with the predictions' versions.
        """
        chosen = str(self._client.project(self.project).get("model_version") or "")
        version = self.sorting_version
        ours = not chosen or chosen in self._store.queue.versions() or chosen.startswith(VERSION_PREFIX)
        try:
            if ours or chosen in {str(backend.get("title")) for backend in self._client.backends(self.project)}:
                self._client.set_model_version(self.project, version)
                log.info("Project %d: Label Studio shows and sorts by version %s.", self.project, version)
        except (LabelStudioDenied, LabelStudioRejected) as error:
            log.warning("Project %d: Label Studio does not sort by our scores. %s", self.project, error)
        self._store.projects.set_shown_version(self.project, version)

    def remove_superseded(self) -> int:
        """Delete the predictions of earlier versions once every task has one of the present; returns how many."""
        removed = 0
        for former in self._results.superseded():
            removed += delete_predictions(self._store, self._client, self.project, former)
            self._store.jobs(self.project, former).forget()
        if removed:
            log.info("Project %d: removed %d predictions of earlier versions.", self.project, removed)
        return removed

    def reopen_deleted(self, counts: Mapping[int, int]) -> list[int]:
        """Have predictions given again that were given to Label Studio and are not there any more.

        Args:
            counts: how many predictions each task has; all are looked up only if a task has fewer than it had.

        Returns:
            The tasks that lost theirs.
        """
        if self._project.reference_key is None:
            return []
        before = self._store.tasks(self.project).predictions_read()
        delivered = self._results.delivered()
        if not any(counts.get(task, 0) < max(1, before.get(task, 0)) for task in delivered):
            return []
        there = self._client.tasks_with_prediction(self.project, self.version)
        missing = [task for task in delivered if task not in there]
        self._results.reopen(missing)  # what /predict has taken up meanwhile is not given twice
        if missing:
            log.info("Project %d: %d predictions were deleted; giving them again.", self.project, len(missing))
        return missing

    def remove_duplicates(self, counts: Mapping[int, int]) -> int:
        """Delete all but the first of several predictions of one of our versions on one task; returns how many.

        `counts` says how many predictions each task has; a task is searched again only if that number has changed.
        """
        tasks = self._store.tasks(self.project)
        searched = tasks.predictions_read()
        news = {task: count for task, count in counts.items() if count != searched.get(task, 0)}
        tasks.set_predictions_read({task: count for task, count in news.items() if count <= 1})
        ours = set(self._store.queue.versions())
        removed = 0
        for task, count in news.items():
            if count > 1:
                removed += self._remove_duplicates_of(task, ours)
                tasks.set_predictions_read({task: count})
        if removed:
            log.warning("Project %d: removed %d duplicate predictions.", self.project, removed)
        return removed

    def _remove_duplicates_of(self, task: int, ours: Container[str]) -> int:
        seen: set[str] = set()
        removed = 0
        for prediction in sorted(self._client.predictions(task), key=lambda p: int(p["id"])):
            version = untaught(str(prediction.get("model_version")))
            if version in seen and version in ours:
                with suppress(LabelStudioNotFound):  # someone else was quicker
                    self._client.delete_prediction(int(prediction["id"]))
                    removed += 1
            seen.add(version)
        return removed


def delete_predictions(store: Store, client: LabelStudio, project: int, version: str) -> int:
    """Delete a version's predictions in Label Studio, whatever lesson they were made with; returns how many."""
    lessons = dict.fromkeys(["", *store.jobs(project, version).lessons()])
    return sum(client.delete_version(project, taught_version(version, lesson)) for lesson in lessons)
