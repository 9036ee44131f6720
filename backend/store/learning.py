"""What a project's corrections teach: kept candidates, reviews, the lesson learned from them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backend.entities import Job
from backend.learning.candidates import KeptCandidate, read_candidates, write_candidates
from backend.learning.lessons import Lesson
from backend.learning.measure import MeasuredLabel, Review
from backend.store.database import Database
from backend.version import base_of

KEPT = 1000
"""Tasks of a project whose candidates are kept, the latest: some 7 MB, and more than anybody corrects at a time."""
MOST_REVIEWS = 500
"""Reviews of a project that are learned from, the latest: more do not change what they say."""


@dataclass(frozen=True)
class KeptPrediction:
    """The candidates of a task's latest prediction, and how it was made; see `Review` for `last` and `seconds`."""

    version: str
    last: str
    seconds: float
    candidates: tuple[KeptCandidate, ...]


class Learning:
    """What is learned from one project's corrections."""

    def __init__(self, database: Database, project: int):
        self._db, self.project = database, project

    # candidates

    def keep(self, job: Job, candidates: Iterable[KeptCandidate], *, last: str, seconds: float) -> None:
        """Keep the candidates of a prediction in place of the task's former ones; the oldest of the project go."""
        packed = write_candidates(candidates)
        with self._db.transaction() as db:
            db.change("keep_candidates", self.project, job.task, job.version, last, seconds, packed, db.now)
            db.change("prune_candidates", self.project, self.project, KEPT)

    def kept(self, task: int) -> KeptPrediction | None:
        """The candidates of a task's latest prediction, if they are still kept."""
        rows = self._db.rows("candidates_of", self.project, task)
        if not rows:
            return None
        row = rows[0]
        return KeptPrediction(row["version"], row["last"], row["seconds"], read_candidates(row["tried"]))

    def kept_under(self, version: str) -> dict[int, tuple[KeptCandidate, ...]]:
        """The candidates of all tasks that are predicted under a version, by task."""
        rows = self._db.rows("candidates_of_version", self.project, version)
        return {row["task"]: read_candidates(row["tried"]) for row in rows}

    # reviews

    def unmeasured(self, version: str) -> list[int]:
        """Tasks that are annotated and predicted under a version, and were never measured with these models."""
        rows = self._db.rows("unmeasured", version, self.project, base_of(version))
        return [row["task"] for row in rows]

    def review(self, task: int) -> Review | None:
        """The review of one task."""
        rows = self._db.rows("review", self.project, task)
        return _review(rows[0]) if rows else None

    def reviews(self, base: str) -> list[Review]:
        """The latest reviews of predictions by some models, by task; at most `MOST_REVIEWS`."""
        rows = self._db.rows("reviews", self.project, base, MOST_REVIEWS)
        return sorted((_review(row) for row in rows), key=lambda review: review.task)

    def add_review(self, review: Review) -> None:
        """Store a review in place of the task's former one."""
        measured = json.dumps([label.to_json() for label in review.labels], separators=(",", ":"))
        values = (review.digest, review.verdict, review.iou, review.score, review.last, review.seconds, measured)
        with self._db.transaction() as db:
            db.change("add_review", self.project, review.task, base_of(review.version), review.version, *values)

    def forget_reviews(self, tasks: Iterable[int]) -> bool:
        """Forget the reviews of tasks whose annotations are gone; returns whether there were any."""
        with self._db.transaction() as db:
            return bool(db.change_each("forget_review", [(self.project, task) for task in tasks]))

    # what they taught

    def lesson(self, base: str) -> Lesson | None:
        """What was learned from reviews of predictions by some models."""
        rows = self._db.rows("lesson", self.project)
        return _lesson(rows[0]) if rows and rows[0]["base"] == base else None

    def set_lesson(self, base: str, lesson: Lesson | None) -> None:
        """Store what was learned, or that nothing is."""
        with self._db.transaction() as db:
            if lesson is None:
                db.change("forget_lesson", self.project)
            else:
                held = json.dumps(lesson.experience.to_json(), separators=(",", ":"))
                told = json.dumps(lesson.told)
                db.change("set_lesson", self.project, lesson.name, base, lesson.reviews, held, told)

    def rescore(self, version: str, scores: Mapping[int, tuple[float, bool]]) -> None:
        """Give predictions of a version, by task, new scores and whether these estimate an IoU."""
        with self._db.transaction() as db:
            db.change_each("set_score", [(*given, self.project, task, version) for task, given in scores.items()])

    def evaluation(self) -> dict[str, Any] | None:
        """What the reviews say, see `learning.evaluation`; None before the first."""
        rows = self._db.rows("evaluation", self.project)
        found: dict[str, Any] | None = json.loads(rows[0]["evaluation"]) if rows else None
        return found

    def set_evaluation(self, evaluation: Mapping[str, Any] | None) -> None:
        """Store what the reviews say."""
        with self._db.transaction() as db:
            db.change("set_evaluation", self.project, json.dumps(evaluation))


def _review(row: sqlite3.Row) -> Review:
    labels = tuple(MeasuredLabel.from_json(one) for one in json.loads(row["measured"]))
    return Review(row["task"], row["version"], row["digest"], row["score"], row["last"], row["seconds"], labels)


def _lesson(row: sqlite3.Row) -> Lesson:
    return Lesson.of(row["name"], row["reviews"], json.loads(row["experience"]), json.loads(row["told"]))
