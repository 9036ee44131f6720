from __future__ import annotations

import pytest

from backend.errors import InvalidRequest
from backend.labelstudio.events import Event, read_webhook, webhook_events

PROJECT = {"id": 3, "created_at": "2026-01-01T00:00:00Z", "label_config": "<View/>"}


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (
            {"action": "ANNOTATION_CREATED", "project": PROJECT, "annotation": {"id": 9, "task": 4, "result": []}},
            [Event(3, "touched", frozenset({4}), frozenset({9}))],
        ),
        (
            {
                "action": "ANNOTATION_CREATED",
                "project": PROJECT,
                "annotation": {"id": 9, "task": 4, "was_cancelled": True},
            },
            [Event(3, "touched", frozenset({4}), frozenset())],
        ),
        (
            {
                "action": "ANNOTATIONS_CREATED",
                "project": PROJECT,
                "annotation": [{"id": 9, "task": 4}, {"id": 10, "task": 5}],
                "task": [{"id": 4}, {"id": 5}],
            },
            [Event(3, "touched", frozenset({4, 5}), frozenset({9, 10}))],
        ),
        ({"action": "ANNOTATIONS_DELETED", "project": PROJECT, "annotations": [{"id": 9}]}, [Event(3, "changed")]),
        ({"action": "TASKS_CREATED", "project": PROJECT, "tasks": [{"id": 4}]}, [Event(3, "changed")]),
        ({"action": "TASKS_DELETED", "project": PROJECT, "tasks": [{"id": 4}]}, [Event(3, "changed")]),
        ({"action": "PROJECT_UPDATED", "project": PROJECT}, [Event(3, "changed")]),
        ({"action": "START_TRAINING", "project": PROJECT}, [Event(3, "train")]),
        ({"action": "ANNOTATION_CREATED", "project": PROJECT, "annotation": None}, [Event(3, "changed")]),
        ({"action": "ANNOTATION_CREATED"}, []),  # sent without payload
        ({"action": "LABEL_LINK_CREATED", "project": None}, []),
        ({"project": {"id": True}}, []),
        ({"action": "PROJECT_UPDATED", "project": {"id": 2**63}}, []),  # no number that the ledger could hold
    ],
)
def test_events_say_where_to_look(body: dict, events: list[Event]):
    assert webhook_events(body) == events


def test_an_event_nested_without_end_is_refused_in_words():
    with pytest.raises(InvalidRequest, match="not JSON"):
        read_webhook(b"[" * 200_000)
