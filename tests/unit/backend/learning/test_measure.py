"""Predictions held against annotations whose overlap is known by counting."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.masks import prediction_regions
from backend.labelstudio.regions import Slot, read_regions
from backend.learning.candidates import KeptCandidate, Place, pack, read_candidates, unpack, write_candidates
from backend.learning.measure import (
    MeasuredLabel,
    Review,
    Verdict,
    annotation_to_measure,
    digest_of,
    measure,
)

TAGS = {"brush": "BrushLabels", "bitmask": "BitmaskLabels", "polygon": "PolygonLabels", "rectangle": "RectangleLabels"}
PLACE = Place("tag", "image", "cat")


def config(tag: str) -> Any:
    labels = '<Label value="cat"/><Label value="dog"/>'
    return parse_label_config(
        f'<View><Image name="image" value="$image"/><{tag} name="tag" toName="image">{labels}</{tag}></View>'
    )


def box(left: int, right: int, size: tuple[int, int] = (60, 90)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[10:30, left:right] = True
    return mask


def regions(mask: np.ndarray, label: str = "cat", shape: str = "brush") -> list[Any]:
    if not mask.any():
        return []
    drawn, _ = prediction_regions(Slot("tag", "image", label, f"{shape}labels"), mask, 0.5)
    return read_regions(drawn, config(TAGS[shape]))[0]


def kept(mask: np.ndarray, kind: str, place: Place = PLACE) -> KeptCandidate:
    return KeptCandidate(place, kind, 0.5, True, 1.0, {"consistency": 0.25}, False, False, 1.5, pack(mask))


EMPTY = np.zeros((60, 90), bool)


@pytest.mark.parametrize("shape", TAGS)
def test_the_iou_of_every_kind_of_region_is_that_of_the_pixels(shape: str):
    ours, theirs = box(20, 60), box(20, 50)
    (label,) = measure(regions(ours, shape=shape), regions(theirs, shape=shape), ())
    # an outline through pixels' middles may gain or lose half a pixel on each side
    assert label.iou == pytest.approx(30 / 40, abs=0.001 if shape in ("brush", "bitmask") else 0.04)
    assert label.verdict == Verdict.CORRECTED


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict", "iou"),
    [
        (box(20, 60), box(20, 60), Verdict.UNCHANGED, 1.0),
        (box(20, 70), box(20, 69), Verdict.UNCHANGED, 0.98),
        (box(20, 40), box(20, 30), Verdict.CORRECTED, 0.5),
        (box(20, 60), box(59, 80), Verdict.REDRAWN, 1 / 60),
        (EMPTY, box(20, 60), Verdict.MISSED, 0.0),
        (box(20, 60), EMPTY, Verdict.REMOVED, 0.0),
        (EMPTY, EMPTY, Verdict.ABSENT, 1.0),
    ],
)
def test_a_verdict_follows_from_the_masks(ours: np.ndarray, theirs: np.ndarray, verdict: Verdict, iou: float):
    (label,) = measure(regions(ours), regions(theirs), [kept(ours, "concat")])
    assert (label.verdict, label.iou) == (verdict, pytest.approx(iou))


def test_each_candidate_is_measured_on_the_square_that_the_model_sees():
    ours, theirs = box(20, 60), box(20, 50)
    (label,) = measure(regions(ours), regions(theirs), [kept(ours, "concat"), kept(theirs, "full"), kept(EMPTY, "x")])
    assert [one.iou for one in label.candidates] == [pytest.approx(0.75, abs=0.02), pytest.approx(1, abs=0.02), 0.0]
    assert [one.found for one in label.candidates] == [True, True, False]


def test_labels_that_the_reference_does_not_show_are_nobodys_fault():
    drawn = [*regions(box(20, 60)), *regions(box(70, 80), "dog")]
    assert [one.place.label for one in measure(regions(box(20, 60)), drawn, [kept(box(20, 60), "concat")])] == ["cat"]
    # without candidates nobody knows what was looked for
    assert [one.place.label for one in measure(regions(box(20, 60)), drawn, ())] == ["cat", "dog"]


def test_a_damaged_region_counts_as_nothing_drawn():
    damaged = {
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "original_width": 90,
        "original_height": 60,
        "value": {"format": "rle", "rle": [1, 2, 3], "brushlabels": ["cat"]},
    }
    drawn, _ = read_regions([damaged], config("BrushLabels"))
    (label,) = measure(regions(box(20, 60)), drawn, ())
    assert label.verdict == Verdict.REMOVED


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (60, 90), (256, 256), (1024, 700)])
def test_a_kept_mask_comes_back_as_a_square_of_at_most_256(size: tuple[int, int]):
    mask = np.random.default_rng(1).random(size) < 0.5
    back = unpack(pack(mask))
    side = min(256, max(size))
    assert back.shape == (side, side)
    if size == (256, 256):
        assert (back == mask).all()


def test_candidates_come_back_from_the_store_as_they_went():
    candidates = (kept(box(20, 60), "concat"), kept(EMPTY, "full", Place("tag", "second", "Hündin")))
    assert read_candidates(write_candidates(candidates)) == candidates


def review(*verdicts: Verdict) -> Review:
    labels = tuple(MeasuredLabel(PLACE, verdict, 0.5) for verdict in verdicts)
    return Review(1, "v", "d", 0.5, "", 1.0, labels)


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ((Verdict.UNCHANGED, Verdict.ABSENT), "unchanged"),
        ((Verdict.UNCHANGED, Verdict.REDRAWN), "corrected"),
        ((Verdict.CORRECTED,), "corrected"),
        ((Verdict.REMOVED, Verdict.MISSED), "rejected"),
    ],
)
def test_a_task_is_rejected_if_nothing_of_its_prediction_was_kept(verdicts: tuple[Verdict, ...], whole: str):
    assert review(*verdicts).verdict == whole


def test_the_annotation_that_counts_is_the_ground_truth_or_the_latest():
    first, second, cancelled = {"id": 4}, {"id": 9}, {"id": 12, "was_cancelled": True}
    assert annotation_to_measure([first, second, cancelled]) == second
    star = first | {"ground_truth": True}
    assert annotation_to_measure([star, second]) == star
    assert annotation_to_measure([cancelled]) is None


def test_the_digest_changes_with_what_is_drawn_only():
    one = {"id": 4, "result": [{"id": "a"}], "updated_at": "monday"}
    assert digest_of(one) == digest_of(one | {"updated_at": "tuesday"})
    assert digest_of(one) != digest_of(one | {"result": []})


def test_a_measured_label_survives_json():
    (label,) = measure(regions(box(20, 60)), regions(box(20, 50)), [kept(box(20, 60), "concat")])
    assert MeasuredLabel.from_json(json.loads(json.dumps(label.to_json()))) == label
