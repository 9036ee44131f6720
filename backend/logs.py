"""The log: one line per event on stderr, in words or as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

FORMATS = ("text", "json")
NAMED = re.compile(r"(?:\b(project|task|version) )?%[-#0 +]*\d*(?:\.\d+)?([a-z%])", re.IGNORECASE)
"""A value's place in a message, and the word before it if that says what the value is."""


def configure(level: str, form: str, process: str = "") -> None:
    """Write the log of this process to stderr; the libraries' own chatter only if it warns.

    Args:
        level: the least level that is written.
        form: one of `FORMATS`.
        process: name of the process, if it is not the main one.
    """
    text = f"%(asctime)s %(levelname)s {process + ': ' if process else ''}%(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if form == "json" else logging.Formatter(text))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time` (UTC), `level`, `process`, `thread`, `message`, what the message is about
    (`project`, `task`, `version`), and the `traceback` of an error.
    """

    def __init__(self, process: str = ""):
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process or "backend",
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        line |= _named(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _named(record: logging.LogRecord) -> dict[str, Any]:
    """What a record is about, taken from its values before they become text."""
    if not isinstance(record.args, tuple) or not isinstance(record.msg, str):
        return {}
    places = [match for match in NAMED.finditer(record.msg) if match[2] != "%"]
    return {match[1].lower(): value for match, value in zip(places, record.args, strict=False) if match[1]}
