from __future__ import annotations

from typing import Any

import pytest

from backend.label_config import parse_label_config
from backend.references import choose_first, examine
from tests.unit.backend.fake_label_studio import CONFIG, brush

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
    assert [region["labels"] for region in candidate.regions] == [["cat"]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"was_cancelled": True}, "skipped"),
        ({"parent_prediction": 7}, "made from a prediction"),
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
    assert [region["labels"] for region in candidate.regions] == [["cat"], ["dog"]]


def test_first_is_by_time_then_number_and_skips_the_unusable():
    annotations = [
        annotation(5, created_at="2026-01-01T00:00:00.500000Z"),
        annotation(4, created_at="2026-01-01T00:00:00Z"),  # earlier than the fraction, though "Z" sorts after "."
        annotation(3, created_at="2026-01-01T00:00:00Z", was_cancelled=True),
        annotation(2, created_at="2026-01-01T01:00:00+02:00", parent_prediction=1),
        annotation(6, created_at="2026-01-01T00:00:00Z"),
    ]
    chosen = choose_first(examine(a, LABELS) for a in annotations)
    assert chosen is not None
    assert chosen.annotation == 4
    assert choose_first([examine(annotations[2], LABELS)]) is None


def test_offsets_of_time_zones_are_respected():
    early = annotation(9, created_at="2026-01-01T01:30:00+02:00")
    late = annotation(8, created_at="2026-01-01T00:00:00Z")
    chosen = choose_first(examine(a, LABELS) for a in (late, early))
    assert chosen is not None
    assert chosen.annotation == 9


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
    assert (region["kind"], region["labels_name"], region["labels"]) == ("brush", "l", ["cat"])
    candidate = examine(annotation(result=result[:1]), MIXED)
    assert "brush region has no label" in candidate.reason


@pytest.mark.parametrize(
    ("result", "field"),
    [
        (shape("polygonlabels", "p", **POINTS, polygonlabels=["cat"]), "points"),
        (shape("rectanglelabels", "r", x=1, y=2, width=3, height=4, rectanglelabels=["cat"]), "rotation"),
        (shape("bitmasklabels", "m", imageDataURL="data:image/png;base64,", bitmasklabels=["cat"]), "imageDataURL"),
    ],
)
def test_every_shape_is_reduced_to_what_its_mask_depends_on(result: dict[str, Any], field: str):
    (region,) = examine(annotation(result=[result]), MIXED).regions
    assert field in region
    assert region["labels"] == ["cat"]


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
