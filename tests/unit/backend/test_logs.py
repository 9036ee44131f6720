from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from backend.logs import JsonFormatter


def line(message: Any, *values: Any, error: Exception | None = None) -> dict[str, Any]:
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("backend.worker", logging.WARNING, __file__, 1, message, values, info)
    text = JsonFormatter("model process").format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_line_says_when_how_bad_and_what():
    found = line("The model is loaded.")
    assert (found["level"], found["process"], found["message"]) == ("WARNING", "model process", "The model is loaded.")
    assert found["time"].endswith("+00:00")
    assert not {"project", "task", "version", "traceback"} & set(found)


@pytest.mark.parametrize(
    ("message", "values", "about"),
    [
        ("Project %d, task %d: %s", (3, 14, "two\nlines"), {"project": 3, "task": 14}),
        ("Project %d: %s; version %s.", (3, "task 9", "cavsam-r1"), {"project": 3, "version": "cavsam-r1"}),
        ("%.1f%% of %d, project %d", (7.25, 8, 3), {"project": 3}),
        ("%d tasks are queued.", (5,), {}),
        ("100% sure of project 5", (), {}),
        (ValueError("no text"), (), {}),
    ],
)
def test_what_a_message_is_about_has_fields_of_its_own(message: Any, values: tuple[Any, ...], about: dict[str, Any]):
    found = line(message, *values)
    assert {name: found[name] for name in ("project", "task", "version") if name in found} == about


def test_an_error_keeps_its_traceback_on_the_same_line():
    try:
        raise RuntimeError("a fault")
    except RuntimeError as error:
        found = line("Project %d failed.", 3, error=error)
    assert "a fault" in found["traceback"]
    assert "test_an_error_keeps_its_traceback" in found["traceback"]
