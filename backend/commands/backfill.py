"""`cavsam-backend backfill`: predict a whole project now, with no server running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from backend.entities import ALL_PROJECTS
from backend.errors import BackendError
from backend.service import Service
from backend.settings import Settings
from backend.sync.coordinator import Demand
from backend.worker.model_process import CAVSAM

PAUSE = 0.3


def backfill(
    settings: Settings, project: int, *, limit: int | None = None, segmenter: str = CAVSAM
) -> Iterator[list[dict[str, Any]]]:
    """Work until every task is predicted and pushed; with a `limit`, until so many are predicted, and push none.

    Yields the state of the tasks (`Service.task_states`) as the work goes on, the last time when all is over.

    Raises:
        DataFolderBusy: a server runs with the same data folder; it predicts everything by itself.
        BackendError: there is no reference, no model, or no way to Label Studio.
    """
    service = Service(settings, segmenter=segmenter, demand=Demand(project, limit))
    try:
        for paused in (ALL_PROJECTS, project):
            service.store.projects.set_paused(paused, False)  # whoever asks for it now does not want it to wait
        service.start()
        while True:
            looked = service.coordinator.looks(project)
            if looked:
                _check(service, project)
            tasks = service.task_states(project)
            if limit is not None:
                tasks = sorted(tasks, key=lambda task: task["task"])[:limit]
            yield tasks
            ends = ("delivered", "failed") if limit is None else ("done", "delivered", "failed")
            if looked and all(task["state"] in ends for task in tasks):
                return
            time.sleep(PAUSE)
    finally:
        service.stop()


def _check(service: Service, project: int) -> None:
    known = service.store.projects.find(project)
    if known is None:
        raise BackendError(f"Label Studio has no project {project}, or its key may not see it.")
    if known.error:
        raise BackendError(known.error)
    if service.store.annotations(project).references() is None:
        raise BackendError(service.why_no_reference(project))
    if service.worker.activity.state == "no model":
        raise BackendError(service.worker.activity.error)
