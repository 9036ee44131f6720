"""Pseudo-labels: what an alignment prompts on generated frames, or on the target (method, TTGA 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cavsam.alignment import Alignment, background_prototype
from cavsam.features import activation, covered_cells, grid_of, otsu, prototypes, separation
from cavsam.recipe import Recipe
from cavsam.tracking import Prompt, Tracker


@dataclass(frozen=True)
class PseudoLabel:
    """The decision about one label on one frame that its activation might prompt.

    Attributes:
        frame: number of the frame in the video.
        label: number of the label.
        threshold: of the activation, Otsu's.
        separation: of the activation at its threshold, see `features.separation`.
        cycle_iou: see `cycle_iou`; None if an earlier condition already failed.
        mask: bool (S, S), the activation above its threshold, without what other labels claim.
        peak: (x, y) in pixels, where the activation is highest inside the mask; None if the mask is empty.
        refused: why it prompts nothing, in words; empty if it does.
    """

    frame: int
    label: int
    threshold: float
    separation: float
    cycle_iou: float | None
    mask: Tensor
    peak: tuple[float, float] | None
    refused: str

    def prompt(self, kind: str) -> Prompt:
        """Make the prompt: the "mask" itself, its "box", or the "point" where the activation is highest."""
        if kind == "point":
            return Prompt(self.frame, self.label, point=self.peak)
        return Prompt.of(self.frame, self.label, self.mask, kind)


@torch.no_grad()
def pseudo_labels(
    tracker: Tracker,
    trunk: Sequence[Tensor],
    reference_masks: Tensor,
    alignment: Alignment,
    frames: Sequence[int],
    recipe: Recipe,
) -> list[PseudoLabel]:
    """Decide for each frame and label whether its binarised activation may prompt SAM2.

    A cell that several labels claim goes to the highest activation. A label is refused on a frame where its activation
    marks nothing or everything, is not clearly bimodal, or does not find the references again: a wrong
    prompt hurts more than a missing one.

    Args:
        tracker: SAM2.
        trunk: features of all frames of the video, the K references first.
        reference_masks: bool (K, labels, S, S), in the order of the video.
        alignment: learned from the references.
        frames: numbers of the frames that may be prompted.
        recipe: the conditions.
    """
    chosen = torch.as_tensor([*range(len(reference_masks)), *frames], dtype=torch.long, device=trunk[0].device)
    features = tracker.features([level[chosen] for level in trunk], recipe.activation_stride, alignment.neck)
    known, asked = features.split([len(reference_masks), len(frames)])
    maps = activation(asked, alignment.prototypes, alignment.background)
    found = []
    for frame, cells, own in zip(frames, asked, maps, strict=True):
        full = F.interpolate(own[None], size=reference_masks.shape[-2:], mode="bilinear", align_corners=False)[0]
        winner = full.argmax(dim=0)
        for label in range(len(own)):
            threshold = otsu(own[label])
            mask = (full[label] > threshold) & (winner == label)
            parted = separation(own[label], threshold)
            refused, found_again = _unclear(parted, mask, recipe), None
            if not refused:
                found_again = cycle_iou(known, reference_masks[:, label], cells, mask, recipe)
                if found_again < recipe.min_cycle_iou:
                    refused = f"it does not find the reference again: IoU {found_again:.2f} < {recipe.min_cycle_iou:g}"
            peak = _peak(full[label], mask)
            found.append(PseudoLabel(frame, label, threshold, parted, found_again, mask, peak, refused))
    return found


def _unclear(parted: float, mask: Tensor, recipe: Recipe) -> str:
    """Say why an activation of some separation marks no object; empty if it does."""
    if parted < recipe.min_separation:
        return f"not clearly bimodal: separation {parted:.2f} < {recipe.min_separation:g}"
    if not mask.any():
        return "the activation marks nothing"
    return "the activation marks everything" if mask.all() else ""


def _peak(similarity: Tensor, mask: Tensor) -> tuple[float, float] | None:
    if not mask.any():
        return None
    peak = int(similarity.masked_fill(~mask, -math.inf).argmax())
    return peak % mask.shape[1] + 0.5, peak // mask.shape[1] + 0.5


def cycle_iou(known: Tensor, reference_masks: Tensor, features: Tensor, mask: Tensor, recipe: Recipe) -> float:
    """Measure how well a frame's pseudo-label, used as the reference, finds the references' masks again.

    Args:
        known: features of the references, (K, C, h, w).
        reference_masks: bool (K, S, S) of one label.
        features: of the frame, (C, h, w).
        mask: the pseudo-label, bool (S, S).
        recipe: the reading of the activation.

    Returns:
        IoU on the feature grid, over the references that show the label.
    """
    shown = reference_masks.flatten(1).any(dim=1)
    marked = mask[None, None].float()
    rest = background_prototype(features[None], marked, recipe)
    back = activation(known[shown], prototypes(features[None], marked), rest)[:, 0]
    found = torch.stack([similarity > otsu(similarity) for similarity in back])
    true = covered_cells(reference_masks[shown], grid_of(back))
    return int((found & true).sum()) / int((found | true).sum())
