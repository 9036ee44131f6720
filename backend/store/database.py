"""The SQLite file of the ledger: its connections, its transactions, its schema."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend.errors import BackendError, LedgerError
from backend.store.queries import named_statements, script, single_statements

SCHEMA_VERSION = 5
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
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time):
        self.now = now
        self._lock = threading.RLock()
        self._read_lock = threading.Lock()
        self.trouble = ""
        """What the last `LedgerError` said, until something is written again."""
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
    def transaction(self) -> Iterator[Transaction]:
        """Do all or nothing of what the block does.

        Raises:
            LedgerError: the file cannot be written.
        """
        with self._lock, self._ledger_errors():
            before = self._connection.total_changes
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(self._connection, self.now)
                self._connection.execute("COMMIT")
                if self._connection.total_changes > before:
                    self.trouble = ""
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
        with self._read_lock, self._ledger_errors():
            return self._reader.execute(statement, values).fetchall()

    @contextmanager
    def _ledger_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
            raise  # a fault of ours, such as a call after `close`
        except sqlite3.OperationalError as error:
            self.trouble = f"The ledger cannot be read or written ({error}); make room or free the file."
            raise LedgerError(self.trouble) from error
        except sqlite3.DatabaseError as error:
            self.trouble = f"The ledger is damaged ({error}); move it away to start afresh."
            raise LedgerError(self.trouble) from error

    def _prepare(self, path: Path) -> None:
        """Make the tables of a new file, or bring those of an older release up to date."""
        with self.transaction() as db:
            tables = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            statements = list(self._upgrade(path)) if tables else list(script("schema.sql"))
            for statement in statements:
                self._connection.execute(statement)
            if statements:
                db.change("set_value", "schema", str(SCHEMA_VERSION))

    def _upgrade(self, path: Path) -> Iterator[str]:
        found = self._connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()["value"]
        if not 1 <= int(found) <= SCHEMA_VERSION:
            raise BackendError(
                f"The ledger {path} was written by another release (schema {found}, this one uses "
                f"{SCHEMA_VERSION}); move it away to start afresh, or use that release."
            )
        for version in range(int(found), SCHEMA_VERSION):
            yield from single_statements(named_statements("upgrades.sql")[f"from_{version}"])


def _query(name: str) -> str:
    return named_statements("queries.sql")[name]


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=LOCK_PATIENCE)
    connection.row_factory = sqlite3.Row
    return connection
