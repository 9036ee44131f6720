"""The scene that every candidate starts from, what a strategy proposes in it, and the candidate that it becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cavsam.adapted import AdaptedReference
from cavsam.alignment import Alignment
from cavsam.backbone import Backbone
from cavsam.errors import NumericalError
from cavsam.features import descriptors, guided_filter, without_overlap
from cavsam.instances import Objects
from cavsam.observe.run import Run
from cavsam.recipe import Instances, Recipe
from cavsam.scoring import cues
from cavsam.scoring.appearance import LabelAppearance, appearances, pictures_of
from cavsam.scoring.calibration import Calibration
from cavsam.scoring.experience import Experience
from cavsam.tracking import Prompt, Tracker
from cavsam.types import CandidateMask
from cavsam.video import Video, picture_square

NO_EXPERIENCE = Experience()

REFINED = 32
"""Part of SAM2's square that is the radius in which a region's border moves to the picture's edges: two cells of 64."""


@dataclass(frozen=True)
class Scene:
    """One target beside the references that serve it.

    Attributes:
        adapted: the references.
        image: the target, uint8 (H, W, 3).
        square: the target as SAM2 sees it, float (3, S, S) in 0..1.
        video: the shortest one, references and target; the reference most like the target is the nearest.
        levels: of SAM2's own neck, of the video's frames, from `Tracker.neck`.
        picture: the target, small, see `appearance.pictures_of`.
        appearances: of each label on the video's references.
        features: of the video's frames from a backbone, float (K + 1, C, h, w); None without one.
    """

    adapted: AdaptedReference
    image: NDArray[np.uint8]
    square: Tensor
    video: Video
    levels: list[Tensor]
    picture: Tensor
    appearances: list[LabelAppearance]
    features: Tensor | None = None

    @classmethod
    def of(
        cls, adapted: AdaptedReference, image: NDArray[np.uint8], tracker: Tracker, backbone: Backbone | None = None
    ) -> Scene:
        """Encode a target and find the references that serve it."""
        square = picture_square(image, tracker.image_size, tracker.device)
        trunk = tracker.trunk(square[None])
        order = adapted.order(descriptors(tracker.neck(trunk)[0])[0])
        video = Video.of(adapted.trunk, order, trunk)
        known = appearances(adapted.pictures[order], adapted.masks[order])
        features = None
        if backbone and adapted.features is not None:
            features = torch.cat([adapted.features[order], backbone(square[None])])
        levels, picture = tracker.neck(video.trunk)[1], pictures_of(square[None])
        return cls(adapted, image, square, video, levels, picture, known, features)

    @property
    def masks(self) -> Tensor:
        """Masks of the references in the order of the video, bool (K, labels, S, S)."""
        return self.adapted.masks[self.video.order]

    def objects(self, instances: Instances) -> Objects:
        """What is looked for: the labels, or with "split" their components on the nearest reference."""
        return Objects.of(self.adapted.masks, self.video.nearest, instances)

    def refined(self, logits: Tensor) -> Tensor:
        """Move the borders of regions that cells of features made, float (labels, S, S), to the edges of the target."""
        return guided_filter(logits, self.square, self.square.shape[-1] // REFINED)


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a strategy found on the target, not yet assessed.

    Attributes:
        kind: of the strategy.
        video: played backwards to check it.
        neck: parameters of the neck that the video is tracked on; SAM2's own when None.
        objects: what was looked for.
        logits: float (objects, S, S); above 0 is the object.
        cues: of each object, what SAM2 says of it.
        presence_of: kind of the candidate that says whether the objects are there; its own if it was tracked.
        prompts: what SAM2 was told, of objects.
        scattered: labels whose connected components are objects of their own, though they were not tracked apart.
    """

    kind: str
    video: Video
    neck: Mapping[str, Tensor] | None
    objects: Objects
    logits: Tensor
    cues: list[dict[str, float]]
    presence_of: str
    prompts: list[Prompt] = field(default_factory=list)
    scattered: tuple[int, ...] = ()


@dataclass(frozen=True)
class Instance:
    """One of several objects of a label.

    Attributes:
        logits: float (S, S).
        cues: of this object alone; the label's stand for what it lacks.
        score: 0..1, estimated IoU with the ground truth.
    """

    logits: Tensor
    cues: dict[str, float]
    score: float = 0.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to a mask of every label, assessed.

    Attributes:
        kind: of the strategy.
        logits: float (labels, S, S); above 0 is the object.
        cues: of each label, what speaks for its mask by name, the higher the better; see docs/method.md.
        presence_of: kind of the candidate that said whether the objects are there.
        instances: of each label, its objects if they were tracked apart; empty otherwise.
        scattered: labels whose connected components are objects of their own, though they were not tracked apart.
        scores: of each label, 0..1, estimated IoU with the ground truth.
        presence: of each label, 0..1, estimated probability that it is on the target.
        own: of each label, the score before experience corrected it; empty if nothing did.
        taught: whether experience corrected the scores.
        estimated: whether the scores estimate an IoU, rather than give an order within this kind only.
        seconds: time that it took.
    """

    kind: str
    logits: Tensor
    cues: list[dict[str, float]]
    presence_of: str
    instances: list[list[Instance]] = field(default_factory=list)
    scattered: tuple[int, ...] = ()
    scores: list[float] = field(default_factory=list)
    presence: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    taught: bool = False
    estimated: bool = True
    seconds: float = 0.0

    @classmethod
    def of(
        cls, proposal: Proposal, of_labels: Sequence[dict[str, float]], consistency: Tensor, shown: Tensor
    ) -> Candidate:
        """Join what speaks for a proposal's masks.

        Args:
            proposal: with what SAM2 says of each object.
            of_labels: cues of each label from features and colours.
            consistency: of each object, from `cues.backward_consistency`.
            shown: bool (objects, S, S), the masks of the frame where backward tracking ends.
        """
        objects, labels = proposal.objects, range(len(of_labels))
        tracked, instances = cues.joined(proposal.cues, consistency), []
        if objects.several():
            instances = [
                [Instance(proposal.logits[i], tracked[i]) for i in objects.owned_by(label)] for label in labels
            ]
            tracked = cues.joined(*cues.of_labels(proposal.cues, consistency, objects, shown))
        joint = [{**first, **second} for first, second in zip(of_labels, tracked, strict=True)]
        logits = objects.per_label(proposal.logits)
        return cls(proposal.kind, logits, joint, proposal.presence_of, instances, proposal.scattered)

    @property
    def tracked(self) -> bool:
        """Whether SAM2 tracked it, and itself says whether the objects are there."""
        return self.kind == self.presence_of

    @property
    def masks(self) -> Tensor:
        """Masks of the labels, bool (labels, S, S), no two overlapping."""
        return without_overlap(self.logits)

    def claim(self, label: int) -> Tensor:
        """Give the logits (S, S) of a label, negative where this candidate gives the pixel to another label."""
        logits = self.logits[label]
        return torch.where(self.masks[label], logits, -logits.abs())

    def described(self, label: int, *, chosen: bool, calibrated: bool) -> CandidateMask:
        """Describe what it came to for one label, as plain numpy; see `CandidateMask` for the flags."""
        return CandidateMask(
            self.kind,
            self.masks[label].cpu().numpy(),
            self.scores[label],
            self.presence[label],
            dict(self.cues[label]),
            chosen,
            self.own[label] if self.own else self.scores[label],
            calibrated,
            self.seconds,
        )

    def holds(self, calibration: Calibration, recipe: Recipe) -> bool:
        """Tell whether the scores were fitted on masks and cues that are made as `recipe` makes them."""
        return self.taught or calibration.holds(self.kind, recipe, self.presence_of)

    def scored(self, calibration: Calibration, experience: Experience = NO_EXPERIENCE) -> Candidate:
        """Add scores and presence; a label without a mask scores 0 and is as present as SAM2 says.

        Raises:
            NumericalError: a cue is not finite.
        """
        everything = [*self.cues, *(one.cues for own in self.instances for one in own)]
        if not all(math.isfinite(value) for known in everything for value in known.values()):
            raise NumericalError("What speaks for a mask is not finite; try precision float32.")
        found = self.masks.flatten(1).any(dim=1).tolist()
        own = [calibration.score(self.kind, known) if f else 0.0 for known, f in zip(self.cues, found, strict=True)]
        corrected = [experience.score(self.kind, *one) for one in zip(own, self.cues, strict=True)]

        def instance(one: Instance, known: dict[str, float]) -> Instance:
            cues = {**known, **one.cues}
            return replace(one, score=experience.score(self.kind, calibration.score(self.kind, cues), cues))

        return replace(
            self,
            scores=[score if f else 0.0 for score, f in zip(corrected, found, strict=True)],
            presence=[
                calibration.present(self.kind, known) if f else known.get("presence", 0.0)
                for known, f in zip(self.cues, found, strict=True)
            ],
            instances=[
                [instance(one, known) for one in objects]
                for objects, known in zip(self.instances, self.cues, strict=False)
            ],
            own=own,
            taught=experience.corrects(self.kind),
            estimated=experience.corrects(self.kind) or calibration.knows(self.kind),
        )


class Strategy(Protocol):
    """A way to a mask of every label.

    A new one is a class with these members, and a line in `selection.strategies`.
    """

    @property
    def kind(self) -> str:
        """Name of what it makes, as in `TargetResult.sources`."""

    @property
    def generates_frames(self) -> bool:
        """Whether it needs generated frames, which cost by far the most."""

    def propose(self, scene: Scene, before: Sequence[Candidate], run: Run) -> Proposal:
        """Find the objects on the target; `before` are the candidates made so far, not scored yet."""


def presence_said_by(kind: str, before: Sequence[Candidate]) -> list[dict[str, float]]:
    """Borrow from the candidate of a kind what SAM2 said of each label's presence when it tracked it."""
    (tracked,) = (one for one in before if one.kind == kind)
    return [{"presence": known["presence"]} for known in tracked.cues]


def propagating_neck(alignment: Alignment | None, recipe: Recipe) -> Mapping[str, Tensor] | None:
    """Give the neck to track on: the tuned one if there is one and the recipe asks for it, None for SAM2's own."""
    return alignment.neck if alignment and recipe.propagate_with == "tuned" else None
