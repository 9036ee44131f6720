"""The formats that results are exported in: COCO, YOLO segmentation, index PNG and Label Studio's own tasks.

A writer takes the results one by one and yields what it wrote of each; docs/export.md describes the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from backend.errors import UnusableRegion
from backend.labelstudio.shapes import mask_to_polygons

BoolMask = NDArray[np.bool_]

MOST_LABELS = 255
"""Labels that one byte per pixel can tell apart, beside 0 for the background."""


@dataclass(frozen=True)
class ExportedObject:
    """One region: its label, its mask bool (H, W), and its score 0..1 if it was predicted."""

    label: str
    mask: BoolMask
    score: float | None = None


@dataclass(frozen=True)
class Picture:
    """One image of a task with its objects; `file` is its name, unique in the export also without its ending."""

    file: str
    address: str
    size: tuple[int, int]
    objects: tuple[ExportedObject, ...]

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return Path(self.file).stem


@dataclass
class ExportedTask:
    """What was written of one task, as the export's index has it.

    Attributes:
        task: its number in Label Studio.
        source: `prediction` or `annotation`.
        version: of the prediction.
        score: of the prediction, 0..1.
        objects: how many regions were written.
        files: those that belong to this task alone, relative to the export's folder.
        warnings: what the format could not say, in plain sentences.
        error: why nothing of the task was written.
    """

    task: int
    source: str
    version: str | None = None
    score: float | None = None
    objects: int = 0
    files: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None


class Result(Protocol):
    """One task's result as a writer takes it."""

    @property
    def exported(self) -> ExportedTask:
        """What is to be said of the task; the writer fills it in."""

    def pictures(self) -> list[Picture]:
        """Draw its images' masks; images without a region are left out, as their size is not known.

        Raises:
            UnusableRegion: a region is damaged.
        """

    def labelled_task(self) -> dict[str, Any]:
        """The task as Label Studio imports it."""


Writer = Callable[[Path, Iterable[Result], list[str]], Iterator[ExportedTask]]


def write_coco(folder: Path, results: Iterable[Result], labels: list[str]) -> Iterator[ExportedTask]:
    """Write `annotations.json`, and `results.json` with the scored ones as COCO's evaluation takes them."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for result in results:
        exported = result.exported
        for picture in _drawn(result):
            height, width = picture.size
            image = {"id": len(images) + 1, "file_name": picture.file, "width": width, "height": height}
            images.append(image | {"task": exported.task, "address": picture.address})
            for found in picture.objects:
                rows, columns = np.flatnonzero(found.mask.any(1)), np.flatnonzero(found.mask.any(0))
                box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": _number(found.label, labels) + 1,
                    "segmentation": {"size": [height, width], "counts": coco_counts(found.mask)},
                    "area": int(found.mask.sum()),
                    "bbox": [int(side) for side in box],
                    "iscrowd": 0,
                }
                annotations.append(annotation if found.score is None else annotation | {"score": found.score})
            exported.objects += len(picture.objects)
        yield exported
    categories = [{"id": number, "name": label} for number, label in enumerate(labels, 1)]
    _write_json(folder / "annotations.json", {"images": images, "categories": categories, "annotations": annotations})
    fields = ("image_id", "category_id", "segmentation", "bbox", "score")
    scored = [{name: annotation[name] for name in fields} for annotation in annotations if "score" in annotation]
    if scored:
        _write_json(folder / "results.json", scored)


def write_yolo(folder: Path, results: Iterable[Result], labels: list[str]) -> Iterator[ExportedTask]:
    """Write `labels/<image>.txt` with a line for each connected part of a mask, and `data.yaml`."""
    (folder / "labels").mkdir()
    for result in results:
        exported = result.exported
        for picture in _drawn(result):
            lines = []
            for found in picture.objects:
                outlines, holes = mask_to_polygons(found.mask)
                if holes:
                    exported.warnings.append(f"{holes} holes of {found.label!r} are filled: YOLO's polygons have none.")
                for outline in outlines:
                    points = " ".join(f"{float(side) / 100:.6f}" for point in outline.points for side in point)
                    lines.append(f"{_number(found.label, labels)} {points}\n")
            file = f"labels/{picture.stem}.txt"
            (folder / file).write_text("".join(lines), encoding="utf-8")
            exported.files.append(file)
            exported.objects += len(picture.objects)
        yield exported
    data = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(labels))}
    (folder / "data.yaml").write_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), encoding="utf-8")


def write_png(folder: Path, results: Iterable[Result], labels: list[str]) -> Iterator[ExportedTask]:
    """Write `masks/<image>.png`, each pixel the number of its label, 0 for the background, and `labels.json`."""
    (folder / "masks").mkdir()
    colours = palette()
    for result in results:
        exported = result.exported
        for picture in _drawn(result):
            index = np.zeros(picture.size, np.uint8)
            contested = 0
            # the larger first: of two that overlap, the smaller is seen whole
            for found in sorted(picture.objects, key=lambda one: int(one.mask.sum()), reverse=True):
                number = _number(found.label, labels) + 1
                if number > MOST_LABELS:
                    exported.error = f"An index PNG holds {MOST_LABELS} labels at most; export another format."
                    break
                contested += int(((index != 0) & (index != number) & found.mask).sum())
                index[found.mask] = number
            if exported.error:
                break
            if contested:
                exported.warnings.append(f"{contested} pixels have several labels; that of the smallest region stands.")
            image = Image.fromarray(index)
            image.putpalette(colours)
            file = f"masks/{picture.stem}.png"
            image.save(folder / file)
            exported.files.append(file)
            exported.objects += len(picture.objects)
        yield exported
    numbered = [
        {"value": number, "label": label, "colour": "#" + bytes(colours[3 * number : 3 * number + 3]).hex()}
        for number, label in enumerate(labels[:MOST_LABELS], 1)
    ]
    _write_json(folder / "labels.json", numbered)


def write_label_studio(folder: Path, results: Iterable[Result], labels: list[str]) -> Iterator[ExportedTask]:
    """Write `tasks.json`, a list of tasks with their regions that Label Studio imports."""
    with (folder / "tasks.json").open("w", encoding="utf-8") as file:
        before = "["
        for result in results:
            exported = result.exported
            if exported.error is None:
                task = result.labelled_task()
                given = (task.get("annotations") or task["predictions"])[0]
                exported.objects = len({region.get("id") for region in given["result"] if isinstance(region, Mapping)})
                file.write(before + "\n" + json.dumps(task, ensure_ascii=False))
                before = ","
            yield exported
        file.write("\n]\n" if before == "," else "[]\n")


FORMATS: Mapping[str, Writer] = {
    "coco": write_coco,
    "yolo-seg": write_yolo,
    "png": write_png,
    "label-studio": write_label_studio,
}


def coco_counts(mask: BoolMask) -> str:
    """Write a mask of shape (H, W) as COCO's compressed run-length code.

    Runs go down the columns and begin with one outside, which may be empty. From the fourth on, a run is written as its
    difference to the one two before; each number in digits of five bits, the lowest first, a sixth bit saying that more
    follow.
    """
    flat = mask.ravel(order="F")
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = [0, 0] if flat[0] else [0]
    runs = np.diff(np.concatenate([starts, borders, [flat.size]]))
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    digits: list[NDArray[np.int64]] = []
    written: list[NDArray[np.bool_]] = []
    rest, open_ = numbers, np.ones(len(numbers), bool)
    while open_.any():
        digit, rest = rest & 31, rest >> 5
        # the highest bit of the last digit is the number's sign
        more = np.where(digit & 16, rest != -1, rest != 0)
        digits.append((digit | more << 5) + 48)
        written.append(open_)
        open_ = open_ & more
    return np.stack(digits, 1)[np.stack(written, 1)].astype(np.uint8).tobytes().decode()


def palette() -> list[int]:
    """The colours of an index PNG, 256 times red, green and blue: black, then as different as may be in this order."""
    colours = []
    for number in range(256):
        channels, bits = [0, 0, 0], number
        for place in range(7, -1, -1):  # the bits in turn to red, green and blue, the lowest weighing most
            for channel in range(3):
                channels[channel] |= (bits >> channel & 1) << place
            bits >>= 3
        colours += channels
    return colours


def _drawn(result: Result) -> list[Picture]:
    """A result's pictures; if they cannot be drawn, none, and the result says why."""
    if result.exported.error is None:
        try:
            return result.pictures()
        except UnusableRegion as error:
            result.exported.error = str(error)
    return []


def _number(label: str, labels: list[str]) -> int:
    """The place of a label in the list; labels that only tasks know are added."""
    if label not in labels:
        labels.append(label)
    return labels.index(label)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
