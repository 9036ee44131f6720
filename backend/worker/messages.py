"""The messages between the backend and a model process, and how they are written.

Each is one JSON object whose `event` says which it is. Both ends are always of the same release.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from backend.labelstudio.regions import Rectangle, Region, Slot
from backend.learning.candidates import KeptCandidate
from cavsam.scoring.experience import Experience

MODEL_SERVER = "backend.worker.model_server:ModelServer"


@dataclass(frozen=True)
class _Message:
    """Fields that JSON holds as they are; other messages say how theirs are written and read."""

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Self:
        """The message that `to_json` wrote."""
        return cls(**held)


# to the model process


@dataclass(frozen=True)
class ModelSpec(_Message):
    """The model to open, told first.

    Attributes:
        segmenter: import path of a factory.
        options: what it is called with, JSON-ready.
        log_level: the least level that the process logs.
        runner: import path of the class that does jobs with the model.
        log_format: one of `logs.FORMATS`.
    """

    segmenter: str
    options: Mapping[str, Any]
    log_level: str = "INFO"
    runner: str = MODEL_SERVER
    log_format: str = "text"


@dataclass(frozen=True)
class Example:
    """An annotation to learn from; `images` are paths by the name of their image tag."""

    annotation: int
    regions: tuple[Region, ...]
    images: Mapping[str, str]

    @property
    def drawn_on(self) -> frozenset[str]:
        """Names of the image tags that have regions."""
        return frozenset(region.to_name for region in self.regions)


@dataclass(frozen=True)
class SegmentTask(_Message):
    """Find on a task's images what examples show.

    Attributes:
        reference_key: changes with the examples.
        shots: how many of the examples serve the task, those most like it; 0 for all.
        examples: at least one.
        images: paths by the name of their image tag.
        experience: what the project's corrections taught; None for nothing.
    """

    reference_key: str
    shots: int
    examples: tuple[Example, ...]
    images: Mapping[str, str]
    experience: Experience | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        examples = [
            {"annotation": one.annotation, "regions": _written(one.regions), "images": one.images}
            for one in self.examples
        ]
        taught = self.experience.to_json() if self.experience else None
        return super().to_json() | {"examples": examples, "experience": taught}

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Self:
        """The message that `to_json` wrote."""
        examples = tuple(
            Example(one["annotation"], _read_regions(one["regions"]), one["images"]) for one in held["examples"]
        )
        taught = Experience.from_json(held["experience"]) if held["experience"] else None
        return cls(**held | {"examples": examples, "experience": taught})


@dataclass(frozen=True)
class CorrectMask(_Message):
    """Correct a mask by what a person points at.

    Attributes:
        image: path of the image.
        slot: where the mask belongs.
        start: the regions that draw the mask as it is; none if there is no mask yet.
        clicks: (x, y, whether the object is there), in percent of the image.
        boxes: around the object.
    """

    image: str
    slot: Slot
    start: tuple[Region, ...]
    clicks: tuple[tuple[float, float, bool], ...]
    boxes: tuple[Rectangle, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        boxes = [(box.x, box.y, box.width, box.height, box.rotation) for box in self.boxes]
        return super().to_json() | {"slot": self.slot._asdict(), "start": _written(self.start), "boxes": boxes}

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Self:
        """The message that `to_json` wrote."""
        return cls(
            held["image"],
            Slot(**held["slot"]),
            _read_regions(held["start"]),
            tuple((x, y, positive) for x, y, positive in held["clicks"]),
            tuple(Rectangle(*box) for box in held["boxes"]),
        )


@dataclass(frozen=True)
class DrawThumbnail(_Message):
    """Draw a picture small, with masks over it if there are regions.

    Attributes:
        image: path of the picture; empty if `small` is given.
        small: base64 of its thumbnail without masks, as it was drawn before.
        regions: those whose masks are drawn; others than those on `to_name` are left out.
        to_name: the image tag that is shown.
        backgrounds: the labels' colours as the labelling configuration writes them, in its order; empty for none.
    """

    image: str
    small: str = ""
    regions: tuple[Region, ...] = ()
    to_name: str = ""
    backgrounds: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return super().to_json() | {"regions": _written(self.regions)}

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Self:
        """The message that `to_json` wrote."""
        return cls(**held | {"regions": _read_regions(held["regions"])})


# from the model process


@dataclass(frozen=True)
class Loaded(_Message):
    """The model is ready for jobs.

    Attributes:
        seconds: time that loading it took.
        device: where it runs; empty if it does not say.
        gpu_bytes: memory that the process holds on GPUs; None if it uses none.
    """

    seconds: float
    device: str
    gpu_bytes: int | None


@dataclass(frozen=True)
class NotLoaded(_Message):
    """The model cannot be loaded, in its own words; the process ends."""

    message: str


@dataclass(frozen=True)
class Progress(_Message):
    """How far a job is: the name of its step, how much of it is done, and how much there is."""

    step: str
    done: int
    total: int


@dataclass(frozen=True)
class _Answer(_Message):
    """What ends a job; `gpu_bytes` as in `Loaded`."""

    gpu_bytes: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Result(_Answer):
    """What was found.

    Attributes:
        regions: results as Label Studio stores them; none if nothing was found.
        score: 0..1, of the worst label.
        seconds: time that finding it took, without what depends on the reference only.
        warnings: what the regions cannot say.
        calibrated: whether the scores estimate the IoU with the ground truth, rather than give an order only.
        remarks: what a person should look at, see `worker.remarks`.
        candidates: the ways to each mask that were tried.
        oddities: what makes an annotation that is learned from a poor one, see `worker.oddities`.
    """

    regions: tuple[dict[str, Any], ...]
    score: float
    seconds: float
    warnings: tuple[str, ...] = ()
    calibrated: bool = False
    remarks: tuple[str, ...] = ()
    candidates: tuple[KeptCandidate, ...] = ()
    oddities: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return super().to_json() | {"candidates": [one.to_json() for one in self.candidates]}

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Self:
        """The message that `to_json` wrote."""
        candidates = tuple(KeptCandidate.from_json(one) for one in held["candidates"])
        lists = {name: tuple(held[name]) for name in ("regions", "warnings", "remarks", "oddities")}
        return cls(**held | lists | {"candidates": candidates})


@dataclass(frozen=True)
class Failed(_Answer):
    """The job has no result; others may."""

    message: str


@dataclass(frozen=True)
class BadReference(_Answer):
    """The example of this annotation can teach nothing to any task."""

    annotation: int
    message: str


@dataclass(frozen=True)
class Thumbnail(_Answer):
    """What `DrawThumbnail` asked for: a JPEG file as base64."""

    jpeg: str


Job = SegmentTask | CorrectMask
Answer = Result | Failed | BadReference
Message = ModelSpec | Job | DrawThumbnail | Loaded | NotLoaded | Progress | Answer | Thumbnail

EVENTS: dict[str, type[Message]] = {
    "open": ModelSpec,
    "segment": SegmentTask,
    "correct": CorrectMask,
    "draw": DrawThumbnail,
    "loaded": Loaded,
    "model_error": NotLoaded,
    "progress": Progress,
    "result": Result,
    "failed": Failed,
    "bad_reference": BadReference,
    "thumbnail": Thumbnail,
}
_NAMES = {kind: name for name, kind in EVENTS.items()}


def write_message(message: Message) -> bytes:
    """Write a message for the pipe."""
    return json.dumps({"event": _NAMES[type(message)]} | message.to_json(), separators=(",", ":")).encode()


def read_message(raw: bytes) -> Message:
    """Read what `write_message` wrote."""
    held = json.loads(raw)
    return EVENTS[held.pop("event")].from_json(held)


def _written(regions: tuple[Region, ...]) -> list[dict[str, Any]]:
    return [region.to_json() for region in regions]


def _read_regions(held: list[dict[str, Any]]) -> tuple[Region, ...]:
    return tuple(Region.from_json(one) for one in held)
