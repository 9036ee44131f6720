"""What a person made of a prediction: its IoU with the annotation, label by label, and a verdict.

Every candidate that was kept is measured as well, so that a project knows what other ways to a mask would have given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from backend.errors import UnusableRegion
from backend.labelstudio.regions import Region
from backend.learning.candidates import SIDE, BoolMask, KeptCandidate, Place, squared, unpack

UNCHANGED = 0.98
"""IoU from which on a mask counts as unchanged: an editor that writes it anew moves some pixels of its edge."""
REDRAWN = 0.5
"""IoU below which a mask counts as redrawn rather than corrected: less than half is common to both."""


class Verdict(StrEnum):
    """What became of a label's mask."""

    UNCHANGED = "unchanged"
    """It was accepted as it was."""
    CORRECTED = "corrected"
    """It was changed a little."""
    REDRAWN = "redrawn"
    """Most of it was replaced."""
    MISSED = "wrongly empty"
    """There was none, and a person drew one."""
    REMOVED = "removed"
    """There was one, and a person removed it."""
    ABSENT = "rightly empty"
    """There was none, and nobody drew one."""


KEPT = (Verdict.UNCHANGED, Verdict.CORRECTED, Verdict.ABSENT)
"""Verdicts that leave something of the prediction."""


@dataclass(frozen=True)
class MeasuredCandidate:
    """A candidate's mask of one label and its IoU with the annotation; see `KeptCandidate`."""

    kind: str
    own: float
    cues: Mapping[str, float]
    chosen: bool
    seconds: float
    found: bool
    iou: float


@dataclass(frozen=True)
class MeasuredLabel:
    """One label of a review: what became of the predicted mask, its IoU, and what each candidate would have given."""

    place: Place
    verdict: Verdict
    iou: float
    candidates: tuple[MeasuredCandidate, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> MeasuredLabel:
        """The label that `to_json` wrote."""
        tried = tuple(MeasuredCandidate(**one) for one in held["candidates"])
        return cls(Place(**held["place"]), Verdict(held["verdict"]), held["iou"], tried)


@dataclass(frozen=True)
class Review:
    """An annotation held against the prediction that was there before it.

    Attributes:
        task: its number.
        version: of the prediction, without the lesson.
        digest: changes with the annotation.
        score: of the prediction when it was made.
        last: candidate at which the ladder of a lesson ended; empty if all were tried that were needed.
        seconds: that the prediction took, without its candidates.
        labels: at least one.
    """

    task: int
    version: str
    digest: str
    score: float | None
    last: str
    seconds: float
    labels: tuple[MeasuredLabel, ...]

    @property
    def iou(self) -> float:
        """Mean over the labels, 0..1; 1 for one that is rightly empty."""
        return sum(label.iou for label in self.labels) / len(self.labels)

    @property
    def verdict(self) -> str:
        """Of the task: `unchanged`, `rejected` if nothing of the prediction was kept, else `corrected`."""
        verdicts = {label.verdict for label in self.labels}
        if verdicts <= {Verdict.UNCHANGED, Verdict.ABSENT}:
            return "unchanged"
        return "corrected" if verdicts & set(KEPT) else "rejected"


def measure(
    predicted: Sequence[Region], drawn: Sequence[Region], candidates: Sequence[KeptCandidate]
) -> tuple[MeasuredLabel, ...]:
    """Hold a prediction and its candidates against an annotation.

    Args:
        predicted: regions of the prediction.
        drawn: regions of the annotation.
        candidates: of the same prediction; none if they are not kept any more.

    Returns:
        Every label that was looked for. If no candidates tell which these are, every label of either side.
    """
    ours, theirs = masks_by_place(predicted), masks_by_place(drawn)
    tried: dict[Place, list[KeptCandidate]] = {}
    for one in candidates:
        tried.setdefault(one.place, []).append(one)
    places = dict.fromkeys([*tried, *ours, *(theirs if not tried else ())])
    return tuple(_measured(place, ours.get(place), theirs.get(place), tried.get(place, [])) for place in places)


def masks_by_place(regions: Iterable[Region]) -> dict[Place, BoolMask]:
    """Draw the masks, bool (H, W), that are not empty; damaged regions are left out."""
    from backend.labelstudio.masks import mask_of  # with it come the libraries that draw

    found: dict[Place, BoolMask] = {}
    for region in regions:
        try:
            mask = mask_of(region)
        except UnusableRegion:
            continue
        for slot in region.slots if mask.any() else ():
            place = Place.of(slot)
            found[place] = _united(found[place], mask) if place in found else mask
    return found


def annotation_to_measure(annotations: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Choose among a task's annotations: the ground truth, or else the latest; None if all are cancelled."""
    found = [one for one in annotations if not one.get("was_cancelled")]
    return max(found, key=lambda one: (bool(one.get("ground_truth")), int(one["id"])), default=None)


def digest_of(annotation: Mapping[str, Any]) -> str:
    """Sixteen hex digits that change with what an annotation draws."""
    text = json.dumps([annotation["id"], annotation.get("result")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _measured(
    place: Place, ours: BoolMask | None, theirs: BoolMask | None, tried: Sequence[KeptCandidate]
) -> MeasuredLabel:
    iou = _iou(ours, theirs)
    return MeasuredLabel(place, _verdict(ours, theirs, iou), iou, tuple(_measured_candidate(c, theirs) for c in tried))


def _measured_candidate(one: KeptCandidate, theirs: BoolMask | None) -> MeasuredCandidate:
    mask = unpack(one.mask)
    found = bool(mask.any())
    iou = _iou(mask if found else None, theirs)
    return MeasuredCandidate(one.kind, one.own, one.cues, one.chosen, one.seconds, found, iou)


def _verdict(ours: BoolMask | None, theirs: BoolMask | None, iou: float) -> Verdict:
    if ours is None:
        return Verdict.ABSENT if theirs is None else Verdict.MISSED
    if theirs is None:
        return Verdict.REMOVED
    if iou >= UNCHANGED:
        return Verdict.UNCHANGED
    return Verdict.CORRECTED if iou >= REDRAWN else Verdict.REDRAWN


def _iou(first: BoolMask | None, second: BoolMask | None) -> float:
    """IoU of two masks of any sizes, None for an empty one; 1 if both are empty."""
    if first is None or second is None:
        return float(first is None and second is None)
    if first.shape != second.shape:
        side = min(SIDE, len(first) if first.shape[0] == first.shape[1] else SIDE)
        first, second = squared(first, side), squared(second, side)
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def _united(first: BoolMask, second: BoolMask) -> BoolMask:
    if first.shape != second.shape:
        first, second = squared(first, SIDE), squared(second, SIDE)
    return first | second
