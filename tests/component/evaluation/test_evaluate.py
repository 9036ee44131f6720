"""Whole runs of `cavsam evaluate` with the bundled models: shards, lists, baselines, videos, absent objects."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cavsam.errors import CavSamError
from cavsam.evaluation import evaluate, runs
from research import synth
from tests.support.pictures import save


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([*arguments, "--model", "nano", "--device", "cpu"])


def parse_fss(root: Path, out: Path, *arguments: str) -> argparse.Namespace:
    return parse("--dataset", "fss1000", str(root), "--mode", "concat", "--out", str(out), *arguments)


@pytest.fixture(scope="module")
def cells_as_fss(tmp_path_factory):
    root = tmp_path_factory.mktemp("fss")
    for name in synth.classes("cells"):
        for number in range(1, 4):
            seed = synth.seed_of("dev", number)
            scene = synth.generate("cells", [name], seed=seed, size=96)
            save(scene.image, root / name / f"{number}.jpg")
            save(scene.masks[name].astype(np.uint8) * 255, root / name / f"{number}.png")
    return root


def test_shards_add_up_to_the_whole(cells_as_fss, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert evaluate.run(parse_fss(cells_as_fss, whole)) == 0
    text = capsys.readouterr().out
    assert "79.8" in text, "the published figure stands beside ours"
    for shard in ("0/2", "1/2"):
        assert evaluate.run(parse_fss(cells_as_fss, parts, "--shard", shard)) == 0
    logs = sorted(parts.glob("records-*.jsonl"))
    assert [len(list(runs.read_records(log))) for log in logs] == [3, 3]
    reports = [json.loads((out / "report.json").read_text()) for out in (whole, parts)]
    assert reports[0]["setting"] == reports[1]["setting"]
    figures = [report["modes"]["concat"]["domains"]["fss1000"]["mean_iou"] for report in reports]
    assert figures[0] == figures[1]
    with pytest.raises(CavSamError, match="--resume"):
        evaluate.run(parse_fss(cells_as_fss, whole))


def test_a_written_list_gives_the_same_run(cells_as_fss, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    evaluate.run(parse_fss(cells_as_fss, first, "--episodes", "2", "--list-seed", "9"))
    listed = str(first / "episodes-0.jsonl")
    evaluate.run(parse_fss(cells_as_fss, again, "--list", listed))
    counts = [[r.counts for r in runs.read_records(out / "records-0-of-1.jsonl")] for out in (first, again)]
    assert counts[0] == counts[1]


def test_a_refused_run_leaves_the_first_one_as_it_is(cells_as_fss, tmp_path):
    out = tmp_path / "run"
    evaluate.run(parse_fss(cells_as_fss, out, "--episodes", "1"))
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    with pytest.raises(CavSamError, match="other models or settings"):
        evaluate.run(parse_fss(cells_as_fss, out, "--list-seed", "9", "--resume"))
    with pytest.raises(CavSamError, match="another number of shards"):
        evaluate.run(parse_fss(cells_as_fss, out, "--episodes", "1", "--shard", "0/2"))
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
    (out / "setting.json").write_text("{")
    with pytest.raises(CavSamError, match="is damaged"):
        evaluate.run(parse_fss(cells_as_fss, out, "--episodes", "1", "--resume"))


def test_a_picture_that_cannot_be_read_costs_its_episodes_only(cells_as_fss, tmp_path):
    root, out = tmp_path / "fss", tmp_path / "run"
    shutil.copytree(cells_as_fss, root)
    broken = next(root.glob("*/2.jpg"))
    broken.write_bytes(broken.read_bytes()[:200])
    assert evaluate.run(parse_fss(root, out)) == 1
    records = list(runs.read_records(out / "records-0-of-1.jsonl"))
    failed = [record for record in records if record.error]
    assert len(records) == 6
    assert 1 <= len(failed) < 6
    assert all(broken.name in record.error for record in failed)
    figures = json.loads((out / "report.json").read_text())["modes"]["concat"]
    assert figures["errors"] == len(failed)
    assert figures["domains"]["fss1000"]["episodes"] == 6 - len(failed)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A domain of two classes, three drawn pictures each."""
    root = tmp_path_factory.mktemp("folder")
    for name in synth.classes("cells")[:2]:
        for number in range(3):
            scene = synth.generate("cells", [name], seed=synth.seed_of("dev", number), size=96)
            save(scene.image, root / "cells" / name / "images" / f"{number}.png")
            save(scene.masks[name].astype(np.uint8) * 255, root / "cells" / name / "masks" / f"{number}.png")
    return root


def test_a_run_compares_modes_and_baselines_in_one_report(cells: Path, tmp_path: Path) -> None:
    options = parse(
        *(str(cells), "--mode", "concat", "--mode", "ttga", "--set", "ttga_steps=2", "--episodes", "2"),
        *("--baseline", "contrast", "--baseline", "forest", "--baseline", "box", "--out", str(tmp_path)),
    )
    assert evaluate.run(options) == 0
    records = runs.all_records(tmp_path)
    names = ["contrast", "forest", "box", "concat", "ttga"]
    assert sorted(record.mode for record in records) == sorted(names * 4)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["modes"]) == names
    assert set(report["differences"]) == {"ttga - concat", "ttga - contrast", "ttga - forest", "ttga - box"}
    for name in names:
        own = [record for record in records if record.mode == name]
        pooled, means = [], []
        for label in {record.class_name for record in own}:
            counts = [record.counts for record in own if record.class_name == label]
            pooled.append(sum(c.intersection for c in counts) / sum(c.union for c in counts))
            means += [c.intersection / c.union for c in counts]
        figures = report["modes"][name]["domains"]["cells"]
        assert figures["mean_iou"]["value"] == pytest.approx(np.mean(pooled))
        assert figures["episode_iou"] == pytest.approx(np.mean(means))
        assert figures["boundary_f"] == pytest.approx(np.mean([record.boundary_f for record in own]))
    assert report["modes"]["forest"]["mean_iou"]["value"] > 0.3, "drawn cells have colours of their own"
    text = (tmp_path / "report.md").read_text()
    assert "## cells" in text
    assert "best in hindsight" in text
    assert (tmp_path / "episodes.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["contrast", "forest", "box"])
def test_a_baseline_finds_what_it_can_see(name: str, tmp_path: Path) -> None:
    """A red square on grass, always at about the same place: each baseline's own cue is there."""
    rng = np.random.default_rng(0)
    for number in range(3):
        image = rng.integers(0, 60, (120, 100, 3), dtype=np.uint8)
        image[..., 1] += 80
        mask = np.zeros((120, 100), dtype=np.uint8)
        mask[30 + number : 80, 25:70] = 255
        image[mask > 0] = (220, 30, 40)
        save(image, tmp_path / "square" / "images" / f"{number}.png")
        save(mask, tmp_path / "square" / "masks" / f"{number}.png")
    out = tmp_path / "out"
    arguments = ("--mode", "concat", "--baseline", name, "--episodes", "1", "--out", str(out))
    assert evaluate.run(parse(str(tmp_path), *arguments)) == 0
    (record,) = (record for record in runs.all_records(out) if record.mode == name)
    assert record.counts.iou > 0.6
    assert record.error is None


def test_a_video_is_tracked_from_its_first_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    background = rng.integers(60, 100, (96, 120, 3), dtype=np.uint8)
    for number in range(7):
        image, mask = background.copy(), np.zeros((96, 120), dtype=np.uint8)
        mask[30:60, 20 + 4 * number : 55 + 4 * number] = 255
        image[mask > 0] = (230, 220, 40)
        save(image, tmp_path / "videos" / "ball" / "images" / f"{number:05d}.png")
        save(mask, tmp_path / "videos" / "ball" / "masks" / f"{number:05d}.png")
    out = tmp_path / "out"
    options = parse(str(tmp_path / "videos"), "--dataset", "video", "--every", "2", "--out", str(out))
    assert evaluate.run(options) == 0
    records = runs.all_records(out)
    assert len(records) == 3, "frames 2, 4 and 6 after frame 0"
    (sequence,) = json.loads((out / "report.json").read_text())["sequences"]
    assert sequence["J"] == pytest.approx(np.mean([r.intersection / r.union for r in records]))
    assert sequence["F"] == pytest.approx(np.mean([r.boundary_f for r in records]))
    assert sequence["J"] > 0.7
    for record, number in zip(records, (2, 4, 6), strict=True):
        stored = np.array(Image.open(runs.mask_path(out, record)), dtype=bool)
        with Image.open(tmp_path / "videos" / "ball" / "masks" / f"{number:05d}.png") as truth:
            assert (stored & (np.array(truth) > 0)).sum() == record.intersection
    with pytest.raises(CavSamError, match="one frame only"):
        evaluate.run(parse(str(tmp_path / "videos"), "--dataset", "video", "--every", "9", "--out", str(out)))
    resumed = parse(str(tmp_path / "videos"), "--dataset", "video", "--every", "2", "--out", str(out), "--resume")
    assert evaluate.run(resumed) == 0
    assert runs.all_records(out) == records


def test_a_run_says_how_often_a_mode_abstains(cells: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(cells, root)
    mask = np.zeros((12, 16), dtype=np.uint8)
    mask[2:6, 3:9] = 255
    for number in range(3):
        save(np.full((12, 16, 3), 90, dtype=np.uint8), root / "grey" / "square" / "images" / f"{number}.jpg")
        save(mask, root / "grey" / "square" / "masks" / f"{number}.png")
    arguments = ("--mode", "concat", "--episodes", "1", "--absent", "2", "--out", str(tmp_path / "out"))
    assert evaluate.run(parse(str(root), *arguments)) == 0
    records = runs.all_records(tmp_path / "out")
    assert sum(record.absent for record in records) == 6
    assert sum(not record.absent for record in records) == 3
    assert len({(record.domain, record.index) for record in records}) == 9
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["modes"]["concat"]["abstained_on_absent"]["of"] == 6
    assert report["setting"]["split"] == "set", "the folder's name: what was run on PATH/test is not fitted on"
