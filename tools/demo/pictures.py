"""The demo's pictures: one generated domain, its labels, exact masks."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from research import synth

COLOURS = ("#ff1f4b", "#00a2ff")  # of labels, in the editor and on the contact sheet


@dataclass(frozen=True)
class Picture:
    """One task's image uint8 (H, W, 3) with the truth, label -> bool (H, W)."""

    name: str
    image: NDArray[np.uint8]
    truth: dict[str, NDArray[np.bool_]]

    def png(self) -> bytes:
        """The image as it is uploaded."""
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, "PNG")
        return buffer.getvalue()


def pictures(domain: str, labels: tuple[str, ...], count: int, *, first_seed: int, size: int) -> list[Picture]:
    """`count` pictures of the test split that each show every label; the same ones on every call.

    The first is the one on which the smallest object is largest, as a user would choose what to annotate.
    """
    shown = [
        synth.generate(domain, labels, seed=synth.seed_of("test", first_seed + index), size=size)
        for index in range(count)
    ]
    best = max(range(count), key=lambda index: min(shown[index].masks[label].sum() for label in labels))
    shown.insert(0, shown.pop(best))
    return [
        Picture(f"{domain}-{index:02d}.png", picture.image, {label: picture.masks[label] for label in labels})
        for index, picture in enumerate(shown, start=1)
    ]


def label_config(template: Path, labels: tuple[str, ...]) -> str:
    """The labelling interface in `template` with its brush labels replaced by `labels`, in the demo's colours."""
    root = ElementTree.fromstring(template.read_text(encoding="utf-8"))
    (brush,) = root.iter("BrushLabels")
    for old in list(brush):
        brush.remove(old)
    for label, colour in zip(labels, COLOURS, strict=False):
        ElementTree.SubElement(brush, "Label", value=label, background=colour)
    return ElementTree.tostring(root, encoding="unicode")


def names_in(config: str) -> tuple[str, str]:
    """Names of the brush control and of the image it belongs to, as regions refer to them."""
    (brush,) = ElementTree.fromstring(config).iter("BrushLabels")
    return brush.attrib["name"], re.split(r",", brush.attrib["toName"])[0]
