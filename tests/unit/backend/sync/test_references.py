from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.masks import reference_masks
from backend.labelstudio.regions import Bitmask, Polygon, Rectangle, Shape
from backend.sync.references import examine, needs_prediction
from tests.support.fake_label_studio import CONFIG, brush

BOX = (1, 5, 1, 5)
LABELS = parse_label_config(CONFIG)


def annotation(number: int = 1, **changes: Any) -> dict[str, Any]:
    usual = {
        "id": number,
        "task": 10 + number,
        "created_at": "2026-01-01T00:00:00Z",
        "was_cancelled": False,
        "parent_prediction": None,
        "result": [brush(BOX, "cat")],
    }
    return usual | changes


def test_a_drawn_mask_is_usable():
    candidate = examine(annotation(), LABELS)
    assert candidate.usable
    assert (candidate.annotation, candidate.task) == (1, 11)
    assert [region.labels for region in candidate.regions] == [("cat",)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"was_cancelled": True}, "skipped"),
        ({"parent_prediction": 7}, "a prediction that is not there any more"),
        ({"result": [brush(BOX, "cat", origin="prediction")]}, "a prediction's"),
        ({"result": []}, "no region that gives a mask"),
        ({"result": None}, "no region that gives a mask"),
        ({"result": [{"type": "choices", "value": {"choices": ["a"]}}]}, "no region that gives a mask"),
        ({"result": [brush(BOX, "horse")]}, "label horse is not in the configuration"),
        ({"result": [brush(BOX, "cat", from_name="old")]}, "'old' on 'image'"),
        ({"result": [brush(BOX, "cat", image_rotation=90)]}, "rotated"),
        ({"result": [brush(BOX, "cat", value={"format": "rle", "brushlabels": ["cat"]})]}, "incomplete"),
        ({"result": [brush(BOX, "cat", original_width=None)]}, "size of the image"),
    ],
)
def test_says_why_an_annotation_cannot_be_the_reference(changes: dict[str, Any], words: str):
    candidate = examine(annotation(**changes), LABELS)
    assert not candidate.usable
    assert words in candidate.reason


def test_a_good_region_beside_bad_ones_suffices():
    result = [brush(BOX, "horse"), brush(BOX, "cat"), {"type": "textarea"}, brush(BOX, "dog", origin="prediction")]
    candidate = examine(annotation(result=result), LABELS)
    assert [region.labels for region in candidate.regions] == [("cat",), ("dog",)]


def test_key_follows_the_masks_and_nothing_else():
    key = examine(annotation(), LABELS).key
    assert len(key) == 8
    assert int(key, 16) >= 0
    assert examine(annotation(updated_at="later", lead_time=5), LABELS).key == key
    assert examine(annotation(result=[brush((1, 6, 1, 5), "cat")]), LABELS).key != key
    assert examine(annotation(result=[brush(BOX, "dog")]), LABELS).key != key
    assert examine(annotation(2), LABELS).key != key


MIXED = parse_label_config(
    """<View><Image name="image" value="$x"/><Brush name="b" toName="image"/>
    <PolygonLabels name="p" toName="image"><Label value="cat"/></PolygonLabels>
    <RectangleLabels name="r" toName="image"><Label value="cat"/></RectangleLabels>
    <BitmaskLabels name="m" toName="image"><Label value="cat"/></BitmaskLabels>
    <Labels name="l" toName="image"><Label value="cat"/></Labels></View>"""
)
COMMON = {"to_name": "image", "original_width": 96, "original_height": 64, "image_rotation": 0}
RLE = {"format": "rle", "rle": [1, 2, 3]}
POINTS = {"points": [[1, 1], [5, 1], [5, 5]]}


def shape(kind: str, from_name: str, **value: Any) -> dict[str, Any]:
    return COMMON | {"id": "one", "type": kind, "from_name": from_name, "value": value}


def test_two_results_of_one_id_are_one_region():
    result = [shape("brush", "b", **RLE), shape("labels", "l", **RLE, labels=["cat"])]
    (region,) = examine(annotation(result=result), MIXED).regions
    assert (region.kind, region.labels_name, region.labels) == ("brush", "l", ("cat",))
    candidate = examine(annotation(result=result[:1]), MIXED)
    assert "brush region has no label" in candidate.reason


@pytest.mark.parametrize(
    ("result", "drawn"),
    [
        (shape("polygonlabels", "p", **POINTS, polygonlabels=["cat"]), Polygon(((1, 1), (5, 1), (5, 5)))),
        (shape("rectanglelabels", "r", x=1, y=2, width=3, height=4, rectanglelabels=["cat"]), Rectangle(1, 2, 3, 4, 0)),
        (shape("bitmasklabels", "m", imageDataURL="data:,", bitmasklabels=["cat"]), Bitmask("data:,")),
    ],
)
def test_every_shape_is_reduced_to_what_its_mask_depends_on(result: dict[str, Any], drawn: Shape):
    (region,) = examine(annotation(result=[result]), MIXED).regions
    assert region.shape == drawn
    assert region.labels == ("cat",)
    assert region.size == (64, 96)


@pytest.mark.parametrize(
    "result",
    [
        shape("polygonlabels", "p", points=[[1, 1], [2, 2]], polygonlabels=["cat"]),
        shape("rectanglelabels", "r", x=1, y="2", width=3, height=4, rectanglelabels=["cat"]),
        shape("bitmasklabels", "m", bitmasklabels=["cat"]),
        shape("polygonlabels", "p", polygonlabels=["cat"]) | {"value": None},
        shape("polygonlabels", "r", **POINTS, polygonlabels=["cat"]),
        shape("polygonlabels", "p", **POINTS, polygonlabels=None),
    ],
)
def test_incomplete_shapes_are_no_reference(result: dict[str, Any]):
    assert examine(annotation(result=[result]), MIXED).reason


OTHER_BOX = (20, 30, 20, 30)


def predicted(*regions: dict[str, Any]) -> list[dict[str, Any]]:
    return [region | {"origin": "prediction", "score": 0.5} for region in regions]


FORESEEN = predicted(brush(BOX, "cat"), brush(OTHER_BOX, "dog"))
ENCODED_ANEW = brush((1, 6, 1, 5), "cat", origin="prediction")  # the editor writes what it drew, not what it was given


@pytest.mark.parametrize(
    ("result", "changed"),
    [
        (FORESEEN, False),
        (FORESEEN[::-1], False),
        ([ENCODED_ANEW, FORESEEN[1]], False),
        ([brush(BOX, "cat", origin=None), brush(OTHER_BOX, "dog", origin=None)], False),  # copied by a script
        ([*FORESEEN, {"type": "choices", "value": {"choices": ["a"]}}], False),
        (FORESEEN[:1], True),  # one was wrong and was removed
        ([FORESEEN[0], brush((1, 6, 1, 5), "dog", origin="prediction-changed")], True),
        ([*FORESEEN, brush((40, 50, 1, 9), "cat")], True),  # one was missed and was added
        ([FORESEEN[0], brush(OTHER_BOX, "cat", origin="prediction")], True),  # one was given another label
        ([brush((2, 9, 2, 9), "cat"), brush(OTHER_BOX, "dog")], True),  # drawn anew by hand
    ],
)
def test_what_a_person_corrected_may_teach_and_what_was_accepted_may_not(result: list[dict], changed: bool):
    made = annotation(result=result, parent_prediction=7)
    candidate = examine(made, LABELS, FORESEEN)
    assert candidate.usable == changed, candidate.reason
    assert changed or "accepted unchanged" in candidate.reason


def test_the_prediction_is_asked_for_only_where_it_decides():
    assert needs_prediction(annotation(result=FORESEEN, parent_prediction=7))
    edited = brush(BOX, "cat", origin="prediction-changed")
    assert not needs_prediction(annotation(result=[edited], parent_prediction=7))
    assert not needs_prediction(annotation(result=FORESEEN, parent_prediction=7, was_cancelled=True))
    assert not needs_prediction(annotation())
    # Label Studio forgets the parent when the prediction is deleted
    assert examine(annotation(result=[edited, FORESEEN[1]]), LABELS).usable
    assert not examine(annotation(result=FORESEEN), LABELS).usable
    one_removed = FORESEEN[:1]
    judged = examine(annotation(result=one_removed, parent_prediction=7), LABELS, FORESEEN)
    assert judged.usable
    assert examine(annotation(result=one_removed), LABELS, None, judged.key) == judged
    assert not examine(annotation(result=FORESEEN[1:]), LABELS, None, judged.key).usable


def test_labels_and_the_star_are_noted():
    candidate = examine(annotation(result=[brush(BOX, "cat"), brush(BOX, "horse")], ground_truth=True), LABELS)
    assert candidate.labels == {("tag", "image", "cat")}
    assert candidate.ground_truth


HINTS = parse_label_config(
    """<View><Image name="image" value="$image"/>
    <BrushLabels name="tag" toName="image"><Label value="cat"/></BrushLabels>
    <EllipseLabels name="ellipse" toName="image"><Label value="cat"/><Label value="fox"/></EllipseLabels>
    <RectangleLabels name="box" toName="image" smart="true"><Label value="cat"/></RectangleLabels></View>"""
)


def drawn_with(kind: str, name: str, label: str, **value: Any) -> dict[str, Any]:
    size = {"original_width": 96, "original_height": 64, "image_rotation": 0}
    named = {"id": name, "from_name": name, "to_name": "image", "type": kind}
    return named | size | {"value": value | {kind: [label]}}


def test_an_ellipse_teaches_what_a_mask_tag_will_say():
    drawn = drawn_with("ellipselabels", "ellipse", "cat", x=50, y=50, radiusX=20, radiusY=10, rotation=0)
    (region,) = examine(annotation(result=[drawn]), HINTS).regions
    assert (region.from_name, region.kind, region.labels) == ("tag", "brushlabels", ("cat",))
    (mask,) = reference_masks([region], "image", (64, 96)).values()
    assert abs(mask.sum() - np.pi * 0.2 * 96 * 0.1 * 64) < 12


def test_an_ellipse_whose_label_no_mask_tag_has_is_no_reference():
    drawn = drawn_with("ellipselabels", "ellipse", "fox", x=50, y=50, radiusX=20, radiusY=10)
    assert "no mask tag on 'image' has the label" in examine(annotation(result=[drawn]), HINTS).reason


def test_clicks_that_were_left_behind_are_no_masks():
    left = drawn_with("rectanglelabels", "box", "cat", x=10, y=10, width=20, height=20)
    assert "no region that gives a mask" in examine(annotation(result=[left]), HINTS).reason
    assert len(examine(annotation(result=[left, brush(BOX, "cat")]), HINTS).regions) == 1
