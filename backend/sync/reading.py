"""Reading a project's tasks and annotations from Label Studio, to be judged and learned from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from backend.entities import JudgedAnnotation, ReferenceAnnotation, Task
from backend.errors import LabelStudioNotFound
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.label_config import LabelConfig
from backend.store.store import Store
from backend.sync.policy import Choice
from backend.sync.references import examine, needs_prediction
from backend.sync.reviews import Reviews

log = logging.getLogger(__name__)


class Reader:
    """Reads one project's tasks and annotations, and warns of what chosen annotations hold that is not learned."""

    def __init__(self, store: Store, client: LabelStudio, project: int, reviews: Reviews):
        self._store, self._client, self.project, self._reviews = store, client, project, reviews
        self._tasks, self._annotations = store.tasks(project), store.annotations(project)

    def read_tasks(self, config: LabelConfig) -> dict[int, int]:
        """List the project's tasks, and judge the annotations that are new or changed since they were last read.

        Returns how many predictions each task has.
        """
        listed = self._listed()
        tasks = [
            Task(self.project, int(found["id"]), found.get("data") or {}, bool(found.get("total_annotations")), "")
            for found in listed
        ]
        gone = self._tasks.replace(tasks)
        if gone:
            log.info("Project %d: %d tasks were deleted.", self.project, gone)
        read_under = self._tasks.annotations_read()
        states = {int(found["id"]): _state(found) for found in listed}
        changed = [found for found in listed if states[int(found["id"])] != read_under[int(found["id"])]]
        bare = [int(found["id"]) for found in changed if not found.get("total_annotations")]
        self._annotations.clear({task: states[task] for task in bare})
        self._reviews.forget(bare)
        for found in changed:
            if found.get("total_annotations"):
                self.judge(int(found["id"]), config, read_under=states[int(found["id"])])
        return {int(found["id"]): int(found.get("total_predictions") or 0) for found in listed}

    def _listed(self) -> list[dict[str, Any]]:
        """The project's tasks; one that we know is missing only when it is missing twice.

        Pages are counted anew with each request, so a deletion meanwhile moves a task from a page to come to one that
        was read.
        """
        found = {int(task["id"]): task for task in self._client.tasks(self.project)}
        if self._tasks.numbers() - found.keys():
            found |= {int(task["id"]): task for task in self._client.tasks(self.project)}
        return [found[number] for number in sorted(found)]

    def judge(self, task: int, config: LabelConfig, read_under: str = "") -> list[JudgedAnnotation]:
        """Judge one task's annotations as they are now; see `Annotations.replace` for `read_under`."""
        try:
            found = self._client.annotations(task)
        except LabelStudioNotFound:
            found = []
        known = {one.annotation: one.key for one in self._annotations.judged(task) if one.usable}
        judged = [self._examine(one, config, known.get(int(one["id"]), "")) for one in found]
        self._annotations.replace(task, judged, read_under)
        self._reviews.measure(task, found, config)
        present = self._annotations.references()
        learned = {one.annotation: one.key for one in present.annotations} if present else {}
        # what is learned from may have gained what is not learned, which leaves the reference as it is
        self._warn_of_left_out(one for one in judged if one.usable and learned.get(one.annotation) == one.key)
        return judged

    def learn(self, choice: Choice | None, config: LabelConfig) -> tuple[ReferenceAnnotation, ...] | None:
        """Read the regions of chosen annotations; those that the project learns from already are not read again.

        Returns `None` if one was edited or deleted since it was judged; it is judged again.
        """
        if choice is None:
            self._forget_left_out(frozenset())
            return ()
        present = self._annotations.references()
        known = {one.annotation: one for one in present.annotations} if present else {}
        found, read = [], []
        for chosen in choice.candidates:
            one = known.get(chosen.annotation)
            if one is None or one.key != chosen.key:
                fresh = self._read_again(chosen, config)
                if fresh is None or fresh.key != chosen.key:
                    self.judge(chosen.task, config)
                    return None
                one = ReferenceAnnotation(self.project, fresh.key, fresh.annotation, fresh.task, fresh.regions)
                read.append(fresh)
            found.append(one)
        self._forget_left_out(frozenset(one.annotation for one in found))
        self._warn_of_left_out(read)
        return tuple(found)

    def _read_again(self, chosen: JudgedAnnotation, config: LabelConfig) -> JudgedAnnotation | None:
        try:
            return self._examine(self._client.annotation(chosen.annotation), config, chosen.key)
        except LabelStudioNotFound:
            return None

    def _examine(self, annotation: Mapping[str, Any], config: LabelConfig, known_key: str) -> JudgedAnnotation:
        """Judge an annotation, against the prediction that it was made from if that matters."""
        predicted = None
        if needs_prediction(annotation):
            with suppress(LabelStudioNotFound):
                predicted = self._client.prediction(int(annotation["parent_prediction"])).get("result") or []
        return examine(annotation, config, predicted, known_key)

    def _forget_left_out(self, chosen: frozenset[int]) -> None:
        """Warn no more of annotations that are not chosen (any more)."""
        topics = {f"annotation {number}" for number in chosen}
        for topic in self._store.projects.warnings(self.project):
            if topic.startswith("annotation ") and topic not in topics:
                self._store.projects.set_warnings(self.project, topic, [])

    def _warn_of_left_out(self, chosen: Iterable[JudgedAnnotation]) -> None:
        """Warn once of what chosen annotations, just read, hold that is not learned."""
        for one in chosen:
            texts = [f"Annotation {one.annotation} on task {one.task}: {why}; it is left out." for why in one.left_out]
            for text in self._store.projects.set_warnings(self.project, f"annotation {one.annotation}", texts):
                log.warning("Project %d: %s", self.project, text)


def _state(found: Mapping[str, Any]) -> str:
    """What changes with a task's annotations: its updated_at, and for deletions, which leave that, the counts."""
    return f"{found.get('updated_at')} {found.get('total_annotations')} {found.get('cancelled_annotations')}"
