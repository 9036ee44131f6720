"""Tasks as Label Studio last listed them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

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
        listed = {task.id: (json.dumps(task.data), task.annotated) for task in tasks}
        with self._db.transaction() as db:
            rows = db.rows("tasks", self.project)
            known = {row["id"]: (row["data"], bool(row["annotated"])) for row in rows}
            gone = known.keys() - listed.keys()
            for task in gone:
                for query in FORGET:
                    db.change(query, self.project, task)
            news = [(self.project, task, *said) for task, said in listed.items() if known.get(task) != said]
            db.change_each("store_task", news)
            return len(gone)

    def all(self) -> list[Task]:
        """All tasks by number."""
        return [_task(row) for row in self._db.rows("tasks", self.project)]

    def numbers(self) -> set[int]:
        """The numbers of all tasks."""
        return {row["id"] for row in self._db.rows("task_numbers", self.project)}

    def annotations_read(self) -> dict[int, str]:
        """The state of each task under which its annotations were read last."""
        return {row["id"]: row["annotations_read"] for row in self._db.rows("annotations_read", self.project)}

    def without_job(self, version: str) -> dict[int, bool]:
        """The tasks that have no job under a version, by number, and whether each is annotated."""
        rows = self._db.rows("tasks_without_job", self.project, self.project, version)
        return {row["id"]: bool(row["annotated"]) for row in rows}

    def find(self, task: int) -> Task | None:
        """One task, if it is known."""
        rows = self._db.rows("task", self.project, task)
        return _task(rows[0]) if rows else None

    def predictions_read(self) -> dict[int, int]:
        """Under how many predictions each task was last searched for duplicates."""
        return {row["id"]: row["predictions_read"] for row in self._db.rows("predictions_read", self.project)}

    def set_predictions_read(self, counts: Mapping[int, int]) -> None:
        """Store that tasks with so many predictions were searched for duplicates."""
        with self._db.transaction() as db:
            db.change_each("set_predictions_read", [(count, self.project, task) for task, count in counts.items()])


def _task(row: sqlite3.Row) -> Task:
    return Task(row["project"], row["id"], json.loads(row["data"]), bool(row["annotated"]), row["annotations_read"])
