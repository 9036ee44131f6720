"""Which annotations a project learns from: the reference policies.

- `first`: the earliest annotation.
- `pinned`: those on the task `reference_task`, or without one those marked as ground truth.
- `latest-k`: the latest annotations, of K tasks.
- `nearest-k`: the latest annotations, of some more tasks; each task to predict is given the K most like it.

Only annotations that `references.examine` finds usable are chosen from, and one per task. A label that none of the
chosen has is learned from the earliest annotation that has it, whatever the policy; that one teaches all it shows, for
what is on an image and not marked would count as background.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backend.entities import JudgedAnnotation
from backend.settings import Settings


@dataclass(frozen=True)
class Choice:
    """The annotations to learn from by age; `shots` is how many of them serve each task, 0 for all."""

    candidates: tuple[JudgedAnnotation, ...]
    shots: int = 0

    @property
    def key(self) -> str:
        """Eight hex digits that change whenever a mask or the choice does; a single annotation's own."""
        if len(self.candidates) == 1:
            return self.candidates[0].key
        text = json.dumps([self.shots, *(candidate.key for candidate in self.candidates)])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def choose(candidates: Iterable[JudgedAnnotation], settings: Settings) -> Choice | None:
    """What the policy of `settings` chooses; `None` where it finds nothing to learn from yet."""
    usable = sorted((c for c in candidates if c.usable), key=lambda c: (c.created_at, c.annotation))
    leading = _leading(usable, settings)
    if not leading:
        return None
    chosen = {c.annotation for c in leading} | {c.annotation for c in _missing(leading, usable)}
    found = tuple(c for c in usable if c.annotation in chosen)
    nearest = settings.reference_policy == "nearest-k" and len(found) > settings.reference_shots
    return Choice(found, settings.reference_shots if nearest else 0)


def why_no_reference(candidates: Sequence[JudgedAnnotation], settings: Settings) -> str:
    """One sentence for the log and the status page."""
    if not candidates:
        return "No task is annotated yet; annotate one and the others follow."
    if any(candidate.usable for candidate in candidates):  # then only `pinned` waits for another
        if settings.reference_task:
            return f"The reference is pinned to task {settings.reference_task}, which has no usable annotation yet."
        return "The reference is pinned to annotations marked as ground truth, and none is; mark one with the star."
    reasons = "; ".join(f"annotation {c.annotation} on task {c.task}: {c.reason}" for c in candidates[:3])
    return f"No annotation can be the reference ({reasons})."


def _leading(usable: Sequence[JudgedAnnotation], settings: Settings) -> Sequence[JudgedAnnotation]:
    """What the policy itself asks for, of candidates by age."""
    if settings.reference_policy == "latest-k":
        return _one_per_task(reversed(usable))[: settings.reference_shots]
    if settings.reference_policy == "nearest-k":
        return _one_per_task(reversed(usable))[: settings.reference_candidates]
    if settings.reference_policy == "pinned" and settings.reference_task:
        pinned = [c for c in usable if c.task == settings.reference_task]
        return sorted(pinned, key=lambda c: not c.ground_truth)[:1]
    if settings.reference_policy == "pinned":
        return _one_per_task(c for c in usable if c.ground_truth)[: settings.reference_shots]
    return usable[:1]


def _one_per_task(candidates: Iterable[JudgedAnnotation]) -> list[JudgedAnnotation]:
    """The first of each task."""
    found: dict[int, JudgedAnnotation] = {}
    for candidate in candidates:
        found.setdefault(candidate.task, candidate)
    return list(found.values())


def _missing(leading: Iterable[JudgedAnnotation], usable: Iterable[JudgedAnnotation]) -> list[JudgedAnnotation]:
    """The earliest annotation of each label that the leading ones lack."""
    known = {label for candidate in leading for label in candidate.labels}
    found = []
    for candidate in usable:
        if not candidate.labels <= known:
            known |= candidate.labels
            found.append(candidate)
    return found
