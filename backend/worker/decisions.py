"""What becomes of a job that gave no result: whose fault it was, and whether it is tried again.

A fault of the task costs the task its tries; whatever it cannot help, it waits for.
"""

from __future__ import annotations

from dataclasses import dataclass

from backend.entities import ReferenceAnnotation
from backend.errors import BackendError, ImageNotKept, ImageServerFault, ImageUnavailable

IMAGE_DELAYS = (5.0, 20.0, 60.0)
"""Seconds until an image that did not come is fetched again; then the task is given up."""
AWAY_DELAY = 20.0
UNLISTED_DELAY = 5.0
CHANGED_DELAY = 1.0
PROCESS_ATTEMPTS = 2
"""Times that a model process may end in the middle of one task."""
MODEL_DELAYS = (15.0, 30.0, 60.0, 300.0)
"""Seconds until a model that cannot be loaded is tried again; the last of them from then on."""
REFUSAL_DELAY = 10.0
"""Seconds that a version's jobs wait for another reference to be chosen, which drops them."""
CANCELLED = "The task was cancelled; retry it when it shall be predicted after all."


@dataclass(frozen=True)
class TaskFault:
    """The task gives no result: its image, or what the method makes of it.

    `passes` says whether the same may go well later.
    """

    message: str
    passes: bool = False


@dataclass(frozen=True)
class ReferenceFault:
    """An annotation that is learned from cannot be used; `passes` as in `TaskFault`."""

    message: str
    reference: ReferenceAnnotation
    passes: bool = False


@dataclass(frozen=True)
class ProcessDied:
    """The model process ended in the middle of the task."""

    message: str


@dataclass(frozen=True)
class ProcessStopped:
    """The model process was stopped with the backend."""


@dataclass(frozen=True)
class ModelNotLoaded:
    """There is no model to do any job with, in the model's own words."""

    message: str


@dataclass(frozen=True)
class Away:
    """Label Studio, another host of images, or the disk: nothing that the task or its project can help."""

    message: str


@dataclass(frozen=True)
class ReferenceChanged:
    """The project learns from something else than when the job was queued."""


@dataclass(frozen=True)
class NotListed:
    """A task that the job needs was deleted, or is not listed yet."""


@dataclass(frozen=True)
class Cancelled:
    """Somebody stopped the task."""


Failure = (
    TaskFault
    | ReferenceFault
    | ProcessDied
    | ProcessStopped
    | ModelNotLoaded
    | Away
    | ReferenceChanged
    | NotListed
    | Cancelled
)


@dataclass(frozen=True)
class TryAgain:
    """The job is queued again.

    Attributes:
        error: what is shown beside the task until then; None for nothing.
        delay: seconds until the job may be taken.
        counts: whether this attempt stays counted as one of the job's.
        pause: seconds for which no job at all is taken.
    """

    error: str | None = None
    delay: float = 0.0
    counts: bool = False
    pause: float = 0.0


@dataclass(frozen=True)
class GiveUp:
    """The job has failed, and is left alone until somebody asks for it again."""

    error: str


Decision = TryAgain | GiveUp


def decide(failure: Failure, attempts: int) -> Decision:
    """Decide whether a job is tried again.

    Args:
        failure: what happened.
        attempts: how often the same has happened to the job, this time included; to any job if it is the model that
            cannot be loaded.
    """
    match failure:
        case TaskFault(message, passes=True) if attempts <= len(IMAGE_DELAYS):
            return TryAgain(message, delay=IMAGE_DELAYS[attempts - 1])
        case TaskFault(message):
            return GiveUp(message)
        case ReferenceFault(passes=True):
            return TryAgain(delay=AWAY_DELAY)
        case ReferenceFault():
            return TryAgain(delay=REFUSAL_DELAY)
        case ProcessDied(message) if attempts < PROCESS_ATTEMPTS:
            return TryAgain(message, counts=True)
        case ProcessDied(message):
            return GiveUp(f"{message} It happened {attempts} times on this task.")
        case ProcessStopped():
            return TryAgain()
        case ModelNotLoaded(message):
            return TryAgain(message, pause=MODEL_DELAYS[min(attempts, len(MODEL_DELAYS)) - 1])
        case Away(message):
            return TryAgain(message, delay=AWAY_DELAY)
        case ReferenceChanged():
            return TryAgain(delay=CHANGED_DELAY)
        case NotListed():
            return TryAgain(delay=UNLISTED_DELAY)
        case Cancelled():
            return GiveUp(CANCELLED)


def task_image_failure(error: BackendError) -> Failure:
    """Say whose fault it is that a task's image was not fetched."""
    if isinstance(error, ImageUnavailable) and not isinstance(error, ImageNotKept | ImageServerFault):
        return TaskFault(str(error), passes=not error.permanent)
    return Away(str(error))


def reference_image_failure(error: BackendError, reference: ReferenceAnnotation) -> Failure:
    """Say whose fault it is that the image of an annotation learned from was not fetched."""
    if not isinstance(error, ImageUnavailable):
        return Away(str(error))
    if error.permanent:
        return ReferenceFault(f"Its image cannot be used. {error}", reference)
    return ReferenceFault(str(error), reference, passes=True)
