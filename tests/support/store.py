"""A store of its own for a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.store.store import Store


def damage(path: Path) -> None:
    """Overwrite a ledger and what belongs to it, all but the shared memory, whose end would be this process's."""
    for file in (path, path.with_name(path.name + "-wal")):
        if file.exists():
            with file.open("r+b") as stream:
                stream.write(os.urandom(file.stat().st_size))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "ledger.sqlite3")
    yield opened
    opened.close()
