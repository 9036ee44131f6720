"""The strategies of a recipe, the choice among their candidates, and what labels claim of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cavsam.candidates.activation import Activation
from cavsam.candidates.base import Candidate, Strategy
from cavsam.candidates.linear import LinearClassifier
from cavsam.candidates.pixels import PixelForest
from cavsam.candidates.tracked import Tracked
from cavsam.features import iou
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import Calibration
from cavsam.scoring.experience import Experience
from cavsam.tracking import Tracker
from cavsam.transition import Transition


def strategies(
    recipe: Recipe, tracker: Tracker, transition: Transition | None, calibration: Calibration
) -> tuple[Strategy, ...]:
    """List the ways to a mask that a recipe tries, in order; `auto` has the one that generates frames last.

    A region is tried beside a tracked mask only if the calibration knows both, because bare orders of different kinds
    cannot be compared. Without a calibration `auto` tries the tracked kinds: what they are worth can be measured.
    """
    concat, ttga = Tracked(tracker, recipe), Tracked(tracker, recipe, aligns=True)
    if recipe.mode == "auto":
        # on the original neck, and with nothing to correct it on the target, `ttga` tracks as `concat` does
        same = recipe.propagate_with == "original" and recipe.target_prompt == "none"
        tracked = concat if same else ttga
        pixels = PixelForest(recipe, presence_of=concat.kind)
        regions = (
            Activation(tracker, recipe, presence_of=tracked.kind),
            LinearClassifier(tracker, recipe, presence_of=concat.kind),
            *((pixels,) if calibration.knows(pixels.kind) else ()),
        )
        return (
            *((concat,) if same else (concat, ttga)),
            *(regions if calibration.overlap else ()),
            Tracked(tracker, recipe, aligns=True, transition=transition),
        )
    own = Tracked(tracker, recipe, recipe.aligns, transition if recipe.generates_frames else None)
    region = Activation(tracker, recipe, presence_of=own.kind)
    compared = calibration.knows(own.kind) and calibration.knows(region.kind)
    return (own, region) if recipe.region_fallback and recipe.aligns and compared else (own,)


def with_consensus(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Add to each the cue `consensus`: the mean IoU of its masks with those of the cheap other ways to a mask.

    Those are the regions and the first tracked candidate: that of generated frames comes last and changes nothing for
    the others, and tracking twice is one way, so that tracked candidates do not speak for each other.
    """
    ways = [*(one for one in candidates if one.tracked)][:1] + [one for one in candidates if not one.tracked]
    agreed = []
    for one in candidates:
        others = [other for other in ways if other.kind != one.kind and not (other.tracked and one.tracked)]
        shared = [[iou(a, b) for a, b in zip(one.masks, other.masks, strict=True)] for other in others]
        means = [sum(of_label) / len(others) for of_label in zip(*shared, strict=True)]
        cues = (
            [{**known, "consensus": mean} for known, mean in zip(one.cues, means, strict=True)] if means else one.cues
        )
        agreed.append(replace(one, cues=cues))
    return agreed


def settled(candidates: Sequence[Candidate], recipe: Recipe) -> bool:
    """Tell whether generated frames are not worth their cost: every label has a mask that is trusted without them."""
    if not candidates or not all(candidate.estimated for candidate in candidates):
        return False
    best = [max(scores) for scores in zip(*(candidate.scores for candidate in candidates), strict=True)]
    return min(best) >= recipe.auto_threshold


def enough(candidates: Sequence[Candidate], following: Strategy, recipe: Recipe, experience: Experience) -> bool:
    """Tell whether no further candidate is worth its cost.

    Generated frames, before which the candidates must be scored, are not if every label is trusted without them. In
    `auto` nothing is that comes after the last candidate which experience found worth trying.
    """
    if recipe.mode == "auto" and experience.last and any(one.kind == experience.last for one in candidates):
        return True
    return following.generates_frames and settled(candidates, recipe)


def choose(candidates: Sequence[Candidate], recipe: Recipe) -> list[Candidate]:
    """Choose the candidate to believe for each label.

    In `auto` that is the one with the highest score, the first of equals; or the last one tried, if a score is a bare
    order and cannot be compared. Otherwise it is the mode's own, unless another one disagrees with it and scores
    higher.
    """
    labels = range(len(candidates[0].scores))
    if recipe.mode == "auto" and not all(one.estimated for one in candidates):
        return [candidates[-1] for _ in labels]
    if recipe.mode == "auto":
        return [max(candidates, key=lambda one: one.scores[label]) for label in labels]
    (own,) = (one for one in candidates if one.kind == recipe.mode)
    chosen = []
    for label in labels:
        better = (
            other
            for other in candidates
            if other.scores[label] > own.scores[label]
            and iou(other.masks[label], own.masks[label]) < recipe.fallback_iou
        )
        chosen.append(next(better, own))
    return chosen


def comparable(logits: Tensor, scores: Sequence[float]) -> Tensor:
    """Bring logits (labels, H, W) of masks from different kinds of candidates to one scale.

    Each kind has a scale of its own: SAM2's logits reach 10, differences of cosines 1. So the label's score stands for
    its logits inside its mask: a contested pixel goes to the mask that is trusted more.
    """
    trust = torch.tensor(scores, dtype=logits.dtype, device=logits.device)[:, None, None] + 1e-6
    return torch.where(logits > 0, trust, logits)


def contested(logits: Tensor, labels: Sequence[str]) -> dict[tuple[str, str], float]:
    """Find labels that claim the same pixels of logits (labels, S, S): pair -> shared part of what either claims."""
    claims = logits > 0
    pairs = ((a, b) for a in range(len(labels)) for b in range(a + 1, len(labels)))
    return {(labels[a], labels[b]): iou(claims[a], claims[b]) for a, b in pairs if (claims[a] & claims[b]).any()}
