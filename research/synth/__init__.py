"""SynthFSS: procedural images with exact masks for cross-domain few-shot segmentation.

Five domains. Models are trained on "textures" only, and there on the training classes only; the other four
imitate the sets of the CD-FSS benchmark and are never trained on. Everything is a function of a seed
(`splits.py` says which seeds belong to training, development and test). numpy, scipy and PIL only.
"""

from __future__ import annotations

from collections.abc import Sequence

from research.synth import cells, lesions, lungs, satellite, textures
from research.synth.raster import as_size
from research.synth.splits import SEEDS, SPLITS, Split, seed_of
from research.synth.types import SynthClip, SynthImage

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

_DOMAINS = {module.DOMAIN: module for module in (textures, lesions, lungs, satellite, cells)}
DOMAINS: tuple[str, ...] = tuple(_DOMAINS)
MOTIONS: tuple[str, ...] = ("smooth", "far")


def classes(domain: str, split: Split = "test") -> tuple[str, ...]:
    """The class names of a domain in a split.

    The classes of "textures" differ between the splits. The other domains are never trained on: their training
    split is empty, and development and test share the classes, not the seeds.
    """
    _known(domain)
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
    if domain == textures.DOMAIN:
        return textures.CLASSES[split]
    return () if split == "train" else tuple(_DOMAINS[domain].CLASSES)


def generate(
    domain: str,
    classes: Sequence[str],
    *,
    seed: int,
    size: int | tuple[int, int] = 256,
    avoid: Sequence[str] = (),
) -> SynthImage:
    """An image of `domain` that shows objects of each of `classes`, none where it is empty.

    Only `classes` get a mask. Other classes may be in view, but never one of `avoid`, of which there are
    look-alikes instead: what a target without the object needs. size: pixels, one side or (height, width).
    Raises ValueError for an unknown domain or class.
    """
    _known(domain)
    known = {name for split in SPLITS for name in _class_names(domain, split)}
    unknown = [name for name in (*classes, *avoid) if name not in known]
    if unknown:
        raise ValueError(f"The domain {domain!r} has no class {unknown[0]!r}.")
    return _DOMAINS[domain].generate(tuple(classes), seed=seed, size=as_size(size), avoid=tuple(avoid))


_class_names = classes  # `generate` has a parameter of the same name


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


def _known(domain: str) -> None:
    if domain not in _DOMAINS:
        raise ValueError(f"Unknown domain {domain!r}; choose one of {', '.join(DOMAINS)}.")
