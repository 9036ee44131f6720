"""References and results: the data that goes into the method and comes out of it, as plain numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cavsam.errors import InvalidReference
from cavsam.images import ImageSource, Mask, read_image, read_mask

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Reference:
    """One annotated image.

    Attributes:
        image: uint8 (H, W, 3).
        masks: label -> bool (H, W), at least one, none empty.

    Raises:
        InvalidReference: the image or a mask cannot teach anything.
    """

    image: NDArray[np.uint8]
    masks: dict[str, Mask]

    @classmethod
    def of(cls, image: ImageSource, masks: ImageSource | Mapping[str, ImageSource], label: str = "object") -> Reference:
        """Make one from whatever holds a picture: paths, encoded bytes, PIL images, arrays, tensors.

        Args:
            image: see `read_image`.
            masks: label -> mask, see `read_mask`; or one mask, which is then called `label`.

        Raises:
            ImageError: a picture cannot be read.
            InvalidReference: they make no reference.
        """
        named = masks if isinstance(masks, Mapping) else {label: masks}
        return cls(read_image(image), {name: read_mask(mask) for name, mask in named.items()})

    def __post_init__(self) -> None:
        if not isinstance(self.image, np.ndarray) or not isinstance(self.masks, Mapping):
            raise InvalidReference("A reference holds an array and masks by label; Reference.of reads everything else.")
        for label, mask in self.masks.items():
            if not isinstance(label, str) or not isinstance(mask, np.ndarray):
                raise InvalidReference(
                    f"The masks of a reference are arrays by the label's name, not {label!r}: {type(mask).__name__}."
                )
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise InvalidReference(
                f"The reference image must be uint8 (H, W, 3), not {self.image.dtype} {self.image.shape}."
            )
        if not self.masks:
            raise InvalidReference("The reference has no mask; draw at least one.")
        height, width = self.image.shape[:2]
        for label, mask in self.masks.items():
            if mask.dtype != np.bool_ or mask.ndim != 2:
                raise InvalidReference(
                    f"The reference mask of {label!r} must be bool (H, W), not {mask.dtype} {mask.shape}."
                )
            if mask.shape != (height, width):
                raise InvalidReference(
                    f"The reference mask of {label!r} has {mask.shape[1]}x{mask.shape[0]} pixels but its image has "
                    f"{width}x{height}; give a mask drawn on this image."
                )
            if not mask.any():
                raise InvalidReference(f"The reference mask of {label!r} is empty; draw the object.")

    def digest(self) -> str:
        """Compute the SHA-256 of its pixels and masks: 64 hex digits."""
        digest = hashlib.sha256(f"{self.image.shape}".encode())
        digest.update(self.image.tobytes())
        for label in sorted(self.masks):
            digest.update(f"\0{label}\0".encode())
            digest.update(np.packbits(self.masks[label]).tobytes())
        return digest.hexdigest()


def order_of_content(references: Sequence[Reference]) -> list[int]:
    """Give the numbers of references in an order that does not depend on how they are listed."""
    return sorted(range(len(references)), key=lambda index: references[index].digest())


@dataclass(frozen=True)
class CandidateMask:
    """A label's mask as one candidate found it.

    Attributes:
        kind: `concat`, `ttga`, `dbst`, `full`, `activation`, `linear` or `pixels`.
        mask: bool (S, S), on the square that SAM2 sees; `TargetResult.masks` has the chosen one at the target's size.
        score: 0..1, as in `TargetResult.scores`.
        presence: 0..1, estimated probability that the object is on the target.
        cues: what speaks for the mask, by name; the higher the better.
        chosen: whether the result is this one.
        own: the score before the experience of a project corrected it, 0..1.
        calibrated: whether `own` estimates an IoU, fitted for these models and this recipe, rather than give an order.
        seconds: time that all labels' masks of the candidate took.
    """

    kind: str
    mask: Mask
    score: float
    presence: float
    cues: dict[str, float]
    chosen: bool
    own: float = 0.0
    calibrated: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class InstanceMask:
    """One of several objects of a label: its mask, bool (H, W) at the target's size, and its score in 0..1."""

    mask: Mask
    score: float


@dataclass(frozen=True)
class TargetResult:
    """Everything found on one target.

    Attributes:
        index: position of the target in the input.
        size: (H, W) of the target as displayed; (0, 0) when it could not be read.
        masks: label -> bool (H, W) at the target's displayed size; a label that was not found is left out. Masks of
            different labels do not overlap: a contested pixel goes to the label with the higher logit, or the higher
            score if the masks come from different kinds of candidates.
        scores: label -> 0..1, an estimate without ground truth of how good the mask is; every label of the reference.
        seconds: time spent on this target.
        error: why there is no result, in one sentence; None when all went well.
        timings: step -> seconds.
        calibrated: whether the scores estimate the IoU with the ground truth, fitted for these models and this recipe;
            otherwise read them as an order only.
        candidates: label -> the ways to its mask that were tried; every label of the reference.
        instances: with the recipe's `instances` split, label -> its objects, whose masks part the label's mask; a label
            that was tracked as one object has one.
        held_back: label -> why the mask that was found is not among `masks`, for `min_presence` or `min_score`.
        contested: pair of labels -> share of the pixels claimed by either that both claim; pairs that overlap only. One
            that lost every pixel to the other is there, one that was held back for its low score is not.
    """

    index: int
    size: tuple[int, int] = (0, 0)
    masks: dict[str, Mask] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    timings: dict[str, float] = field(default_factory=dict)
    calibrated: bool = False
    candidates: dict[str, tuple[CandidateMask, ...]] = field(default_factory=dict)
    instances: dict[str, tuple[InstanceMask, ...]] = field(default_factory=dict)
    held_back: dict[str, str] = field(default_factory=dict)
    contested: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, str]:
        """Kind of the candidate that gave each label's mask, for labels that were found."""
        return {label: next(c.kind for c in self.candidates[label] if c.chosen) for label in self.masks}

    @property
    def score(self) -> float:
        """Score of the worst of the labels found, for a mean would hide it; 0 if there are none."""
        return min((self.scores[label] for label in self.masks), default=0.0)
