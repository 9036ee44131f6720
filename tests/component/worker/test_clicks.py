"""The process that holds SAM2 alone: its jobs, without the process around them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from backend.labelstudio.brush import decode_mask
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.regions import Rectangle, Slot, read_regions
from backend.worker.clicks import ENCODED_KEPT, Clicks, open_sam2
from backend.worker.messages import Answer, CorrectMask, Example, Failed, Result, SegmentTask
from cavsam.recipe import Recipe
from cavsam.weights.sources import ModelSources
from tests.support.fake_label_studio import CONFIG, brush, picture

SLOT = Slot("tag", "image", "cat")
SIZE = (64, 96)
CAT, ELSEWHERE = (8, 40, 20, 60), (30, 60, 5, 35)


def silent(step: str, done: int, total: int) -> None:
    pass


def job(
    path: Path, x: float, y: float, start: list[dict] | None = None, boxes: tuple[Rectangle, ...] = ()
) -> CorrectMask:
    regions, _ = read_regions(start or [], parse_label_config(CONFIG))
    clicks = () if boxes else ((100 * x / SIZE[1], 100 * y / SIZE[0], True),)
    return CorrectMask(str(path), SLOT, tuple(regions), clicks, boxes)


def mask_of(answer: Answer) -> np.ndarray:
    assert isinstance(answer, Result), answer
    (region,) = answer.regions
    return decode_mask(region["value"]["rle"], *SIZE)


def iou(mask: np.ndarray, box: tuple[int, int, int, int]) -> float:
    expected = np.zeros(SIZE, bool)
    expected[box[0] : box[1], box[2] : box[3]] = True
    return float((mask & expected).sum() / (mask | expected).sum())


@pytest.fixture(scope="module")
def clicks() -> Clicks:
    options = {"sources": asdict(ModelSources.named("nano")), "recipe": Recipe().to_dict(), "device": "cpu"}
    return Clicks(open_sam2(options))


def test_an_image_is_encoded_once_while_it_is_among_the_last(clicks: Clicks, tmp_path: Path):
    path = tmp_path / "image"
    path.write_bytes(picture(CAT))
    assert iou(mask_of(clicks.run(job(path, 40, 24), silent)), CAT) > 0.8
    path.write_bytes(picture(ELSEWHERE))  # nobody looks at the file again
    assert iou(mask_of(clicks.run(job(path, 40, 24), silent)), CAT) > 0.8
    for number in range(ENCODED_KEPT):
        other = tmp_path / str(number)
        other.write_bytes(picture(CAT))
        clicks.run(job(other, 40, 24), silent)
    assert iou(mask_of(clicks.run(job(path, 20, 45), silent)), ELSEWHERE) > 0.8


def test_a_turned_box_counts_as_the_upright_one_around_it(clicks: Clicks, tmp_path: Path):
    path = tmp_path / "image"
    path.write_bytes(picture(CAT))
    # turned by 90 degrees around its top left corner, at the object's top right
    turned = Rectangle(100 * 61 / 96, 100 * 7 / 64, 100 * 34 / 96, 100 * 42 / 64, 90.0)
    upright = Rectangle(100 * 19 / 96, 100 * 7 / 64, 100 * 42 / 96, 100 * 34 / 64)
    one, other = (mask_of(clicks.run(job(path, 0, 0, boxes=(box,)), silent)) for box in (turned, upright))
    assert (one == other).all()
    assert iou(one, CAT) > 0.8


def test_a_start_that_was_rubbed_out_is_none_and_one_of_another_picture_is_refused(clicks: Clicks, tmp_path: Path):
    path = tmp_path / "image"
    path.write_bytes(picture(CAT))
    empty = clicks.run(job(path, 40, 24, [brush((0, 0, 0, 0), "cat")]), silent)
    assert iou(mask_of(empty), CAT) > 0.8
    other = clicks.run(job(path, 40, 24, [brush((1, 5, 1, 5), "cat", (30, 40))]), silent)
    assert isinstance(other, Failed)
    assert "40x30 pixels" in other.message


def test_a_file_that_is_no_image_fails_alone(clicks: Clicks, tmp_path: Path):
    (tmp_path / "bad").write_bytes(b"no image")
    assert isinstance(clicks.run(job(tmp_path / "bad", 1, 1), silent), Failed)
    (tmp_path / "good").write_bytes(picture(CAT))
    assert isinstance(clicks.run(job(tmp_path / "good", 40, 24), silent), Result)


def test_without_a_mask_the_quickest_mode_makes_one_from_the_reference(clicks: Clicks, tmp_path: Path):
    reference, target = tmp_path / "reference", tmp_path / "target"
    reference.write_bytes(picture(CAT))
    target.write_bytes(picture((12, 44, 30, 70)))
    regions, _ = read_regions([brush(CAT, "cat")], parse_label_config(CONFIG))
    example = Example(1, tuple(regions), {"image": str(reference)})
    answer = clicks.run(SegmentTask("k", 0, (example,), {"image": str(target)}), silent)
    assert iou(mask_of(answer), (12, 44, 30, 70)) > 0.6
