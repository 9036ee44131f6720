"""Which annotations the backend may learn from: those with a usable mask that a person drew or corrected.

A skipped annotation teaches nothing, and neither does a prediction that was accepted as it was: learning from it would
only repeat it. `policy` chooses among the others.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from backend.entities import JudgedAnnotation
from backend.labelstudio.label_config import LabelConfig

_SHAPES = {
    "brush": ("rle",),
    "bitmask": ("imageDataURL",),
    "polygon": ("points",),
    "rectangle": ("x", "y", "width", "height", "rotation"),
    "ellipse": ("x", "y", "radiusX", "radiusY", "rotation"),
}
GEOMETRY = {kind: fields for shape, fields in _SHAPES.items() for kind in (shape, f"{shape}labels")}
"""The types of result that give a mask, and the fields of their value that it depends on."""
NO_MASK = "it has no region that gives a mask"


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
    regions, reasons = _judged(results, config)
    reason = "" if regions else "; ".join(reasons) or NO_MASK
    key = content_key(number, task, regions)
    if not reason and key != known_key:
        reason = _only_predicted(annotation, results, predicted, config)
    if reason:
        return JudgedAnnotation(number, task, created_at, reason=reason)
    labels = frozenset((r["from_name"], r["to_name"], label) for r in regions for label in r["labels"])
    ground_truth = bool(annotation.get("ground_truth"))
    return JudgedAnnotation(
        number,
        task,
        created_at,
        key,
        regions=regions,
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


def content_key(annotation: int, task: int, regions: list[dict[str, Any]]) -> str:
    """Eight hex digits that change whenever the reference's masks do."""
    text = json.dumps([annotation, task, regions], sort_keys=True, separators=(",", ":"))
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
    foreseen, _ = usable_regions([r for r in predicted if isinstance(r, Mapping)], config)
    untouched, _ = usable_regions([r for r in results if r.get("origin") == "prediction"], config)
    others, _ = usable_regions([r for r in results if r.get("origin") != "prediction"], config)
    for region in others:
        if region not in foreseen:
            return False
        foreseen.remove(region)
    return Counter(map(_shown, untouched)) == Counter(map(_shown, foreseen))


def _shown(region: Mapping[str, Any]) -> tuple[str, str, str, tuple[str, ...]]:
    return region["from_name"], region["to_name"], region["kind"], tuple(region["labels"])


def usable_regions(results: Sequence[Mapping[str, Any]], config: LabelConfig) -> tuple[list[dict[str, Any]], str]:
    """The results that give masks, reduced to what these depend on; and why there is none, where there is none."""
    regions, reasons = _judged(results, config)
    return regions, "" if regions else "; ".join(reasons) or NO_MASK


def _judged(results: Sequence[Mapping[str, Any]], config: LabelConfig) -> tuple[list[dict[str, Any]], list[str]]:
    """The usable regions, and why others, or single labels of theirs, are left out."""
    regions = []
    reasons: list[str] = []
    # what <Brush> and the like draw is labelled by a second result of the same id
    labelling = {str(r.get("id")): r for r in results if str(r.get("type", "")).lower() == "labels"}
    for result in results:
        region, reason = _usable_region(result, labelling.get(str(result.get("id"))), config)
        if region is not None:
            regions.append(region)
        if reason:
            reasons.append(reason)
    return regions, list(dict.fromkeys(reasons))


def _usable_region(
    result: Mapping[str, Any], labelling: Mapping[str, Any] | None, config: LabelConfig
) -> tuple[dict[str, Any] | None, str]:
    kind = str(result.get("type", "")).lower()
    if kind not in GEOMETRY:
        return None, ""
    value = result.get("value")
    geometry = _geometry(kind, value)
    if geometry is None or not isinstance(value, Mapping):
        return None, f"its {kind} region is incomplete"
    split = not kind.endswith("labels")
    if split and labelling is None:
        return None, f"its {kind} region has no label"
    labels_name = str(labelling.get("from_name", "")) if split and labelling else None
    from_name, to_name = str(result.get("from_name", "")), str(result.get("to_name", ""))
    if config.is_prompt(from_name, to_name):
        return None, ""  # a click that was left behind
    control = config.control(from_name, to_name, labels_name) or config.hint(from_name, to_name, labels_name)
    if control is None or control.kind != kind:
        return None, f"its region belongs to {from_name!r} on {to_name!r}, which the configuration lacks"
    named = (labelling or {}).get("value") if split else value
    listed = named.get("labels" if split else kind) if isinstance(named, Mapping) else None
    labels = [str(label) for label in listed] if isinstance(listed, list) else []
    known = [label for label in labels if control.knows(label)]
    unknown = ", ".join(label for label in labels if label not in known)
    missing = f"its label {unknown or '(none)'} is not in the configuration"
    if not known:
        return None, missing
    if control in config.hints:  # what it teaches is predicted with a tag that takes masks
        target = next((found for label in known if (found := config.mask_control(to_name, label))), None)
        if target is None:
            return None, f"no mask tag on {to_name!r} has the label of its {kind} region"
        control, known = target, [label for label in known if target.knows(label)]
    if result.get("image_rotation"):
        return None, "its image is rotated in the editor; set the rotation back to 0 and submit again"
    width, height = result.get("original_width"), result.get("original_height")
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        return None, "its region does not say the size of the image"
    reduced = {
        "from_name": control.name,
        "to_name": to_name,
        "kind": control.kind,
        "labels_name": control.labels_name,
        "labels": known,
        "original_width": width,
        "original_height": height,
    }
    return reduced | geometry, missing if unknown else ""


def _geometry(kind: str, value: Any) -> dict[str, Any] | None:
    """What a region's mask depends on, or `None` where something of it is missing."""
    if not isinstance(value, Mapping):
        return None
    fields = GEOMETRY[kind]
    geometry = {name: value.get(name) for name in fields}
    if "rle" in geometry:
        return geometry if isinstance(geometry["rle"], list) and value.get("format", "rle") == "rle" else None
    if "imageDataURL" in geometry:
        return geometry if isinstance(geometry["imageDataURL"], str) else None
    if "points" in geometry:
        return geometry if isinstance(geometry["points"], list) and len(geometry["points"]) >= 3 else None
    geometry["rotation"] = geometry["rotation"] or 0
    numbers = all(isinstance(number, int | float) for number in geometry.values())
    return geometry if numbers else None


def _sortable(timestamp: str) -> str:
    """ISO 8601 in UTC with microseconds, so that text order is time order; an unreadable one sorts last."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return "~" + timestamp
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
