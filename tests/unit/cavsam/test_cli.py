"""The `cavsam` command on photographs, with the bundled models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cavsam import cli
from cavsam.images import read_mask
from cavsam.options import recipe_of
from cavsam.recipe import Recipe
from tests.support.pictures import write_photographs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_photographs(tmp_path)
    return tmp_path


class Cavsam:
    """The command, run in this process in the folder of its pictures; its last status and what it said on stderr."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]):
        self.folder, self.capsys = folder, capsys
        self.status, self.stderr = -1, ""

    def __call__(self, *arguments: str) -> int:
        self.capsys.readouterr()
        self.status = cli.main(arguments)
        self.stderr = self.capsys.readouterr().err
        return self.status


@pytest.fixture
def cavsam(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cavsam:
    monkeypatch.chdir(folder)
    return Cavsam(folder, capsys)


def test_bad_references_are_refused_in_one_line(folder: Path, cavsam: Cavsam) -> None:
    Image.new("L", (300, 300)).save(folder / "empty.png")
    Image.new("L", (30, 40), 255).save(folder / "small.png")
    cases = {
        ("absent.png", "mask.png"): "no file",
        ("reference.png", "empty.png"): "empty",
        ("reference.png", "small.png"): "30x40 pixels but its image has 300x300",
        ("broken.png", "mask.png"): "not a picture",
    }
    for (image, mask), message in cases.items():
        cavsam("segment", image, mask, "target.jpg", "--model", "nano", "--out", "out")
        assert cavsam.status == 2
        assert message in cavsam.stderr
        assert len(cavsam.stderr.strip().splitlines()) == 1


def test_an_input_is_never_overwritten(folder: Path, cavsam: Cavsam) -> None:
    Image.open(folder / "target.jpg").save(folder / "target.png")
    before = (folder / "target.png").read_bytes()
    cavsam("segment", "reference.png", "mask.png", "target.png", "--model", "nano", "--out", ".")
    assert cavsam.status == 2
    assert "overwrite" in cavsam.stderr
    assert (folder / "target.png").read_bytes() == before


def test_targets_of_one_name_do_not_overwrite_each_other(folder: Path, cavsam: Cavsam) -> None:
    targets = ["a/x.png", "b/x.png", "c/x_2.png", "d/x.png"]
    for number, target in enumerate(targets):
        (folder / target).parent.mkdir()
        Image.new("RGB", (40 + number, 30)).save(folder / target)
    cavsam("segment", "reference.png", "mask.png", *targets, "--model", "nano", "--mode", "concat", "--out", "out")
    assert cavsam.status == 0, cavsam.stderr
    widths = {path.name: read_mask(path).shape[1] for path in (folder / "out").glob("*.png")}
    assert widths == {"x.png": 40, "x_3.png": 41, "x_2.png": 42, "x_4.png": 43}


def test_options_that_do_not_exist_are_refused(folder: Path, cavsam: Cavsam) -> None:
    base = ("segment", "reference.png", "mask.png", "target.jpg", "--out", "out", "--model", "nano")
    for extra, message in (
        (("--set", "speed=9"), "no option 'speed'"),
        (("--set", "frames"), "NAME=VALUE"),
        (("--seed", "-1"), "seed"),
        (("--device", "cuda:77"), "no device"),
        (("--sam2", "nowhere.pt"), "no SAM2 checkpoint"),
    ):
        cavsam(*base, *extra)
        assert cavsam.status == 2
        assert message in cavsam.stderr


def test_masks_of_the_output_read_back(folder: Path, cavsam: Cavsam) -> None:
    cavsam(
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
    assert cavsam.status == 0, cavsam.stderr
    assert read_mask(folder / "o" / "reference.png").shape == (300, 300)


def test_a_mask_that_cannot_be_written_fails_alone(folder: Path, cavsam: Cavsam) -> None:
    (folder / "out" / "target.png").mkdir(parents=True)
    inputs = ("reference.png", "mask.png", "target.jpg", "turned.jpg")
    cavsam("segment", *inputs, "--model", "nano", "--mode", "concat", "--out", "out")
    assert cavsam.status == 1, cavsam.stderr
    first, second = json.loads((folder / "out" / "results.json").read_text())
    assert "cannot be written" in first["error"]
    assert second["error"] is None
    assert (folder / "out" / "turned.png").is_file()


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(folder: Path, cavsam: Cavsam) -> None:
    (folder / "file").write_text("")
    for out in ("file", "/proc"):
        cavsam("segment", "reference.png", "mask.png", "target.jpg", "--model", "nano", "--out", out)
        assert cavsam.status == 2
        assert "cannot be written" in cavsam.stderr
        assert "Traceback" not in cavsam.stderr


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
        "bundled",
        "--set",
        "min_cycle_iou=0.2",
    ]
    recipe = recipe_chosen_by(arguments)
    assert recipe == Recipe.preset("bundled").replace(min_cycle_iou=0.2)
    assert recipe_chosen_by(arguments[:6]) == Recipe()


@pytest.mark.parametrize("value", ["true", "predicted"])
def test_a_choice_that_looks_like_a_truth_is_a_word(value: Any) -> None:
    arguments = ["segment", "r.png", "m.png", "t.png", "--out", "out", "--set", f"cycle_mask={value}"]
    arguments += ["--set", "region_fallback=false", "--set", "activation_stride=8"]
    recipe = recipe_chosen_by(arguments)
    assert recipe == Recipe(cycle_mask=value, region_fallback=False, activation_stride=8)
