from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.masks import mask_names, prediction_regions, reference_masks
from backend.labelstudio.regions import Region, Slot
from backend.sync.references import examine
from cavsam.errors import InvalidReference
from tests.support.fake_label_studio import CONFIG, brush

SIZE = (20, 30)


def usable(*regions: dict) -> tuple[Region, ...]:
    annotation = {"id": 1, "task": 1, "created_at": "", "result": list(regions)}
    return examine(annotation, parse_label_config(CONFIG)).regions


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_regions_of_one_label_are_united_and_labels_kept_apart():
    regions = usable(
        brush((0, 5, 0, 5), "cat", SIZE), brush((3, 9, 3, 9), "cat", SIZE), brush((10, 12, 10, 20), "dog", SIZE)
    )
    masks = reference_masks(regions, "image", SIZE)
    cat, dog = Slot("tag", "image", "cat"), Slot("tag", "image", "dog")
    assert set(masks) == {cat, dog}
    assert (masks[cat] == (box(0, 5, 0, 5) | box(3, 9, 3, 9))).all()
    assert (masks[dog] == box(10, 12, 10, 20)).all()


def test_a_region_with_two_labels_teaches_both():
    region = brush((0, 5, 0, 5), "cat", SIZE)
    region["value"]["brushlabels"] = ["cat", "dog"]
    masks = reference_masks(usable(region), "image", SIZE)
    assert {slot.label for slot in masks} == {"cat", "dog"}


def test_empty_and_damaged_regions_are_left_out():
    empty = brush((0, 0, 0, 0), "dog", SIZE)
    damaged = brush((0, 5, 0, 5), "dog", SIZE)
    damaged["value"]["rle"] = damaged["value"]["rle"][:-9]
    masks = reference_masks(usable(empty, damaged, brush((1, 2, 1, 2), "cat", SIZE)), "image", SIZE)
    assert [slot.label for slot in masks] == ["cat"]


def test_nothing_left_is_refused():
    with pytest.raises(InvalidReference, match="empty; draw the object"):
        reference_masks(usable(brush((0, 0, 0, 0), "dog", SIZE)), "image", SIZE)


def test_an_annotation_of_another_size_is_refused():
    regions = usable(brush((0, 5, 0, 5), "cat", SIZE))
    with pytest.raises(InvalidReference, match=r"drawn on an image of 30x20 pixels, but the task's image has 20x30"):
        reference_masks(regions, "image", (30, 20))


def test_labels_shared_by_two_controls_get_names_of_their_own():
    a, b, c = Slot("x", "i", "cell"), Slot("y", "i", "cell"), Slot("x", "i", "wall")
    names = mask_names([a, b, c])
    assert names[c] == "wall"
    assert names[a] != names[b]


MIXED = """<View><Image name="image" value="$x"/>
<BrushLabels name="brushlabels" toName="image"><Label value="dog"/></BrushLabels>
<BitmaskLabels name="bitmasklabels" toName="image"><Label value="dog"/></BitmaskLabels>
<PolygonLabels name="polygonlabels" toName="image"><Label value="dog"/></PolygonLabels>
<RectangleLabels name="rectanglelabels" toName="image"><Label value="dog"/></RectangleLabels>
<Brush name="brush" toName="image"/><Bitmask name="bitmask" toName="image"/><Polygon name="polygon" toName="image"/>
<Rectangle name="rectangle" toName="image"/><Labels name="labels" toName="image"><Label value="dog"/></Labels></View>"""


@pytest.mark.parametrize("shape", ["brush", "bitmask", "polygon", "rectangle"])
@pytest.mark.parametrize("split", [False, True])
def test_a_prediction_reads_back_as_the_mask_it_was(shape: str, split: bool):
    """Two boxes, which every shape can say exactly."""
    mask = box(2, 9, 3, 12) | box(12, 18, 15, 28)
    slot = Slot(shape if split else f"{shape}labels", "image", "dog", shape if split else f"{shape}labels")
    written, notes = prediction_regions(slot._replace(labels_name="labels" if split else None), mask, 0.5)
    assert notes == []
    assert len({region["id"] for region in written}) == (1 if shape in ("brush", "bitmask") else 2)
    assert all((r["original_width"], r["original_height"], r["score"]) == (30, 20, 0.5) for r in written)
    annotation = {"id": 1, "task": 1, "created_at": "", "result": [r | {"origin": "manual"} for r in written]}
    (back,) = reference_masks(examine(annotation, parse_label_config(MIXED)).regions, "image", SIZE).values()
    wrong = back ^ mask
    if shape == "polygon":  # its outline may leave the mask's by a pixel
        assert not (wrong & ndimage.binary_erosion(mask)).any()
        assert not (wrong & ~ndimage.binary_dilation(mask, np.ones((3, 3)))).any()
    else:
        assert not wrong.any()


@pytest.mark.parametrize("shape", ["brush", "bitmask"])
def test_any_mask_reads_back_from_a_brush_or_bitmask(shape: str):
    mask = np.random.default_rng(0).random(SIZE) > 0.5
    slot = Slot(f"{shape}labels", "image", "dog", f"{shape}labels")
    (region,), _ = prediction_regions(slot, mask, 0.5)
    annotation = {"id": 1, "task": 1, "created_at": "", "result": [region | {"origin": "manual"}]}
    (back,) = reference_masks(examine(annotation, parse_label_config(MIXED)).regions, "image", SIZE).values()
    assert (back == mask).all()


def test_filled_holes_are_told():
    mask = box(0, 20, 0, 20) & ~box(5, 12, 5, 12)
    _, notes = prediction_regions(Slot("p", "image", "dog", "polygonlabels"), mask, 0.5)
    assert notes == ["1 holes of 'dog' are filled: a polygon cannot have any."]
