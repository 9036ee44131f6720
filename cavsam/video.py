"""The pseudo video: pictures on SAM2's square, their features, and the order of the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cavsam.images import Mask, resize_mask
from cavsam.memory import in_batches
from cavsam.tracking import Tracker


@dataclass(frozen=True)
class Video:
    """The features of a pseudo video: references, generated frames if there are any, the target.

    Attributes:
        order: numbers of the references in the order of their frames; the last one stands next to the transition.
        trunk: backbone features of all N frames, each level (N, C, h, w).
    """

    order: list[int]
    trunk: list[Tensor]

    @classmethod
    def of(cls, references: Sequence[Tensor], order: Sequence[int], target: Sequence[Tensor]) -> Video:
        """Put some references, by number, before the target; the features of each are levels (n, C, h, w)."""
        pairs = zip(references, target, strict=True)
        return cls(list(order), [torch.cat([level[list(order)], last]) for level, last in pairs])

    def __len__(self) -> int:
        return len(self.trunk[0])

    @property
    def nearest(self) -> int:
        """Number of the reference next to the transition."""
        return self.order[-1]

    @property
    def reference_frame(self) -> int:
        """Frame of the reference next to the transition."""
        return len(self.order) - 1

    @property
    def generated(self) -> range:
        """Frames that were generated."""
        return range(len(self.order), self.target)

    @property
    def target(self) -> int:
        """Frame of the target."""
        return len(self) - 1

    def beginning_at(self, reference: int) -> Video:
        """Move one reference, by number, next to the transition; for a video without generated frames."""
        frames = [*(frame for frame, index in enumerate(self.order) if index != reference), self.order.index(reference)]
        order = [self.order[frame] for frame in frames]
        return Video(order, [torch.cat([level[frames], level[-1:]]) for level in self.trunk])

    def with_frames(self, generated: Sequence[Tensor]) -> Video:
        """Put the features of generated frames before the target."""
        pairs = zip(self.trunk, generated, strict=True)
        return replace(self, trunk=[torch.cat([level[:-1], frames, level[-1:]]) for level, frames in pairs])


def encode(tracker: Tracker, frames: Tensor) -> list[Tensor]:
    """Compute backbone features of frames, float (N, 3, S, S) in 0..1, in as large a batch as the device can hold."""
    batches = in_batches(lambda chosen: tracker.trunk(frames[chosen]), len(frames), len(frames))
    return [torch.cat(levels) for levels in zip(*batches, strict=True)]


def picture_square(image: NDArray[np.uint8], size: int, device: str | torch.device = "cpu") -> Tensor:
    """Squash uint8 (H, W, 3) to the square that a model sees: float (3, size, size) in 0..1."""
    squashed = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(squashed)).permute(2, 0, 1).float().to(device) / 255


def frames_square(frames: Tensor, size: int) -> Tensor:
    """Scale frames (n, 3, D, D) to the square that SAM2 sees: float (n, 3, size, size) in 0..1."""
    return F.interpolate(frames, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def masks_square(masks: Mapping[str, Mask], labels: Sequence[str], size: int) -> Tensor:
    """Squash masks by label like their image: bool (labels, size, size), empty for a label without a mask.

    An object thinner than a pixel of the square keeps one pixel.
    """
    square = np.zeros((len(labels), size, size), dtype=bool)
    for index, label in enumerate(labels):
        if label in masks:
            square[index] = _squashed(masks[label], size)
    return torch.from_numpy(square)


def _squashed(mask: Mask, size: int) -> Mask:
    squashed = resize_mask(mask, (size, size))
    if not squashed.any():
        rows, columns = np.nonzero(mask)
        squashed[int(np.median(rows)) * size // mask.shape[0], int(np.median(columns)) * size // mask.shape[1]] = True
    return squashed
