"""SynthFSS: procedural images with exact masks for cross-domain few-shot segmentation.

Five domains. Models are trained on "textures" only, and there on the training classes only; the other four
imitate the sets of the CD-FSS benchmark and are never trained on. Everything is a function of a seed
(`splits.py` says which seeds belong to training, development and test). numpy, scipy and PIL only.
"""

from __future__ import annotations

from collections.abc import Sequence

from cavsam.synth import textures
from cavsam.synth.raster import as_size
from cavsam.synth.splits import SEEDS, SPLITS, Split, seed_of
from cavsam.synth.types import SynthClip, SynthImage

__all__ = [
    "DOMAINS",
    "SEEDS",
    "SPLITS",
    "Split",
    "SynthClip",
    "SynthImage",
    "classes",
    "clip",
    "generate",
    "seed_of",
]

DOMAINS: tuple[str, ...] = ("textures",)
MOTIONS: tuple[str, ...] = ("smooth", "far")


def classes(domain: str, split: Split = "test") -> tuple[str, ...]:
    """The class names of a domain in a split. Only "textures" has classes to train on."""
    _known(domain)
    return textures.CLASSES[split]


def generate(
    domain: str,
    classes: Sequence[str],
    *,
    seed: int,
    size: int | tuple[int, int] = 256,
    avoid: Sequence[str] = (),
) -> SynthImage:
    """An image of `domain` that shows an object of each of `classes`, none where it is empty.

    No object of a class in `avoid` is in it, but look-alikes of them are: what a target without the object
    needs.
    size: pixels, one side or (height, width).
    """
    _known(domain)
    return textures.generate(tuple(classes), seed=seed, size=as_size(size), avoid=tuple(avoid))


def _known(domain: str) -> None:
    if domain not in DOMAINS:
        raise ValueError(f"Unknown domain {domain!r}; choose one of {', '.join(DOMAINS)}.")


def clip(
    class_name: str,
    *,
    seed: int,
    size: int | tuple[int, int] = 256,
    length: int = 4,
    motion: str = "smooth",
    absent: bool = True,
) -> SynthClip:
    """A clip of one moving object of a class of "textures"; see `textures.clip`."""
    if motion not in MOTIONS:
        raise ValueError(f"Unknown motion {motion!r}; choose one of {', '.join(MOTIONS)}.")
    return textures.clip(class_name, seed=seed, size=as_size(size), length=length, motion=motion, absent=absent)
