"""How far a predicted mask can be trusted, without the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cavsam.alignment import prototypes
from cavsam.errors import NumericalError
from cavsam.instances import Objects
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


@torch.no_grad()
def similarity_signs(
    tracker: Tracker, levels: Sequence[Tensor], reference_masks: Tensor, predicted: Tensor
) -> list[dict[str, float]]:
    """How alike SAM2's features are inside each predicted mask and inside the references' masks.

    Args:
        levels: of SAM2's original neck, of the K references and the target, from `Tracker.neck`.
        reference_masks: bool (K, labels, S, S).
        predicted: bool (labels, S, S).

    Returns:
        For each label, empty where nothing was predicted, cosines of the prediction's prototype with the label's:
        `similarity` of the features with 64 x 64 cells, `similarity_coarse` of those of stride 16; -1..1.

    Raises:
        NumericalError: the features are not finite.
    """
    signs: list[dict[str, float]] = [{} for _ in predicted]
    for name, stride in (("similarity", 0), ("similarity_coarse", 16)):
        features = tracker.level(levels, stride)
        if not features.isfinite().all():
            raise NumericalError("SAM2's features are not finite; try precision float32.")
        labels = prototypes(features[:-1], reference_masks.float())
        own = prototypes(features[-1:], predicted[None].float())
        for label, cosine in enumerate((own * labels).sum(dim=1).tolist()):
            if predicted[label].any():
                signs[label][name] = cosine
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
