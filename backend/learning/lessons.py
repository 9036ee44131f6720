"""Lessons: what the reviews of a project teach about its scores and about the ladder of `auto`.

A lesson is learned anew when there are a third more reviews than for the last one, so that versions stay few. It never
makes an old prediction anew: it is for tasks still to be predicted, and for what the page says of the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backend.learning.candidates import KeptCandidate
from backend.learning.measure import Review
from cavsam.scoring.experience import LEAST, Experience, Measured, learn
from cavsam.scoring.ladder import Rung, TriedMask, first_enough, rungs

GROWTH = 1.3
"""Reviews, as a multiple of those that the last lesson had, at which the next one is learned."""
CLIMBS_ALL = 10
"""Every so many tasks climb the whole ladder all the same, so that a change of the pictures is noticed."""


@dataclass(frozen=True)
class Lesson:
    """What reviews taught.

    Attributes:
        name: eight hex digits that change with the experience; empty if there is none.
        reviews: how many reviews there were.
        experience: for the method.
        told: what it is, in sentences.
    """

    name: str
    reviews: int
    experience: Experience
    told: tuple[str, ...]

    @classmethod
    def of(cls, name: str, reviews: int, experience: Mapping[str, Any], told: Sequence[str]) -> Lesson:
        """Make one from what the store holds."""
        return cls(name, reviews, Experience.from_json(experience), tuple(told))

    def for_task(self, task: int) -> Experience:
        """What is known for one task; every `CLIMBS_ALL`th climbs the whole ladder."""
        return self.experience if task % CLIMBS_ALL else replace(self.experience, last="")


def is_due(reviews: int, last: Lesson | None) -> bool:
    """Whether there are enough reviews for the next lesson."""
    return reviews >= (LEAST if last is None else math.ceil(last.reviews * GROWTH))


def teach(reviews: Sequence[Review], *, ladder: bool) -> Lesson:
    """Learn from reviews; the experience is empty if they teach nothing that the models do not know.

    Args:
        reviews: of one project and one pair of models.
        ladder: whether the mode is `auto`, which has one.
    """
    masks = measured_masks(reviews)
    learned = learn(masks)
    told = []
    if learned.corrections:
        told.append(
            f"Scores are corrected by what {len(reviews)} reviews say: on reviews that were left out, the mean error "
            f"is {math.sqrt(learned.error):.2f}, and {math.sqrt(learned.own_error):.2f} without."
        )
    last = ""
    if ladder:
        found = rungs(tried_masks(reviews, masks, learned.held_out))
        complete = sum(not review.last for review in reviews)
        if complete >= LEAST and found:
            enough = first_enough(found)
            if enough < len(found) - 1:
                last = found[enough].kind
                told.append(_ladder_told(found, enough))
    experience = Experience(learned.corrections, last, len(reviews))
    if not told:
        return Lesson("", len(reviews), experience, ())
    text = json.dumps(experience.to_json(), sort_keys=True)
    return Lesson(hashlib.sha256(text.encode()).hexdigest()[:8], len(reviews), experience, tuple(told))


def measured_masks(reviews: Sequence[Review]) -> list[Measured]:
    """List the masks of all candidates that found something."""
    return [
        Measured(review.task, one.kind, one.own, one.cues, one.iou)
        for review in reviews
        for label in review.labels
        for one in label.candidates
        if one.found
    ]


def tried_masks(
    reviews: Sequence[Review], masks: Sequence[Measured], scores: Sequence[float]
) -> list[list[list[TriedMask]]]:
    """List what was tried of each task that had the whole ladder before it, with the scores (of `measured_masks`)."""
    estimates = iter(scores)
    found = []
    for review in reviews:
        labels = [
            [
                TriedMask(one.kind, next(estimates) if one.found else 0.0, one.iou, one.seconds)
                for one in label.candidates
            ]
            for label in review.labels
        ]
        if not review.last and any(labels):
            found.append(labels)
    assert len(masks) == len(scores)
    return found


def score_of(candidates: Sequence[KeptCandidate], experience: Experience) -> tuple[float, bool]:
    """Score a prediction anew, as the model process does.

    Returns:
        The score of the worst label shown, 0 if an image shows none; and whether it estimates an IoU.
    """
    worst = []
    for image in {one.place.to_name for one in candidates}:
        shown = [one for one in candidates if one.shown and one.place.to_name == image]
        worst.append(min((experience.score(one.kind, one.own, one.cues) for one in shown), default=0.0))
    estimated = all(one.calibrated or experience.corrects(one.kind) for one in candidates if one.chosen)
    return min(worst, default=0.0), estimated


def _ladder_told(found: Sequence[Rung], enough: int) -> str:
    rung, best = found[enough], max(found[enough + 1 :], key=lambda other: float(other.ious.mean()))
    here = f"a mean IoU of {rung.ious.mean():.2f} in {rung.seconds.mean():.1f} s a task"
    return (
        f"Mode auto stops at {rung.kind}: there, {len(rung.ious)} reviews have {here}, and {best.ious.mean():.2f} in "
        f"{best.seconds.mean():.1f} s at {best.kind}. Every {CLIMBS_ALL}th task still tries all."
    )
