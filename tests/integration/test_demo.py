"""`make demo` in small: the command itself, from start to end, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.pictures import LABELS, scene
from tools import brush
from tools.demo import report
from tools.demo.pictures import Picture

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.demo", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_the_demo_runs_from_start_to_end(tmp_path: Path):
    done = demo("--tasks", "3", "--recipe", '{"mode": "concat"}', "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [set(row) for row in rows] == [{"task", "label", "iou", "score", "seconds"}] * 2
    assert len({row["task"] for row in rows}) == 2
    for row in rows:
        assert 0 <= row["iou"] <= 1
        assert 0 <= row["score"] <= 1
        assert row["seconds"] > 0
        assert f"{row['iou']:.2f}" in done.stdout
    with Image.open(tmp_path / "screenshot.png") as screenshot:
        assert screenshot.size == (1400, 900)
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert sheet.width > 800
    assert "password" in done.stdout


def test_the_demo_says_what_is_missing(tmp_path: Path):
    done = demo("--out", str(tmp_path), VENV_LABEL_STUDIO=str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "run `make setup` first" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_row_measures_what_the_prediction_holds():
    """One label half right, the other not found."""
    picture = scene(1)
    half = picture.truth["disc"].copy()
    half[:, : half.shape[1] // 2 - 40] = False
    region = brush.regions({"disc": half}, from_name="mask", to_name="image")[0] | {"score": 0.75}
    prediction = {"task": 7, "score": 0.4, "result": [region]}
    disc, block = report.rows(Picture("p", picture.image, picture.truth), prediction, 2.5)
    assert disc.label == LABELS[0]
    assert disc.iou == pytest.approx(half.sum() / picture.truth["disc"].sum())
    assert (disc.task, disc.score, disc.seconds) == (7, 0.75, 2.5)
    assert (block.label, block.iou, block.score) == (LABELS[1], 0.0, 0.0)
