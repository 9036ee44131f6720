"""Bringing one project into line with Label Studio."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from backend.entities import ANNOTATED, ODD_REFERENCES, UNANNOTATED, Project, References
from backend.errors import LabelStudioError, LabelStudioNotFound
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.connection import Connection
from backend.sync.delivery import Delivery, delete_predictions
from backend.sync.policy import choose, why_no_reference
from backend.sync.reading import Reader
from backend.sync.reviews import Reviews
from backend.version import model_version

log = logging.getLogger(__name__)

CHOICES = 3
"""How often a reference is chosen anew if annotations change meanwhile."""
MEASURE_PAUSE = 5.0
"""Seconds until the next of many annotations are measured."""
AGAIN = "predict again"
NOT_AGAIN = (
    "Nothing was removed or predicted again: Label Studio has no machine learning backend connected to the project; "
    "connect it under Settings, Model."
)


@dataclass(frozen=True)
class Due:
    """What a sync leaves to be done later, in seconds from its end; `None` for nothing.

    - `sync_in`: the next full sync should not wait for the usual interval.
    - `choose_in`: the reference has changed, and is chosen again when its quiet period is over.
    - `confirm`: results wait to be confirmed or pushed.
    """

    sync_in: float | None = None
    choose_in: float | None = None
    confirm: bool = False


@dataclass(frozen=True)
class _Pending:
    """A version that waits for its quiet period to end, at a moment of the clock."""

    version: str
    until: float


class ProjectSync:
    """Brings the store into line with one project as Label Studio has it, and Label Studio's predictions with ours.

    Every step is idempotent and may be repeated at any time. The caller says when, and calls from one thread;
    `is_listing` may be read by others.
    """

    def __init__(
        self,
        store: Store,
        client: LabelStudio,
        project: int,
        settings: Settings,
        base_version: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[], None] = lambda: None,
    ):
        """Take what the steps work with; nothing is read yet.

        Args:
            store: the ledger.
            client: a connection to Label Studio that may see the project.
            project: its number.
            settings: those of the backend; the project's extra params change some.
            base_version: the version of predictions without a reference.
            clock: seconds, for quiet periods.
            changed: called when jobs were queued or `is_listing` changed.
        """
        self._store, self.client, self.project = store, client, project
        self._settings, self._base_version = settings, base_version
        self._clock, self._changed = clock, changed
        self._reviews = Reviews(store, client, project)
        self._reader = Reader(store, client, project, self._reviews)
        self._connection = Connection(client, project, settings.webhook_secret)
        self._pending: _Pending | None = None
        self._asks_meanwhile = False
        self.is_listing = False
        """Whether Label Studio may be waiting for our answer to /predict while we wait for its list of tasks."""

    # the whole

    def run(self, *, at_once: bool = False, extra_params: str | None = None, check_webhook: bool = False) -> Due:
        """Compare the whole project with the store, and mend what differs.

        Args:
            at_once: learn from a changed reference without a quiet period, and try failed tasks again.
            extra_params: JSON text of what the project's connection was given, if that is known.
            check_webhook: look again whether the webhook carries the secret: an event came without it.
        """
        if check_webhook:
            self._connection.is_settled = False
        self.read_project(extra_params)  # title, labelling configuration, extra params
        counts = self.read_tasks()  # new, changed, deleted; judges changed annotations
        due = self.follow_reference(at_once=at_once)  # chooses, waits for quiet, adopts, queues what is missing
        delivery = self.delivery()
        if delivery.reopen_deleted(counts):
            self._changed()
        delivery.remove_duplicates(counts)
        if not self._connection.is_settled and due.sync_in is None and not self.is_connected():
            due = replace(due, sync_in=self._connection.next_pause())
        if self.learn_from_reviews():
            due = replace(due, sync_in=MEASURE_PAUSE)
        self._store.projects.mark_synced(self.project)
        return replace(due, confirm=delivery.is_waiting)

    def follow_reference(self, *, at_once: bool = False) -> Due:
        """Have the project learn from what its policy chooses now, and predict what is missing under it."""
        references = self.choose_references()
        quiet_in = 0.0 if at_once else self.seconds_to_quiet(references)
        if quiet_in > 0:
            return Due(choose_in=quiet_in)
        self.adopt(references)
        if at_once:
            self.retry_failed()
        if self.is_wanted_again and self.may_begin_again(references):
            self.begin_again()
        if references is None or not self.unqueued(references):
            return Due()
        if not self.is_connected():
            return Due(sync_in=self._connection.next_pause())
        self.queue_missing(references)
        return Due()

    # read

    def read_project(self, extra_params: str | None = None) -> None:
        """Store what the API says of the project; its annotations are judged anew if its configuration has changed.

        Raises:
            LabelConfigError: the configuration cannot be read.
            LabelStudioError: the project cannot be read.
        """
        found = self.client.project(self.project)
        if self._store.projects.add(self.project, str(found.get("created_at"))):
            self._store.annotations(self.project).set_references(self._base_version, None)
        known = self._known()
        xml = str(found.get("label_config") or "")
        config = parse_label_config(xml)
        if xml != known.label_config:
            for warning in config.warnings:
                log.warning("Project %d: %s", self.project, warning)
            self._store.annotations(self.project).judge_again()
        self._store.projects.describe(self.project, str(found.get("title") or ""), xml)
        self._asks_meanwhile = bool(found.get("evaluate_predictions_automatically"))
        if extra_params is None:
            return
        if extra_params == known.extra_params or self._connection.has_extra_params(extra_params):
            self._keep(extra_params, known)

    def _keep(self, extra_params: str, known: Project) -> None:
        if extra_params != known.extra_params:
            self._store.projects.set_extra_params(self.project, extra_params)
        _, problems = self._settings.for_project(extra_params)
        for problem in self._store.projects.set_warnings(self.project, "extra params", problems):
            log.warning("Project %d: %s", self.project, problem)

    def read_tasks(self) -> dict[int, int]:
        """List the project's tasks, and judge the annotations that are new or changed since they were last read.

        Returns how many predictions each task has.
        """
        with self._while_listing():
            return self._reader.read_tasks(self._config())

    @contextmanager
    def _while_listing(self) -> Iterator[None]:
        """Set `is_listing` if the project predicts automatically.

        Label Studio then asks us for predictions before it answers us, so waiting for each other would be for nothing.
        """
        if not self._asks_meanwhile:
            yield
            return
        self.is_listing = True
        self._changed()
        try:
            yield
        finally:
            self.is_listing = False

    def knows(self, task: int) -> bool:
        """Whether a task can be read by itself, without a full sync."""
        known = self._store.projects.find(self.project)
        return known is not None and known.config is not None and self._store.tasks(self.project).find(task) is not None

    def read_task(self, task: int, expected: frozenset[int]) -> frozenset[int]:
        """Judge one task's annotations again; returns those that were expected and are not there (yet)."""
        judged = self._reader.judge(task, self._config())
        self._learn()
        return expected - {one.annotation for one in judged}

    # learn

    def choose_references(self) -> References | None:
        """Choose what the policy asks for now, with its regions; `None` if there is nothing to learn from.

        Raises:
            LabelStudioError: the annotations kept changing meanwhile, or cannot be read.
        """
        config, settings = self._config(), self._known().settings(self._settings)
        for _ in range(CHOICES):
            choice = choose(self._store.annotations(self.project).judged(), settings)
            present = self._store.annotations(self.project).references()
            if choice is not None and present is not None and present.key == choice.key:
                return present
            annotations = self._reader.learn(choice, config)
            if annotations is not None:
                return References(choice.key, annotations, choice.shots) if choice else None
        raise LabelStudioError(f"The annotations of project {self.project} keep changing; trying again later.")

    def why_no_reference(self) -> str:
        """Why nothing can be predicted yet, for people."""
        judged = self._store.annotations(self.project).judged()
        return why_no_reference(judged, self._known().settings(self._settings))

    def seconds_to_quiet(self, references: References | None) -> float:
        """How long changed references have still to wait for further changes; the first ones wait for nothing."""
        known, version = self._known(), self._version_of(references)
        if known.reference_key is None or not _are_news(references, version, known):
            return 0.0
        if self._pending is None or self._pending.version != version:
            self._pending = _Pending(version, self._clock() + known.settings(self._settings).quiet_period)
        return max(0.0, self._pending.until - self._clock())

    def adopt(self, references: References | None) -> None:
        """Have the project learn from `references` under their version; unfinished jobs of others are dropped."""
        known, version = self._known(), self._version_of(references)
        self._pending = None
        if not _are_news(references, version, known):
            return
        self._store.annotations(self.project).set_references(version, references)
        # the first result says them of the new ones
        self._store.projects.set_warnings(self.project, ODD_REFERENCES, [])
        if references is not None:
            log.info("Project %d: %s; version %s.", self.project, _described(references), version)
        elif known.reference_key is not None:
            log.info("Project %d: there is no reference any more.", self.project)

    def learn_from_reviews(self) -> bool:
        """Measure what people made of predictions, and learn from it; returns whether there is more to measure."""
        more = self._reviews.measure_missing(self._known(), self._config())
        self._learn()
        return more

    def _learn(self) -> None:
        known = self._known()
        self._reviews.learn(known, known.settings(self._settings))

    # queue

    @property
    def is_wanted_again(self) -> bool:
        """Whether somebody wants the present predictions replaced; see `Projects.want_again`."""
        return self.project in self._store.projects.wanted_again()

    def may_begin_again(self, references: References | None) -> bool:
        """Whether there is a reference to predict from and a backend to be asked; the wish is dropped otherwise."""
        if references is None:
            log.warning("Project %d: there is no reference any more, so nothing is predicted again.", self.project)
            self._store.projects.forget_again(self.project)
            return False
        if not self.is_connected():
            self._store.projects.forget_again(self.project)
            for text in self._store.projects.set_warnings(self.project, AGAIN, [NOT_AGAIN]):
                log.warning("Project %d: %s", self.project, text)
            return False
        return True

    def begin_again(self) -> None:
        """Remove the present version's predictions here and there, so that all tasks are queued anew."""
        version = self.version
        # first there: what is removed there only is asked for again, what is forgotten here only would stay there
        removed = delete_predictions(self._store, self.client, self.project, version)
        self._store.jobs(self.project, version).begin_again()
        log.info("Project %d: removed %d predictions of %s to predict again.", self.project, removed, version)

    def retry_failed(self) -> None:
        """Queue the failed tasks again."""
        if self._store.jobs(self.project, self.version).retry_failed():
            self._changed()

    def unqueued(self, references: References) -> dict[int, bool]:
        """The tasks that have no job under the present version, but the references' own; whether each is annotated."""
        found = self._store.tasks(self.project).without_job(self.version)
        return {task: annotated for task, annotated in found.items() if task not in references.tasks}

    def queue_missing(self, references: References, limit: int | None = None) -> int:
        """Queue the tasks that have no job yet, those that a person annotated last; returns how many.

        What Label Studio has already is not computed again. With a `limit`, only so many that a person would meet
        first.
        """
        version = self.version
        there = self.client.tasks_with_prediction(self.project, version)
        self._store.deliveries(self.project, version).mark_delivered(there)
        tasks = dict(list(self.unqueued(references).items())[:limit])
        jobs = self._store.jobs(self.project, version)
        queued = jobs.queue([task for task in tasks if not tasks[task]], priority=UNANNOTATED)
        queued += jobs.queue([task for task in tasks if tasks[task]], priority=ANNOTATED)
        if queued:
            log.info("Project %d: %d tasks are queued.", self.project, queued)
        self._changed()
        return queued

    # predictions

    def is_connected(self) -> bool:
        """Whether Label Studio (still) has a backend for the project."""
        connected = self._connection.check()
        if connected:
            self._store.projects.set_warnings(self.project, AGAIN, [])
        return connected

    def delivery(self) -> Delivery:
        """The way of the present version's results to Label Studio."""
        known = self._known()
        return Delivery(self._store, self.client, known, known.settings(self._settings))

    # what the store knows

    @property
    def version(self) -> str:
        """The version that predictions carry now."""
        return self._known().version

    def _known(self) -> Project:
        known = self._store.projects.find(self.project)
        if known is None:
            raise LabelStudioNotFound(f"Project {self.project} was forgotten.")
        return known

    def _config(self) -> LabelConfig:
        return parse_label_config(self._known().label_config)

    def _version_of(self, references: References | None) -> str:
        return model_version(self._base_version, references.key if references else None)


def _are_news(references: References | None, version: str, known: Project) -> bool:
    """Whether a project does not learn from these references under this version yet."""
    return version != known.version or (references is None) != (known.reference_key is None)


def _described(references: References) -> str:
    """What is learned from, for the log."""
    described = [f"annotation {one.annotation} on task {one.task}" for one in references.annotations]
    if len(described) == 1:
        return f"{described[0]} is the reference"
    among = f"the {references.shots} most similar to a task" if references.shots else "all"
    return f"{len(described)} annotations are the reference, {among} at a time: {', '.join(described)}"
