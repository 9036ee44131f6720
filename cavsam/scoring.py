"""How far a predicted mask can be trusted, without the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cavsam.alignment import activation, cycle_iou, prototypes, separation, threshold_of
from cavsam.objects import Objects
from cavsam.recipe import Recipe
from cavsam.tracking import Prompt, Track, Tracker

UNIFORM_SEPARATION = 3.5
"""Separation of a uniform spread, where the sign `separation` is one half."""


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


def feature_signs(
    known: Tensor, reference_masks: Tensor, target: Tensor, predicted: Tensor, recipe: Recipe
) -> list[dict[str, float]]:
    """What the features of SAM2's neck say for each predicted mask.

    Args:
        known: of the references, (K, C, h, w).
        reference_masks: bool (K, labels, S, S).
        target: of the target, (1, C, h, w).
        predicted: bool (labels, S, S).

    Returns:
        For each label, empty where nothing was predicted:
        `cycle`: IoU of the reference mask with what the prediction's prototype marks on the references, 0..1;
        `similarity`: cosine of the prediction's prototype with the label's, -1..1;
        `contrast`: that minus the highest cosine with the background or another label, -2..2;
        `activation`: IoU of the mask with the target's activation, 0..1;
        `separation`: how clearly that activation is bimodal, squashed to 0..1;
        `size`: ratio of the areas of mask and reference mask, the smaller over the larger, 0..1.
    """
    masks = reference_masks.float()
    labels = prototypes(known, masks)
    rest = prototypes(known, 1 - masks.amax(dim=1, keepdim=True))
    maps = activation(target, labels, rest if recipe.activation == "contrast" else None)
    scaled = F.interpolate(maps, size=predicted.shape[-2:], mode="bilinear", align_corners=False)[0]
    signs: list[dict[str, float]] = []
    for label in range(len(predicted)):
        mask = predicted[label]
        if not mask.any():
            signs.append({})
            continue
        own = prototypes(target, mask[None, None].float())  # (1, C)
        nearness = activation(own[:, :, None, None], labels, rest)[0, :, 0, 0]
        threshold = threshold_of(maps[0, label], recipe.activation_threshold)
        parted = separation(maps[0, label], threshold)
        shown = reference_masks[:, label].flatten(1).float().mean(dim=1)
        areas = (float(mask.float().mean()), float(shown[shown > 0].mean()))
        signs.append(
            {
                "cycle": cycle_iou(known, reference_masks[:, label], target[0], mask, recipe),
                "similarity": float(own[0] @ labels[label]),
                "contrast": float(nearness[label]),
                "activation": iou(mask, scaled[label] > threshold),
                "separation": parted / (parted + UNIFORM_SEPARATION) if parted < math.inf else 1.0,
                "size": min(areas) / max(areas),
            }
        )
    return signs


def track_signs(track: Track) -> list[dict[str, float]]:
    """What SAM2 itself says of each label: `presence`, the probability that it is there, and `predicted_iou`, 0..1."""
    presence, guesses = track.object_scores.sigmoid().tolist(), track.predicted_ious.tolist()
    return [{"presence": p, "predicted_iou": q} for p, q in zip(presence, guesses, strict=True)]


def joined(
    first: Sequence[dict[str, float]], second: Sequence[dict[str, float]], consistency: Tensor
) -> list[dict[str, float]]:
    """All signs of each label; `consistency` (labels,), see `reverse_consistency`, is left out where it is NaN."""
    backs = [{} if math.isnan(back) else {"consistency": back} for back in consistency.tolist()]
    return [{**a, **b, **c} for a, b, c in zip(first, second, backs, strict=True)]


def of_labels(
    signs: Sequence[dict[str, float]], consistency: Tensor, objects: Objects, reference: Tensor
) -> tuple[list[dict[str, float]], Tensor]:
    """Signs and reverse consistency of objects as those of their labels.

    A label is as present as its most present object; `predicted_iou` is the mean, and so is the consistency, by the
    objects' areas on the reference.

    Args:
        signs: of each object, from `track_signs`.
        consistency: of each object.
        reference: bool (objects, S, S), the true masks of the frame where the way back ends.
    """
    areas = reference.flatten(1).sum(dim=1).cpu()
    joint, backs = [], []
    for label in sorted(set(objects.owners)):
        owned = objects.owned_by(label)
        joint.append(
            {
                "presence": max(signs[index]["presence"] for index in owned),
                "predicted_iou": sum(signs[index]["predicted_iou"] for index in owned) / len(owned),
            }
        )
        backs.append((consistency[owned] * areas[owned]).sum() / areas[owned].sum())
    return joint, torch.stack(backs)


def iou(first: Tensor, second: Tensor) -> float:
    """Intersection over union of two bool masks; two empty masks agree: 1."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0
