"""The objects that SAM2 tracks: one for each label, or one for each instance of a label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import label as connected_components
from torch import Tensor

from cavsam.recipe import Instances
from cavsam.tracking import Prompt

SPECK = 0.01
"""Share of the largest component's pixels below which a component is no instance but belongs to the largest one."""


@dataclass(frozen=True)
class Objects:
    """The objects of some references.

    Attributes:
        owners: index of each object's label; those of one label stand together, in the order of the labels.
        masks: bool (K, objects, S, S), where each shows on each reference.
    """

    owners: tuple[int, ...]
    masks: Tensor

    @classmethod
    def of(cls, masks: Tensor, nearest: int, instances: Instances) -> Objects:
        """Find the objects of masks, bool (K, labels, S, S).

        With "split", a label that has several components on reference `nearest` is as many objects. They are shown by
        that reference alone: nothing tells which component of another one is which.
        """
        owners: list[int] = []
        shown: list[Tensor] = []
        for label in range(masks.shape[1]):
            parts = components(masks[nearest, label]) if instances == "split" else []
            if len(parts) < 2:
                shown.append(masks[:, label])
                owners.append(label)
                continue
            for part in parts:
                alone = torch.zeros_like(masks[:, label])
                alone[nearest] = part
                shown.append(alone)
                owners.append(label)
        return cls(tuple(owners), torch.stack(shown, dim=1))

    def owned_by(self, label: int) -> list[int]:
        """List the objects of a label."""
        return [index for index, owner in enumerate(self.owners) if owner == label]

    def several(self) -> tuple[int, ...]:
        """List the labels that are more than one object."""
        return tuple(label for label in sorted(set(self.owners)) if self.owners.count(label) > 1)

    def per_label(self, values: Tensor) -> Tensor:
        """Take the highest of each label's objects: (objects, ...) to (labels, ...)."""
        return torch.stack([values[self.owned_by(label)].amax(dim=0) for label in sorted(set(self.owners))])

    def from_labels(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """Turn prompts of labels into prompts of objects; one of a label with several objects is nobody's."""
        objects = [(prompt, self.owned_by(prompt.label)) for prompt in prompts]
        return [replace(prompt, label=owned[0]) for prompt, owned in objects if len(owned) == 1]

    def to_labels(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """Turn prompts of objects into prompts of their labels."""
        return [replace(prompt, label=self.owners[prompt.label]) for prompt in prompts]


def components(mask: Tensor) -> list[Tensor]:
    """Part a mask, bool (S, S), where it touches at no edge and no corner; the largest first, without specks."""
    numbered, count = connected_components(mask.cpu().numpy(), structure=np.ones((3, 3)))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    parts = [numbered == 1 + index for index in order if sizes[index] >= SPECK * sizes.max()]
    if parts:
        parts[0] = parts[0] | (mask.cpu().numpy() & ~np.any(parts, axis=0))
    return [torch.from_numpy(part).to(mask.device) for part in parts]
