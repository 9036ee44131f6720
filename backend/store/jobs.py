"""Jobs: one task under one version, from the queue to a result."""

from __future__ import annotations

import json
import math
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from backend.entities import REQUESTED, DeliveryState, Job, JobGroup, JobState, JobTimes, LowScores, TaskState
from backend.store.database import Database
from backend.version import taught_version

TaskOrder = Literal["task", "score", "latest"]
TaskFilter = Literal["all", "waiting", "predicted", "failed", "low", "reviewed"]

MAX_BEGUN = 5
"""Times that a job is begun when the whole process ends with it each time, as if a container runs out of memory."""

ORDERS: dict[str, str] = {
    "task": "t.id",
    "score": "j.score IS NULL, j.score, t.id",
    "latest": "j.updated_at IS NULL, j.updated_at DESC, t.id",
}
FILTERS: dict[str, str] = {
    "all": "TRUE",
    "waiting": "coalesce(j.state, 'queued') IN ('queued', 'running')",
    "predicted": "j.state = 'done'",
    "failed": "j.state = 'failed'",
    "low": (
        "j.state = 'done' AND r.verdict IS NULL AND (j.score < iif(j.calibrated, :low, :order) OR j.remarks != '[]')"
    ),
    "reviewed": "r.verdict IS NOT NULL",
}


class JobQueue:
    """The jobs that the worker takes: those of present versions, of one project after the other.

    The projects take turns, so that a large one keeps no other waiting. Before all turns comes what a person waits for.
    """

    def __init__(self, database: Database):
        self._db = database
        self._served: dict[int, int] = {}  # project -> how many jobs had been taken when it last had its turn
        self._taken = 0

    def take_next(self) -> Job | None:
        """Mark the queued job of a present version whose turn it is as running and return it."""
        with self._db.transaction() as db:
            row = self._chosen(db.rows("next_jobs", db.now))
            if row is None:
                return None
            db.change("begin_job", db.now, row["project"], row["task"], row["version"])
        self._taken += 1
        self._served[row["project"]] = self._taken
        return job_of(row, state=JobState.RUNNING, attempts=row["attempts"] + 1)

    def peek_next(self) -> Job | None:
        """The job that `take_next` would give."""
        row = self._chosen(self._db.rows("next_jobs", self._db.now()))
        return job_of(row) if row is not None else None

    def _chosen(self, rows: Iterable[sqlite3.Row]) -> sqlite3.Row | None:
        """Of each project's most urgent job the one whose turn it is."""

        def turn(row: sqlite3.Row) -> tuple[bool, int]:
            return row["priority"] < REQUESTED, self._served.get(row["project"], 0)

        return min(rows, key=turn, default=None)

    def seconds_to_next(self) -> float | None:
        """How long until a queued job may be tried; `None` if none is queued."""
        first = self._db.rows("first_moment")[0]["first"]
        return None if first is None else max(0.0, first - self._db.now())

    def length(self) -> int:
        """How many jobs wait for the model process; those of paused projects do not count."""
        return int(self._db.rows("queue_length")[0]["n"])

    def finish(
        self,
        job: Job,
        result: str,
        score: float,
        seconds: float,
        remarks: Iterable[str] = (),
        *,
        calibrated: bool = True,
    ) -> None:
        """Store a finished job with its lesson.

        Args:
            job: which one.
            result: the JSON text of its regions.
            score: 0..1.
            seconds: time that it took.
            remarks: what a person should look at.
            calibrated: whether the score estimates an IoU, rather than give an order only.
        """
        packed, said = zlib.compress(result.encode()), json.dumps(list(remarks))
        with self._db.transaction() as db:
            made = packed, score, seconds, said, calibrated, job.lesson, db.now
            db.change("finish_job", *made, job.project, job.task, job.version)

    def fail(self, job: Job, error: str, seconds: float | None = None) -> None:
        """Store why a job gave no result."""
        with self._db.transaction() as db:
            db.change("fail_job", error, seconds, db.now, job.project, job.task, job.version)

    def put_back(self, job: Job, *, error: str | None = None, delay: float = 0.0, counts: bool = True) -> None:
        """Queue a running job again, to be tried after `delay` seconds; `counts` keeps the attempt counted."""
        with self._db.transaction() as db:
            taken_back = 0 if counts else 1
            db.change("put_back", error, db.now + delay, taken_back, db.now, job.project, job.task, job.version)

    def requeue_running(self) -> int:
        """Queue the running jobs again, when nobody runs them any more; returns how many there were."""
        with self._db.transaction() as db:
            return db.change("requeue_running")

    def give_up_running(self) -> None:
        """Give up running jobs that were begun `MAX_BEGUN` times and never ended in order.

        One of them may be what ends whoever runs it.
        """
        with self._db.transaction() as db:
            error = f"The backend was ended {MAX_BEGUN} times in the middle of this task."
            db.change("give_up_running", error, db.now, MAX_BEGUN)

    def groups(self) -> list[JobGroup]:
        """The jobs of the projects' present versions, counted."""
        return [
            JobGroup(JobState(state), bool(delivered), *numbers)
            for state, delivered, *numbers in self._db.rows("job_groups")
        ]

    def versions(self) -> list[str]:
        """All versions that have finished jobs, and the present ones, without lessons."""
        return [row["version"] for row in self._db.rows("versions")]

    def carried_versions(self) -> list[str]:
        """The same as predictions carry them, with lessons."""
        return [taught_version(row["version"], row["lesson"]) for row in self._db.rows("carried_versions")]


class Jobs:
    """The jobs of one project under one version."""

    def __init__(self, database: Database, project: int, version: str):
        self._db, self.project, self.version = database, project, version

    def queue(self, tasks: Iterable[int], *, priority: int = 0) -> int:
        """Queue tasks that have no job under this version yet; returns how many."""
        with self._db.transaction() as db:
            return db.change_each("queue_job", [(self.project, task, self.version, priority, db.now) for task in tasks])

    def hold(self, seconds: float) -> None:
        """Have no queued job tried before some seconds are over."""
        with self._db.transaction() as db:
            db.change("hold_version", db.now + seconds, self.project, self.version)

    def raise_priority(self, tasks: Iterable[int], priority: int) -> None:
        """Have some queued tasks done before others."""
        with self._db.transaction() as db:
            db.change_each("raise_priority", [(priority, self.project, self.version, task) for task in tasks])

    def retry_failed(self, tasks: Iterable[int] | None = None, *, older_than: float = 0.0) -> int:
        """Queue failed tasks (all of them without `tasks`) again whose failure is at least `older_than` seconds old.

        Returns how many.
        """
        with self._db.transaction() as db:
            limit = db.now - older_than
            if tasks is None:
                return db.change("retry_failed", self.project, self.version, limit)
            return db.change_each("retry_failed_task", [(self.project, self.version, limit, task) for task in tasks])

    def all(self, tasks: Iterable[int] | None = None) -> dict[int, Job]:
        """The jobs by task, of some tasks only if these are named; without their results."""
        rows = (
            self._db.rows("jobs", self.project, self.version)
            if tasks is None
            else self._db.rows("jobs_of_tasks", self.project, self.version, json.dumps(list(tasks)))
        )
        return {row["task"]: job_of(row) for row in rows}

    def find(self, task: int) -> Job | None:
        """One job with its result."""
        rows = self._db.rows("job", self.project, task, self.version)
        return job_of(rows[0]) if rows else None

    def forget(self) -> None:
        """Drop what was computed under the version."""
        with self._db.transaction() as db:
            db.change("forget_jobs", self.project, self.version)

    def begin_again(self) -> None:
        """Forget what was computed under the version, so that it is queued anew, as `Projects.want_again` asked."""
        with self._db.transaction() as db:
            db.change("forget_jobs", self.project, self.version)
            db.change("forget_value", f"again:{self.project}")

    def counts(self) -> dict[str, int]:
        """How many jobs are queued, running, done, failed and delivered."""
        row = self._db.rows("counts", self.project, self.version)[0]
        return {name: row[name] or 0 for name in (*JobState, DeliveryState.DELIVERED.value)}

    def low_scores(self, below: float) -> LowScores:
        """Which scores a person should check: estimates below a bound and the lowest tenth of orders; none below 0."""
        rows = self._db.rows_by_name("lowest_tenth", {"project": self.project, "version": self.version})
        return LowScores(below, float(rows[0]["score"]) if rows and below > 0 else 0.0)

    def is_in_lowest_tenth(self, score: float) -> bool:
        """Whether a bare order is, with the present ones, among the lowest tenth; of fewer than ten none is."""
        row = self._db.rows("order_rank", score, self.project, self.version)[0]
        return bool(row["lower"] < (row["count"] + 1) // 10)

    def to_check(self, below: float) -> int:
        """How many predictions a person should check: those with a low score, see `low_scores`, or with a remark.

        What was reviewed is checked.
        """
        low = self.low_scores(below)
        return int(self._db.rows("to_check", self.project, self.version, low.estimate, low.order)[0]["n"])

    def times(self) -> JobTimes | None:
        """How long the last 200 finished jobs took; `None` before the first."""
        row = self._db.rows("job_times", self.project, self.version)[0]
        if not row["count"]:
            return None
        return JobTimes(row["count"], row["mean"], math.sqrt(max(0.0, row["square"] - row["mean"] ** 2)))

    def task_states(
        self, *, show: TaskFilter = "all", order: TaskOrder = "task", low: float = 0.0, limit: int = -1, offset: int = 0
    ) -> tuple[list[TaskState], int]:
        """Some of the project's tasks and what became of them.

        Args:
            show: which tasks are meant; `low` are predictions with a low score or with a remark that nobody has
                reviewed.
            order: by number, by score with the lowest first, or with what changed last first.
            low: the bound of `low_scores` that `show="low"` goes by.
            limit: how many to return; -1 for all.
            offset: how many to leave out before these.

        Returns:
            The states, and how many tasks `show` means in all.
        """
        bounds = self.low_scores(low) if show == "low" else LowScores(low)
        values = {"project": self.project, "version": self.version, "low": bounds.estimate, "order": bounds.order}
        values |= {"limit": limit, "offset": offset}
        if show == "all":
            (counted,) = self._db.rows_by_name("count_tasks", values)
        else:
            (counted,) = self._db.rows_by_name("count_task_states", values, filter=FILTERS[show])
        page = self._db.rows_by_name("task_state_page", values, filter=FILTERS[show], order=ORDERS[order])
        found = []
        for (task,) in page:
            rows = self._db.rows("task_state", self.project, task, self.version)
            state = _task_state(task, rows[0]) if rows else TaskState(task)
            reviews = self._db.rows("verdict", self.project, task)
            found.append(replace(state, verdict=reviews[0]["verdict"], iou=reviews[0]["iou"]) if reviews else state)
        return found, int(counted["n"])

    def lessons(self) -> list[str]:
        """Names of the lessons that results were made with, "" for none; that of most unannotated tasks first."""
        return [row["lesson"] for row in self._db.rows("lessons_of_version", self.project, self.version)] or [""]


def job_of(row: sqlite3.Row, **changes: Any) -> Job:
    """A job as its row says, but for some changes."""
    values: dict[str, Any] = {name: row[name] for name in Job.__dataclass_fields__}
    values |= _read(row)
    if values["result"] is not None:
        values["result"] = zlib.decompress(values["result"]).decode()
    return Job(**values | changes)


def _task_state(task: int, row: sqlite3.Row) -> TaskState:
    values: dict[str, Any] = dict(zip(row.keys(), row, strict=True))
    return TaskState(task, **values | _read(row))


def _read(row: sqlite3.Row) -> dict[str, Any]:
    """Read those values of a job that the file holds as texts."""
    return {
        "state": JobState(row["state"]),
        "delivery": DeliveryState(row["delivery"]),
        "remarks": tuple(json.loads(row["remarks"])),
        "calibrated": bool(row["calibrated"]),
    }
