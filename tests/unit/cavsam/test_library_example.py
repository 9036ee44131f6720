"""The example in docs/library.md runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit.cavsam.conftest import blob_picture

DOCUMENT = Path(__file__).parents[3] / "docs" / "library.md"


def test_the_example_runs(rng: np.random.Generator, tmp_path: Path) -> None:
    blobs = blob_picture(rng, 96, 128)
    Image.fromarray(blobs.image).save(tmp_path / "reference.png")
    Image.fromarray(blobs.masks["bright"]).save(tmp_path / "mask.png")
    for name in ("first", "second"):
        Image.fromarray(blob_picture(rng, 80, 90).image).save(tmp_path / f"{name}.png")
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    example += "\nassert again.labels == ('cell',)\n"
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert "missing.png" in lines[2]
    assert all(line.endswith(("by ttga", "by activation", "no cell found")) for line in lines[:2])
    assert (tmp_path / "cell.safetensors").stat().st_size > 0
