"""Giving predictions to Label Studio, each exactly once.

Label Studio never rejects a duplicate, and there are two ways in: our import, and what it stores itself of a /predict
answer, at a moment we do not see. The ledger's hand-over states decide who may give a result; the API tells what
arrived. Where both fail (an answer stored later than its lease) the duplicate is removed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from backend.entities import Job
from backend.errors import LabelStudioDenied, LabelStudioNotFound, LabelStudioRejected, LabelStudioUnreachable
from backend.labelstudio.client import LabelStudio
from backend.store.store import Store
from backend.version import VERSION_PREFIX

log = logging.getLogger(__name__)

RETRY_PUSH = 10.0


def prediction_text(job: Job, *, with_task: bool) -> str:
    """A finished job as the JSON text of one prediction; the regions are already text and stay so."""
    head = {"task": job.task} if with_task else {}
    fields = json.dumps({**head, "score": job.score, "model_version": job.version})
    return f'{fields[:-1]}, "result": {job.result}}}'


def push_finished(store: Store, client: LabelStudio, project: int, version: str, batch: int, lease: float) -> int:
    """Import up to `batch` finished predictions that nobody else hands over; returns how many Label Studio took.

    Raises:
        LabelStudioUnreachable, LabelStudioDenied, LabelStudioNotFound: nothing was pushed, or the outcome is unknown
            and will be looked up when the lease is over.
    """
    jobs = store.deliveries(project, version).claim(batch)
    if not jobs:
        return 0
    numbers = [job.task for job in jobs]
    try:
        there = client.tasks_with_prediction(project, version, between=(min(numbers), max(numbers)))
    except BaseException:
        store.deliveries(project, version).mark_open(numbers, delay=RETRY_PUSH)
        raise
    store.deliveries(project, version).mark_delivered(there & set(numbers))
    jobs = [job for job in jobs if job.task not in there]
    return _push(store, client, jobs, lease) if jobs else 0


def _push(store: Store, client: LabelStudio, jobs: Sequence[Job], lease: float) -> int:
    project, version = jobs[0].project, jobs[0].version
    numbers = [job.task for job in jobs]
    body = "[" + ",".join(prediction_text(job, with_task=True) for job in jobs) + "]"
    try:
        created = client.import_predictions(project, body)
    except LabelStudioRejected as error:
        return _push_singly(store, client, jobs, lease, str(error))
    except LabelStudioUnreachable as error:
        if error.sent:
            store.deliveries(project, version).mark_in_doubt(numbers, lease)
        else:
            store.deliveries(project, version).mark_open(numbers, delay=RETRY_PUSH)
        raise
    except (LabelStudioDenied, LabelStudioNotFound):
        store.deliveries(project, version).mark_open(numbers, delay=RETRY_PUSH)
        raise
    except BaseException:
        store.deliveries(project, version).mark_in_doubt(numbers, lease)
        raise
    if created == len(jobs):
        store.deliveries(project, version).mark_delivered(numbers)
        return created
    return _settle_short_import(store, client, jobs, lease, created)


def _push_singly(store: Store, client: LabelStudio, jobs: Sequence[Job], lease: float, error: str) -> int:
    """One prediction spoilt the import and none was stored: find which."""
    if len(jobs) == 1:
        job = jobs[0]
        store.deliveries(job.project, job.version).mark_rejected(job.task, error)
        log.error("Project %d, task %d: %s", job.project, job.task, error)
        return 0
    first, second = jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]
    try:
        pushed = _push(store, client, first, lease)
    except BaseException:
        unsent = [job.task for job in second]
        store.deliveries(jobs[0].project, jobs[0].version).mark_open(unsent, delay=RETRY_PUSH)
        raise
    return pushed + _push(store, client, second, lease)


def _settle_short_import(store: Store, client: LabelStudio, jobs: Sequence[Job], lease: float, created: int) -> int:
    """Label Studio answered that it stored fewer than it was given: the others are invalid to it."""
    project, version = jobs[0].project, jobs[0].version
    numbers = [job.task for job in jobs]
    try:
        there = client.tasks_with_prediction(project, version, between=(min(numbers), max(numbers)))
    except BaseException:
        store.deliveries(project, version).mark_in_doubt(numbers, lease)
        raise
    store.deliveries(project, version).mark_delivered(there & set(numbers))
    for job in jobs:
        if job.task not in there:
            reason = (
                "Label Studio dropped the prediction without a reason; most likely it does not fit the project's "
                "labelling configuration."
            )
            store.deliveries(project, version).mark_rejected(job.task, reason)
            log.error("Project %d, task %d: %s", project, job.task, reason)
    log.warning("Project %d: Label Studio stored %d of %d pushed predictions.", project, created, len(jobs))
    return created


def confirm_answers(store: Store, client: LabelStudio, project: int, version: str) -> int:
    """Look up whether Label Studio stored what /predict answered; what it did not store in time is pushed next.

    Returns how many were confirmed.
    """
    waiting = store.deliveries(project, version).answered()
    if not waiting:
        return 0
    now = time.time()  # before the look: a prediction stored after it must not count as missing at the deadline
    there = client.tasks_with_prediction(project, version, between=(min(waiting), max(waiting))) & set(waiting)
    store.deliveries(project, version).mark_delivered(there)
    lost = [task for task, until in waiting.items() if task not in there and until <= now]
    if lost:
        log.warning(
            "Project %d: Label Studio did not store %d predictions that it was given; pushing them.", project, len(lost)
        )
        store.deliveries(project, version).mark_open(lost)
    return len(there)


def show_version(store: Store, client: LabelStudio, project: int, version: str) -> None:
    """Have the project show, sort and sample by our present version, unless somebody chose another model's.

    A project whose version is the name of its backend, as it is after connecting, asks the backend itself but finds no
    scores: Label Studio compares that name with the predictions' versions.
    """
    chosen = str(client.project(project).get("model_version") or "")
    ours = not chosen or chosen in store.queue.versions() or chosen.startswith(VERSION_PREFIX)
    try:
        if ours or chosen in {str(backend.get("title")) for backend in client.backends(project)}:
            client.set_model_version(project, version)
            log.info("Project %d: Label Studio shows and sorts by version %s.", project, version)
    except (LabelStudioDenied, LabelStudioRejected) as error:
        log.warning("Project %d: Label Studio does not sort by our scores. %s", project, error)
    store.projects.set_shown_version(project, version)


def remove_superseded(store: Store, client: LabelStudio, project: int, version: str) -> int:
    """Delete the predictions of earlier versions once every task has one of the present; returns how many."""
    removed = 0
    for former in store.deliveries(project, version).superseded():
        removed += client.delete_version(project, former)
        store.jobs(project, former).forget()
    if removed:
        log.info("Project %d: removed %d predictions of earlier versions.", project, removed)
    return removed


def remove_duplicates(store: Store, client: LabelStudio, project: int, counts: Mapping[int, int]) -> int:
    """Delete all but the first of several predictions of one of our versions on one task; returns how many.

    `counts` says how many predictions each task has; a task is looked at again only when that number changed.
    """
    searched = store.tasks(project).predictions_read()
    ours = set(store.queue.versions())
    removed = 0
    for task, count in counts.items():
        if count == searched.get(task, 0):
            continue
        if count > 1:
            removed += _remove_from(client, task, ours)
        store.tasks(project).set_predictions_read(task, count)
    if removed:
        log.warning("Project %d: removed %d duplicate predictions.", project, removed)
    return removed


def _remove_from(client: LabelStudio, task: int, ours: Iterable[str]) -> int:
    seen: set[str] = set()
    removed = 0
    for prediction in sorted(client.predictions(task), key=lambda p: int(p["id"])):
        version = str(prediction.get("model_version"))
        if version in seen and version in ours:
            with suppress(LabelStudioNotFound):  # someone else was quicker
                client.delete_prediction(int(prediction["id"]))
                removed += 1
        seen.add(version)
    return removed
