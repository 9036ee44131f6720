"""The result of one target: the chosen masks at its own size, and why one is held back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from cavsam.candidates.base import Candidate
from cavsam.candidates.selection import comparable, contested
from cavsam.features import without_overlap
from cavsam.images import Mask
from cavsam.instances import components
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import Calibration
from cavsam.types import InstanceMask, TargetResult


def to_result(
    labels: Sequence[str],
    candidates: Sequence[Candidate],
    chosen: Sequence[Candidate],
    size: tuple[int, int],
    recipe: Recipe,
    calibration: Calibration,
) -> TargetResult:
    """Scale the chosen masks to the target's own size (H, W); labels that were not found are left out.

    Args:
        labels: names.
        candidates: everything that was tried.
        chosen: the candidate to believe for each label.
        size: of the target.
        recipe: the bounds below which a mask is held back.
        calibration: says whether a score estimates an IoU.
    """
    mixed = len({one.kind for one in chosen}) > 1
    logits = torch.stack([one.claim(label) if mixed else one.logits[label] for label, one in enumerate(chosen)])
    full = F.interpolate(logits[None].cpu(), size=size, mode="bilinear", align_corners=False)[0]
    holds = [one.holds(calibration, recipe) for one in chosen]
    missed = [_bound_missed(one, label, holds[label], recipe) for label, one in enumerate(chosen)]
    kept = [label for label, why in enumerate(missed) if not why]
    full[[label for label, why in enumerate(missed) if why]] = -1
    fitted = [calibration.holds(one.kind, recipe, one.presence_of) for one in candidates]
    scores = {name: _score(one, label, recipe) for label, (name, one) in enumerate(zip(labels, chosen, strict=True))}
    if mixed:
        full = comparable(full, list(scores.values()))
    masks = without_overlap(full).numpy()
    shown = [(label, name) for label, name in enumerate(labels) if masks[label].any()]
    split = recipe.instances == "split"
    return TargetResult(
        index=0,
        size=size,
        masks={name: masks[label] for label, name in shown},
        scores=scores,
        instances={n: _instances(chosen[i], i, masks[i], scores[n]) for i, n in shown} if split else {},
        held_back={labels[i]: why for i, why in enumerate(missed) if why and chosen[i].masks[i].any()},
        contested=contested(logits[kept], [labels[label] for label in kept]),
        calibrated=all(holds),
        candidates={
            name: tuple(
                one.described(label, chosen=one is chosen[label], calibrated=known)
                for one, known in zip(candidates, fitted, strict=True)
            )
            for label, name in enumerate(labels)
        },
    )


def _score(candidate: Candidate, label: int, recipe: Recipe) -> float:
    """Give a label's score; one that is probably not on the target scores no more than that probability."""
    score, presence = candidate.scores[label], candidate.presence[label]
    return round(min(score, presence) if presence < recipe.min_presence else score, 6)


def _bound_missed(candidate: Candidate, label: int, holds: bool, recipe: Recipe) -> str:
    """Say which bound of the recipe a label's mask misses; empty if none."""
    score, presence = candidate.scores[label], candidate.presence[label]
    if presence < recipe.min_presence:
        return f"probability {presence:.3f} that it is on the target < min_presence {recipe.min_presence:g}"
    # a label that lost all its pixels to another has no mask of its own to hold back
    if holds and score < recipe.min_score and candidate.masks[label].any():
        return f"score {score:.3f} < min_score {recipe.min_score:g}"
    return ""


def _instances(candidate: Candidate, label: int, mask: Mask, score: float) -> tuple[InstanceMask, ...]:
    """Part a label's mask (H, W) into its objects by the highest logit; objects without a pixel are left out.

    A region was not tracked object by object: its components are the objects, and share its score.
    """
    if label in candidate.scattered:
        return tuple(InstanceMask(part.numpy(), score) for part in components(torch.from_numpy(mask)))
    own = candidate.instances[label] if candidate.instances else []
    if len(own) < 2:
        return (InstanceMask(mask, score),)
    logits = torch.stack([one.logits for one in own])[None].cpu()
    full = F.interpolate(logits, size=mask.shape, mode="bilinear", align_corners=False)[0]
    winner = full.argmax(dim=0).numpy()
    parts = [InstanceMask(mask & (winner == index), round(one.score, 6)) for index, one in enumerate(own)]
    return tuple(part for part in parts if part.mask.any())
