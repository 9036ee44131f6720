"""A project's labelling configuration: which control tags take masks, on which images, with which labels."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backend.errors import LabelConfigError

# Control tags that draw on an image but whose regions the backend neither reads nor writes.
UNSUPPORTED_TAGS = frozenset(
    {
        "BitmaskLabels",
        "Bitmask",
        "Brush",
        "PolygonLabels",
        "Polygon",
        "RectangleLabels",
        "Rectangle",
        "EllipseLabels",
        "Ellipse",
        "KeyPointLabels",
        "KeyPoint",
        "VectorLabels",
        "Vector",
    }
)


@dataclass(frozen=True)
class Control:
    """One `<BrushLabels>` tag on one `<Image>`.

    `labels` are the names as they stand in results (a label's alias where it has one); `dynamic` tags take further
    labels from the task, so any label is accepted.
    """

    name: str
    to_name: str
    labels: tuple[str, ...]
    dynamic: bool = False

    def knows(self, label: str) -> bool:
        """Whether a region of this control may carry the label."""
        return self.dynamic or label in self.labels


@dataclass(frozen=True)
class LabelConfig:
    """What the backend understands of a configuration.

    `images` maps the name of each `<Image>` tag to the expression of its `value`, such as `$image` or
    `$scan.left`; `notices` says in plain sentences what is not supported.
    """

    controls: tuple[Control, ...]
    images: Mapping[str, str]
    notices: tuple[str, ...]

    def control(self, name: str, to_name: str) -> Control | None:
        """The control of that name on that image, if the configuration has it."""
        return next((c for c in self.controls if (c.name, c.to_name) == (name, to_name)), None)


def parse_label_config(xml: str) -> LabelConfig:
    """Read a labelling configuration; raises `LabelConfigError` where it is no XML."""
    try:
        root = ET.fromstring(xml)
    except ET.ParseError as error:
        raise LabelConfigError(f"The labelling configuration is not valid XML ({error}).") from error
    notices: list[str] = []
    images = _images(root, notices)
    controls: list[Control] = []
    for tag in root.iter():
        if tag.tag == "BrushLabels":
            controls += _brush_controls(tag, images, notices)
        elif tag.tag in UNSUPPORTED_TAGS and set(_targets(tag)) & set(images):
            notices.append(f"<{tag.tag} name={tag.get('name', '')!r}> is not supported; only BrushLabels are.")
    if not images:
        notices.append("The configuration has no <Image> tag with a value such as $image.")
    elif not controls:
        notices.append("The configuration has no <BrushLabels> tag on an image, so there is nothing to predict.")
    return LabelConfig(tuple(controls), images, tuple(dict.fromkeys(notices)))


def image_url(expression: str, data: Mapping[str, Any]) -> str | None:
    """The image address that a tag's `value` names in a task's data, or `None` where the task has none.

    `$image` and `$scan.left` look into the data; an expression without `$` is an address itself.
    """
    if not expression.startswith("$"):
        return expression or None
    name = expression[1:]
    if name in data:
        found: Any = data[name]
    else:
        found = data
        for part in name.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return None
            found = found[part]
    return found if isinstance(found, str) and found.strip() else None


def _images(root: ET.Element, notices: list[str]) -> dict[str, str]:
    images = {}
    for tag in root.iter("Image"):
        name = tag.get("name", "")
        if tag.get("valueList"):
            notices.append(f"<Image name={name!r}> shows several pages (valueList), which is not supported.")
        elif name and tag.get("value"):
            images[name] = tag.get("value", "")
    return images


def _brush_controls(tag: ET.Element, images: Mapping[str, str], notices: list[str]) -> list[Control]:
    name = tag.get("name", "")
    labels = tuple(_label_name(label) for label in tag.iter("Label") if _label_name(label))
    dynamic = tag.get("value", "").startswith("$")
    if not labels and not dynamic:
        notices.append(f"<BrushLabels name={name!r}> has no labels.")
        return []
    targets = [target for target in _targets(tag) if target in images]
    if not targets:
        notices.append(f"<BrushLabels name={name!r}> points at no supported <Image> tag.")
    return [Control(name, target, labels, dynamic) for target in targets]


def _label_name(label: ET.Element) -> str:
    return label.get("alias") or label.get("value") or ""


def _targets(tag: ET.Element) -> list[str]:
    return [part.strip() for part in tag.get("toName", "").split(",") if part.strip()]
