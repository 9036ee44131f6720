"""What people can have done on the status page: pause, resume, retry, cancel, predict again.

Each takes a project's number, or `ALL_PROJECTS`, and says in a sentence what it did.
"""

from __future__ import annotations

from backend.entities import ALL_PROJECTS, Project
from backend.errors import LabelStudioError, NotKnown, NotPossibleNow
from backend.labelstudio.events import Event
from backend.service import LOOKUP_TIMEOUT, Service
from backend.sync.project_sync import NOT_AGAIN


def pause(service: Service, project: int) -> str:
    """Take no more tasks of a project; what is in work is finished, and it stays so after a restart."""
    _projects(service, project)
    service.store.projects.set_paused(project, True)
    service.coordinator.notify()  # whoever waits in /predict would wait in vain
    return f"{_called(project)} paused. The task in work is finished, the others wait until you resume."


def resume(service: Service, project: int) -> str:
    """Take the tasks of a project again."""
    _projects(service, project)
    service.store.projects.set_paused(project, False)
    service.worker.wake()
    if project != ALL_PROJECTS and service.store.projects.is_paused(ALL_PROJECTS):
        return f"{_called(project)} resumed, but the whole backend is paused; resume that as well."
    return f"{_called(project)} resumed."


def retry(service: Service, project: int, task: int | None = None) -> str:
    """Queue the failed tasks again, or one of them; raises `NotPossibleNow` where that one has not failed."""
    tasks = None if task is None else [task]
    queued = sum(service.store.jobs(p.id, p.version).retry_failed(tasks) for p in _projects(service, project))
    if task is not None and not queued:
        raise NotPossibleNow(f"Task {task} of project {project} has not failed; there is nothing to retry.")
    service.worker.wake()
    service.coordinator.notify()
    return f"{queued} failed tasks are queued again." if queued != 1 else "One failed task is queued again."


def cancel(service: Service, project: int, task: int | None = None) -> str:
    """Stop the task in work; raises `NotPossibleNow` where there is none, or not that of `project` or `task`."""
    _projects(service, project)
    activity = service.worker.activity
    asked = project == ALL_PROJECTS or (activity.project == project and task in (None, activity.task))
    if activity.project is None or activity.task is None or not asked:
        raise NotPossibleNow("That task is not in work (any more); there is nothing to cancel.")
    if not service.worker.cancel(activity.project, activity.task):
        raise NotPossibleNow("That task was finished just now; there is nothing to cancel.")
    return f"Task {activity.task} of project {activity.project} is cancelled; retry it if you want it after all."


def predict_again(service: Service, project: int) -> str:
    """Remove the present version's predictions and make them anew.

    Raises `NotPossibleNow` without a reference, and where Label Studio has no backend connected: what was removed there
    would not be made again.
    """
    projects = [p for p in _projects(service, project) if p.reference_key is not None]
    if not projects:
        raise NotPossibleNow("There is no reference to predict from; annotate a task first.")
    connected = [p for p in projects if _may_be_connected(service, p.id)]
    if not connected:
        raise NotPossibleNow(NOT_AGAIN)
    for found in connected:
        service.store.projects.want_again(found.id)
        service.coordinator.send(Event(found.id, "again"))
    left_out = ", ".join(str(p.id) for p in projects if p not in connected)
    but = f" Not connected in Label Studio, and left as they are: {left_out}." if left_out else ""
    return f"{_called(project)} predicted again; the present predictions are removed.{but}"


def _may_be_connected(service: Service, project: int) -> bool:
    """Whether Label Studio has a backend for the project; also where it does not tell: the coordinator asks again."""
    try:
        return bool(service.clients.of(project).backends(project, timeout=LOOKUP_TIMEOUT))
    except LabelStudioError:
        return True


def _projects(service: Service, project: int) -> list[Project]:
    """The projects that a number means; raises `NotKnown`."""
    if project == ALL_PROJECTS:
        return service.store.projects.all()
    known = service.store.projects.find(project)
    if known is None:
        raise NotKnown(f"The backend does not know project {project}; connect it in Label Studio.")
    return [known]


def _called(project: int) -> str:
    return "All projects are" if project == ALL_PROJECTS else f"Project {project} is"
