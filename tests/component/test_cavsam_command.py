"""The `cavsam` command as a process of its own, on photographs, with the bundled models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from tests.support.pictures import write_photographs

QUICK = ["--set", "lora_steps=2", "--set", "ttga_steps=2", "--set", "frames=2", "--set", "ddim_steps=2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_photographs(tmp_path)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cavsam.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("mode", ["concat", "full", "auto"])
def test_segment_in_every_mode(folder: Path, mode: str) -> None:
    arguments = ["segment", "reference.png", "mask.png", "target.jpg", "broken.png", "turned.jpg"]
    arguments += ["--model", "nano", "--mode", mode, "--class-name", "person", *QUICK]
    done = run(folder, *arguments, "--out", "out")
    assert done.returncode == 1, done.stderr
    assert "try-out models" in done.stderr
    assert "broken.png" in done.stderr
    results = json.loads((folder / "out" / "results.json").read_text())
    assert [entry["target"] for entry in results] == ["target.jpg", "broken.png", "turned.jpg"]
    assert [set(entry) for entry in results] == [{"target", "mask", "score", "seconds", "error"}] * 3
    assert results[1]["mask"] is None
    assert "not a picture" in results[1]["error"]
    sizes = {"target": (220, 280), "turned": pictures.chelsea().shape[:2]}
    for stem, size in sizes.items():
        with Image.open(folder / "out" / f"{stem}.png") as mask:
            assert (mask.mode, mask.size) == ("L", size)
            assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert all(0 <= results[i]["score"] <= 1 and results[i]["error"] is None for i in (0, 2))
    again = run(folder, *arguments, "--out", "again")
    assert again.returncode == 1
    for stem in sizes:
        assert (folder / "out" / f"{stem}.png").read_bytes() == (folder / "again" / f"{stem}.png").read_bytes()
