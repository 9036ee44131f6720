"""A project's labelling configuration: which control tags take masks, on which images, with which labels."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backend.errors import LabelConfigError

LABELLED_TAGS = frozenset({"BrushLabels", "BitmaskLabels", "PolygonLabels", "RectangleLabels"})
"""Control tags that draw and label in one."""
DRAWING_TAGS = frozenset({"Brush", "Bitmask", "Polygon", "Rectangle"})
"""Control tags that only draw; a `<Labels>` tag on the same image gives the label, as a second result of one id."""
HINT_TAGS = frozenset({"EllipseLabels", "Ellipse"})
"""Control tags whose regions teach, but that cannot say a mask: predictions go to a mask tag with the same label."""
POINT_TAGS = frozenset({"KeyPointLabels", "KeyPoint"})
"""Control tags that point at an object; with `smart="true"` they are clicks that correct a mask."""
UNSUPPORTED_TAGS = frozenset({"VectorLabels", "Vector", "MagicWand"})
"""Control tags that draw on an image but whose regions the backend neither reads nor writes."""

PREFERRED = ("brush", "bitmask", "polygon", "rectangle")
"""Which mask tag takes a mask that was not drawn with one, where several have the label."""
SMART = 'smart="true" makes them clicks that correct a mask'
SUPPORTED = "BrushLabels, BitmaskLabels, PolygonLabels, RectangleLabels and their forms with <Labels> are"


LONGEST = 1_000_000
"""Characters of a configuration that is read."""
MOST_LABELS = 5000
MOST_CONTROLS = 200
"""Both bound the work, which grows with their product; a tag on two images counts twice."""


@dataclass(frozen=True)
class Control:
    """One control tag on one `<Image>`.

    `labels` are the names as they stand in results (a label's alias where it has one); `dynamic` tags take further
    labels from the task, so any label is accepted. `kind` is the type of its results: the tag in lower case.
    `labels_name` names the `<Labels>` tag that labels what a tag like `<Brush>` draws.
    """

    name: str
    to_name: str
    labels: tuple[str, ...]
    dynamic: bool = False
    kind: str = "brushlabels"
    labels_name: str | None = None

    def knows(self, label: str) -> bool:
        """Whether a region of this control may carry the label."""
        return self.dynamic or label in self.labels


@dataclass(frozen=True)
class LabelConfig:
    """What the backend understands of a configuration; docs/control-tags.md says how tags are mapped.

    `controls` take masks, `hints` only teach (ellipses), `prompts` are smart tools whose regions are clicks.
    `images` maps the name of each `<Image>` tag to the expression of its `value`, such as `$image` or
    `$scan.left`; `warnings` says in plain sentences what is not supported.
    """

    controls: tuple[Control, ...]
    images: Mapping[str, str]
    warnings: tuple[str, ...]
    hints: tuple[Control, ...] = ()
    prompts: tuple[Control, ...] = ()

    def control(self, name: str, to_name: str, labels_name: str | None = None) -> Control | None:
        """The control of that name on that image, if the configuration has it."""
        return _named(self.controls, name, to_name, labels_name)

    def hint(self, name: str, to_name: str, labels_name: str | None = None) -> Control | None:
        """As `control`, among those that only teach."""
        return _named(self.hints, name, to_name, labels_name)

    def is_prompt(self, name: str, to_name: str) -> bool:
        """Whether what that control draws on that image is a click."""
        return any((prompt.name, prompt.to_name) == (name, to_name) for prompt in self.prompts)

    def mask_control(self, to_name: str, label: str) -> Control | None:
        """The control that takes a mask of a label on an image, if there is one: a brush where there are several."""
        return _mask_control(self.controls, to_name, label)


def parse_label_config(xml: str) -> LabelConfig:
    """Read a labelling configuration; raises `LabelConfigError` if it is no XML, or larger than any that people use."""
    root = _root(xml)
    if sum(1 for _ in root.iter("Label")) > MOST_LABELS:
        raise LabelConfigError(f"The labelling configuration has more than {MOST_LABELS} labels; take some out.")
    warnings: list[str] = []
    images = _images(root, warnings)
    controls: list[Control] = []
    hints: list[Control] = []
    points: list[Control] = []
    smart: set[str] = set()
    written: dict[str, str] = {}
    drawing = 0
    for tag in root.iter():
        found = hints if tag.tag in HINT_TAGS else points if tag.tag in POINT_TAGS else controls
        if tag.tag in LABELLED_TAGS | {"EllipseLabels", "KeyPointLabels"}:
            found += _labelled_controls(tag, images, warnings)
        elif tag.tag in DRAWING_TAGS | {"Ellipse", "KeyPoint"}:
            found += _drawing_controls(tag, root, images, warnings)
        elif tag.tag in UNSUPPORTED_TAGS and set(_targets(tag)) & set(images):
            warnings.append(f"<{tag.tag} name={tag.get('name', '')!r}> is not supported; {SUPPORTED}.")
        drawing += tag.tag in DRAWING_TAGS | {"Ellipse", "KeyPoint", "Labels"}
        if max(len(found), drawing) > MOST_CONTROLS:
            raise LabelConfigError(
                f"The labelling configuration has more than {MOST_CONTROLS} control tags on images; take some out."
            )
        name = tag.get("name", "")
        written[name] = f"<{tag.tag} name={name!r}>"
        if _is_smart(tag):
            smart.add(name)
    if not images:
        warnings.append("The configuration has no <Image> tag with a value such as $image.")
    elif not controls:
        warnings.append(
            f"The configuration has nothing to predict: no control tag on an image that works; {SUPPORTED}."
        )
    boxes = [control for control in controls if control.name in smart and _points_at_another(control, controls)]
    controls = [control for control in controls if control not in boxes]
    prompts = boxes + [point for point in points if point.name in smart]
    for point in points:
        if point.name not in smart:
            warnings.append(f"{written[point.name]} draws points, which give no mask and are left out; {SMART}.")
    for control in hints + prompts:
        missing = [label for label in control.labels if _mask_control(controls, control.to_name, label) is None]
        if missing:
            names = ", ".join(repr(label) for label in missing)
            warnings.append(f"{written[control.name]} has labels that no mask tag on {control.to_name!r} has: {names}.")
    return LabelConfig(tuple(controls), images, tuple(dict.fromkeys(warnings)), tuple(hints), tuple(prompts))


def label_backgrounds(xml: str) -> dict[str, str]:
    """The colour of each label as a labelling configuration writes it, by the name that stands in results.

    Raises:
        LabelConfigError: as `parse_label_config` does.
    """
    found: dict[str, str] = {}
    for label in _root(xml).iter("Label"):
        name = label.get("alias") or label.get("value") or ""
        if name:
            found.setdefault(name, label.get("background", ""))
    return found


def _root(xml: str) -> ET.Element:
    if len(xml) > LONGEST:
        raise LabelConfigError(f"The labelling configuration is longer than {LONGEST:,} characters; shorten it.")
    if "<!DOCTYPE" in xml:  # entities multiply, and no interface needs them
        raise LabelConfigError("The labelling configuration declares a document type (<!DOCTYPE ...>); take it out.")
    try:
        return ET.fromstring(xml)
    except ET.ParseError as error:
        raise LabelConfigError(f"The labelling configuration is not valid XML ({error}).") from error


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


def _named(controls: Iterable[Control], name: str, to_name: str, labels_name: str | None) -> Control | None:
    wanted = (name, to_name, labels_name)
    return next((c for c in controls if (c.name, c.to_name, c.labels_name) == wanted), None)


def _mask_control(controls: Iterable[Control], to_name: str, label: str) -> Control | None:
    able = [control for control in controls if control.to_name == to_name and control.knows(label)]
    return min(able, key=lambda control: PREFERRED.index(control.kind.removesuffix("labels")), default=None)


def _is_smart(tag: ET.Element) -> bool:
    """Whether the editor may use a control as a smart tool; the editor takes attributes in any case."""
    attributes = {name.lower(): value.lower() for name, value in tag.attrib.items()}
    return "true" in (attributes.get("smart"), attributes.get("smartonly"))


def _points_at_another(control: Control, controls: Iterable[Control]) -> bool:
    """Whether a smart rectangle stands beside another mask tag with one of its labels: then it is not a mask itself."""
    if not control.kind.startswith("rectangle"):
        return False
    others = [other for other in controls if not other.kind.startswith("rectangle")]
    return any(_mask_control(others, control.to_name, label) is not None for label in control.labels)


def _images(root: ET.Element, warnings: list[str]) -> dict[str, str]:
    images = {}
    for tag in root.iter("Image"):
        name = tag.get("name", "")
        if tag.get("valueList"):
            warnings.append(f"<Image name={name!r}> shows several pages (valueList), which is not supported.")
        elif name and tag.get("value"):
            images[name] = tag.get("value", "")
    return images


def _labelled_controls(tag: ET.Element, images: Mapping[str, str], warnings: list[str]) -> list[Control]:
    name, kind = tag.get("name", ""), tag.tag.lower()
    labels, dynamic = _labels(tag)
    if not labels and not dynamic:
        warnings.append(f"<{tag.tag} name={name!r}> has no labels.")
        return []
    targets = [target for target in _targets(tag) if target in images]
    if not targets:
        warnings.append(f"<{tag.tag} name={name!r}> points at no supported <Image> tag.")
    return [Control(name, target, labels, dynamic, kind) for target in targets]


def _drawing_controls(
    tag: ET.Element, root: ET.Element, images: Mapping[str, str], warnings: list[str]
) -> list[Control]:
    """One control for each `<Labels>` tag on the same image."""
    name, kind = tag.get("name", ""), tag.tag.lower()
    controls = []
    for target in _targets(tag):
        for labelling in root.iter("Labels"):
            labels, dynamic = _labels(labelling)
            if target in images and target in _targets(labelling) and (labels or dynamic):
                controls.append(Control(name, target, labels, dynamic, kind, labelling.get("name", "")))
    if not controls:
        warnings.append(f"<{tag.tag} name={name!r}> has no <Labels> tag on the same image to label its regions.")
    return controls


def _labels(tag: ET.Element) -> tuple[tuple[str, ...], bool]:
    """The labels of a tag, and whether the task adds more."""
    names = tuple(_label_name(label) for label in tag.iter("Label") if _label_name(label))
    return names, tag.get("value", "").startswith("$")


def _label_name(label: ET.Element) -> str:
    return label.get("alias") or label.get("value") or ""


def _targets(tag: ET.Element) -> list[str]:
    return [part.strip() for part in tag.get("toName", "").split(",") if part.strip()]
