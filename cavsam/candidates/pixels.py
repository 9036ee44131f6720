"""A forest of pixels: colours and textures at several scales, fitted to the references; SAM2 draws none of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cavsam.candidates.base import Candidate, Proposal, Scene, presence_said_by
from cavsam.observe.run import Run
from cavsam.recipe import Recipe

SAMPLES = 4000
"""Pixels of the references that a forest learns from; more cost time and gained nothing on development pictures."""

TREES, DEPTH, LEAF = 40, 12, 2
COARSEST_SCALE = 8.0
"""Deviation in pixels of the widest filter."""

ORIGIN = "a forest of trees on colours and textures of single pixels, fitted to the references, marks it"


@dataclass(frozen=True)
class PixelForest:
    """The region that a forest finds among the target's pixels.

    Attributes:
        recipe: gives the seed, and says what an instance is.
        presence_of: kind of the tracked candidate that says whether the objects are there.
    """

    recipe: Recipe
    presence_of: str
    kind = "pixels"
    generates_frames = False

    def propose(self, scene: Scene, before: Sequence[Candidate], run: Run) -> Proposal:
        """Classify the target's pixels; labels, not objects, because a classifier tells no instances apart."""
        objects, scattered = scene.objects("union"), scene.objects(self.recipe.instances).several()
        run.candidate(self.kind, len(scene.video), objects, ORIGIN)
        with run.step("prompt"):
            known = scene.adapted.pictures[scene.video.order]
            logits = pixel_logits(known, scene.masks, scene.picture[0], self.recipe.seed)
        presence = presence_said_by(self.presence_of, before)
        return Proposal(self.kind, scene.video, None, objects, logits, presence, self.presence_of, scattered=scattered)


def pixel_logits(known: Tensor, masks: Tensor, target: Tensor, seed: int) -> Tensor:
    """Classify the target's pixels by a forest for each label.

    Args:
        known: small pictures of the references, uint8 (K, 3, h, w).
        masks: of the references, bool (K, labels, S, S); each label is on at least one.
        target: its small picture, uint8 (3, h, w).
        seed: of the draw of pixels and of the trees.

    Returns:
        float (labels, S, S) on the masks' device: the share of the trees that say object, less one half.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    features = np.concatenate([pixel_features(one) for one in known])
    asked, side = pixel_features(target), target.shape[-1]
    drawn = np.random.default_rng(seed).permutation(len(features))[:SAMPLES]
    logits = []
    for label in range(masks.shape[1]):
        coverage = F.adaptive_avg_pool2d(masks[:, label].float(), side)
        # a pixel counts as the object's if it covers half of it, or as much as of any pixel: thin objects too
        inside = (coverage >= coverage.amax().clamp(max=0.5)).flatten().cpu().numpy()
        own = drawn if inside[drawn].any() else np.concatenate([drawn, np.flatnonzero(inside)])
        forest = ExtraTreesClassifier(TREES, max_depth=DEPTH, min_samples_leaf=LEAF, n_jobs=1, random_state=seed)
        forest.fit(features[own], inside[own])
        share = forest.predict_proba(asked)[:, list(forest.classes_).index(True)]
        logits.append(torch.from_numpy(share.reshape(side, side)).float() - 0.5)
    full = F.interpolate(torch.stack(logits)[None], size=masks.shape[-2:], mode="bilinear", align_corners=False)
    return full[0].to(masks.device)


def pixel_features(picture: Tensor) -> NDArray[np.float32]:
    """Measure each pixel of a small picture, uint8 (3, h, w), at several scales: float32 (h * w, features)."""
    from skimage.feature import multiscale_basic_features

    small = picture.permute(1, 2, 0).cpu().numpy().astype(np.float32) / 255
    found = multiscale_basic_features(small, sigma_max=COARSEST_SCALE, workers=1, channel_axis=2)
    return found.reshape(-1, found.shape[2]).astype(np.float32)
