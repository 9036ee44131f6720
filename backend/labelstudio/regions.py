"""Regions of Label Studio as values: read once where they enter, written once where they leave.

Nothing here draws: `masks` does, and loads the libraries for it. Sizes are always those of the image as a browser
displays it (EXIF orientation applied); geometry is in percent of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from backend.errors import UnusableRegion
from backend.labelstudio.label_config import LabelConfig
from cavsam.images import MAX_PIXELS

NO_MASK = "it has no region that gives a mask"
FARTHEST = 1e6
"""Largest coordinate in percent and largest rotation in degrees; a region with larger ones is damaged."""


@dataclass(frozen=True, slots=True)
class Brush:
    """A run-length code over the interleaved RGBA bytes of the image; `brush` has the codec."""

    rle: bytes


@dataclass(frozen=True, slots=True)
class Bitmask:
    """A picture of the mask as a data address, opaque inside."""

    address: str


@dataclass(frozen=True, slots=True)
class Polygon:
    """A closed outline of at least three points (x, y) in percent."""

    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A rectangle in percent; `rotation` is clockwise in degrees around its top left corner."""

    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0


@dataclass(frozen=True, slots=True)
class Ellipse:
    """An ellipse in percent: its centre, half its width and half its height; `rotation` is clockwise in degrees."""

    x: float
    y: float
    radius_x: float
    radius_y: float
    rotation: float = 0.0


Shape = Brush | Bitmask | Polygon | Rectangle | Ellipse
SHAPES = ("brush", "bitmask", "polygon", "rectangle", "ellipse")
KINDS = frozenset(f"{shape}{labels}" for shape in SHAPES for labels in ("", "labels"))
"""Types of result that give a mask."""


class Slot(NamedTuple):
    """Where a mask belongs: a control tag, the image tag it draws on, the label, and how its regions are written.

    `kind` is the type of the results; `labels_name` the `<Labels>` tag beside a tag that only draws.
    """

    from_name: str
    to_name: str
    label: str
    kind: str = "brushlabels"
    labels_name: str | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """One region that gives a mask, reduced to what the mask depends on.

    Attributes:
        from_name: control tag that takes the mask; `kind` and `labels_name` are those of `Slot`.
        to_name: image tag that it is drawn on.
        labels: at least one, all known to the control tag.
        size: (H, W) in pixels of the image that it was drawn on; at most `MAX_PIXELS` in all.
        shape: what is drawn.
    """

    from_name: str
    to_name: str
    labels: tuple[str, ...]
    size: tuple[int, int]
    shape: Shape = field(repr=False)
    kind: str = "brushlabels"
    labels_name: str | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Where the mask belongs, one slot for each label."""
        return tuple(Slot(self.from_name, self.to_name, label, self.kind, self.labels_name) for label in self.labels)

    def to_json(self) -> dict[str, Any]:
        """The region as the store and the messages to the model process hold it."""
        height, width = self.size
        named = {
            "from_name": self.from_name,
            "to_name": self.to_name,
            "kind": self.kind,
            "labels_name": self.labels_name,
            "labels": list(self.labels),
            "original_width": width,
            "original_height": height,
        }
        return named | _geometry(self.shape)

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Region:
        """The region that `to_json` wrote; raises `UnusableRegion` if it is damaged."""
        found = next((shape for shape, fields in _FIELDS.items() if set(fields) <= held.keys()), "")
        labels_name = held.get("labels_name")
        return cls(
            from_name=str(held.get("from_name", "")),
            to_name=str(held.get("to_name", "")),
            labels=tuple(str(label) for label in held.get("labels", ())),
            size=_size(held),
            shape=_shape(found, held),
            kind=str(held.get("kind", "")),
            labels_name=None if labels_name is None else str(labels_name),
        )


def read_regions(results: Iterable[Any], config: LabelConfig) -> tuple[list[Region], list[str]]:
    """The regions among an annotation's or prediction's results that give a mask.

    Args:
        results: as Label Studio's API gives them; anything in them may be missing or malformed.
        config: the project's labelling configuration.

    Returns:
        The regions, and why others, or single labels of theirs, are left out.
    """
    given = [result for result in results if isinstance(result, Mapping)]
    regions = []
    reasons: list[str] = []
    # what <Brush> and the like draw is labelled by a second result of the same id
    labelling = {str(r.get("id")): r for r in given if str(r.get("type", "")).lower() == "labels"}
    for result in given:
        region, reason = _read_region(result, labelling.get(str(result.get("id"))), config)
        if region is not None:
            regions.append(region)
        if reason:
            reasons.append(reason)
    return regions, list(dict.fromkeys(reasons))


def write_region(region: Region, number: int, score: float) -> list[dict[str, Any]]:
    """A predicted region of one label as Label Studio stores it.

    Args:
        region: the region.
        number: its place among the regions of its label; the id follows from both.
        score: 0..1.

    Returns:
        One result, or two where a `<Labels>` tag gives the label.
    """
    (slot,) = region.slots
    height, width = region.size
    common = {
        "id": region_id(slot, number),
        "to_name": slot.to_name,
        "origin": "prediction",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
    }
    value = _geometry(region.shape)
    if isinstance(region.shape, Brush):
        value = {"format": "rle"} | value
    elif isinstance(region.shape, Polygon):
        value = value | {"closed": True}
    drawn = common | {"from_name": slot.from_name, "type": slot.kind}
    if slot.labels_name is None:
        return [drawn | {"value": value | {slot.kind: [slot.label]}}]
    labelled = common | {"from_name": slot.labels_name, "type": "labels"}
    return [drawn | {"value": value}, labelled | {"value": value | {"labels": [slot.label]}}]


def region_id(slot: Slot, number: int) -> str:
    """The id of region number `number` of a slot, the same in every prediction: a corrected region replaces it."""
    return hashlib.sha256(f"{slot}|{number}".encode()).hexdigest()[:10]


def _read_region(
    result: Mapping[str, Any], labelling: Mapping[str, Any] | None, config: LabelConfig
) -> tuple[Region | None, str]:
    """One result as a region, or why it is left out; no reason is given for what is no mask at all."""
    kind = str(result.get("type", "")).lower()
    if kind not in KINDS:
        return None, ""
    value = result.get("value")
    try:
        shape = _shape(kind.removesuffix("labels"), value)
    except UnusableRegion:
        return None, f"its {kind} region is incomplete"
    split = not kind.endswith("labels")
    if split and labelling is None:
        return None, f"its {kind} region has no label"
    labels_name = str(labelling.get("from_name", "")) if split and labelling else None
    from_name, to_name = str(result.get("from_name", "")), str(result.get("to_name", ""))
    if config.is_prompt(from_name, to_name):
        return None, ""  # a click that was left behind
    control = config.control(from_name, to_name, labels_name) or config.hint(from_name, to_name, labels_name)
    if control is None or control.kind != kind:
        return None, f"its region belongs to {from_name!r} on {to_name!r}, which the configuration lacks"
    labels = _labels((labelling or {}).get("value") if split else value, "labels" if split else kind)
    known = [label for label in labels if control.knows(label)]
    unknown = ", ".join(label for label in labels if label not in known)
    missing = f"its label {unknown or '(none)'} is not in the configuration"
    if not known:
        return None, missing
    if control in config.hints:  # what it teaches is predicted with a tag that takes masks
        target = next((found for label in known if (found := config.mask_control(to_name, label))), None)
        if target is None:
            return None, f"no mask tag on {to_name!r} has the label of its {kind} region"
        control, known = target, [label for label in known if target.knows(label)]
    if result.get("image_rotation"):
        return None, "its image is rotated in the editor; set the rotation back to 0 and submit again"
    try:
        size = _size(result)
    except UnusableRegion as error:
        return None, str(error)
    region = Region(control.name, to_name, tuple(known), size, shape, control.kind, control.labels_name)
    return region, missing if unknown else ""


_FIELDS = {
    "brush": ("rle",),
    "bitmask": ("imageDataURL",),
    "polygon": ("points",),
    "ellipse": ("x", "y", "radiusX", "radiusY"),
    "rectangle": ("x", "y", "width", "height"),
}
"""What a shape's part of a result's `value` must have."""


def _shape(name: str, value: Any) -> Shape:
    """The shape in a result's `value`; raises `UnusableRegion` if something of it is missing or malformed."""
    if isinstance(value, Mapping) and name in _FIELDS:
        fields = [value.get(field) for field in _FIELDS[name]]
        if name == "brush" and isinstance(fields[0], list) and value.get("format", "rle") == "rle":
            return Brush(_bytes(fields[0]))
        if name == "bitmask" and isinstance(fields[0], str):
            return Bitmask(fields[0])
        if name == "polygon" and isinstance(fields[0], list) and len(fields[0]) >= 3:
            return Polygon(tuple(_point(point) for point in fields[0]))
        if name in ("ellipse", "rectangle"):
            a, b, c, d, rotation = (_number(number) for number in (*fields, value.get("rotation") or 0))
            return Ellipse(a, b, c, d, rotation) if name == "ellipse" else Rectangle(a, b, c, d, rotation)
    raise UnusableRegion("A region has no shape; draw it again.")


def _geometry(shape: Shape) -> dict[str, Any]:
    """The fields that `_shape` reads."""
    match shape:
        case Brush(rle):
            return {"rle": list(rle)}
        case Bitmask(address):
            return {"imageDataURL": address}
        case Polygon(points):
            return {"points": [list(point) for point in points]}
        case Rectangle(x, y, width, height, rotation):
            return {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
        case Ellipse(x, y, across, down, rotation):
            return {"x": x, "y": y, "radiusX": across, "radiusY": down, "rotation": rotation}


def _bytes(numbers: list[Any]) -> bytes:
    try:
        return bytes(numbers)
    except (TypeError, ValueError) as error:
        raise UnusableRegion("A brush region's run-length code is not a list of bytes; draw it again.") from error


def _point(point: Any) -> tuple[float, float]:
    if not isinstance(point, Sequence) or len(point) != 2:
        raise UnusableRegion("A polygon region's points are not pairs of numbers; draw it again.")
    return _number(point[0]), _number(point[1])


def _number(value: Any) -> float:
    """A coordinate, an integer where it was one: the key of a reference depends on how it is written."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= FARTHEST:
        raise UnusableRegion("A region's coordinates are not numbers, or lie far outside the image; draw it again.")
    return value


def _size(result: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of the image that a result was drawn on, checked before anybody makes room for it."""
    height, width = result.get("original_height"), result.get("original_width")
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in (height, width)):
        raise UnusableRegion("its region does not say the size of the image")
    assert isinstance(height, int)
    assert isinstance(width, int)
    if height * width > MAX_PIXELS:
        raise UnusableRegion(f"its region says that the image has {width}x{height} pixels, more than {MAX_PIXELS:,}")
    return height, width


def _labels(value: Any, kind: str) -> list[str]:
    listed = value.get(kind) if isinstance(value, Mapping) else None
    return [str(label) for label in listed] if isinstance(listed, list) else []
