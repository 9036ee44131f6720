"""The wheel: what it holds, and that it works where nothing of this checkout is in reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from cavsam.images import read_mask
from research import synth

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("cavsam", "backend")
LEFT_OUT = ("research", "tests", "tools")
DESCRIPTION = ("pyproject.toml", "README.md", "LICENSE")
QUICK = ("frames=2", "ddim_steps=2", "lora_steps=2", "ttga_steps=2", "min_presence=0", "min_score=0")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program that sees no package but those of its own environment; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CAVSAM_"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because a build leaves its own folders beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*SHIPPED, *LEFT_OUT):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in DESCRIPTION:
        shutil.copy(ROOT / name, source / name)
    build = ("wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out, ".")
    run(sys.executable, "-m", "pip", *build, cwd=source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, which sees the other packages of this one."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place.parent)
    python = place / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=place,
    )
    # A line of a .pth file is put on the path, behind the environment's own packages; our own .pth files, of which one
    # leads to this checkout, are not read there.
    (own,) = place.glob("lib/python*/site-packages")
    (own / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return place / "bin"


def test_it_holds_both_packages_whole_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in SHIPPED
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted


def test_it_segments_with_the_bundled_models(programs: Path, tmp_path: Path):
    found = run(
        programs / "python", "-c", "import cavsam, backend; print(cavsam.__file__, backend.__file__)", cwd=tmp_path
    )
    assert all(Path(file).is_relative_to(programs.parent) for file in found.split())
    reference, target = (synth.generate("lungs", ["lung"], seed=synth.seed_of("dev", number)) for number in (0, 1))
    for name, pixels in (("reference", reference.image), ("mask", reference.masks["lung"]), ("target", target.image)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    options = [text for setting in QUICK for text in ("--set", setting)]
    inputs = ("reference.png", "mask.png", "target.png")
    run(programs / "cavsam", "segment", *inputs, "--model", "nano", "--out", "out", *options, cwd=tmp_path)
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())
    mask = read_mask(tmp_path / result["mask"])
    assert mask.shape == target.image.shape[:2]
    assert mask.any()


def test_the_backend_s_command_says_what_it_can_do(programs: Path, tmp_path: Path):
    assert "serve" in run(programs / "cavsam-backend", "--help", cwd=tmp_path)
