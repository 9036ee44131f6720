"""The SQLite file of the ledger: its connections, its transactions, its schema."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backend.errors import BackendError, LedgerDamaged, LedgerError
from backend.store.queries import named_statements, script, single_statements

log = logging.getLogger(__name__)

SCHEMA_VERSION = 7
DAMAGED_NAME = "ledger-damaged-%Y%m%dT%H%M%SZ.sqlite3"
DAMAGED_NAMES = "ledger-damaged-*.sqlite3"
DAMAGED_KEPT = 3
CHECKED_BYTES = 2_000_000_000
"""Size up to which a file is checked when it is opened; that takes some seconds."""
REBUILD = "rebuild"
"""Name of the value that stays until the projects of a damaged file were looked for in Label Studio."""
LOCK_PATIENCE = 30.0
"""Seconds to wait for another process that holds the file."""

Values = tuple[Any, ...]


class Transaction:
    """The statements of `queries.sql` within one transaction."""

    def __init__(self, connection: sqlite3.Connection, now: Callable[[], float]):
        self._connection = connection
        self.now = now()
        """The moment at which the transaction began, in seconds since 1970."""

    def change(self, query: str, *values: Any) -> int:
        """Run one statement; returns how many rows it changed."""
        return self._connection.execute(_query(query), values).rowcount

    def change_each(self, query: str, values: Iterable[Values]) -> int:
        """Run one statement with each of several sets of values; returns how many rows were changed in all."""
        before = self._connection.total_changes
        self._connection.executemany(_query(query), values)
        return self._connection.total_changes - before

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All rows that a statement gives."""
        return self._connection.execute(_query(query), values).fetchall()

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """The first row that a statement gives."""
        row: sqlite3.Row | None = self._connection.execute(_query(query), values).fetchone()
        return row


class Database:
    """The file, shared by the process's threads.

    One connection writes and one reads: a writer may have to wait for another process, and whoever only asks (such
    as /setup, which has seconds) must not wait behind it. In WAL mode nobody's writing keeps a reader waiting.

    A damaged file is moved aside for whoever wants to look into it, and an empty one takes its place.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time):
        self.now, self._path = now, path
        self._lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._is_open = self._is_closed = False
        self.trouble = ""
        """What the last `LedgerError` said, until something is written again."""
        self.to_rebuild: str | None = None
        """The name under which a damaged file is kept, until its projects were looked for in Label Studio."""
        self.generation = 0
        """How many files were damaged while this one was used."""
        self._damaged = ""  # the name under which the last damaged file is kept
        try:
            self._open()
        except LedgerDamaged:
            self._set_aside()
            self._open()

    def _open(self) -> None:
        """Open the file, or make it.

        Raises:
            LedgerDamaged: it cannot be read for good.
            LedgerError: it cannot be read now.
            BackendError: another release wrote it.
        """
        path = self._path
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
            self._check(path)
            self._prepare(path)
            self._reader = _connected(path)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            self._connection.close()
            raise ledger_error(error) from error
        except BaseException:
            self._connection.close()
            raise
        self._is_open = True

    def _set_aside(self) -> None:
        """Move the damaged file out of the way, beside the last few others."""
        kept = self._path.with_name(time.strftime(DAMAGED_NAME, time.gmtime(self.now())))
        for suffix in ("-wal", "-shm", ""):  # the file itself last: without it, the others mean nothing
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).replace(kept.with_name(kept.name + suffix))
        self._damaged = kept.name
        log.critical("The ledger was damaged. It is kept as %s; a new one is filled from Label Studio.", kept)
        for name in self.kept_files()[:-DAMAGED_KEPT]:
            for suffix in ("-wal", "-shm", ""):
                self._path.with_name(name + suffix).unlink(missing_ok=True)

    def kept_files(self) -> list[str]:
        """The names of damaged files beside this one, by age."""
        return sorted(file.name for file in self._path.parent.glob(DAMAGED_NAMES))

    def close(self) -> None:
        """Close the file; later calls raise `sqlite3.ProgrammingError`."""
        with self._lock, self._read_lock:
            self._is_closed = True
            self._close()

    def _close(self) -> None:
        if self._is_open:
            self._reader.close()
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Do all or nothing of what the block does.

        Raises:
            LedgerError: the file cannot be written.
        """
        with self._ledger_errors(), self._lock:
            before = self._connection.total_changes
            with self._all_or_nothing() as db:
                yield db
            if self._connection.total_changes > before:
                self.trouble = ""

    @contextmanager
    def _all_or_nothing(self) -> Iterator[Transaction]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield Transaction(self._connection, self.now)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it already
                self._connection.execute("ROLLBACK")
            raise

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Read the rows that a query of `queries.sql` gives, without waiting for writers.

        Raises:
            LedgerError: the file cannot be read.
        """
        return self._read(_query(query), values)

    def rows_by_name(self, query: str, values: dict[str, Any], **parts: str) -> list[sqlite3.Row]:
        """Read the rows of a query whose values have names, with `parts` put into its braces."""
        return self._read(_query(query).format(**parts), values)

    def _read(self, statement: str, values: Values | dict[str, Any]) -> list[sqlite3.Row]:
        with self._ledger_errors(), self._read_lock:
            return self._reader.execute(statement, values).fetchall()

    @contextmanager
    def _ledger_errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ours, outside the locks, and have a damaged file replaced."""
        generation = self.generation
        try:
            if not self._is_open and not self._is_closed:
                self._open_again()
            yield
        except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
            if self.generation == generation:
                raise  # a fault of ours, such as a call after `close`
            raise LedgerError("The ledger was replaced meanwhile; it is filled from Label Studio.") from None
        except sqlite3.Error as error:
            found = ledger_error(error)
            self.trouble = str(found)
            if isinstance(found, LedgerDamaged):
                self._begin_anew(generation)
            raise found from error

    def _begin_anew(self, generation: int) -> None:
        """Replace a file that was found to be damaged by an empty one, unless another thread was quicker."""
        with self._lock, self._read_lock:
            if self.generation != generation or self._is_closed:
                return
            with suppress(sqlite3.Error):
                self._close()
            self._is_open = False
            self.generation += 1
            self._set_aside()
            self._open()

    def _open_again(self) -> None:
        """Make the empty file that could not be made when the damaged one was moved aside."""
        with self._lock, self._read_lock:
            if not self._is_open:
                self._open()

    def _check(self, path: Path) -> None:
        """Look for damage, unless that would take long; raises `LedgerDamaged`."""
        if path.stat().st_size > CHECKED_BYTES:
            return
        (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise LedgerDamaged(f"The ledger {path} is damaged ({found}).")

    def _prepare(self, path: Path) -> None:
        """Make the tables of a new file, or bring those of an older release up to date."""
        with self._all_or_nothing() as db:
            tables = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            statements = list(self._upgrade(path)) if tables else list(script("schema.sql"))
            for statement in statements:
                self._connection.execute(statement)
            if statements:
                db.change("set_value", "schema", str(SCHEMA_VERSION))
            if self._damaged and not tables:
                db.change("set_value", REBUILD, self._damaged)
            row = db.row("value", REBUILD)
            self.to_rebuild = row["value"] if row is not None else None

    def _upgrade(self, path: Path) -> Iterator[str]:
        row = self._connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
        if row is None:
            raise LedgerDamaged(f"The ledger {path} does not say which release wrote it.")
        found = row["value"]
        if not 1 <= int(found) <= SCHEMA_VERSION:
            raise BackendError(
                f"The ledger {path} was written by another release (schema {found}, this one uses "
                f"{SCHEMA_VERSION}); move it away to start afresh, or use that release."
            )
        for version in range(int(found), SCHEMA_VERSION):
            yield from single_statements(named_statements("upgrades.sql")[f"from_{version}"])


def _query(name: str) -> str:
    return named_statements("queries.sql")[name]


def ledger_error(error: sqlite3.Error) -> LedgerError:
    """Say what an error of SQLite means: a damaged file, or one that cannot be used for now."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or str(error).startswith("no such table"):
        return LedgerDamaged(f"The ledger was damaged ({error}); it is moved aside and filled from Label Studio again.")
    if primary == sqlite3.SQLITE_IOERR:
        return LedgerError(f"The ledger cannot be read or written ({error}); look after the disk of CAVSAM_DATA_DIR.")
    return LedgerError(f"The ledger cannot be read or written ({error}); make room or free the file.")


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=LOCK_PATIENCE)
    connection.row_factory = sqlite3.Row
    return connection
