"""What the backend remembers, in one SQLite file, so that nothing is computed twice and a restart goes on.

A *job* is one task under one version. It has a state (queued, running, done, failed) and, once done, a delivery:

- `open`: Label Studio does not have the result, and nobody is about to give it.
- `reserved`: an open /predict request will give it, if it is finished in time.
- `answered`: a /predict answer held it; until `delivery_until` Label Studio may still be storing it.
- `pushing`: an import is under way; an import cut short counts as `answered`.
- `delivered`: Label Studio has it.

Only an `open` result may be reserved or pushed, and each change of hands is one transaction. That is what keeps a
task from ending with two predictions of one version.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backend.errors import BackendError, LedgerError, UnusableRegion
from backend.labelstudio.regions import Region
from backend.sync.references import Candidate

SCHEMA_VERSION = 3
LOCK_PATIENCE = 30.0
"""Seconds to wait for another process that holds the file."""
MAX_BEGUN = 5
"""Times that a job is begun when the whole process ends with it each time, as where a container runs out of memory."""
PUSH_BYTES = 2_000_000
"""Compressed size of the results pushed in one call; some ten times that as JSON."""

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE projects (
    id INTEGER PRIMARY KEY,
    uid TEXT NOT NULL,
    title TEXT NOT NULL DEFAULT '',
    label_config TEXT NOT NULL DEFAULT '',
    version TEXT NOT NULL DEFAULT '',
    reference_key TEXT,
    error TEXT,
    reconciled_at REAL,
    paused INTEGER NOT NULL DEFAULT 0,
    reference_shots INTEGER NOT NULL DEFAULT 0,
    extra_params TEXT NOT NULL DEFAULT '',
    shown_version TEXT NOT NULL DEFAULT ''
);
CREATE TABLE tasks (
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    id INTEGER NOT NULL,
    data TEXT NOT NULL,
    annotated INTEGER NOT NULL DEFAULT 0,
    annotations_read TEXT NOT NULL DEFAULT '',
    predictions_read INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (project, id)
);
CREATE TABLE annotations (
    id INTEGER PRIMARY KEY,
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    task INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    key TEXT NOT NULL,
    reason TEXT NOT NULL,
    labels TEXT NOT NULL DEFAULT '[]',
    ground_truth INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX annotations_of_task ON annotations (project, task);
CREATE TABLE refusals (
    annotation INTEGER NOT NULL,
    key TEXT NOT NULL,
    reason TEXT NOT NULL,
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    PRIMARY KEY (annotation, key)
);
CREATE TABLE jobs (
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    task INTEGER NOT NULL,
    version TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done', 'failed')),
    priority INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    score REAL,
    seconds REAL,
    error TEXT,
    result BLOB,
    delivery TEXT NOT NULL DEFAULT 'open'
        CHECK (delivery IN ('open', 'reserved', 'answered', 'pushing', 'delivered')),
    delivery_owner TEXT,
    delivery_until REAL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (project, task, version)
);
CREATE INDEX jobs_by_state ON jobs (state, delivery);
"""

# the index spares an overview of 50,000 tasks reading past their results
NOTICES_AND_OVERVIEW = """
CREATE TABLE notices (
    project INTEGER NOT NULL,
    topic TEXT NOT NULL,
    number INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (project, topic, number)
);
CREATE INDEX jobs_overview ON jobs (project, version, task, state, delivery, score, seconds, updated_at);
"""

# the annotations of the present reference only, by age
REFERENCES = """
CREATE TABLE learned_from (
    project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
    annotation INTEGER NOT NULL,
    position INTEGER NOT NULL,
    task INTEGER NOT NULL,
    key TEXT NOT NULL,
    regions BLOB NOT NULL,
    PRIMARY KEY (project, annotation)
);
"""

UPGRADES = {
    1: "ALTER TABLE projects ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;" + NOTICES_AND_OVERVIEW,
    2: REFERENCES
    + """
ALTER TABLE projects ADD COLUMN reference_shots INTEGER NOT NULL DEFAULT 0;
ALTER TABLE projects ADD COLUMN extra_params TEXT NOT NULL DEFAULT '';
ALTER TABLE projects ADD COLUMN shown_version TEXT NOT NULL DEFAULT '';
ALTER TABLE annotations ADD COLUMN labels TEXT NOT NULL DEFAULT '[]';
ALTER TABLE annotations ADD COLUMN ground_truth INTEGER NOT NULL DEFAULT 0;
INSERT INTO learned_from SELECT r.project, r.annotation, 0, r.task, r.key, r.regions
    FROM reference_annotations r JOIN projects p ON p.id = r.project AND p.reference_key = r.key;
DROP TABLE reference_annotations;
UPDATE tasks SET annotations_read = '';
""",
}
"""What makes a ledger of one schema one of the next."""

ALL_PROJECTS = 0
"""In place of a project's number (Label Studio's begin at 1): the whole backend."""


@dataclass(frozen=True)
class Project:
    """A project that Label Studio has named to us.

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


@dataclass(frozen=True)
class Task:
    """A task as it was last listed; `annotations_read` is the `updated_at` its annotations were read under."""

    project: int
    id: int
    data: dict[str, Any]
    annotated: bool
    annotations_read: str


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


TaskOrder = Literal["task", "score", "latest"]
TaskFilter = Literal["all", "waiting", "predicted", "failed", "low"]

_ORDERS: dict[str, str] = {
    "task": "t.id",
    "score": "j.score IS NULL, j.score, t.id",
    "latest": "j.updated_at IS NULL, j.updated_at DESC, t.id",
}
_FILTERS: dict[str, str] = {
    "all": "TRUE",
    "waiting": "coalesce(j.state, 'queued') IN ('queued', 'running')",
    "predicted": "j.state = 'done'",
    "failed": "j.state = 'failed'",
    "low": "j.state = 'done' AND j.score < :low",
}


@dataclass(frozen=True)
class TaskState:
    """One task of a project and what became of it under a version; `state` is `None` where it has no job."""

    task: int
    state: str | None
    delivery: str | None
    score: float | None
    seconds: float | None
    error: str | None
    attempts: int
    has_result: bool
    updated_at: float | None


@dataclass(frozen=True)
class Job:
    """One task under one version; `result` is the JSON text of its regions once it is done."""

    project: int
    task: int
    version: str
    state: str
    attempts: int
    score: float | None
    seconds: float | None
    error: str | None
    result: str | None
    delivery: str
    updated_at: float


@dataclass(frozen=True)
class JobGroup:
    """Jobs of the projects' present versions that are alike.

    `tenth` is that of their scores, -1 (a score of 0) to 9; `seconds` and `score` are sums; `oldest` is when the first
    of them changed last.
    """

    state: str
    delivered: bool
    tenth: int
    count: int
    seconds: float
    score: float
    oldest: float


class Ledger:
    """The SQLite file, shared by the process's threads; each call is one transaction.

    One connection writes and one reads: a writer may have to wait for another process, and whoever only asks (such
    as /setup, which has seconds) must not wait behind it. In WAL mode nobody's writing keeps a reader waiting.
    """

    def __init__(self, path: Path):
        self._lock = threading.RLock()
        self._read_lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # it holds the keys that Label Studio hands over; sqlite gives its side files the same permissions
            path.touch(mode=0o600)
            for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
                if file.exists():
                    file.chmod(0o600)
            self._connection = _connected(path)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"The ledger {path} cannot be opened ({error}); set another CAVSAM_DATA_DIR.") from error
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._prepare(path)
            self._reader = _connected(path)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise LedgerError(
                f"The ledger {path} cannot be used ({error}); if it is damaged, move it away to start afresh."
            ) from error
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file; later calls raise `sqlite3.ProgrammingError`."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _ledger_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """What a query finds; its values one by one, or one mapping where it names them."""
        parameters = values[0] if values and isinstance(values[0], dict) else values
        with self._read_lock, _ledger_errors():
            return self._reader.execute(query, parameters).fetchall()

    def _prepare(self, path: Path) -> None:
        with self._transaction() as db:
            tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            if not tables:
                statements = SCHEMA + NOTICES_AND_OVERVIEW + REFERENCES
            else:
                found = int(db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()["value"])
                if found == SCHEMA_VERSION:
                    return
                if found not in UPGRADES:
                    raise BackendError(
                        f"The ledger {path} was written by another release (schema {found}, this one uses "
                        f"{SCHEMA_VERSION}); move it away to start afresh, or use that release."
                    )
                statements = ";".join(UPGRADES[version] for version in range(found, SCHEMA_VERSION))
            for statement in statements.split(";"):
                db.execute(statement)
            db.execute("INSERT OR REPLACE INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))

    # what Label Studio handed over

    def grants(self) -> dict[int, tuple[str, str]]:
        """Project -> address and token that /setup handed over."""
        rows = self._rows("SELECT name, value FROM meta WHERE name LIKE 'grant:%'")
        return {int(row["name"].partition(":")[2]): tuple(json.loads(row["value"])) for row in rows}

    def set_grant(self, project: int, hostname: str, token: str) -> None:
        """Keep the address and the token of a project for the next start."""
        with self._transaction() as db:
            value = json.dumps([hostname, token])
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"grant:{project}", value))

    # projects

    def note_project(self, project: int, uid: str) -> bool:
        """Remember a project; returns whether it was new.

        A known number with another `uid` is another project (Label Studio was set up afresh), so all that was
        remembered under that number is forgotten.
        """
        with self._transaction() as db:
            known = db.execute("SELECT uid FROM projects WHERE id = ?", (project,)).fetchone()
            if known is not None and known["uid"] == uid:
                return False
            if known is not None:
                _forget(db, project)
            db.execute("INSERT INTO projects (id, uid) VALUES (?, ?)", (project, uid))
            return True

    def forget_project(self, project: int) -> None:
        """Drop a project and all that belongs to it."""
        with self._transaction() as db:
            _forget(db, project)
            db.execute("DELETE FROM meta WHERE name = ?", (f"grant:{project}",))

    def projects(self) -> list[Project]:
        """All known projects."""
        return [_project(row) for row in self._rows("SELECT * FROM projects ORDER BY id")]

    def project(self, project: int) -> Project | None:
        """One project, if it is known."""
        rows = self._rows("SELECT * FROM projects WHERE id = ?", project)
        return _project(rows[0]) if rows else None

    def describe_project(self, project: int, title: str, label_config: str) -> None:
        """Store what the API says of a project."""
        with self._transaction() as db:
            db.execute("UPDATE projects SET title = ?, label_config = ? WHERE id = ?", (title, label_config, project))

    def set_extra_params(self, project: int, text: str) -> None:
        """Store the JSON text of what a project's connection was given."""
        with self._transaction() as db:
            db.execute("UPDATE projects SET extra_params = ? WHERE id = ?", (text, project))

    def set_shown_version(self, project: int, version: str) -> None:
        """Note which version Label Studio was told to show."""
        with self._transaction() as db:
            db.execute("UPDATE projects SET shown_version = ? WHERE id = ?", (version, project))

    def set_project_error(self, project: int, error: str | None) -> None:
        """Store why a project cannot be worked on, or that it can."""
        with self._transaction() as db:
            db.execute("UPDATE projects SET error = ? WHERE id = ?", (error, project))

    def mark_reconciled(self, project: int) -> None:
        """Note that the ledger agreed with Label Studio just now."""
        with self._transaction() as db:
            db.execute("UPDATE projects SET error = NULL, reconciled_at = ? WHERE id = ?", (time.time(), project))

    # what people see and want

    def set_notices(self, project: int, topic: str, texts: Iterable[str]) -> list[str]:
        """Make `texts` all there is to tell people of a project on one topic; returns those that are new, for the log.

        This is the one place for what the status page and /api/projects show as notices: unsupported tags, unknown
        labels, extra params that cannot be read. Whoever finds out calls it each time, with an empty list once all is
        well; a topic belongs to one caller. It writes, so not from /setup or /health. The project need not be known
        yet.
        """
        wanted = list(dict.fromkeys(texts))
        known = self.notices(project).get(topic, [])
        if wanted == known:
            return []
        with self._transaction() as db:
            db.execute("DELETE FROM notices WHERE project = ? AND topic = ?", (project, topic))
            db.executemany(
                "INSERT INTO notices VALUES (?, ?, ?, ?)", [(project, topic, i, text) for i, text in enumerate(wanted)]
            )
        return [text for text in wanted if text not in known]

    def notices(self, project: int) -> dict[str, list[str]]:
        """What there is to tell people of a project, by topic."""
        found: dict[str, list[str]] = {}
        for row in self._rows("SELECT topic, text FROM notices WHERE project = ? ORDER BY topic, number", project):
            found.setdefault(row["topic"], []).append(row["text"])
        return found

    def set_paused(self, project: int, paused: bool) -> None:
        """Have no job of a project (or of any, `ALL_PROJECTS`) taken until it is resumed, restarts included."""
        with self._transaction() as db:
            if project != ALL_PROJECTS:
                db.execute("UPDATE projects SET paused = ? WHERE id = ?", (paused, project))
            elif paused:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('paused', '1')")
            else:
                db.execute("DELETE FROM meta WHERE name = 'paused'")

    def is_paused(self, project: int = ALL_PROJECTS) -> bool:
        """Whether a project's jobs, or all projects' jobs, are not taken."""
        return bool(
            self._rows(
                "SELECT 1 FROM meta WHERE name = 'paused' UNION ALL SELECT 1 FROM projects WHERE id = ? AND paused",
                project,
            )
        )

    def want_again(self, project: int) -> None:
        """Note that a project's present predictions are to be replaced; kept until `begin_again` or `forget_again`."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, '1')", (f"again:{project}",))

    def wanted_again(self) -> set[int]:
        """The projects of `want_again`."""
        rows = self._rows("SELECT name FROM meta WHERE name LIKE 'again:%'")
        return {int(row["name"].partition(":")[2]) for row in rows}

    def forget_again(self, project: int) -> None:
        """Forget `want_again`; what was computed stays."""
        with self._transaction() as db:
            db.execute("DELETE FROM meta WHERE name = ?", (f"again:{project}",))

    def begin_again(self, project: int, version: str) -> None:
        """Forget what was computed under a version, so that it is queued anew, as `want_again` asked."""
        with self._transaction() as db:
            db.execute("DELETE FROM jobs WHERE project = ? AND version = ?", (project, version))
            db.execute("DELETE FROM meta WHERE name = ?", (f"again:{project}",))

    def set_version(self, project: int, version: str) -> None:
        """Give a project's present reference another version, as after a change of settings."""
        self.set_references(project, version, self.references(project))

    # tasks and annotations

    def replace_tasks(self, project: int, tasks: Sequence[Task]) -> int:
        """Store the project's tasks as listed; those not listed are dropped with their jobs. Returns how many."""
        with self._transaction() as db:
            known = {row["id"] for row in db.execute("SELECT id FROM tasks WHERE project = ?", (project,))}
            gone = known - {task.id for task in tasks}
            for task in gone:
                for table, column in (("tasks", "id"), ("annotations", "task"), ("jobs", "task")):
                    db.execute(f"DELETE FROM {table} WHERE project = ? AND {column} = ?", (project, task))
            db.executemany(
                "INSERT INTO tasks (project, id, data, annotated) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (project, id) DO UPDATE SET data = excluded.data, annotated = excluded.annotated",
                [(project, task.id, json.dumps(task.data), task.annotated) for task in tasks],
            )
            return len(gone)

    def tasks(self, project: int) -> list[Task]:
        """All tasks of a project by number."""
        return [_task(row) for row in self._rows("SELECT * FROM tasks WHERE project = ? ORDER BY id", project)]

    def task(self, project: int, task: int) -> Task | None:
        """One task, if it is known."""
        rows = self._rows("SELECT * FROM tasks WHERE project = ? AND id = ?", project, task)
        return _task(rows[0]) if rows else None

    def replace_annotations(self, project: int, task: int, candidates: Sequence[Candidate], read_under: str) -> None:
        """Store what a task's annotations are; `read_under` is the task's `updated_at` they were read under."""
        with self._transaction() as db:
            db.execute("DELETE FROM annotations WHERE project = ? AND task = ?", (project, task))
            db.executemany(
                "INSERT OR REPLACE INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(c.annotation, project, task, c.created_at, c.key, c.reason, *_shown(c)) for c in candidates],
            )
            db.execute(
                "UPDATE tasks SET annotations_read = ? WHERE project = ? AND id = ?", (read_under, project, task)
            )

    def forget_annotations_read(self, project: int) -> None:
        """Have all annotations judged again, as after a change of the labelling configuration."""
        with self._transaction() as db:
            db.execute("UPDATE tasks SET annotations_read = '' WHERE project = ?", (project,))

    def candidates(self, project: int, task: int | None = None) -> list[Candidate]:
        """The annotations of a project, or of one of its tasks, as the policies see them, without their regions."""
        rows = self._rows(
            "SELECT a.*, r.reason AS refused FROM annotations a "
            "LEFT JOIN refusals r ON r.annotation = a.id AND r.key = a.key "
            f"WHERE a.project = ?{'' if task is None else ' AND a.task = ?'}",
            *((project,) if task is None else (project, task)),
        )
        return [
            Candidate(
                row["id"],
                row["task"],
                row["created_at"],
                row["key"],
                row["reason"] or row["refused"] or "",
                labels=frozenset(tuple(label) for label in json.loads(row["labels"])),
                ground_truth=bool(row["ground_truth"]),
            )
            for row in rows
        ]

    def refuse_reference(self, project: int, annotation: int, key: str, reason: str) -> None:
        """Note that an annotation turned out to be unusable as it is now."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?)", (annotation, key, reason, project))

    # the reference

    def set_references(self, project: int, version: str, references: References | None) -> None:
        """Have a project learn from `references` under `version`; unfinished jobs of other versions are dropped."""
        key, shots = (references.key, references.shots) if references else (None, 0)
        with self._transaction() as db:
            db.execute("DELETE FROM learned_from WHERE project = ?", (project,))
            db.executemany(
                "INSERT INTO learned_from VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (project, one.annotation, position, one.task, one.key, _packed([r.to_json() for r in one.regions]))
                    for position, one in enumerate(references.annotations if references else ())
                ],
            )
            db.execute(
                "UPDATE projects SET reference_key = ?, reference_shots = ?, version = ? WHERE id = ?",
                (key, shots, version, project),
            )
            db.execute(
                "DELETE FROM jobs WHERE project = ? AND version != ? AND state IN ('queued', 'failed')",
                (project, version),
            )

    def references(self, project: int) -> References | None:
        """What the project's predictions are learned from now."""
        rows = self._rows(
            "SELECT l.*, p.reference_key, p.reference_shots FROM learned_from l JOIN projects p ON p.id = l.project "
            "WHERE p.id = ? AND p.reference_key IS NOT NULL ORDER BY l.position",
            project,
        )
        annotations = tuple(
            ReferenceAnnotation(project, row["key"], row["annotation"], row["task"], _regions(row["regions"]))
            for row in rows
        )
        return References(rows[0]["reference_key"], annotations, rows[0]["reference_shots"]) if rows else None

    def reference(self, project: int) -> ReferenceAnnotation | None:
        """The earliest of the annotations that the project's predictions are learned from now."""
        references = self.references(project)
        return references.annotations[0] if references else None

    # jobs

    def queue(self, project: int, version: str, tasks: Iterable[int], *, priority: int = 0) -> int:
        """Queue tasks that have no job under this version yet, and raise the others' priority; returns how many."""
        now = time.time()
        with self._transaction() as db:
            before = db.total_changes
            db.executemany(
                "INSERT OR IGNORE INTO jobs (project, task, version, priority, updated_at) VALUES (?, ?, ?, ?, ?)",
                [(project, task, version, priority, now) for task in tasks],
            )
            return db.total_changes - before

    def raise_priority(self, project: int, version: str, tasks: Iterable[int], priority: int) -> None:
        """Have some queued tasks done before others."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE jobs SET priority = max(priority, ?) WHERE project = ? AND version = ? AND task = ?",
                [(priority, project, version, task) for task in tasks],
            )

    def retry_failed(
        self, project: int, version: str, tasks: Iterable[int] | None = None, *, older_than: float = 0.0
    ) -> int:
        """Queue failed tasks (all of them without `tasks`) again whose failure is at least `older_than` seconds old.

        Returns how many.
        """
        limit = time.time() - older_than
        query = (
            "UPDATE jobs SET state = 'queued', attempts = 0, not_before = 0 WHERE project = ? AND version = ? "
            "AND state = 'failed' AND updated_at <= ?"
        )
        with self._transaction() as db:
            if tasks is None:
                return db.execute(query, (project, version, limit)).rowcount
            changed = [db.execute(f"{query} AND task = ?", (project, version, limit, task)).rowcount for task in tasks]
            return sum(changed)

    def take_next(self) -> Job | None:
        """Mark the most urgent queued job of a present version as running and return it."""
        with self._transaction() as db:
            row = db.execute(f"{_NEXT_JOB} LIMIT 1", (time.time(),)).fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, updated_at = ? "
                "WHERE project = ? AND task = ? AND version = ?",
                (time.time(), row["project"], row["task"], row["version"]),
            )
            return _job(row, state="running", attempts=row["attempts"] + 1)

    def peek_next(self) -> Job | None:
        """The job that `take_next` would give."""
        rows = self._rows(f"{_NEXT_JOB} LIMIT 1", time.time())
        return _job(rows[0]) if rows else None

    def seconds_to_next(self) -> float | None:
        """How long until a queued job may be tried; `None` where none is queued."""
        rows = self._rows(
            f"SELECT min(j.not_before) AS first FROM jobs j {_PRESENT_AND_NOT_PAUSED} WHERE j.state = 'queued'"
        )
        first = rows[0]["first"]
        return None if first is None else max(0.0, first - time.time())

    def finish(self, job: Job, result: str, score: float, seconds: float) -> None:
        """Store a finished job; `result` is the JSON text of its regions."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'done', result = ?, score = ?, seconds = ?, error = NULL, updated_at = ? "
                "WHERE project = ? AND task = ? AND version = ?",
                (zlib.compress(result.encode()), score, seconds, time.time(), job.project, job.task, job.version),
            )

    def fail(self, job: Job, error: str, seconds: float | None = None) -> None:
        """Store why a job gave no result."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'failed', error = ?, seconds = ?, updated_at = ? "
                "WHERE project = ? AND task = ? AND version = ?",
                (error, seconds, time.time(), job.project, job.task, job.version),
            )

    def put_back(self, job: Job, *, error: str | None = None, delay: float = 0.0, counts: bool = True) -> None:
        """Queue a running job again, to be tried after `delay` seconds; `counts` keeps the attempt counted."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'queued', error = ?, not_before = ?, attempts = attempts - ?, updated_at = ? "
                "WHERE project = ? AND task = ? AND version = ? AND state = 'running'",
                (error, time.time() + delay, 0 if counts else 1, time.time(), job.project, job.task, job.version),
            )

    def recover(self, lease: float) -> int:
        """After a restart: queue the running jobs again, settle hand-overs cut short; returns how many were running.

        A job that was begun `MAX_BEGUN` times, and never ended in order, is given up: it may be what ends the process.
        """
        with self._transaction() as db:
            db.execute("UPDATE jobs SET delivery = 'open', delivery_owner = NULL WHERE delivery = 'reserved'")
            db.execute(
                "UPDATE jobs SET state = 'failed', error = ?, updated_at = ? WHERE state = 'running' AND attempts >= ?",
                (f"The backend was ended {MAX_BEGUN} times in the middle of this task.", time.time(), MAX_BEGUN),
            )
        self.settle_pushing(lease)
        return self.requeue_running()

    def requeue_running(self) -> int:
        """Queue the running jobs again, when nobody runs them any more; returns how many there were."""
        with self._transaction() as db:
            return db.execute("UPDATE jobs SET state = 'queued', not_before = 0 WHERE state = 'running'").rowcount

    def settle_pushing(self, lease: float) -> None:
        """Imports whose outcome could not be noted count as answered: it will be looked up."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET delivery = 'answered', delivery_owner = NULL, delivery_until = ? "
                "WHERE delivery = 'pushing'",
                (time.time() + lease,),
            )

    def jobs(self, project: int, version: str, tasks: Iterable[int] | None = None) -> dict[int, Job]:
        """The jobs of a version by task, without their results."""
        query = f"SELECT {_LIGHT} FROM jobs WHERE project = ? AND version = ?"
        if tasks is None:
            return {row["task"]: _job(row) for row in self._rows(query, project, version)}
        found = {}
        for chunk in _chunks(tasks):
            marks = ",".join("?" * len(chunk))
            for row in self._rows(f"{query} AND task IN ({marks})", project, version, *chunk):
                found[row["task"]] = _job(row)
        return found

    def job(self, project: int, task: int, version: str) -> Job | None:
        """One job with its result."""
        rows = self._rows("SELECT * FROM jobs WHERE project = ? AND task = ? AND version = ?", project, task, version)
        return _job(rows[0]) if rows else None

    def counts(self, project: int, version: str) -> dict[str, int]:
        """How many jobs of a version are queued, running, done, failed and delivered."""
        row = self._rows(
            "SELECT sum(state = 'queued') AS queued, sum(state = 'running') AS running, sum(state = 'done') AS done, "
            "sum(state = 'failed') AS failed, sum(delivery = 'delivered') AS delivered "
            "FROM jobs WHERE project = ? AND version = ?",
            project,
            version,
        )[0]
        return {name: row[name] or 0 for name in ("queued", "running", "done", "failed", "delivered")}

    def low_scores(self, project: int, version: str, below: float) -> int:
        """How many predictions of a version have a score below a bound."""
        query = "SELECT count(*) AS n FROM jobs WHERE project = ? AND version = ? AND state = 'done' AND score < ?"
        return int(self._rows(query, project, version, below)[0]["n"])

    def job_groups(self) -> list[JobGroup]:
        """The jobs of the projects' present versions, counted."""
        rows = self._rows(
            # a score on the bound of two tenths belongs to the lower one
            "SELECT j.state, j.delivery = 'delivered' AS delivered,"
            " coalesce(CAST(j.score * 10 AS INTEGER) - (j.score * 10 = CAST(j.score * 10 AS INTEGER)), 0) AS tenth,"
            " count(*) AS count, coalesce(sum(j.seconds), 0) AS seconds, coalesce(sum(j.score), 0) AS score,"
            " min(j.updated_at) AS oldest"
            " FROM jobs j JOIN projects p ON p.id = j.project AND p.version = j.version GROUP BY 1, 2, 3"
        )
        return [JobGroup(**(dict(row) | {"delivered": bool(row["delivered"])})) for row in rows]

    def queue_length(self) -> int:
        """How many jobs wait for the lane; those of paused projects do not count."""
        query = f"SELECT count(*) AS n FROM jobs j {_PRESENT_AND_NOT_PAUSED} WHERE j.state = 'queued'"
        return int(self._rows(query)[0]["n"])

    def task_states(
        self,
        project: int,
        version: str,
        *,
        show: TaskFilter = "all",
        order: TaskOrder = "task",
        low: float = 0.0,
        limit: int = -1,
        offset: int = 0,
    ) -> tuple[list[TaskState], int]:
        """Some of a project's tasks and what became of them under a version; and how many there are to `show`.

        `low` is the score below which `show="low"` counts. Ordered by number, by score with the lowest first, or with
        what changed last first.
        """
        values = {"project": project, "version": version, "low": low, "limit": limit, "offset": offset}
        source = (
            "FROM tasks t LEFT JOIN jobs j ON j.project = t.project AND j.task = t.id AND j.version = :version "
            f"WHERE t.project = :project AND {_FILTERS[show]}"
        )
        counted = "FROM tasks t WHERE t.project = :project" if show == "all" else source
        total = int(self._rows(f"SELECT count(*) AS n {counted}", values)[0]["n"])
        page = self._rows(f"SELECT t.id AS id {source} ORDER BY {_ORDERS[order]} LIMIT :limit OFFSET :offset", values)
        found = []
        for row in page:
            details = (
                "SELECT state, delivery, score, seconds, error, attempts, result IS NOT NULL AS has_result, updated_at "
                "FROM jobs WHERE project = ? AND task = ? AND version = ?"
            )
            jobs = self._rows(details, project, row["id"], version)
            found.append(TaskState(row["id"], **_as_dict(jobs[0])) if jobs else _without_job(row["id"]))
        return found, total

    def mean_seconds(self, project: int, version: str) -> float | None:
        """Mean time of the last finished jobs of a version."""
        row = self._rows(
            "SELECT avg(seconds) AS mean FROM (SELECT seconds FROM jobs WHERE project = ? AND version = ? "
            "AND state = 'done' AND seconds IS NOT NULL ORDER BY updated_at DESC LIMIT 10)",
            project,
            version,
        )[0]
        return None if row["mean"] is None else float(row["mean"])

    def versions(self) -> list[str]:
        """All versions that have finished jobs, and the present ones."""
        rows = self._rows(
            "SELECT DISTINCT version FROM jobs WHERE state = 'done' UNION "
            "SELECT version FROM projects WHERE version != '' ORDER BY version"
        )
        return [row["version"] for row in rows]

    # handing results over

    def reserve(self, project: int, version: str, tasks: Iterable[int], owner: str) -> set[int]:
        """Promise results, finished or not, to one /predict request; returns the tasks it got."""
        got = set()
        with self._transaction() as db:
            for task in tasks:
                changed = db.execute(
                    "UPDATE jobs SET delivery = 'reserved', delivery_owner = ? WHERE project = ? AND version = ? "
                    "AND task = ? AND delivery = 'open'",
                    (owner, project, version, task),
                ).rowcount
                if changed:
                    got.add(task)
        return got

    def answer(self, project: int, version: str, tasks: Sequence[int], owner: str, lease: float) -> dict[int, Job]:
        """Hand the finished ones of some reserved results to their request; they count as answered from now."""
        answered = {}
        with self._transaction() as db:
            for task in tasks:
                row = db.execute(
                    "UPDATE jobs SET delivery = 'answered', delivery_until = ?, delivery_owner = NULL "
                    "WHERE project = ? AND version = ? AND task = ? AND delivery = 'reserved' "
                    "AND delivery_owner = ? AND state = 'done' RETURNING *",
                    (time.time() + lease, project, version, task, owner),
                ).fetchone()
                if row is not None:
                    answered[task] = _job(row)
        return answered

    def release(self, owner: str) -> int:
        """Give back what a /predict request reserved and did not answer."""
        with self._transaction() as db:
            return db.execute(
                "UPDATE jobs SET delivery = 'open', delivery_owner = NULL "
                "WHERE delivery = 'reserved' AND delivery_owner = ?",
                (owner,),
            ).rowcount

    def claim_push(self, project: int, version: str, limit: int) -> list[Job]:
        """Take finished results that nobody has, to push them, in the order they were finished.

        At most `limit` of them, and no more than `PUSH_BYTES` as stored, but one at least.
        """
        with self._transaction() as db:
            waiting = db.execute(
                "SELECT task, length(result) AS size FROM jobs WHERE project = ? AND version = ? AND state = 'done' "
                "AND delivery = 'open' AND not_before <= ? ORDER BY updated_at, task LIMIT ?",
                (project, version, time.time(), limit),
            ).fetchall()
            claimed: list[sqlite3.Row] = []
            size = 0
            for row in waiting:
                size += row["size"]
                if claimed and size > PUSH_BYTES:
                    break
                claimed.append(
                    db.execute(
                        "UPDATE jobs SET delivery = 'pushing' WHERE project = ? AND version = ? AND task = ? "
                        "RETURNING *",
                        (project, version, row["task"]),
                    ).fetchone()
                )
        return [_job(row) for row in claimed]

    def mark_delivered(self, project: int, version: str, tasks: Iterable[int]) -> None:
        """Label Studio has these; a job is made for those that we never computed."""
        now = time.time()
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO jobs (project, task, version, state, delivery, updated_at) "
                "VALUES (?, ?, ?, 'done', 'delivered', ?) ON CONFLICT DO UPDATE SET delivery = 'delivered', "
                "state = iif(state = 'running', 'running', 'done'), delivery_owner = NULL, delivery_until = NULL",
                [(project, task, version, now) for task in tasks],
            )

    def mark_open(self, project: int, version: str, tasks: Iterable[int], *, delay: float = 0.0) -> None:
        """Label Studio does not have these, and will not get them from what is under way.

        Those without a stored result are computed again.
        """
        with self._transaction() as db:
            db.executemany(
                "UPDATE jobs SET delivery = 'open', delivery_owner = NULL, delivery_until = NULL, not_before = ?, "
                "state = iif(state = 'done' AND result IS NULL, 'queued', state) "
                "WHERE project = ? AND version = ? AND task = ?",
                [(time.time() + delay, project, version, task) for task in tasks],
            )

    def reopen(self, project: int, version: str, tasks: Iterable[int]) -> None:
        """Label Studio does not have these any more, if they still count as delivered; see `mark_open`."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE jobs SET delivery = 'open', state = iif(result IS NULL, 'queued', state) "
                "WHERE project = ? AND version = ? AND task = ? AND delivery = 'delivered'",
                [(project, version, task) for task in tasks],
            )

    def mark_in_doubt(self, project: int, version: str, tasks: Iterable[int], lease: float) -> None:
        """Label Studio may be storing these; look again after `lease` seconds."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE jobs SET delivery = 'answered', delivery_owner = NULL, delivery_until = ? "
                "WHERE project = ? AND version = ? AND task = ?",
                [(time.time() + lease, project, version, task) for task in tasks],
            )

    def mark_rejected(self, project: int, version: str, task: int, error: str) -> None:
        """Label Studio will not take this result."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'failed', delivery = 'open', delivery_until = NULL, error = ?, updated_at = ? "
                "WHERE project = ? AND version = ? AND task = ?",
                (error, time.time(), project, version, task),
            )

    def answered(self, project: int, version: str) -> dict[int, float]:
        """Results whose storing is not confirmed: task -> the time until which Label Studio may be at it."""
        rows = self._rows(
            "SELECT task, delivery_until FROM jobs WHERE project = ? AND version = ? AND delivery = 'answered'",
            project,
            version,
        )
        return {row["task"]: row["delivery_until"] for row in rows}

    def has_deliveries(self, project: int) -> bool:
        """Whether a present result of the project waits to be pushed or confirmed."""
        return bool(
            self._rows(
                "SELECT 1 FROM jobs j JOIN projects p ON p.id = j.project AND p.version = j.version WHERE p.id = ? "
                "AND (j.delivery = 'answered' OR (j.state = 'done' AND j.delivery = 'open')) LIMIT 1",
                project,
            )
        )

    def is_complete(self, project: int) -> bool:
        """Whether Label Studio has all that the present version can give it; tasks that failed do not count."""
        return bool(
            self._rows(
                "SELECT 1 FROM projects p WHERE p.id = ? AND p.reference_key IS NOT NULL AND NOT EXISTS ("
                "SELECT 1 FROM tasks t LEFT JOIN jobs j ON j.project = p.id AND j.task = t.id "
                "AND j.version = p.version WHERE t.project = p.id AND (j.state IS NULL OR (j.state != 'failed' "
                "AND j.delivery != 'delivered')) "
                "AND NOT EXISTS (SELECT 1 FROM learned_from l WHERE l.project = p.id AND l.task = t.id))",
                project,
            )
        )

    def superseded(self, project: int) -> list[str]:
        """Versions whose predictions Label Studio was given, when the present version is complete."""
        if not self.is_complete(project):
            return []
        rows = self._rows(
            "SELECT DISTINCT j.version FROM jobs j JOIN projects p ON p.id = j.project AND p.version != j.version "
            "WHERE p.id = ? AND j.delivery != 'open' ORDER BY j.version",
            project,
        )
        return [row["version"] for row in rows]

    def forget_version(self, project: int, version: str) -> None:
        """Drop what was computed under a version."""
        with self._transaction() as db:
            db.execute("DELETE FROM jobs WHERE project = ? AND version = ?", (project, version))

    def predictions_read(self, project: int) -> dict[int, int]:
        """Under how many predictions each task was last searched for duplicates."""
        rows = self._rows("SELECT id, predictions_read FROM tasks WHERE project = ?", project)
        return {row["id"]: row["predictions_read"] for row in rows}

    def set_predictions_read(self, project: int, task: int, count: int) -> None:
        """Note that a task with `count` predictions was searched for duplicates."""
        with self._transaction() as db:
            db.execute("UPDATE tasks SET predictions_read = ? WHERE project = ? AND id = ?", (count, project, task))


_LIGHT = "project, task, version, state, attempts, score, seconds, error, NULL AS result, delivery, updated_at"
_PRESENT_AND_NOT_PAUSED = (
    "JOIN projects p ON p.id = j.project AND p.version = j.version AND NOT p.paused "
    "AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'paused')"
)
_NEXT_JOB = (
    f"SELECT j.* FROM jobs j {_PRESENT_AND_NOT_PAUSED} "
    "WHERE j.state = 'queued' AND j.not_before <= ? ORDER BY j.priority DESC, j.project, j.task"
)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=LOCK_PATIENCE)
    connection.row_factory = sqlite3.Row
    return connection


def _chunks(tasks: Iterable[int], size: int = 500) -> Iterator[list[int]]:
    numbers = list(tasks)
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _shown(candidate: Candidate) -> tuple[str, bool]:
    return json.dumps(sorted(candidate.labels)), candidate.ground_truth


def _packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode())


def _regions(packed: bytes) -> tuple[Region, ...]:
    """Packed regions; damaged ones are left out, and the next sync finds that the reference has changed."""
    regions = []
    for held in json.loads(zlib.decompress(packed)):
        with suppress(UnusableRegion):
            regions.append(Region.from_json(held))
    return tuple(regions)


@contextmanager
def _ledger_errors() -> Iterator[None]:
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
        raise  # a fault of ours, such as a call after `close`
    except sqlite3.OperationalError as error:
        raise LedgerError(f"The ledger cannot be read or written ({error}); make room or free the file.") from error
    except sqlite3.DatabaseError as error:
        raise LedgerError(f"The ledger is damaged ({error}); move it away to start afresh.") from error


def _forget(db: sqlite3.Connection, project: int) -> None:
    db.execute("DELETE FROM projects WHERE id = ?", (project,))
    db.execute("DELETE FROM notices WHERE project = ?", (project,))
    db.execute("DELETE FROM meta WHERE name = ?", (f"again:{project}",))


def _as_dict(row: sqlite3.Row) -> dict[str, Any]:
    return {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row is no mapping


def _without_job(task: int) -> TaskState:
    return TaskState(task, None, None, None, None, None, 0, False, None)


def _project(row: sqlite3.Row) -> Project:
    return Project(**_as_dict(row) | {"paused": bool(row["paused"])})


def _task(row: sqlite3.Row) -> Task:
    return Task(row["project"], row["id"], json.loads(row["data"]), bool(row["annotated"]), row["annotations_read"])


def _job(row: sqlite3.Row, **changes: Any) -> Job:
    values = {name: row[name] for name in Job.__dataclass_fields__}
    if values["result"] is not None:
        values["result"] = zlib.decompress(values["result"]).decode()
    return Job(**values | changes)
