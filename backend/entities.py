"""Projects, tasks, annotations, references and jobs, as all rooms of the backend speak of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from backend.errors import LabelConfigError
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.labelstudio.project_keys import number_of
from backend.labelstudio.regions import Region
from backend.settings import Settings
from backend.version import taught_version

ALL_PROJECTS = 0
"""Stands for the whole backend in place of a project's number (Label Studio's begin at 1)."""

ODD_REFERENCES = "odd references"
"""Topic of a project's warnings about the masks that it is learned from."""


UNANNOTATED, ANNOTATED, REQUESTED = 0, -10, 10
"""Priorities of jobs: what nobody has annotated comes before what somebody has, and before both what a person opens."""


class JobState(StrEnum):
    """How far the model is with a task under one version."""

    QUEUED = "queued"
    """It waits for the model process, maybe for a moment to come first."""
    RUNNING = "running"
    """It is in work; after a restart it is queued again."""
    DONE = "done"
    """It has a result, or Label Studio already had one that we did not compute."""
    FAILED = "failed"
    """It gave no result, and is left alone until somebody asks for it again."""


class DeliveryState(StrEnum):
    """Who has the result of a job; only an open one may be reserved or pushed."""

    OPEN = "open"
    """Label Studio does not have it, and nobody is about to give it."""
    RESERVED = "reserved"
    """An open /predict request will give it, if it is finished in time."""
    ANSWERED = "answered"
    """A /predict answer held it; until `delivery_until` Label Studio may still be storing it."""
    PUSHING = "pushing"
    """An import is under way; an import cut short counts as answered."""
    DELIVERED = "delivered"
    """Label Studio has it."""


@dataclass(frozen=True)
class Project:
    """A project that Label Studio has named to us; `id` is its key (`labelstudio/project_keys.py`).

    `extra_params` is the JSON text of what its connection was given; `shown_version` the version of ours that Label
    Studio was last told to show, sort and sample by.
    """

    id: int
    uid: str
    title: str
    label_config: str
    version: str
    reference_key: str | None
    error: str | None
    reconciled_at: float | None
    paused: bool = False
    reference_shots: int = 0
    extra_params: str = ""
    shown_version: str = ""

    @property
    def number(self) -> int:
        """The project's number in its Label Studio."""
        return number_of(self.id)

    @property
    def config(self) -> LabelConfig | None:
        """The labelling configuration as it was last read; `None` if there is none that can be read."""
        if not self.label_config:
            return None
        try:
            return parse_label_config(self.label_config)
        except LabelConfigError:
            return None

    def settings(self, settings: Settings) -> Settings:
        """The backend's settings with what the project's extra params set."""
        return settings.for_project(self.extra_params)[0]


@dataclass(frozen=True)
class Task:
    """A task as it was last listed; `annotations_read` is the `updated_at` its annotations were read under."""

    project: int
    id: int
    data: dict[str, Any]
    annotated: bool
    annotations_read: str


@dataclass(frozen=True)
class JudgedAnnotation:
    """One annotation as the reference policies see it.

    `regions` are those that give a mask; `key` is a hash of them (8 hex digits);
    `reason` says why the annotation cannot be a reference, and is empty if it can. `labels` are what its regions show:
    control tag, image tag and label. `left_out` says which regions of a usable annotation teach nothing, and why.
    """

    annotation: int
    task: int
    created_at: str
    key: str = ""
    reason: str = ""
    regions: tuple[Region, ...] = ()
    labels: frozenset[tuple[str, str, str]] = frozenset()
    ground_truth: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether a policy may choose this annotation."""
        return not self.reason


@dataclass(frozen=True)
class ReferenceAnnotation:
    """An annotation that a project's predictions are learned from."""

    project: int
    key: str
    annotation: int
    task: int
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class References:
    """All that a project's predictions are learned from, by age; `key` is part of their version.

    `shots` is how many of the annotations serve each task, those most like it; 0 for all.
    """

    key: str
    annotations: tuple[ReferenceAnnotation, ...]
    shots: int = 0

    @property
    def tasks(self) -> frozenset[int]:
        """The annotations' tasks, which are not predicted."""
        return frozenset(annotation.task for annotation in self.annotations)


@dataclass(frozen=True)
class Refusal:
    """An annotation, as it was when its `key` was taken, that turned out to teach nothing, and why."""

    project: int
    annotation: int
    key: str
    reason: str


@dataclass(frozen=True)
class Job:
    """One task under one version.

    `result` is the JSON text of its regions once it is done, `remarks` what a person should look at in them. `lesson`
    names what the project had learned when it was made; it is empty before anything is learned. `calibrated` says
    whether the score estimates an IoU, rather than give an order only.
    """

    project: int
    task: int
    version: str
    state: JobState
    attempts: int
    score: float | None
    seconds: float | None
    error: str | None
    result: str | None
    delivery: DeliveryState
    updated_at: float
    remarks: tuple[str, ...] = ()
    calibrated: bool = False
    lesson: str = ""

    @property
    def carried_version(self) -> str:
        """The version that the prediction carries in Label Studio, which names the lesson too."""
        return taught_version(self.version, self.lesson)


@dataclass(frozen=True)
class TaskState:
    """One task of a project and what became of it under a version; `state` is `None` if it has no job.

    `verdict` and `iou` say what a person made of its prediction; `None` if nobody has reviewed it.
    """

    task: int
    state: JobState | None = None
    delivery: DeliveryState | None = None
    score: float | None = None
    seconds: float | None = None
    error: str | None = None
    attempts: int = 0
    has_result: bool = False
    updated_at: float | None = None
    remarks: tuple[str, ...] = ()
    calibrated: bool = False
    verdict: str | None = None
    iou: float | None = None


@dataclass(frozen=True)
class LowScores:
    """Which scores a person should check: those below a bound, one for estimates of the IoU and one for bare orders.

    `order` lies above the lowest tenth of a version's scores that give an order only.
    """

    estimate: float
    order: float = 0.0

    def hold(self, score: float | None, *, calibrated: bool) -> bool:
        """Whether a score is one of them."""
        return score is not None and score < (self.estimate if calibrated else self.order)


@dataclass(frozen=True)
class JobTimes:
    """How long finished jobs of one version took: their number, the mean in seconds, and the deviation from it.

    One task may cost a hundred times another, as only some ask for generated frames; so the mean alone misleads.
    """

    count: int
    mean: float
    deviation: float

    def left(self, waiting: int) -> float:
        """The seconds to be expected for so many jobs more."""
        return waiting * self.mean

    def at_most(self, waiting: int) -> float:
        """The seconds that so many jobs more hardly exceed: two deviations of their sum and of the mean's estimate."""
        return self.left(waiting) + 2 * self.deviation * math.sqrt(waiting + waiting**2 / self.count)


@dataclass(frozen=True)
class JobGroup:
    """Jobs of the projects' present versions that are alike.

    `tenth` is that of their scores, -1 (a score of 0) to 9; `seconds` and `score` are sums; `oldest` is when the first
    of them changed last.
    """

    state: JobState
    delivered: bool
    tenth: int
    count: int
    seconds: float
    score: float
    oldest: float
