"""What the demo leaves behind: rows of a table, and a contact sheet to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from tools import brush
from tools.demo.pictures import Picture

CELL = 208  # side of a picture on the contact sheet, pixels


@dataclass(frozen=True)
class Row:
    """One task and label: IoU with the truth, the score the backend gave, both 0..1, and seconds of work."""

    task: int
    label: str
    iou: float
    score: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        rounded = {key: round(value, 4) for key, value in asdict(self).items() if isinstance(value, float)}
        return asdict(self) | rounded


def rows(picture: Picture, prediction: Mapping[str, Any], seconds: float) -> list[Row]:
    """The rows of one task; a label that was not found has IoU 0 and no region, so the prediction's own score."""
    found = brush.masks(prediction["result"])
    scores = {label: r.get("score") for r in prediction["result"] for label in r["value"]["brushlabels"]}
    made = []
    for label, truth in picture.truth.items():
        overlap = brush.iou(found.get(label, np.zeros_like(truth)), truth)
        score = scores.get(label)
        if score is None:
            score = prediction["score"] if label in found else 0.0
        made.append(Row(prediction["task"], label, overlap, float(score), seconds))
    return made


def table(made: Sequence[Row]) -> str:
    """The rows as lines of text, with the mean of each label below."""
    width = max(len(row.label) for row in made)
    lines = [f"{'task':>5}  {'label':<{width}}  {'IoU':>5}  {'score':>5}  {'seconds':>7}"]
    lines += [f"{r.task:>5}  {r.label:<{width}}  {r.iou:5.2f}  {r.score:5.2f}  {r.seconds:7.1f}" for r in made]
    for label in dict.fromkeys(row.label for row in made):
        mean = np.mean([row.iou for row in made if row.label == label])
        lines.append(f"{'mean':>5}  {label:<{width}}  {mean:5.2f}")
    return "\n".join(lines)


def contact_sheet(
    reference: Picture,
    targets: Sequence[tuple[Picture, Mapping[str, NDArray[np.bool_]], str]],
    colours: Mapping[str, str],
) -> Image.Image:
    """Columns reference | target | mask | truth, a row for each target: picture, predicted masks, caption."""
    head, gap = 46, 6
    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (4 * (CELL + gap) + gap, head + len(targets) * (CELL + 24)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("reference", "target", "mask", "ground truth")):
        draw.text((gap + column * (CELL + gap), 26), title, "black", font)
    legend = gap
    for label, colour in colours.items():
        draw.rectangle((legend, 8, legend + 10, 18), fill=colour)
        draw.text((legend + 15, 6), label, "black", font)
        legend += int(draw.textlength(label, font)) + 36
    for index, (picture, masks, caption) in enumerate(targets):
        top = head + index * (CELL + 24)
        views = (
            painted(reference.image, reference.truth, colours),
            picture.image,
            painted(picture.image, masks, colours),
            painted(picture.image, picture.truth, colours),
        )
        for column, view in enumerate(views):
            sheet.paste(Image.fromarray(view).resize((CELL, CELL)), (gap + column * (CELL + gap), top))
        draw.text((gap + CELL + gap, top + CELL + 3), caption, "black", font)
    return sheet


def painted(
    image: NDArray[np.uint8], masks: Mapping[str, NDArray[np.bool_]], colours: Mapping[str, str]
) -> NDArray[np.uint8]:
    """The image with each mask laid over it half transparent, in its label's colour."""
    out = image.astype(np.float64)
    for label, mask in masks.items():
        out[mask] = 0.35 * out[mask] + 0.65 * np.array(ImageColor.getrgb(colours[label]))
    return out.round().astype(np.uint8)
