from __future__ import annotations

import json
from typing import Any

import pytest

from backend.errors import UnusableRegion
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.regions import (
    Bitmask,
    Brush,
    Ellipse,
    Polygon,
    Rectangle,
    Region,
    Shape,
    read_regions,
    write_region,
)

MIXED = parse_label_config("""<View><Image name="image" value="$x"/>
<BrushLabels name="brushlabels" toName="image"><Label value="dog"/></BrushLabels>
<BitmaskLabels name="bitmasklabels" toName="image"><Label value="dog"/></BitmaskLabels>
<PolygonLabels name="polygonlabels" toName="image"><Label value="dog"/></PolygonLabels>
<RectangleLabels name="rectanglelabels" toName="image"><Label value="dog"/></RectangleLabels>
<Brush name="brush" toName="image"/><Bitmask name="bitmask" toName="image"/><Polygon name="polygon" toName="image"/>
<Rectangle name="rectangle" toName="image"/><Labels name="labels" toName="image"><Label value="dog"/></Labels>
</View>""")

SHAPES: dict[str, Shape] = {
    "brush": Brush(bytes([0, 0, 1, 255, 7])),
    "bitmask": Bitmask("data:image/png;base64,AAAA"),
    "polygon": Polygon(((1, 2.5), (30.25, 4), (5, 60))),
    "rectangle": Rectangle(1.5, 2, 30, 40.25, 15),
}


def a_region(shape: Shape, kind: str, labels_name: str | None = None) -> Region:
    return Region(kind, "image", ("dog",), (64, 96), shape, kind, labels_name)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("split", [False, True])
def test_a_region_that_was_written_is_read_as_it_was(name: str, split: bool):
    region = a_region(SHAPES[name], name if split else f"{name}labels", "labels" if split else None)
    results = write_region(region, 0, 0.5)
    assert len(results) == (2 if split else 1)
    assert read_regions(json.loads(json.dumps(results)), MIXED) == ([region], [])


@pytest.mark.parametrize("shape", [*SHAPES.values(), Ellipse(50, 50, 20, 10.5, 30)])
def test_a_region_survives_the_store(shape: Shape):
    region = a_region(shape, "brushlabels")
    assert Region.from_json(json.loads(json.dumps(region.to_json()))) == region


def test_what_the_store_held_before_regions_were_values_is_still_read():
    held = {
        "from_name": "tag",
        "to_name": "image",
        "kind": "brushlabels",
        "labels_name": None,
        "labels": ["cat", "dog"],
        "original_width": 96,
        "original_height": 64,
        "rle": [0, 0, 1, 2],
    }
    region = Region.from_json(held)
    assert region == Region("tag", "image", ("cat", "dog"), (64, 96), Brush(bytes([0, 0, 1, 2])))
    assert region.to_json() == held


@pytest.mark.parametrize(
    "damage",
    [
        {"original_width": 0},
        {"original_width": True},
        {"original_height": "64"},
        {"original_width": 60_000, "original_height": 50_000},
        {"x": None},
        {"x": "1"},
        {"width": float("nan")},
        {"rotation": float("inf")},
        {"height": 10**400},
    ],
)
def test_sizes_and_coordinates_are_checked_before_anything_is_drawn(damage: dict[str, Any]):
    held = a_region(SHAPES["rectangle"], "rectanglelabels").to_json()
    assert Region.from_json(held)
    with pytest.raises(UnusableRegion):
        Region.from_json(held | damage)


def test_an_image_larger_than_any_that_is_read_is_refused_where_it_enters():
    (result,) = write_region(a_region(SHAPES["rectangle"], "rectanglelabels"), 0, 0.5)
    regions, reasons = read_regions([result | {"original_width": 60_000, "original_height": 50_000}], MIXED)
    assert regions == []
    assert "60000x50000" in reasons[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("brush", {"rle": [0, 0, 1, 256]}),
        ("brush", {"rle": [0.5] * 9}),
        ("brush", {"rle": "AAAA"}),
        ("polygon", {"points": [[1, 2], [3, 4], [5]]}),
        ("polygon", {"points": [[1, 2], [3, 4], ["5", "6"]]}),
        ("polygon", {"points": [[1, 2], [3, 4], None]}),
        ("bitmask", {"imageDataURL": 7}),
    ],
)
def test_a_malformed_shape_is_refused_where_it_enters(name: str, value: dict[str, Any]):
    (result,) = write_region(a_region(SHAPES[name], f"{name}labels"), 0, 0.5)
    result["value"] |= value
    assert read_regions([result], MIXED) == ([], [f"its {name}labels region is incomplete"])
