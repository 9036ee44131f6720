"""Reviews of one project: what people made of its predictions, and the lessons drawn from that."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from backend.entities import Project
from backend.errors import LabelStudioNotFound, LedgerError
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.label_config import LabelConfig
from backend.labelstudio.regions import read_regions
from backend.learning.evaluation import Evaluation
from backend.learning.lessons import is_due, score_of, teach
from backend.learning.measure import Review, annotation_to_measure, digest_of, measure
from backend.settings import Settings
from backend.store.store import Store
from backend.version import base_of, untaught
from cavsam.scoring.experience import Experience

log = logging.getLogger(__name__)

AT_ONCE = 50
"""Tasks whose annotations are fetched to be measured in one sync, so that a first look at many does not hold it up."""


class Reviews:
    """Measures what people made of one project's predictions, and learns from it."""

    def __init__(self, store: Store, client: LabelStudio, project: int):
        self._store, self._client, self.project = store, client, project
        self._learning = store.learning(project)
        self._without: set[int] = set()  # tasks that have nothing to measure
        self._is_news = True  # after a start what is stored may have been evaluated by another release

    def measure(self, task: int, annotations: Iterable[Mapping[str, Any]], config: LabelConfig) -> None:
        """Measure a task as `_measure` does; one that cannot be measured is left out, and nothing else fails by it."""
        try:
            self._measure(task, annotations, config)
        except LedgerError:
            raise
        except Exception:
            log.exception("Project %d, task %d: its annotation cannot be measured.", self.project, task)

    def forget(self, tasks: Iterable[int]) -> None:
        """Forget what was measured of tasks that have no annotation any more."""
        self._is_news = self._learning.forget_reviews(tasks) or self._is_news

    def _measure(self, task: int, annotations: Iterable[Mapping[str, Any]], config: LabelConfig) -> None:
        """Hold a task's annotations, as Label Studio has them now, against its prediction.

        A review that was made before stays until the annotation changes, though the task be predicted anew: it says
        what a person made of what they saw.
        """
        chosen = annotation_to_measure(annotations)
        if chosen is None:
            self.forget([task])
            return
        known = self._store.projects.find(self.project)
        job = self._store.jobs(self.project, known.version).find(task) if known else None
        if known is None or job is None or job.result is None:
            return
        former, digest = self._learning.review(task), digest_of(chosen)
        if former and former.digest == digest and base_of(former.version) == base_of(known.version):
            return
        kept = self._learning.kept(task)
        if kept is not None and kept.version != known.version:
            kept = None
        predicted, _ = read_regions(json.loads(job.result), config)
        drawn, _ = read_regions(chosen.get("result") or [], config)
        labels = measure(predicted, drawn, kept.candidates if kept else ())
        if not labels:
            return
        last, seconds = (kept.last, kept.seconds) if kept else ("", job.seconds or 0.0)
        review = Review(task, known.version, digest, job.score, last, seconds, labels)
        self._learning.add_review(review)
        self._is_news = True
        log.info("Project %d, task %d: reviewed, %s, IoU %.2f.", self.project, task, review.verdict, review.iou)

    def measure_missing(self, project: Project, config: LabelConfig) -> bool:
        """Measure tasks that were annotated before they were predicted; returns whether there are more."""
        tasks = [task for task in self._learning.unmeasured(project.version) if task not in self._without]
        for task in tasks[:AT_ONCE]:
            self._without.add(task)  # nothing that cannot be measured is fetched again and again
            try:
                self.measure(task, self._client.annotations(task), config)
            except LabelStudioNotFound:
                continue  # deleted meanwhile: the next sync drops the task
        return len(tasks) > AT_ONCE

    def learn(self, project: Project, settings: Settings) -> None:
        """Bring evaluation and lesson up to date with the reviews; `settings` are the project's own."""
        base, mode = base_of(project.version), settings.method().mode
        lesson = self._learning.lesson(base)
        if settings.learn == "off" and lesson is not None:
            forget_lesson(self._store, project)
            lesson, self._is_news = None, True
        if not self._is_news:
            return
        reviews = self._learning.reviews(base)
        if settings.learn == "on" and is_due(len(reviews), lesson):
            lesson = teach(reviews, ladder=mode == "auto")
            self._learning.set_lesson(base, lesson)
            rescore(self._store, project, lesson.experience)
            for sentence in lesson.told:
                log.info("Project %d: %s", self.project, sentence)
        experience = lesson.experience if lesson else Experience()
        evaluation = Evaluation.of(reviews, experience, mode=mode).to_json() if reviews else None
        self._learning.set_evaluation(evaluation)
        self._is_news = False


def forget_lesson(store: Store, project: Project) -> None:
    """Give a project's predictions the scores that the models give; nothing happens if nothing was learned."""
    learning = store.learning(project.id)
    if learning.lesson(base_of(project.version)) is not None:
        learning.set_lesson(base_of(project.version), None)
        rescore(store, project, Experience())


def rescore(store: Store, project: Project, experience: Experience) -> None:
    """Score a project's present predictions anew, as far as their candidates are kept; what was delivered stays."""
    kept = store.learning(project.id).kept_under(untaught(project.version))
    store.learning(project.id).rescore(
        project.version, {task: score_of(candidates, experience) for task, candidates in kept.items()}
    )
