"""What the backend is doing, as plain dictionaries without secrets: what /api answers and the status page shows."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

from backend.entities import ALL_PROJECTS, LowScores, Project, References, Task, TaskState
from backend.errors import InvalidRequest, LabelStudioError, NotKnown
from backend.labelstudio.address_guard import SWITCHES, has_guard, listens_privately
from backend.labelstudio.label_config import LabelConfig, image_url
from backend.labelstudio.project_keys import number_of
from backend.learning.evaluation import summary
from backend.readiness import LOADING, problems
from backend.service import Service
from backend.settings import Settings
from backend.store.jobs import TaskFilter, TaskOrder
from backend.version import base_of

PER_PAGE = 20
MOST_PER_PAGE = 500
DAMAGED = (
    "The ledger was damaged and is kept as {} in the data folder; what the backend knows was read from Label Studio "
    "anew. Look after the disk, and delete the file when nobody wants to look into it."
)
STATES = {None: "not queued", "queued": "queued", "running": "running", "done": "done", "failed": "failed"}


def backend_status(service: Service) -> dict[str, Any]:
    """Collect all there is to say but the single tasks.

    Returns:
        `problems` (what keeps the backend from working, the one to mend first at the head), `hint` (why no project may
        be there yet), `warnings` (what else concerns the whole backend), `work` (what the model does now), `model`,
        `projects`.
    """
    work, projects = asdict(service.worker.activity), project_states(service)
    del work["since"]
    return {
        "problems": [asdict(problem) for problem in problems(service) if problem.message != LOADING],
        "hint": None if projects else _why_no_project(service),
        "warnings": [DAMAGED.format(name) for name in service.store.kept_files()],
        "work": work,
        "model": model_status(service),
        "projects": projects,
    }


def _why_no_project(service: Service) -> str | None:
    """Say what keeps Label Studio from connecting this backend, as far as it can be seen from here."""
    guarded = has_guard(service.reachability.release) and listens_privately(service.settings.host)
    return f"This backend listens on a private address. {SWITCHES}" if guarded else None


def model_status(service: Service) -> dict[str, Any]:
    """Collect what the model process has to do: what waits, what is in work since when, memory, device and models."""
    activity, sources = service.worker.activity, service.settings.sources()
    working = activity.task is not None
    return {
        "queue": service.store.queue.length(),
        "paused": service.store.projects.is_paused(ALL_PROJECTS),
        "state": activity.state,
        "project": activity.project,
        "task": activity.task,
        "job_seconds": round(time.monotonic() - activity.since, 1) if working else None,
        "device": service.model_process.device or None,
        "wanted_device": service.settings.device,
        "memory_bytes": service.model_process.resident_bytes,
        "gpu_memory_bytes": service.model_process.gpu_bytes,
        "models": {"name": sources.name, "try_out": service.trial_models}
        | ({} if service.trial_models else {"sam2": sources.sam2, "diffusion": sources.diffusion}),
        "mode": service.settings.method().mode,
        "recipe": service.settings.method().described(),
    }


def project_states(service: Service) -> list[dict[str, Any]]:
    """All projects; the time left counts the others as well, for they take turns with the model."""
    states = [_project_state(service, project) for project in service.store.projects.all()]
    at_work = [state for state in states if state["seconds_of_work"] is not None and not state["paused"]]
    if service.store.projects.is_paused(ALL_PROJECTS):
        return states
    for state in at_work:
        waiting = _waiting(state["jobs"])
        left = sum(min(waiting, _waiting(other["jobs"])) * other["seconds_per_task"] for other in at_work)
        state["seconds_left"] = round(left, 1)
        state["seconds_left_at_most"] = round(left - state["seconds_of_work"] + state["seconds_of_work_at_most"], 1)
    return states


def _waiting(jobs: Mapping[str, int]) -> int:
    return jobs["queued"] + jobs["running"]


def project_state(service: Service, project: int) -> dict[str, Any]:
    """One of `project_states`; raises `NotKnown`."""
    for state in project_states(service):
        if state["id"] == project:
            return state
    raise NotKnown(f"The backend does not know project {project}; connect it in Label Studio.")


def _project_state(service: Service, project: Project) -> dict[str, Any]:
    store = service.store
    settings = store.projects.settings(project.id, service.settings)
    references = store.annotations(project.id).references()
    jobs = store.jobs(project.id, project.version).counts()
    jobs["low"] = store.jobs(project.id, project.version).to_check(settings.review_below)
    waiting = _waiting(jobs)
    times = store.jobs(project.id, project.version).times()
    work, at_most = (times.left(waiting), times.at_most(waiting)) if times and waiting else (None, None)
    config = store.projects.config(project.id)
    tasks = {number: store.tasks(project.id).find(number) for number in (references.tasks if references else ())}
    learned_from = [
        {
            "annotation": annotation.annotation,
            "task": annotation.task,
            "name": _name(config, tasks[annotation.task]),
            "image": _picture(project.id, annotation.task, "image", _digest(tasks[annotation.task])),
            "masks": _picture(project.id, annotation.task, "masks", annotation.key),
            "link": _link(service, project.id, annotation.task),
        }
        for annotation in (references.annotations if references else ())
    ]
    return {
        "id": project.id,
        "number": project.number,
        "title": project.title,
        "version": service.version_of(project.id),
        "reviews": _reviews(service, project, settings),
        "policy": settings.reference_policy,
        "reference": {name: learned_from[0][name] for name in ("annotation", "task")} if learned_from else None,
        "references": learned_from,
        "why_no_reference": None if learned_from else service.why_no_reference(project.id),
        "paused": project.paused,
        "predicting_again": project.id in store.projects.wanted_again(),
        "error": project.error,
        "warnings": _warnings(service, project.id),
        "jobs": jobs,
        "total": waiting + jobs["done"] + jobs["failed"],
        "over": jobs["done"] + jobs["failed"],
        "low_score": settings.review_below,
        "seconds_per_task": round(times.mean, 2) if times else None,
        "seconds_of_work": None if work is None else round(work, 1),
        "seconds_of_work_at_most": None if at_most is None else round(at_most, 1),
        "seconds_left": None,
        "seconds_left_at_most": None,
        "link": _link(service, project.id),
    }


def _reviews(service: Service, project: Project, settings: Settings) -> dict[str, Any]:
    """What people made of the project's predictions: the line of progress, the evaluation, what was learned."""
    learning = service.store.learning(project.id)
    evaluation, lesson = learning.evaluation(), learning.lesson(base_of(project.version))
    return {
        "count": evaluation["reviews"] if evaluation else 0,
        "summary": summary(evaluation) if evaluation else None,
        "evaluation": evaluation,
        "worst": [
            {
                "task": task,
                "iou": iou,
                "image": _picture(project.id, task, "image", _digest(service.store.tasks(project.id).find(task))),
                "masks": _picture(project.id, task, "masks", f"{project.version}-{iou}"),
                "link": _link(service, project.id, task),
            }
            for task, iou in (evaluation["worst"] if evaluation else ())
        ],
        "learn": settings.learn,
        "learned": list(lesson.told) if lesson else [],
    }


def task_page(
    service: Service, project: int, *, page: int = 1, per_page: int = PER_PAGE, show: str = "all", order: str = "task"
) -> dict[str, Any]:
    """One page of a project's tasks: `show` and `order` as the ledger has them (`TaskFilter`, `TaskOrder`).

    Raises `InvalidRequest` for a page, size, filter or order that there is not, and `NotKnown`.
    """
    if show not in get_args(TaskFilter):
        raise InvalidRequest(f"show must be one of {', '.join(get_args(TaskFilter))}.")
    if order not in get_args(TaskOrder):
        raise InvalidRequest(f"order must be one of {', '.join(get_args(TaskOrder))}.")
    if not 1 <= per_page <= MOST_PER_PAGE or not 1 <= page <= 10**9:
        raise InvalidRequest(f"page must be 1 or more, per_page between 1 and {MOST_PER_PAGE}.")
    known = service.store.projects.find(project)
    if known is None:
        raise NotKnown(f"The backend does not know project {project}; connect it in Label Studio.")
    settings = service.store.projects.settings(project, service.settings)
    jobs = service.store.jobs(project, known.version)
    low = jobs.low_scores(settings.review_below)
    found, total = jobs.task_states(
        show=show,  # type: ignore[arg-type]  # checked above
        order=order,  # type: ignore[arg-type]
        low=settings.review_below,
        limit=per_page,
        offset=(page - 1) * per_page,
    )
    references, config = service.store.annotations(project).references(), service.store.projects.config(project)
    return {
        "tasks": [_task(service, known, config, state, low, references) for state in found],
        "page": page,
        "pages": max(1, -(-total // per_page)),
        "per_page": per_page,
        "total": total,
        "show": show,
        "order": order,
    }


def _task(
    service: Service,
    project: Project,
    config: LabelConfig | None,
    state: TaskState,
    low: LowScores,
    references: References | None,
) -> dict[str, Any]:
    known = service.store.tasks(project.id).find(state.task)
    learned = {r.task: r.key for r in references.annotations} if references else {}
    name = STATES[state.state]
    if state.task in learned:
        name = "reference"
    elif state.verdict is not None:
        name = "reviewed"
    elif state.state == "done" and state.delivery == "delivered":
        name = "delivered"
    masks = learned.get(state.task) or (f"{project.version}-{state.updated_at}" if state.has_result else None)
    return {
        "task": state.task,
        "name": _name(config, known),
        "state": name,
        "score": state.score,
        "low": state.state == "done"
        and state.verdict is None
        and (bool(state.remarks) or low.hold(state.score, calibrated=state.calibrated)),
        "calibrated": state.calibrated if state.score is not None else None,
        "remarks": list(state.remarks),
        "verdict": state.verdict,
        "iou": state.iou,
        "seconds": state.seconds,
        "error": state.error,
        "attempts": state.attempts,
        "image": _picture(project.id, state.task, "image", _digest(known)),
        "masks": _picture(project.id, state.task, "masks", masks) if masks else None,
        "link": _link(service, project.id, state.task),
    }


def _name(config: LabelConfig | None, task: Task | None) -> str:
    """The file name of a task's first image, for people to recognise it; empty where it has none."""
    for expression in config.images.values() if config and task else ():
        address = image_url(expression, task.data) if task else None
        if address and not address.startswith("data:"):
            return unquote(address.partition("?")[0].rpartition("/")[2])[:100]
    return ""


def _digest(task: Task | None) -> str:
    """Changes with the task's data."""
    return hashlib.sha256(json.dumps(task.data if task else None).encode()).hexdigest()[:8]


def _picture(project: int, task: int, kind: str, state: str) -> str:
    """The path of a thumbnail; it changes with what is shown, so that a browser may keep the picture."""
    return f"api/projects/{project}/tasks/{task}/{kind}?of={state}"


def _warnings(service: Service, project: int) -> list[str]:
    """What the configuration holds that is not supported, and what else was noted (`Projects.set_warnings`)."""
    config = service.store.projects.config(project)
    noted = [text for texts in service.store.projects.warnings(project).values() for text in texts]
    return list(dict.fromkeys([*(config.warnings if config else ()), *noted]))


def _link(service: Service, project: int, task: int | None = None) -> str | None:
    """Where people open a project or a task of it in Label Studio; whoever calls /setup names that address."""
    try:
        client = service.clients.of(project)
    except LabelStudioError:
        return None
    address = client.public_url or client.url
    if urlsplit(address).scheme not in ("http", "https"):
        return None
    return f"{address}/projects/{number_of(project)}/data" + (f"?task={task}" if task is not None else "")
