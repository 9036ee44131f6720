"""Which annotation the backend learns from.

The policy `first`: the earliest (`created_at`, then id) annotation of the project that is not cancelled, was not made
from a prediction, and has at least one usable mask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from backend.label_config import LabelConfig

BRUSH = "brushlabels"


@dataclass(frozen=True)
class Candidate:
    """One annotation as the policy sees it.

    `regions` are its usable brush regions, reduced to what the mask depends on; `key` is a hash of them (8 hex
    digits); `reason` says why the annotation cannot be the reference, and is empty where it can.
    """

    annotation: int
    task: int
    created_at: str
    key: str = ""
    reason: str = ""
    regions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether the policy may choose this annotation."""
        return not self.reason


def examine(annotation: Mapping[str, Any], config: LabelConfig) -> Candidate:
    """Judge one annotation as Label Studio's API gives it."""
    number, task = int(annotation["id"]), int(annotation["task"])
    created_at = _sortable(str(annotation.get("created_at") or ""))
    results = [r for r in annotation.get("result") or [] if isinstance(r, Mapping)]
    regions: list[dict[str, Any]] = []
    reason = _disqualified(annotation, results)
    if not reason:
        regions, reason = _usable_regions(results, config)
    if reason:
        return Candidate(number, task, created_at, reason=reason)
    return Candidate(number, task, created_at, content_key(number, task, regions), regions=regions)


def choose_first(candidates: Iterable[Candidate]) -> Candidate | None:
    """The earliest usable candidate."""
    usable = [candidate for candidate in candidates if candidate.usable]
    return min(usable, key=lambda c: (c.created_at, c.annotation), default=None)


def content_key(annotation: int, task: int, regions: list[dict[str, Any]]) -> str:
    """Eight hex digits that change whenever the reference's masks do."""
    text = json.dumps([annotation, task, regions], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _disqualified(annotation: Mapping[str, Any], results: list[Mapping[str, Any]]) -> str:
    if annotation.get("was_cancelled"):
        return "it was skipped"
    if annotation.get("parent_prediction"):
        return "it was made from a prediction"
    if results and all(result.get("origin") == "prediction" for result in results):
        return "its regions are a prediction's"
    return ""


def _usable_regions(results: list[Mapping[str, Any]], config: LabelConfig) -> tuple[list[dict[str, Any]], str]:
    regions = []
    reasons: list[str] = []
    for result in results:
        region, reason = _usable_region(result, config)
        if region is not None:
            regions.append(region)
        elif reason:
            reasons.append(reason)
    if regions:
        return regions, ""
    return [], "; ".join(dict.fromkeys(reasons)) or "it has no brush region"


def _usable_region(result: Mapping[str, Any], config: LabelConfig) -> tuple[dict[str, Any] | None, str]:
    if str(result.get("type", "")).lower() != BRUSH:
        return None, ""
    from_name, to_name = str(result.get("from_name", "")), str(result.get("to_name", ""))
    control = config.control(from_name, to_name)
    if control is None:
        return None, f"its region belongs to {from_name!r} on {to_name!r}, which the configuration lacks"
    value = result.get("value")
    if not isinstance(value, Mapping) or value.get("format") != "rle" or not isinstance(value.get("rle"), list):
        return None, "its brush region has no run-length code"
    labels = [str(label) for label in value.get(BRUSH) or []]
    known = [label for label in labels if control.knows(label)]
    if not known:
        return None, f"its label {', '.join(labels) or '(none)'} is not in the configuration"
    if result.get("image_rotation"):
        return None, "its image is rotated in the editor; set the rotation back to 0 and submit again"
    width, height = result.get("original_width"), result.get("original_height")
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        return None, "its region does not say the size of the image"
    reduced = {
        "from_name": from_name,
        "to_name": to_name,
        "labels": known,
        "original_width": width,
        "original_height": height,
        "rle": value["rle"],
    }
    return reduced, ""


def _sortable(timestamp: str) -> str:
    """ISO 8601 in UTC with microseconds, so that text order is time order; an unreadable one sorts last."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return "~" + timestamp
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
