"""The target's own activation under the tuned neck, cut at its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cavsam.alignment import Alignment, background_prototype
from cavsam.candidates.base import Candidate, Proposal, Scene, presence_said_by, propagating_neck
from cavsam.features import activation, otsu, prototypes
from cavsam.observe.run import Run
from cavsam.recipe import Recipe
from cavsam.tracking import Tracker

ORIGIN = "it is where the target's activation, its likeness to the references' prototype, is above its threshold"


@dataclass(frozen=True)
class Activation:
    """The region that the references' prototypes mark on the target; it needs TTGA.

    Attributes:
        tracker: SAM2.
        recipe: of the activation.
        presence_of: kind of the tracked candidate that says whether the objects are there.
    """

    tracker: Tracker
    recipe: Recipe
    presence_of: str
    kind = "activation"
    generates_frames = False

    def propose(self, scene: Scene, before: Sequence[Candidate], run: Run) -> Proposal:
        """Mark the region; labels, not objects, because an activation tells no instances apart."""
        alignment = scene.adapted.alignment
        assert alignment is not None  # a recipe that has this candidate aligns
        objects, scattered = scene.objects("union"), scene.objects(self.recipe.instances).several()
        run.candidate(self.kind, len(scene.video), objects, ORIGIN)
        with run.step("prompt"):
            if scene.features is not None:
                size = self.tracker.image_size
                logits = backbone_activation_logits(scene.features, scene.masks, self.recipe, size)
            else:
                target = [level[-1:] for level in scene.video.trunk]
                logits = scene.refined(activation_logits(self.tracker, target, alignment, self.recipe))
        neck, presence = propagating_neck(alignment, self.recipe), presence_said_by(self.presence_of, before)
        return Proposal(self.kind, scene.video, neck, objects, logits, presence, self.presence_of, scattered=scattered)


def activation_logits(tracker: Tracker, trunk: Sequence[Tensor], alignment: Alignment, recipe: Recipe) -> Tensor:
    """Scale one frame's activation to SAM2's size, less its threshold: float (labels, S, S), above 0 is the object.

    Args:
        tracker: SAM2.
        trunk: features of the one frame.
        alignment: learned from the references.
        recipe: of the activation.
    """
    return _above_threshold(alignment.activations(tracker, trunk, recipe), tracker.image_size)


def backbone_activation_logits(features: Tensor, masks: Tensor, recipe: Recipe, size: int) -> Tensor:
    """Scale the target's activation on a backbone's features, which nothing tunes, as `activation_logits` does.

    Args:
        features: of the K references and the target, (K + 1, C, h, w).
        masks: of the references, bool (K, labels, S, S).
        recipe: of the activation.
        size: S.
    """
    known, shown = features[:-1], masks.float()
    maps = activation(features[-1:], prototypes(known, shown), background_prototype(known, shown, recipe))
    return _above_threshold(maps, size)


def _above_threshold(maps: Tensor, side: int) -> Tensor:
    """Scale the maps (1, labels, h, w) of one picture to (labels, S, S), less Otsu's threshold of each."""
    thresholds = torch.tensor([otsu(one) for one in maps[0]], device=maps.device)
    full = F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)[0]
    return full - thresholds[:, None, None]
