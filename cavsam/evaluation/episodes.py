"""Episodes of few-shot segmentation: K annotated references and one target of a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cavsam.types import Reference


@dataclass(frozen=True)
class Episode:
    """One task: segment `class_name` in the target after the references.

    Attributes:
        domain, index: what it is called in the records.
        references: K annotated images.
        image: the target, uint8 (H, W, 3).
        truth: bool (H, W), empty if the target does not show the object.
    """

    domain: str
    index: int
    class_name: str
    references: tuple[Reference, ...]
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]

    @property
    def absent(self) -> bool:
        """Whether the target does not show the object."""
        return not self.truth.any()
