"""How far a predicted mask can be trusted, without the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cavsam.tracking import Prompt, Track, Tracker


def reverse_consistency(
    tracker: Tracker,
    trunk: Sequence[Tensor],
    predicted: Tensor,
    reference: Tensor,
    reference_frame: int,
    neck_weights: Mapping[str, Tensor] | None,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """IoU of the reference mask with what the prediction finds when the pseudo video is played backwards.

    Args:
        trunk: features of all frames; the target is the last.
        predicted: bool (labels, S, S), the masks found on the target.
        reference: bool (labels, S, S), the true masks of frame `reference_frame`.
        watch: called with each frame on the way back and its masks, bool (labels, S, S).

    Returns:
        float (labels,) in 0..1; 0 for a label that was not found, NaN for one that frame `reference_frame` does not
        show, about which it can say nothing.
    """
    found = [label for label in range(len(predicted)) if predicted[label].any()]
    result = torch.zeros(len(predicted))

    def pass_on(frame: int, logits: Tensor) -> None:
        masks = torch.zeros_like(predicted)
        masks[found] = logits > 0
        if watch:
            watch(frame, masks)

    if found:
        prompts = [Prompt(len(trunk[0]) - 1, index, mask=predicted[label]) for index, label in enumerate(found)]
        back = tracker.track(
            trunk,
            prompts,
            len(found),
            read=reference_frame,
            neck_weights=neck_weights,
            reverse=True,
            watch=pass_on if watch else None,
        )
        for index, label in enumerate(found):
            result[label] = iou(back.logits[index] > 0, reference[label])
    result[~reference.flatten(1).any(dim=1).cpu()] = torch.nan
    return result


def mask_scores(track: Track, consistency: Tensor) -> Tensor:
    """Score of each label in 0..1: reverse consistency times SAM2's probability that the object is there."""
    presence = track.object_scores.sigmoid().cpu()
    return torch.where(consistency.isnan(), presence, consistency * presence)


def iou(first: Tensor, second: Tensor) -> float:
    """Intersection over union of two bool masks; two empty masks agree: 1."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0
