from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from skimage.draw import polygon2mask

from backend.commands.export_formats import (
    ExportedObject,
    ExportedTask,
    Picture,
    coco_counts,
    palette,
    write_coco,
    write_label_studio,
    write_png,
    write_yolo,
)
from backend.errors import UnusableRegion

SIZE = (40, 60)


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


RING = box(2, 20, 3, 30) & ~box(6, 15, 8, 20)
BAR = box(30, 34, 0, 60)


@dataclass
class Drawn:
    """A task with its masks at hand."""

    exported: ExportedTask
    shown: list[Picture] = field(default_factory=list)
    damage: str = ""

    def pictures(self) -> list[Picture]:
        if self.damage:
            raise UnusableRegion(self.damage)
        return self.shown

    def labelled_task(self) -> dict[str, Any]:
        return {"data": {"image": "/a.png"}, "predictions": [{"result": [{"id": "a"}, {"id": "a"}, {"id": "b"}]}]}


def predicted(task: int, *objects: ExportedObject) -> Drawn:
    picture = Picture(f"{task}.jpg", f"/data/{task}.jpg", SIZE, objects)
    return Drawn(ExportedTask(task, "prediction", "v", 0.5), [picture])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (13, 21), (300, 401)])
def test_coco_s_code_is_that_of_pycocotools(size: tuple[int, int]):
    rng = np.random.default_rng(0)
    masks = [rng.random(size) < share for share in (0, 0.01, 0.5, 0.99, 1)]
    masks += [ndimage.gaussian_filter(rng.standard_normal(size), 3) > level for level in (0, 0.02, 0.1)]
    for mask in masks:
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert coco_counts(mask) == expected["counts"].decode()


def test_coco_keeps_holes_and_scores(tmp_path: Path):
    results = [predicted(7, ExportedObject("ring", RING, 0.9), ExportedObject("bar", BAR, 0.4))]
    (exported,) = write_coco(tmp_path, results, ["bar", "ring"])
    assert exported.objects == 2
    coco = COCO(str(tmp_path / "annotations.json"))
    (image,) = coco.loadImgs(coco.getImgIds())
    assert (image["file_name"], image["height"], image["width"], image["task"]) == ("7.jpg", 40, 60, 7)
    for label, mask, score in (("ring", RING, 0.9), ("bar", BAR, 0.4)):
        (annotation,) = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(catNms=[label])))
        assert (coco.annToMask(annotation) == mask).all()
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert annotation["score"] == score


def test_coco_s_evaluation_takes_the_files(tmp_path: Path):
    for folder, shown, score in (("truth", [RING, BAR], None), ("found", [RING, box(0, 5, 50, 60)], 0.7)):
        (tmp_path / folder).mkdir()
        objects = [ExportedObject("thing", mask, score) for mask in shown]
        list(write_coco(tmp_path / folder, [predicted(1, *objects)], ["thing"]))
    assert not (tmp_path / "truth" / "results.json").exists()  # what nobody scored is no result
    truth = COCO(str(tmp_path / "truth" / "annotations.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "found" / "results.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[8] == 0.5  # one of two was found


def test_yolo_s_polygons_draw_the_mask(tmp_path: Path):
    two = BAR | box(2, 10, 40, 55)
    (exported,) = write_yolo(tmp_path, [predicted(3, ExportedObject("cat", two), ExportedObject("new", RING))], ["cat"])
    assert exported.files == ["labels/3.txt"]
    assert exported.warnings == ["1 holes of 'new' are filled: YOLO's polygons have none."]
    names = yaml.safe_load((tmp_path / "data.yaml").read_text())["names"]
    assert names == {0: "cat", 1: "new"}
    drawn = {name: np.zeros(SIZE, bool) for name in names.values()}
    for line in (tmp_path / "labels" / "3.txt").read_text().splitlines():
        number, *points = line.split()
        x, y = np.array(points, float).reshape(-1, 2).T
        assert 0 <= min(x.min(), y.min()) <= max(x.max(), y.max()) <= 1
        drawn[names[int(number)]] |= polygon2mask(SIZE, np.stack([y * SIZE[0] - 0.5, x * SIZE[1] - 0.5], 1))
    for name, mask in (("cat", two), ("new", box(2, 20, 3, 30))):
        assert (drawn[name] & mask).sum() / (drawn[name] | mask).sum() > 0.9


def test_png_s_index_has_the_labels_and_their_colours(tmp_path: Path):
    inner = box(31, 33, 10, 20)
    objects = [ExportedObject("small", inner), ExportedObject("bar", BAR), ExportedObject("ring", RING)]
    (exported,) = write_png(tmp_path, [predicted(3, *objects)], ["ring", "bar", "small"])
    with Image.open(tmp_path / "masks" / "3.png") as image:
        index = np.asarray(image)
        shown = np.asarray(image.convert("RGB"))
    assert (index == np.select([inner, BAR, RING], [3, 2, 1])).all()
    assert exported.warnings == [f"{inner.sum()} pixels have several labels; that of the smallest region stands."]
    labels = json.loads((tmp_path / "labels.json").read_text())
    assert [(one["value"], one["label"]) for one in labels] == [(1, "ring"), (2, "bar"), (3, "small")]
    for one in labels:
        assert (shown[index == one["value"]] == list(bytes.fromhex(one["colour"][1:]))).all()


def test_no_two_labels_of_a_png_have_one_colour():
    colours = np.array(palette()).reshape(256, 3)
    assert len(np.unique(colours, axis=0)) == 256
    assert colours[0].tolist() == [0, 0, 0]


def test_a_png_of_too_many_labels_is_refused(tmp_path: Path):
    objects = [ExportedObject(f"label {number}", BAR) for number in range(256)]
    (exported,) = write_png(tmp_path, [predicted(1, *objects)], [])
    assert "255 labels at most" in (exported.error or "")
    assert list((tmp_path / "masks").iterdir()) == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_label_studio_s_file_is_a_list(tmp_path: Path, count: int):
    exported = list(write_label_studio(tmp_path, [predicted(number) for number in range(count)], []))
    assert [one.objects for one in exported] == [2] * count
    assert len(json.loads((tmp_path / "tasks.json").read_text())) == count


@pytest.mark.parametrize("write", [write_coco, write_yolo, write_png])
def test_a_task_that_cannot_be_drawn_does_not_end_the_export(tmp_path: Path, write: Any):
    damaged = Drawn(ExportedTask(1, "prediction"), damage="It is damaged.")
    first, second = write(tmp_path, [damaged, predicted(2, ExportedObject("cat", BAR))], ["cat"])
    assert (first.error, first.objects, first.files) == ("It is damaged.", 0, [])
    assert (second.error, second.objects) == (None, 1)
