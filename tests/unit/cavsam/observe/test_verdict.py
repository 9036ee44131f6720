"""What the page of `cavsam explain` says first."""

from __future__ import annotations

import numpy as np
import pytest

from cavsam.images import Mask
from cavsam.observe.explain.verdict import WAYS, verdict
from cavsam.types import CandidateMask, TargetResult

MASK = np.ones((4, 4), dtype=bool)


def result(
    kind: str = "concat", *, found: bool = True, calibrated: bool = True, presence: float = 0.9, **cues: float
) -> TargetResult:
    mask = MASK if found else ~MASK
    tried = (CandidateMask(kind, mask, 0.8, presence, cues, True), CandidateMask("linear", ~MASK, 0.1, 0.2, {}, False))
    masks: dict[str, Mask] = {"cat": MASK} if found else {}
    return TargetResult(
        0, (4, 4), masks, {"cat": 0.83 if found else 0.0}, calibrated=calibrated, candidates={"cat": tried}
    )


def test_a_good_mask_is_spoken_for() -> None:
    said = verdict("cat", result(consistency=0.91, palette=0.8), None)
    assert said == (
        "found by tracking from the reference; backward tracking finds the reference again (IoU 91%); "
        "colours agree (80% shared). Estimated IoU 0.83."
    )


@pytest.mark.parametrize(("value", "words"), [(0.69, "in part"), (0.1, "misses")])
def test_a_cue_that_is_poor_is_called_so(value: float, words: str) -> None:
    assert words in verdict("cat", result(consistency=value), None)


def test_doubts_and_scores_that_are_an_order_are_told() -> None:
    said = verdict("cat", result(calibrated=False, presence=0.2, consistency=float("nan")), None)
    assert "doubtful that the object is there (20%)" in said
    assert "an order, no IoU" in said
    assert "backward" not in said


def test_what_was_not_found_says_why() -> None:
    assert verdict("cat", result(found=False), None).startswith("not found: none of 2 ways gave a mask.")
    dropped = verdict("cat", result(found=False, palette=0.1), "score 0.1 < min_score 0.2")
    assert "was dropped (score 0.1 < min_score 0.2); colours differ" in dropped


@pytest.mark.parametrize("kind", WAYS)
def test_every_way_has_its_words(kind: str) -> None:
    assert f"found by {WAYS[kind]}" in verdict("cat", result(kind), None)
