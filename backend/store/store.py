"""The ledger: all that the backend remembers, so that nothing is computed twice and a restart goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from backend.settings import Settings
from backend.store.annotations import Annotations
from backend.store.database import REBUILD, Database
from backend.store.deliveries import Deliveries
from backend.store.jobs import JobQueue, Jobs
from backend.store.learning import Learning
from backend.store.projects import Projects
from backend.store.tasks import Tasks


class Store:
    """Projects, tasks, annotations, jobs and deliveries over one file.

    Any thread may use it, and what it hands out; each call of those is one transaction. Everything they raise beside
    `LedgerError` is a fault of the caller.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time):
        """Open the file, or make it.

        Args:
            path: the file.
            now: seconds since 1970.

        Raises:
            LedgerError: the file cannot be read or written.
            BackendError: another release wrote it.
        """
        self._db = Database(path, now)
        self.now = now
        self.projects = Projects(self._db)
        self.queue = JobQueue(self._db)

    @classmethod
    def of(cls, settings: Settings) -> Store:
        """Open the ledger in the data folder of some settings."""
        return cls(ledger_path(settings))

    @property
    def trouble(self) -> str:
        """Why the file could not be written, or read, the last time that it was needed; empty if it could."""
        return self._db.trouble

    @property
    def generation(self) -> int:
        """How many files were found to be damaged, and replaced by empty ones, since this one was opened."""
        return self._db.generation

    @property
    def damaged_file(self) -> str | None:
        """The name under which a damaged file is kept, if its projects were not looked for in Label Studio yet."""
        return self._db.to_rebuild

    def kept_files(self) -> list[str]:
        """The names of damaged files that are kept in the data folder."""
        return self._db.kept_files()

    def mark_rebuilt(self) -> None:
        """Store that the projects of a damaged file were looked for."""
        with self._db.transaction() as db:
            db.change("forget_value", REBUILD)
        self._db.to_rebuild = None

    def close(self) -> None:
        """Close the file; later calls raise `sqlite3.ProgrammingError`."""
        self._db.close()

    def tasks(self, project: int) -> Tasks:
        """The tasks of one project."""
        return Tasks(self._db, project)

    def annotations(self, project: int) -> Annotations:
        """The annotations of one project, and those it learns from."""
        return Annotations(self._db, project)

    def jobs(self, project: int, version: str) -> Jobs:
        """The jobs of one project under one version."""
        return Jobs(self._db, project, version)

    def learning(self, project: int) -> Learning:
        """What is learned from one project's corrections."""
        return Learning(self._db, project)

    def deliveries(self, project: int, version: str) -> Deliveries:
        """The way of one version's results to Label Studio."""
        return Deliveries(self._db, project, version)

    def release(self, owner: str) -> int:
        """Give back what a /predict request reserved and did not answer; returns how many results."""
        with self._db.transaction() as db:
            return db.change("release", owner)

    def recover(self, lease: float) -> int:
        """Go on after a restart: queue the running jobs again or give them up, put hand-overs cut short in doubt.

        Args:
            lease: seconds that Label Studio has to store what it was given.

        Returns:
            How many jobs were running.
        """
        with self._db.transaction() as db:
            db.change("release_all")
        self.queue.give_up_running()
        self.doubt_pushing(lease)
        return self.queue.requeue_running()

    def doubt_pushing(self, lease: float) -> None:
        """Let imports whose outcome could not be written down count as answered: it will be looked up."""
        with self._db.transaction() as db:
            db.change("doubt_pushing", db.now + lease)


def ledger_path(settings: Settings) -> Path:
    """The ledger's file."""
    return settings.data_dir / "ledger.sqlite3"
