"""A second opinion: a self-supervised backbone, unlike SAM2, whose features the candidates of regions may use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours that the DINO family was trained on."""


class Backbone(Protocol):
    """Whatever turns pictures into features."""

    @property
    def digest(self) -> str:
        """Changes with its weights."""

    def __call__(self, images: Tensor) -> Tensor:
        """Give the features (N, C, h, w) of square pictures, float (N, 3, S, S) in 0..1."""


@dataclass(frozen=True)
class PatchTransformer:
    """A vision transformer of `transformers` whose last tokens are those of the patches, row by row.

    Attributes:
        model: in evaluation mode; its configuration says the side of a picture and of a patch.
        digest: changes with its weights.
        autocast: makes the context that it runs in.
    """

    model: Any  # transformers loads its classes lazily, which hides them from mypy
    digest: str
    autocast: Callable[[], AbstractContextManager[Any]]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Give the features (N, C, h, w) of square pictures, float (N, 3, S, S) in 0..1: one cell a patch."""
        side, cells = self.model.config.image_size, self.model.config.image_size // self.model.config.patch_size
        small = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        mean, deviation = (small.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
        with self.autocast():
            tokens = self.model(pixel_values=(small - mean) / deviation).last_hidden_state
        return tokens[:, -cells * cells :].float().mT.unflatten(2, (cells, cells)).contiguous()
