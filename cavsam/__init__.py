"""CAV-SAM: reference segmentation with SAM2 through a generated pseudo video (ICCV 2025, arXiv 2508.07759).

Importing the package costs nothing; torch is loaded with the first name that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cavsam.adapted import AdaptedReference as AdaptedReference
    from cavsam.pipeline import CavSam as CavSam

from cavsam.errors import CavSamError as CavSamError
from cavsam.images import read_image as read_image
from cavsam.images import read_mask as read_mask
from cavsam.recipe import Recipe as Recipe
from cavsam.types import Reference as Reference
from cavsam.types import TargetResult as TargetResult
from cavsam.weights.sources import ModelSources as ModelSources

__version__ = "0.1.0"

__all__ = [
    "AdaptedReference",
    "CavSam",
    "CavSamError",
    "ModelSources",
    "Recipe",
    "Reference",
    "TargetResult",
    "read_image",
    "read_mask",
]


def __getattr__(name: str) -> Any:
    if name == "CavSam":
        from cavsam.pipeline import CavSam

        return CavSam
    if name == "AdaptedReference":
        from cavsam.adapted import AdaptedReference

        return AdaptedReference
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
