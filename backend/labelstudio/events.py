"""Events, and what Label Studio's webhooks say as events; one is never more than a hint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from backend.errors import InvalidRequest
from backend.labelstudio.project_keys import SPAN
from backend.text import read_json

LARGEST = 2**63 - 1
"""What the ledger can hold."""

EventKind = Literal["seen", "changed", "touched", "finished", "again", "train"]


@dataclass(frozen=True)
class Event:
    """Something that may have changed in a project; the coordinator finds out what really has.

    - `seen`: Label Studio called for the project, without news.
    - `changed`: its tasks or its description may have changed.
    - `touched`: annotations of `tasks` may have changed; those in `annotations` are expected to be found.
    - `finished`: a job is over, or a result is free to be pushed.
    - `train`: somebody wants what has changed to be learned now.
    - `again`: the ledger says that its predictions are to be replaced (`Projects.want_again`).

    `doubtful` if whoever sent it has not shown to be Label Studio: then it brings about a sync now and then, however
    many come.
    """

    project: int
    kind: EventKind = "changed"
    tasks: frozenset[int] = frozenset()
    annotations: frozenset[int] = frozenset()
    doubtful: bool = False


def doubted(event: Event) -> Event:
    """What is made of an event that anybody may have sent; all of one project are equal, or one of two."""
    return Event(event.project, "train" if event.kind == "train" else "changed", doubtful=True)


def read_webhook(raw: bytes) -> dict[str, Any]:
    """Read the JSON object that a webhook's body holds; raises `InvalidRequest` if it holds something else."""
    try:
        event = read_json(raw)
    except ValueError as error:
        raise InvalidRequest("The event is not JSON.") from error
    if not isinstance(event, dict):
        raise InvalidRequest("The event must be a JSON object.")
    return event


def webhook_events(body: Mapping[str, Any]) -> list[Event]:
    """What a webhook's body says may have changed, with the project's number in place of its key.

    Empty if it names no project (its payload is switched off).
    """
    action = str(body.get("action"))
    described = body.get("project")
    project = described.get("id") if isinstance(described, Mapping) else None
    if not is_number(project) or project >= SPAN:
        return []
    if action in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED"):
        annotations = [a for a in _as_list(body.get("annotation")) if isinstance(a, Mapping)]
        tasks = frozenset(a["task"] for a in annotations if is_number(a.get("task")))
        if tasks:
            # a skip is not listed among a task's annotations, so it must not be waited for
            expected = [a for a in annotations if not a.get("was_cancelled")]
            numbers = frozenset(a["id"] for a in expected if is_number(a.get("id")))
            return [Event(project, "touched", tasks, numbers)]
    return [Event(project, "train" if action == "START_TRAINING" else "changed")]


def is_number(value: Any) -> TypeGuard[int]:
    """Whether something may be the number of a project, task or annotation: anybody may send an event."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
