"""Tasks as Label Studio last listed them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from backend.entities import Task
from backend.store.database import Database

FORGET = ("forget_task", "forget_annotations", "forget_jobs_of_task", "forget_candidates", "forget_review")
"""Queries that drop a task that is not there any more."""


class Tasks:
    """The tasks of one project."""

    def __init__(self, database: Database, project: int):
        self._db, self.project = database, project

    def replace(self, tasks: Sequence[Task]) -> int:
        """Store the tasks as listed; those not listed are dropped with their jobs. Returns how many these are."""
        with self._db.transaction() as db:
            known = {row["id"] for row in db.rows("task_numbers", self.project)}
            gone = known - {task.id for task in tasks}
            for task in gone:
                for query in FORGET:
                    db.change(query, self.project, task)
            db.change_each(
                "store_task", [(self.project, task.id, json.dumps(task.data), task.annotated) for task in tasks]
            )
            return len(gone)

    def all(self) -> list[Task]:
        """All tasks by number."""
        return [_task(row) for row in self._db.rows("tasks", self.project)]

    def find(self, task: int) -> Task | None:
        """One task, if it is known."""
        rows = self._db.rows("task", self.project, task)
        return _task(rows[0]) if rows else None

    def predictions_read(self) -> dict[int, int]:
        """Under how many predictions each task was last searched for duplicates."""
        return {row["id"]: row["predictions_read"] for row in self._db.rows("predictions_read", self.project)}

    def set_predictions_read(self, task: int, count: int) -> None:
        """Store that a task with `count` predictions was searched for duplicates."""
        with self._db.transaction() as db:
            db.change("set_predictions_read", count, self.project, task)


def _task(row: sqlite3.Row) -> Task:
    return Task(row["project"], row["id"], json.loads(row["data"]), bool(row["annotated"]), row["annotations_read"])
