"""Calibration: rises with every cue, survives the disk, and is refused when damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cavsam.errors import ModelError
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import OPTIONS, Calibration, Logistic


@pytest.fixture
def fitted() -> Calibration:
    logistic = Logistic(-1.0, {"consistency": 2.0, "cycle": 0.5}, {"consistency": 0.6, "cycle": 0.2})
    return Calibration({"concat": logistic}, {"concat": Logistic(0.5, {}, {})}, "somewhere", Recipe().to_dict())


def test_the_logistic_written_out(fitted: Calibration) -> None:
    score = fitted.score("concat", {"consistency": 0.9, "cycle": 0.4, "other": 7.0})
    assert score == pytest.approx(1 / (1 + math.exp(1.0 - 2.0 * 0.9 - 0.5 * 0.4)))
    # a missing cue counts as its usual value
    assert fitted.score("concat", {"cycle": 0.4}) == fitted.score("concat", {"consistency": 0.6, "cycle": 0.4})
    assert fitted.present("concat", {}) == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert Logistic(1e9, {}, {})({}) == pytest.approx(1.0)


def test_a_kind_that_was_not_fitted_keeps_the_plain_score(fitted: Calibration) -> None:
    cues = {"consistency": 0.8, "presence": 0.5, "cycle": 1.0}
    for calibration in (Calibration(), fitted):
        assert calibration.score("full", cues) == pytest.approx(0.4)
        assert calibration.present("full", cues) == 0.5
        assert calibration.score("full", {"presence": 0.5}) == 0.5  # the reference does not show the label


def test_it_holds_for_the_options_that_its_masks_depend_on(fitted: Calibration) -> None:
    assert fitted.holds("concat", Recipe(ttga_steps=7, frames=3, seed=9))
    assert not fitted.holds("concat", Recipe(reference_prompt="box"))
    assert not fitted.holds("concat", Recipe(instances="split"))
    assert not fitted.holds("full", Recipe())
    assert not Calibration().holds("concat", Recipe())
    both = Calibration(dict.fromkeys(OPTIONS, fitted.overlap["concat"]), {}, "", Recipe().to_dict())
    frames = Recipe(frames=3, mode="ttga")
    assert [kind for kind in OPTIONS if both.holds(kind, frames)] == [
        "concat",
        "ttga",
        "activation",
        "linear",
        "pixels",
    ]
    # beside `full` an activation has its cue `presence` from it
    assert not both.holds("activation", frames, presence_of="full")
    assert both.holds("activation", frames, presence_of="ttga")
    assert [kind for kind in OPTIONS if both.holds(kind, Recipe(ttga_lr=0.1))] == ["concat", "linear", "pixels", "dbst"]


def test_round_trip(fitted: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    assert Calibration.load(path) == Calibration()
    fitted.save(path)
    assert Calibration.load(path) == fitted


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.update(format="another"),
        lambda stored: stored.pop("overlap"),
        lambda stored: stored.update(recipe=3),
        lambda stored: stored["overlap"]["concat"]["weights"].update(cycle=-1.0),
        lambda stored: stored["overlap"]["concat"]["weights"].update(size=1.0),
        lambda stored: stored["overlap"]["concat"].update(bias=float("nan")),
        lambda stored: stored["overlap"]["concat"].update(weights=3),
    ],
)
def test_a_damaged_file_is_refused(fitted: Calibration, tmp_path: Path, change: object) -> None:
    path = tmp_path / "calibration.json"
    fitted.save(path)
    stored = json.loads(path.read_text())
    change(stored)  # type: ignore[operator]
    path.write_text(json.dumps(stored))
    with pytest.raises(ModelError, match="fit it again"):
        Calibration.load(path)
    path.write_text("{")
    with pytest.raises(ModelError, match=r"calibration\.json"):
        Calibration.load(path)


def test_doubts_name_what_the_scores_of_a_recipe_were_not_fitted_for() -> None:
    curve = Logistic(0.0, {}, {})
    known = Calibration({"concat": curve, "ttga": curve}, {}, "", Recipe().to_dict())
    assert known.doubts(Recipe(mode="concat", ttga_steps=3)) == ""
    assert known.doubts(Recipe(mode="ttga")) == ""
    assert "ttga_steps=100, not 3" in known.doubts(Recipe(mode="ttga", ttga_steps=3))
    assert "no calibration" in known.doubts(Recipe(mode="full"))
    beside = known.doubts(Recipe(mode="ttga", region_fallback=True))
    assert "does not know all candidates" in beside
    assert "the scores of activation are an order" in beside
