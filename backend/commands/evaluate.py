"""`cavsam-backend evaluate`: how good a project's predictions are, by its own annotations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from backend.clients import Clients
from backend.errors import BackendError
from backend.learning.evaluation import Evaluation, Figure, Way, summary
from backend.settings import Settings
from backend.store.store import Store, ledger_path
from backend.sync.reviews import Reviews
from backend.version import base_of
from cavsam.scoring.experience import Experience


def evaluate(settings: Settings, project: int, *, fetch: bool = True) -> Evaluation:
    """Evaluate what the ledger holds of a project; a backend may be running beside it.

    Args:
        settings: where the ledger is, and Label Studio.
        project: its number.
        fetch: whether annotations that were not measured yet are fetched from Label Studio.

    Raises:
        BackendError: the project is not known, has nothing to evaluate, or Label Studio cannot be reached.
    """
    path = ledger_path(settings)
    if not path.exists():
        raise BackendError(f"There is no ledger in {settings.data_dir}; set CAVSAM_DATA_DIR to the backend's folder.")
    with closing(Store(path)) as store:
        known = store.projects.find(project)
        if known is None:
            numbers = ", ".join(str(other.id) for other in store.projects.all()) or "none"
            raise BackendError(f"The ledger does not know project {project}; it knows {numbers}.")
        base, config = base_of(known.version), known.config
        if fetch and config is not None:
            reviews = Reviews(store, Clients(settings, store).of(project), project)
            while reviews.measure_missing(known, config):
                pass
        found = store.learning(project).reviews(base)
        if not found:
            raise BackendError(
                f"Project {project} has no task that is both predicted and annotated; correct some predictions first."
            )
        lesson = store.learning(project).lesson(base)
        mode = known.settings(settings).method().mode
        return Evaluation.of(found, lesson.experience if lesson else Experience(), mode=mode)


def lines(found: Evaluation) -> Iterator[str]:
    """Say an evaluation in lines of text."""
    yield summary(found.to_json())
    yield f"mean IoU {_interval(found.iou)}, accepted unchanged {_interval(found.unchanged)} (95% intervals)"
    yield f"a score is off by {found.gap:.2f} on average; {found.seconds:.1f} s a task"
    yield ", ".join(f"{count} {name}" for name, count in found.labels.items()) + " (masks)"
    yield from _table("each way alone", found.kinds)
    yield from _table("mode auto, ended at", found.ladder)
    yield from found.advice
    yield "lowest: " + ", ".join(f"task {task} {iou:.2f}" for task, iou in found.worst)


def _table(title: str, ways: list[Way]) -> Iterator[str]:
    if ways:
        yield f"{title}:"
    for way in ways:
        yield f"    {way.name:<12} {_interval(way.iou)}  {way.seconds:8.2f} s  {way.tasks} tasks"


def _interval(figure: Figure) -> str:
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"
