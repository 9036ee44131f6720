"""The `cavsam` command as a process of its own, on pictures made here, with the bundled models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from cavsam import cli
from cavsam.images import read_mask
from cavsam.options import recipe_of
from cavsam.recipe import Recipe

QUICK = ["--set", "lora_steps=2", "--set", "ttga_steps=2", "--set", "frames=2", "--set", "ddim_steps=2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs that the project did not make: the reference's left half, its object, and two targets."""
    photo = pictures.astronaut()
    Image.fromarray(photo[:300, 100:400]).save(tmp_path / "reference.png")
    mask = np.zeros((300, 300), dtype=np.uint8)
    mask[20:200, 60:190] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(photo[:280, 150:370]).save(tmp_path / "target.jpg", quality=95)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pictures.chelsea()[:, ::-1].copy()).save(tmp_path / "turned.jpg", exif=exif)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cavsam.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("mode", ["concat", "ttga", "dbst", "full", "auto"])
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


def test_bad_references_are_refused_in_one_line(folder: Path) -> None:
    Image.new("L", (300, 300)).save(folder / "empty.png")
    Image.new("L", (30, 40), 255).save(folder / "small.png")
    cases = {
        ("absent.png", "mask.png"): "no file",
        ("reference.png", "empty.png"): "empty",
        ("reference.png", "small.png"): "30x40 pixels but its image has 300x300",
        ("broken.png", "mask.png"): "not a picture",
    }
    for (image, mask), message in cases.items():
        done = run(folder, "segment", image, mask, "target.jpg", "--model", "nano", "--out", "out")
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_an_input_is_never_overwritten(folder: Path) -> None:
    Image.open(folder / "target.jpg").save(folder / "target.png")
    before = (folder / "target.png").read_bytes()
    done = run(folder, "segment", "reference.png", "mask.png", "target.png", "--model", "nano", "--out", ".")
    assert done.returncode == 2
    assert "overwrite" in done.stderr
    assert (folder / "target.png").read_bytes() == before


def test_targets_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    targets = ["a/x.png", "b/x.png", "c/x_2.png", "d/x.jpg"]
    names = [path.name for path in cli._output_files(targets, tmp_path / "out", [])]
    assert names == ["x.png", "x_3.png", "x_2.png", "x_4.png"]


def test_options_that_do_not_exist_are_refused(folder: Path) -> None:
    base = ("segment", "reference.png", "mask.png", "target.jpg", "--out", "out", "--model", "nano")
    for extra, message in (
        (("--set", "speed=9"), "no option 'speed'"),
        (("--set", "frames"), "NAME=VALUE"),
        (("--seed", "-1"), "seed"),
        (("--device", "cuda:77"), "no device"),
        (("--sam2", "nowhere.pt"), "no SAM2 checkpoint"),
    ):
        done = run(folder, *base, *extra)
        assert done.returncode == 2
        assert message in done.stderr


def test_masks_of_the_output_read_back(folder: Path) -> None:
    done = run(
        folder,
        "segment",
        "reference.png",
        "mask.png",
        "reference.png",
        "--model",
        "nano",
        "--mode",
        "concat",
        "--out",
        "o",
    )
    assert done.returncode == 0, done.stderr
    assert read_mask(folder / "o" / "reference.png").shape == (300, 300)


def test_a_mask_that_cannot_be_written_fails_alone(folder: Path) -> None:
    (folder / "out" / "target.png").mkdir(parents=True)
    inputs = ("reference.png", "mask.png", "target.jpg", "turned.jpg")
    done = run(folder, "segment", *inputs, "--model", "nano", "--mode", "concat", "--out", "out")
    assert done.returncode == 1, done.stderr
    first, second = json.loads((folder / "out" / "results.json").read_text())
    assert "cannot be written" in first["error"]
    assert second["error"] is None
    assert (folder / "out" / "turned.png").is_file()


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(folder: Path) -> None:
    (folder / "file").write_text("")
    for out in ("file", "/proc"):
        done = run(folder, "segment", "reference.png", "mask.png", "target.jpg", "--model", "nano", "--out", out)
        assert done.returncode == 2
        assert "cannot be written" in done.stderr
        assert "Traceback" not in done.stderr


def recipe_chosen_by(arguments: list[str]) -> Recipe:
    options = cli.build_parser().parse_args(arguments)
    return recipe_of(options, options.mode)


def test_a_preset_is_where_the_other_options_start() -> None:
    arguments = [
        "segment",
        "r.png",
        "m.png",
        "t.png",
        "--out",
        "out",
        "--preset",
        "paper",
        "--set",
        "min_cycle_iou=0.2",
    ]
    recipe = recipe_chosen_by(arguments)
    assert recipe == Recipe.preset("paper").replace(min_cycle_iou=0.2)
    assert recipe_chosen_by(arguments[:6]) == Recipe()


@pytest.mark.parametrize("value", ["true", "predicted"])
def test_a_choice_that_looks_like_a_truth_is_a_word(value: str) -> None:
    arguments = ["segment", "r.png", "m.png", "t.png", "--out", "out", "--set", f"cycle_mask={value}"]
    arguments += ["--set", "region_fallback=false", "--set", "activation_stride=8"]
    recipe = recipe_chosen_by(arguments)
    assert recipe == Recipe(cycle_mask=value, region_fallback=False, activation_stride=8)
