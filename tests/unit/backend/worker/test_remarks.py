"""What a result's remarks say, and of what they say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label as components

from backend.worker.remarks import count_parts, most_parts, remarks_on
from cavsam.types import TargetResult


def dots(number: int, size: int = 40) -> np.ndarray:
    """So many single pixels, none touching another, in rows of ten."""
    mask = np.zeros((size, size), bool)
    for index in range(number):
        mask[2 * (index // 10), 2 * (index % 10)] = True
    return mask


def result(masks: dict[str, np.ndarray], scores: dict[str, float] | None = None, **fields: object) -> TargetResult:
    return TargetResult(0, (40, 40), masks, scores or dict.fromkeys(masks, 0.9), **fields)  # type: ignore[arg-type]


def test_a_result_as_the_reference_would_have_it_has_none():
    assert remarks_on(result({"cat": dots(1), "dog": dots(3)}), {"cat": 1, "dog": 2}) == []


def test_a_label_that_was_not_found_is_named_with_the_bound_that_held_it_back():
    found = result({"cat": dots(1)}, {"cat": 0.9, "dog": 0.0, "fox": 0.1}, held_back={"fox": "score 0.1 < 0.2"})
    assert remarks_on(found, {"cat": 1, "dog": 1, "fox": 1}) == [
        "'dog' was not found.",
        "'fox' was not found: score 0.1 < 0.2.",
    ]


def test_an_empty_mask_is_a_label_that_was_not_found():
    assert remarks_on(result({"cat": np.zeros((40, 40), bool)}), {"cat": 1}) == ["'cat' was not found."]


@pytest.mark.parametrize(("share", "said"), [(0.01, False), (0.3, True)])
def test_labels_that_claim_each_others_pixels_are_named_if_it_is_more_than_a_seam(share: float, said: bool):
    remarks = remarks_on(result({"cat": dots(1), "dog": dots(1)}, contested={("cat", "dog"): share}), {})
    assert bool(remarks) is said
    assert all("'cat'" in one and "'dog'" in one and f"{share:.0%}" in one for one in remarks)


@pytest.mark.parametrize(
    ("found", "known", "said"), [(40, 1, True), (5, 1, False), (60, 30, False), (200, 2, True), (40, 0, False)]
)
def test_a_mask_in_far_more_parts_than_the_reference_is_named(found: int, known: int, said: bool):
    remarks = remarks_on(result({"cat": dots(found)}), {"cat": known})
    assert bool(remarks) is said
    assert all(f"{found} parts" in one and str(known) in one for one in remarks)


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_those_of_another_library(seed: int):
    mask = np.random.default_rng(seed).random((50, 70)) < 0.3
    assert count_parts(mask) == components(mask, connectivity=2).max()


def test_the_reference_with_the_most_parts_of_a_label_counts():
    assert most_parts([{"cat": dots(2), "dog": dots(1)}, {"cat": dots(7)}]) == {"cat": 7, "dog": 1}
