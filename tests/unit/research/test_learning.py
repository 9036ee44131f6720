"""The report on projects made by hand, where own scores say the opposite of the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cavsam.errors import CavSamError
from research.learning import TARGETS, camera, main, outcome, project, report


def candidate(kind: str, iou: float, seconds: float) -> dict[str, Any]:
    cues = {"consistency": iou}
    return {"kind": kind, "score": 1 - iou, "cues": cues, "iou": iou, "found": True, "seconds": seconds}


def rows(seed: int) -> list[list[dict[str, Any]]]:
    """The cheap candidate is better by a tenth on every target."""
    worths = np.random.default_rng(seed).uniform(0.3, 0.8, TARGETS)
    return [[candidate("concat", w + 0.1, 0.5), candidate("full", w, 5.0)] for w in worths]


def test_taught_scores_and_the_rung_of_hindsight():
    found = outcome(0, rows(0))
    assert found.before.spearman == pytest.approx(-1)
    assert found.after.spearman == pytest.approx(1)
    assert found.after.calibration_error < found.before.calibration_error / 2
    assert found.taught_iou == pytest.approx(found.iou + 0.1)
    assert (found.last, found.hindsight, found.loss) == ("concat", "concat", 0)
    assert found.taught_seconds == pytest.approx(0.5)
    assert found.seconds == pytest.approx(5.5)


def test_the_report_has_a_line_for_each_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for seed in (0, 1, 10):
        (tmp_path / f"{seed}.json").write_text(json.dumps({"seed": seed, "targets": rows(seed)}))
    assert main(["report", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["0", "1", "10"]
    assert lines[-1] == "The rung of hindsight was chosen in 3 of 3."


def test_a_folder_without_projects_is_said(tmp_path: Path):
    with pytest.raises(CavSamError, match="run collect first"):
        report(tmp_path)


def test_a_project_is_a_function_of_its_seed_and_seen_by_another_camera():
    reference, targets = project(3, 2)
    again, _ = project(3, 2)
    assert np.array_equal(reference.image, again.image)
    (image, truth), *others = targets
    assert len(others) == 1
    assert image.shape[:2] == truth.shape
    bright, dark = np.full((8, 8, 3), 240, np.uint8), np.full((8, 8, 3), 10, np.uint8)
    assert camera(bright, 1).mean() < camera(dark, 1).mean()
