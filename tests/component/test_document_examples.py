"""The examples in docs/ run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.tiny_models import blob_picture

DOCUMENTS = Path(__file__).parents[2] / "docs"


def run_example_of(document: str, folder: Path, then: str = "") -> str:
    """Run the only Python example of a document in a folder; returns what it prints."""
    (example,) = re.findall(r"```python\n(.*?)```", (DOCUMENTS / document).read_text(), flags=re.DOTALL)
    command = [sys.executable, "-c", example + then]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_library_s_example(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blobs = blob_picture(rng, 96, 128)
    Image.fromarray(blobs.image).save(tmp_path / "reference.png")
    Image.fromarray(blobs.masks["bright"]).save(tmp_path / "mask.png")
    for name in ("first", "second"):
        Image.fromarray(blob_picture(rng, 80, 90).image).save(tmp_path / f"{name}.png")
    said = run_example_of("library.md", tmp_path, then="\nassert again.labels == ('cell',)\n")
    lines = said.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert "missing.png" in lines[2]
    assert all(line.endswith(("by ttga", "by activation", "no cell found")) for line in lines[:2])
    assert (tmp_path / "cell.safetensors").stat().st_size > 0


def test_the_example_of_explain(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blobs = blob_picture(rng, 60, 70)
    Image.fromarray(blobs.image).save(tmp_path / "reference.png")
    Image.fromarray(blobs.masks["bright"]).save(tmp_path / "mask.png")
    Image.fromarray(blobs.image[:, ::-1].copy()).save(tmp_path / "target.png")
    assert re.match(r"concat \[0\.\d+\] \[0, 1\] \[", run_example_of("explain.md", tmp_path))
