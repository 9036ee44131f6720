"""`cavsam-backend backfill`: predict a whole project now, with no server running."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import Any

from backend.clients import Clients
from backend.entities import ALL_PROJECTS, Job, Refusal
from backend.errors import BackendError, LabelStudioNotFound
from backend.service import image_folder, lock_data_folder, model_spec, resume
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.delivery import Delivery
from backend.sync.project_sync import ProjectSync
from backend.sync.schedule import CONFIRM_PAUSE
from backend.version import base_version
from backend.worker.model_process import CAVSAM, ModelProcess
from backend.worker.worker import Hooks, Worker
from cavsam.weights.sources import are_here

PAUSE = 0.3
"""Seconds until it is asked again what the worker has finished."""


def backfill(
    settings: Settings, project: int, *, limit: int | None = None, segmenter: str = CAVSAM
) -> Iterator[list[dict[str, Any]]]:
    """Work until every task is predicted and pushed; with a `limit`, until so many are predicted, and push none.

    Yields the state of the tasks as the work goes on, the last time when all is over.

    Raises:
        DataFolderBusy: a server runs with the same data folder; it predicts everything by itself.
        BackendError: there is no reference, no model, or no way to Label Studio.
    """
    process = ModelProcess(model_spec(settings, segmenter))
    if not are_here(settings.sources()):
        process.load(lambda *_: None)  # the version says what the weights hold, so they are fetched first
    base = base_version(settings)
    refusals: SimpleQueue[Refusal] = SimpleQueue()
    with closing(lock_data_folder(settings)), closing(Store.of(settings)) as store:
        for paused in (ALL_PROJECTS, project):
            store.projects.set_paused(paused, False)  # whoever asks for it now does not want it to wait
        resume(store, settings, base)
        clients = Clients(settings, store)
        sync = ProjectSync(store, clients.of(project), project, settings, base)
        hooks = Hooks(
            clients.of,
            lambda project, task: None,
            refusals.put,
            lambda project: store.projects.settings(project, settings).review_below,
        )
        worker = Worker(store, process, image_folder(settings), hooks)
        _queue_all(sync, limit)
        worker.start()
        try:
            while True:
                while not refusals.empty():
                    refusal = refusals.get()
                    store.annotations(refusal.project).refuse(refusal, base)
                    _queue_all(sync, limit)
                if worker.activity.state == "no model":
                    raise BackendError(worker.activity.error)
                unconfirmed = limit is None and _deliver(sync.delivery())
                tasks = _states(store.jobs(project, sync.version).all().values(), limit)
                yield tasks
                ends = ("delivered", "failed") if limit is None else ("done", "delivered", "failed")
                if all(task["state"] in ends for task in tasks):
                    return
                time.sleep(CONFIRM_PAUSE if unconfirmed else PAUSE)
        finally:
            worker.stop()


def _queue_all(sync: ProjectSync, limit: int | None) -> None:
    """Do the steps of a sync, which no quiet period and no missing connection holds up here.

    Raises:
        BackendError: there is nothing to learn from, or no way to Label Studio.
    """
    try:
        sync.read_project()
    except LabelStudioNotFound as error:
        raise BackendError(f"Label Studio has no project {sync.project}, or its key may not see it.") from error
    counts = sync.read_tasks()
    references = sync.choose_references()
    sync.adopt(references)
    if references is None:
        raise BackendError(sync.why_no_reference())
    if sync.is_wanted_again:
        sync.begin_again()
    if sync.unqueued(references):
        sync.queue_missing(references, limit)
    delivery = sync.delivery()
    delivery.reopen_deleted(counts)
    delivery.remove_duplicates(counts)


def _deliver(delivery: Delivery) -> bool:
    """Push a batch of what is finished; returns whether Label Studio may still be storing what it was given."""
    delivery.confirm()
    delivery.run()
    return delivery.is_unconfirmed


def _states(jobs: Iterable[Job], limit: int | None) -> list[dict[str, Any]]:
    """What became of each task by number; with a `limit`, of the first tasks."""
    return [
        {
            "task": job.task,
            "state": "delivered" if job.state == "done" and job.delivery == "delivered" else job.state,
            "score": job.score,
            "seconds": job.seconds,
            "error": job.error,
        }
        for job in sorted(jobs, key=lambda job: job.task)[:limit]
    ]
