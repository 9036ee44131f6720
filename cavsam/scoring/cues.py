"""Cues: what speaks for a predicted mask without the ground truth, by name; the higher the better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cavsam.errors import NumericalError
from cavsam.features import iou, prototypes
from cavsam.instances import Objects
from cavsam.observe.run import Run
from cavsam.tracking import Prompt, Track, Tracker
from cavsam.video import Video


def backward_consistency(
    tracker: Tracker,
    video: Video,
    predicted: Tensor,
    shown: Tensor,
    neck: Mapping[str, Tensor] | None,
    run: Run,
) -> Tensor:
    """Track the prediction backwards, from the target to the references, and compare what arrives with their masks.

    Args:
        tracker: SAM2.
        video: whose nearest reference is where backward tracking ends.
        predicted: bool (objects, S, S), the masks found on the target.
        shown: bool (objects, S, S), the true masks of the nearest reference.
        neck: parameters of the neck to track on; SAM2's own when None.
        run: told of each frame tracked backward.

    Returns:
        IoU of each object, float (objects,) in 0..1; 0 for one that was not found, NaN for one that the nearest
        reference does not show, about which it can say nothing.
    """
    found = [index for index in range(len(predicted)) if predicted[index].any()]
    result = torch.zeros(len(predicted))

    def note(frame: int, logits: Tensor) -> None:
        masks = torch.zeros_like(predicted)
        masks[found] = logits > 0
        run.tracked_backward(frame, masks)

    if found:
        prompts = [Prompt(video.target, number, mask=predicted[index]) for number, index in enumerate(found)]
        back = tracker.track(
            video.trunk, prompts, len(found), read=video.reference_frame, neck_weights=neck, reverse=True, watch=note
        )
        for number, index in enumerate(found):
            result[index] = iou(back.logits[number] > 0, shown[index])
    result[~shown.flatten(1).any(dim=1).cpu()] = torch.nan
    return result


@torch.no_grad()
def similarity_cues(
    tracker: Tracker, levels: Sequence[Tensor], reference_masks: Tensor, predicted: Tensor
) -> list[dict[str, float]]:
    """Compare SAM2's features inside each predicted mask with those inside the references' masks.

    Args:
        tracker: SAM2.
        levels: of SAM2's original neck, of the K references and the target, from `Tracker.neck`.
        reference_masks: bool (K, labels, S, S).
        predicted: bool (labels, S, S).

    Returns:
        For each label, empty if nothing was predicted, cosines of the prediction's prototype with the label's:
        `similarity` of the features with 64 x 64 cells, `similarity_coarse` of those of stride 16; -1..1.

    Raises:
        NumericalError: the features are not finite.
    """
    cues: list[dict[str, float]] = [{} for _ in predicted]
    for name, stride in (("similarity", 0), ("similarity_coarse", 16)):
        features = tracker.level(levels, stride)
        if not features.isfinite().all():
            raise NumericalError("SAM2's features are not finite; try precision float32.")
        labels = prototypes(features[:-1], reference_masks.float())
        own = prototypes(features[-1:], predicted[None].float())
        for label, cosine in enumerate((own * labels).sum(dim=1).tolist()):
            if predicted[label].any():
                cues[label][name] = cosine
    return cues


def track_cues(track: Track) -> list[dict[str, float]]:
    """Take what SAM2 itself says of each object: `presence`, the probability that it is there, and `predicted_iou`."""
    presence, guesses = track.object_scores.sigmoid().tolist(), track.predicted_ious.tolist()
    return [{"presence": p, "predicted_iou": q} for p, q in zip(presence, guesses, strict=True)]


def joined(tracked: Sequence[dict[str, float]], consistency: Tensor) -> list[dict[str, float]]:
    """Add `consistency` (n,), see `backward_consistency`, to the other cues of each; it is left out if it is NaN."""
    backs = [{} if math.isnan(back) else {"consistency": back} for back in consistency.tolist()]
    return [{**first, **second} for first, second in zip(tracked, backs, strict=True)]


def of_labels(
    tracked: Sequence[dict[str, float]], consistency: Tensor, objects: Objects, shown: Tensor
) -> tuple[list[dict[str, float]], Tensor]:
    """Turn cues and backward consistency of objects into those of their labels.

    A label is as present as its most present object; `predicted_iou` is the mean, and so is the consistency, by the
    objects' areas on the reference.

    Args:
        tracked: of each object, from `track_cues`.
        consistency: of each object.
        objects: which object is whose.
        shown: bool (objects, S, S), the true masks of the frame where backward tracking ends.
    """
    areas = shown.flatten(1).sum(dim=1).cpu()
    joint, backs = [], []
    for label in sorted(set(objects.owners)):
        owned = objects.owned_by(label)
        joint.append(
            {
                "presence": max(tracked[index]["presence"] for index in owned),
                "predicted_iou": sum(tracked[index]["predicted_iou"] for index in owned) / len(owned),
            }
        )
        backs.append((consistency[owned] * areas[owned]).sum() / areas[owned].sum())
    return joint, torch.stack(backs)
