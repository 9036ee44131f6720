"""The named statements of the `.sql` files beside this module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_HEADER = re.compile(r"^-- (\w+): ")


@cache
def named_statements(file: str) -> dict[str, str]:
    """Read a file of blocks that begin with `-- name: comment`; returns the text of each block by its name.

    Raises:
        ValueError: two blocks have one name.
    """
    found: dict[str, list[str]] = {}
    lines: list[str] = []  # what stands before the first block is about the file
    for line in _text(file).splitlines():
        header = _HEADER.match(line)
        if header:
            if header[1] in found:
                raise ValueError(f"{file} has two statements {header[1]!r}; rename one.")
            lines = found[header[1]] = []
        elif not line.startswith("--"):
            lines.append(line)
    return {name: "\n".join(block).strip().removesuffix(";") for name, block in found.items()}


def script(file: str) -> Iterator[str]:
    """The single statements of a file that has no names."""
    yield from single_statements("\n".join(line for line in _text(file).splitlines() if not line.startswith("--")))


def single_statements(text: str) -> Iterator[str]:
    """The statements of a text without comments: `executescript` would end the transaction."""
    yield from (statement for statement in text.split(";") if statement.strip())


def _text(file: str) -> str:
    return (Path(__file__).parent / file).read_text()
