"""The ways to a task's masks that were tried, kept small until a person has annotated the task."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from backend.labelstudio.regions import Slot

SIDE = 256
"""Pixels of a kept mask's side: enough to measure an IoU to a hundredth, and some 1 kB."""

BoolMask = NDArray[np.bool_]


@dataclass(frozen=True)
class Place:
    """What a mask is of: control tag, image tag and label."""

    from_name: str
    to_name: str
    label: str

    @classmethod
    def of(cls, slot: Slot) -> Self:
        """The place of a slot, whatever its regions are drawn with."""
        return cls(slot.from_name, slot.to_name, slot.label)


@dataclass(frozen=True)
class KeptCandidate:
    """One candidate's mask of one label of a task.

    Attributes:
        place: what it is a mask of.
        kind: of the candidate, see `cavsam.types.CandidateMask`.
        own: the models' own score, 0..1.
        calibrated: whether it estimates an IoU, rather than give an order only.
        presence: 0..1, estimated probability that the object is on the target.
        cues: what speaks for the mask, by name.
        chosen: whether it was believed.
        shown: whether it was believed and is among the predicted masks; one that was held back is not.
        seconds: that the candidate took, for all labels of the image.
        mask: from `pack`.
    """

    place: Place
    kind: str
    own: float
    calibrated: bool
    presence: float
    cues: Mapping[str, float]
    chosen: bool
    shown: bool
    seconds: float
    mask: str

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        place = [self.place.from_name, self.place.to_name, self.place.label]
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"place": place}

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> KeptCandidate:
        """The candidate that `to_json` wrote."""
        return cls(**{**held, "place": Place(*held["place"])})


def pack(mask: BoolMask) -> str:
    """Write a mask, bool (H, W), as text: squared and shrunk to `SIDE` pixels at most, as compressed bits."""
    small = squared(mask, min(SIDE, max(mask.shape)))
    return f"{len(small)} {base64.b85encode(zlib.compress(np.packbits(small).tobytes(), 9)).decode()}"


def unpack(text: str) -> BoolMask:
    """Read what `pack` wrote: bool (n, n) of at most `SIDE` pixels."""
    side, _, packed = text.partition(" ")
    bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b85decode(packed)), np.uint8), count=int(side) ** 2)
    return bits.astype(bool).reshape(int(side), int(side))


def squared(mask: BoolMask, side: int) -> BoolMask:
    """Squash a mask, bool (H, W), to a square as SAM2 sees it: a pixel is set if half of what it covers is."""
    from PIL import Image

    if mask.shape == (side, side):
        return mask
    share = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BOX)
    return np.asarray(share) >= 128


def write_candidates(candidates: Iterable[KeptCandidate]) -> bytes:
    """Write the candidates of a task for the store."""
    text = json.dumps([one.to_json() for one in candidates], separators=(",", ":"))
    return zlib.compress(text.encode())


def read_candidates(packed: bytes) -> tuple[KeptCandidate, ...]:
    """Read what `write_candidates` wrote."""
    return tuple(KeptCandidate.from_json(one) for one in json.loads(zlib.decompress(packed)))


def seconds_of(candidates: Iterable[KeptCandidate]) -> float:
    """Add up the seconds of a task's candidates; those of one kind on one image count once."""
    return sum({(one.place.to_name, one.kind): one.seconds for one in candidates}.values())
