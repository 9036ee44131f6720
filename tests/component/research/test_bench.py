"""Whole runs of the benchmark on generated episodes, from its command line arguments, with the bundled models."""

import argparse
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from cavsam.errors import CavSamError
from cavsam.evaluation import runs
from research import bench
from research.episodes import episode


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "run"
    arguments = ("--model", "nano", "--domain", "cells", "--mode", "ttga", "--mode", "concat", "--set", "ttga_steps=2")
    options = parse(*arguments, "--episodes", "3", "--device", "cpu", "--out", str(out))
    code = bench.run(options)
    return out, options, code


def test_a_run_writes_records_masks_and_a_report(finished_run):
    out, _, code = finished_run
    assert code == 0
    records = list(runs.read_records(out / "records-0-of-1.jsonl"))
    assert {(r.index, r.mode) for r in records} == set(itertools.product(range(3), ("concat", "ttga")))
    shown = set()
    for record in records:
        task = episode("cells", "dev", 1, record.index)
        mask = np.array(Image.open(runs.mask_path(out, record)), dtype=bool)
        assert (mask & task.truth).sum() == record.intersection
        assert (mask | task.truth).sum() == record.union
        assert record.error is None
        kinds = [way["kind"] for way in record.candidates]
        assert kinds == (["concat"] if record.mode == "concat" else ["ttga", "activation"])
        (way,) = (way for way in record.candidates if way["chosen"])
        assert way["score"] == record.score
        assert way["found"] or not mask.any()  # a mask that was found may fall below a bound of the recipe
        if mask.any():
            shown.add(record.mode)
            assert way["iou"] == pytest.approx(record.intersection / record.union, abs=0.05)
    assert shown == {"concat", "ttga"}
    report = json.loads((out / "report.json").read_text())
    concat = [r for r in records if r.mode == "concat" and not r.absent]
    expected = []
    for name in {r.class_name for r in concat}:
        own = [r for r in concat if r.class_name == name]
        expected.append(sum(r.intersection for r in own) / sum(r.union for r in own))
    assert report["modes"]["concat"]["mean_iou"]["value"] == pytest.approx(np.mean(expected))
    assert list(report["differences"]) == ["ttga - concat"]
    assert "with background" in (out / "report.md").read_text()
    for picture in ("report.png", "episodes.png"):
        assert np.asarray(Image.open(out / picture)).std() > 5


def test_a_run_is_resumed_where_it_stopped_and_not_mixed_with_another(finished_run):
    out, options, _ = finished_run
    log = out / "records-0-of-1.jsonl"
    whole = log.read_text()
    lines = whole.splitlines(keepends=True)
    with pytest.raises(CavSamError, match="--resume"):
        bench.run(options)
    log.write_text("".join(lines[:3]) + lines[3][:20])  # killed while writing the fourth
    resumed = argparse.Namespace(**{**vars(options), "resume": True})
    assert bench.run(resumed) == 0

    def results(text):
        timed = ("adapt_seconds", "target_seconds")
        rows = [json.loads(line) for line in text.splitlines()]
        rows.sort(key=lambda row: (row["index"], row["mode"]))
        return [{key: value for key, value in row.items() if key not in timed} for row in rows]

    assert results(log.read_text()) == results(whole)
    other = argparse.Namespace(**{**vars(resumed), "shots": 5})
    with pytest.raises(CavSamError, match="other models or settings"):
        bench.run(other)
