"""The hand-over of results to Label Studio.

A job that is done has a delivery (`DeliveryState`). Only an open result may be reserved or pushed, and each change of
hands is one transaction. That is what keeps a task from ending with two predictions of one version.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from backend.entities import Job
from backend.store.database import Database
from backend.store.jobs import job_of

PUSH_BYTES = 2_000_000
"""Compressed size of the results pushed in one call; some ten times that as JSON."""


class Deliveries:
    """The results of one project under one version."""

    def __init__(self, database: Database, project: int, version: str):
        self._db, self.project, self.version = database, project, version

    def reserve(self, tasks: Iterable[int], owner: str) -> set[int]:
        """Promise results, finished or not, to one /predict request; returns the tasks it got."""
        with self._db.transaction() as db:
            return {task for task in tasks if db.change("reserve", owner, self.project, self.version, task)}

    def answer(self, tasks: Sequence[int], owner: str, lease: float) -> dict[int, Job]:
        """Hand the finished ones of some reserved results to their request; they count as answered from now."""
        answered = {}
        with self._db.transaction() as db:
            for task in tasks:
                row = db.row("answer", db.now + lease, self.project, self.version, task, owner)
                if row is not None:
                    answered[task] = job_of(row)
        return answered

    def claim(self, limit: int) -> list[Job]:
        """Take finished results that nobody has, to push them, in the order in which they were finished.

        At most `limit` of them, and no more than `PUSH_BYTES` as stored, but one at least.
        """
        with self._db.transaction() as db:
            claimed: list[sqlite3.Row] = []
            size = 0
            for waiting in db.rows("waiting_to_push", self.project, self.version, db.now, limit):
                size += waiting["size"]
                if claimed and size > PUSH_BYTES:
                    break
                claimed += db.rows("claim_push", self.project, self.version, waiting["task"])
        return [job_of(row) for row in claimed]

    def mark_delivered(self, tasks: Iterable[int]) -> None:
        """Store that Label Studio has these; a job is made for those that we never computed."""
        with self._db.transaction() as db:
            db.change_each("mark_delivered", [(self.project, task, self.version, db.now) for task in tasks])

    def mark_open(self, tasks: Iterable[int], *, delay: float = 0.0) -> None:
        """Store that Label Studio does not have these, and will not get them from what is under way.

        They may be pushed after `delay` seconds; those without a stored result are computed again.
        """
        with self._db.transaction() as db:
            moment = db.now + delay
            db.change_each("mark_open", [(moment, self.project, self.version, task) for task in tasks])

    def reopen(self, tasks: Iterable[int]) -> None:
        """Store that Label Studio lost these, if they still count as delivered; see `mark_open`."""
        with self._db.transaction() as db:
            db.change_each("reopen", [(self.project, self.version, task) for task in tasks])

    def mark_in_doubt(self, tasks: Iterable[int], lease: float) -> None:
        """Store that Label Studio may be storing these; it is looked up until `lease` seconds have passed."""
        with self._db.transaction() as db:
            until = db.now + lease
            db.change_each("mark_in_doubt", [(until, self.project, self.version, task) for task in tasks])

    def mark_rejected(self, task: int, error: str) -> None:
        """Store that Label Studio will not take this result."""
        with self._db.transaction() as db:
            db.change("mark_rejected", error, db.now, self.project, self.version, task)

    def delivered(self) -> list[int]:
        """The tasks whose result Label Studio has."""
        return [row["task"] for row in self._db.rows("delivered", self.project, self.version)]

    def answered(self) -> dict[int, float]:
        """Results whose storing is not confirmed: task -> the time until which Label Studio may be at it."""
        rows = self._db.rows("answered", self.project, self.version)
        return {row["task"]: row["delivery_until"] for row in rows}

    def are_waiting(self) -> bool:
        """Whether a result of the project's present version waits to be pushed or confirmed."""
        return bool(self._db.rows("has_deliveries", self.project))

    def are_complete(self) -> bool:
        """Whether Label Studio has all that the present version can give it; tasks that failed do not count."""
        return bool(self._db.rows("is_complete", self.project))

    def superseded(self) -> list[str]:
        """Versions whose predictions Label Studio was given, when the present version is complete."""
        if not self.are_complete():
            return []
        return [row["version"] for row in self._db.rows("superseded", self.project)]
