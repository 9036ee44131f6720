"""Which annotations the backend may learn from: those with a usable mask that a person drew or corrected.

A skipped annotation teaches nothing, and neither does a prediction that was accepted as it was: learning from it would
only repeat it. `policy` chooses among the others.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from backend.entities import JudgedAnnotation
from backend.labelstudio.label_config import LabelConfig
from backend.labelstudio.regions import NO_MASK, Region, read_regions


def examine(
    annotation: Mapping[str, Any], config: LabelConfig, predicted: Sequence[Any] | None = None, known_key: str = ""
) -> JudgedAnnotation:
    """Judge one annotation as Label Studio's API gives it.

    `predicted` is the result of the prediction that it was made from; see `needs_prediction`. `known_key` is the key
    under which it was found usable before: it stays so when Label Studio forgets the prediction.
    """
    number, task = int(annotation["id"]), int(annotation["task"])
    created_at = _sortable(str(annotation.get("created_at") or ""))
    results = [r for r in annotation.get("result") or [] if isinstance(r, Mapping)]
    if annotation.get("was_cancelled"):
        return JudgedAnnotation(number, task, created_at, reason="it was skipped")
    regions, reasons = read_regions(results, config)
    reason = "" if regions else "; ".join(reasons) or NO_MASK
    key = content_key(number, task, regions)
    if not reason and key != known_key:
        reason = _only_predicted(annotation, results, predicted, config)
    if reason:
        return JudgedAnnotation(number, task, created_at, reason=reason)
    labels = frozenset((slot.from_name, slot.to_name, slot.label) for region in regions for slot in region.slots)
    ground_truth = bool(annotation.get("ground_truth"))
    return JudgedAnnotation(
        number,
        task,
        created_at,
        key,
        regions=tuple(regions),
        labels=labels,
        ground_truth=ground_truth,
        left_out=tuple(reasons),
    )


def needs_prediction(annotation: Mapping[str, Any]) -> bool:
    """Whether only the prediction that an annotation was made from tells if a person corrected anything.

    A region that was edited says so; that one was removed, relabelled or added, only the comparison shows.
    """
    results = [r for r in annotation.get("result") or [] if isinstance(r, Mapping)]
    edited = any(result.get("origin") == "prediction-changed" for result in results)
    return bool(annotation.get("parent_prediction")) and not annotation.get("was_cancelled") and not edited


def content_key(annotation: int, task: int, regions: Iterable[Region]) -> str:
    """Eight hex digits that change whenever the reference's masks do."""
    text = json.dumps(
        [annotation, task, [region.to_json() for region in regions]], sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _only_predicted(
    annotation: Mapping[str, Any],
    results: list[Mapping[str, Any]],
    predicted: Sequence[Any] | None,
    config: LabelConfig,
) -> str:
    """Why an annotation holds nothing that a person drew or corrected; empty where it does."""
    if needs_prediction(annotation):
        if predicted is None:
            return "it was made from a prediction that is not there any more"
        return "it is a prediction that was accepted unchanged" if _is_unchanged(results, predicted, config) else ""
    if all(result.get("origin") == "prediction" for result in results):
        return "its regions are a prediction's"
    return ""


def _is_unchanged(results: Sequence[Mapping[str, Any]], predicted: Sequence[Any], config: LabelConfig) -> bool:
    """Whether an annotation holds what was predicted, no more and no less.

    A region that the editor calls the prediction's was not touched, though it may be encoded anew; of others the
    geometry counts.
    """
    foreseen, _ = read_regions(predicted, config)
    untouched, _ = read_regions([r for r in results if r.get("origin") == "prediction"], config)
    others, _ = read_regions([r for r in results if r.get("origin") != "prediction"], config)
    for region in others:
        if region not in foreseen:
            return False
        foreseen.remove(region)
    return Counter(region.slots for region in untouched) == Counter(region.slots for region in foreseen)


def _sortable(timestamp: str) -> str:
    """ISO 8601 in UTC with microseconds, so that text order is time order; an unreadable one sorts last."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return "~" + timestamp
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
