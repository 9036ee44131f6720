from __future__ import annotations

import numpy as np
import pytest

from backend.label_config import parse_label_config
from backend.references import examine
from backend.regions import Slot, mask_names, prediction_region, reference_masks
from cavsam.errors import InvalidReference
from tests.unit.backend.fake_label_studio import CONFIG, brush

SIZE = (20, 30)


def usable(*regions: dict) -> list[dict]:
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


def test_a_prediction_reads_back_as_the_mask_it_was():
    mask = np.random.default_rng(0).random(SIZE) > 0.5
    region = prediction_region(Slot("tag", "image", "dog"), mask, 0.5)
    assert (region["original_width"], region["original_height"]) == (30, 20)
    region["origin"] = "manual"
    (back,) = reference_masks(usable(region), "image", SIZE).values()
    assert (back == mask).all()
