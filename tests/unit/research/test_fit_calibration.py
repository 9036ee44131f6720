"""The calibration that is fitted on records: it orders what it has not seen, and no cue counts the wrong way round."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cavsam.evaluation.runs import Record
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import Calibration
from research.fit_calibration import PENALTIES, Sample, auroc, best_penalties, fit_logistics, main


def write_run(
    folder: Path,
    split: str,
    seed: int = 0,
    episodes: int = 240,
    kind: str = "concat",
    models: str = "nano",
    shots: int = 1,
    domains: int = 3,
    listed: str = "",
    **options: Any,
) -> None:
    """A run whose cues are known: `good` rises with the IoU, `bad` falls with it, `noise` and `still` say nothing."""
    generator = np.random.default_rng(seed)
    folder.mkdir()
    setting = {"split": split, "shots": shots, "models": models, "recipe": Recipe(**options).to_dict()}
    if listed:
        setting["episodes"] = listed
    (folder / "setting.json").write_text(json.dumps(setting))
    with (folder / "records-0-of-1.jsonl").open("w") as lines:
        for index in range(episodes):
            absent = index % 4 == 0
            iou = 0.0 if absent else float(generator.random())
            cues = {
                "good": iou + generator.normal(0, 0.15),
                "bad": -iou + generator.normal(0, 0.15),
                "noise": generator.normal(),
                "still": 0.5,
            }
            if index % 10 == 3:
                del cues["noise"]
            ways = [
                {"kind": kind, "found": True, "iou": iou, "cues": cues},
                {"kind": "activation", "found": False, "iou": 1.0, "cues": {}},
            ]
            record = Record(
                f"domain{index % domains}",
                index,
                "auto",
                "thing",
                absent,
                0,
                0,
                0,
                0,
                0.0,
                0.0,
                0.0,
                None,
                candidates=ways,
            )
            lines.write(json.dumps(dataclasses.asdict(record)) + "\n")


def test_what_is_fitted_orders_other_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "dev", "dev")
    write_run(tmp_path / "more", "dev", seed=1, kind="ttga", auto_threshold=0.0)
    out = tmp_path / "calibration.json"
    assert main([str(tmp_path / "dev"), str(tmp_path / "more"), "--out", str(out)]) == 0
    fitted = Calibration.load(out)
    assert set(fitted.overlap) == set(fitted.presence) == {"concat", "ttga"}
    assert fitted.holds("ttga", Recipe())
    assert not fitted.holds("ttga", Recipe(ttga_steps=7))
    for kind in fitted.overlap:
        assert fitted.overlap[kind].weights["good"] > 1
        assert "bad" not in fitted.overlap[kind].weights
        assert "still" not in fitted.overlap[kind].weights
    low, high = ({"good": value, "noise": 0.0} for value in (0.1, 0.9))
    assert fitted.score("concat", low) < 0.35
    assert fitted.score("concat", high) > 0.65
    assert fitted.present("concat", low) < fitted.present("concat", high)
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("| concat"))
    spearman, half, absent = (float(cell) for cell in row.split("|")[3:6])
    assert min(spearman, half, absent) > 0.8


def test_a_mask_that_several_runs_made_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "dev", "dev")
    write_run(tmp_path / "again", "dev", auto_threshold=0.0)
    write_run(tmp_path / "listed", "dev", seed=1, listed="another list of episodes")
    out, other = tmp_path / "calibration.json", tmp_path / "other.json"
    assert main([str(tmp_path / "dev"), "--out", str(out)]) == 0
    assert main([str(tmp_path / "dev"), str(tmp_path / "again"), "--out", str(other)]) == 0
    once, twice = Calibration.load(out), Calibration.load(other)
    assert once.fitted.split()[0] == twice.fitted.split()[0] == "240"
    assert once.overlap == twice.overlap
    assert main([str(tmp_path / "dev"), str(tmp_path / "listed"), "--out", str(other)]) == 0
    assert Calibration.load(other).fitted.split()[0] == "480"


def test_the_choice_is_shown_on_held_out_domains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two ways to a mask, the one whose cue says so is better: what is chosen is nearly the best in hindsight."""
    write_run(tmp_path / "dev", "dev", episodes=240)
    write_run(tmp_path / "other", "dev", episodes=240, seed=1, kind="ttga")
    folders = [str(tmp_path / name) for name in ("dev", "other")]
    assert main([*folders, "--out", str(tmp_path / "calibration.json")]) == 0
    told = capsys.readouterr().out
    rows = [line.split("|") for line in told.splitlines() if line.startswith("| domain")]
    assert len(rows) == 3
    for row in rows:
        assert int(row[2]) == 60
        chosen, best = float(row[3]), float(row[4])
        assert best - 6 < chosen <= best
    assert "Spearman 0.9" in told


def test_the_penalties_are_those_that_held_out_domains_like_best() -> None:
    """A cue that means something else in each domain calls for small weights, one that holds everywhere does not."""
    rng = np.random.default_rng(6)

    def samples(fickle: float) -> list[Sample]:
        made = []
        for domain in range(4):
            shift = fickle * rng.normal()
            for index in range(60):
                iou = float(rng.random())
                cues = {"a": iou + shift + rng.normal(0, 0.05)}
                made.append(Sample("concat", f"d{domain}", ("", index), cues, iou, True))
        return made

    assert best_penalties(samples(0.0)) == PENALTIES[0]
    assert best_penalties(samples(3.0)) == PENALTIES[-1]


def test_the_logistic_is_the_best_of_its_kind() -> None:
    """No other parameters, weights >= 0, give a lower penalised cross entropy."""
    generator = np.random.default_rng(2)
    table = generator.normal(size=(80, 2))
    truth = 1 / (1 + np.exp(-(0.5 + 2 * table[:, 0] - table[:, 1])))
    cues = [{"a": a, "b": b} for a, b in table.tolist()]
    fitted = fit_logistics(["x"] * 80, cues, truth, shared=0.02, own=0.02)["x"]

    def loss(bias: float, a: float, b: float) -> float:
        logits = bias + a * table[:, 0] + b * table[:, 1]
        entropy = np.mean(np.logaddexp(0, logits) - truth * logits)
        # a weight is shared half and half between its two parts, each of which counts with its own penalty
        return float(entropy + 0.01 * ((a * table[:, 0].std()) ** 2 + (b * table[:, 1].std()) ** 2))

    own = (fitted.bias, fitted.weights["a"], fitted.weights.get("b", 0.0))
    assert own[2] == 0.0
    for _ in range(200):
        bias, a, b = np.array(own) + generator.normal(0, 0.2, 3)
        assert loss(*own) <= loss(bias, max(a, 0), max(b, 0)) + 1e-6


def test_kinds_share_what_their_own_weights_are_forbidden_and_part_where_sharing_is() -> None:
    generator = np.random.default_rng(4)
    values = generator.normal(size=160)
    kinds = ["x"] * 80 + ["y"] * 80
    truth = 1 / (1 + np.exp(-np.where(np.arange(160) < 80, 3.0, 0.5) * values))
    cues = [{"a": value} for value in values.tolist()]
    together = fit_logistics(kinds, cues, truth, shared=0.001, own=1e6)
    assert together["x"].weights["a"] == pytest.approx(together["y"].weights["a"], rel=1e-3)
    apart = fit_logistics(kinds, cues, truth, shared=1e6, own=0.0)
    assert apart["x"].weights["a"] == pytest.approx(3.0, rel=0.02)
    assert apart["y"].weights["a"] == pytest.approx(0.5, rel=0.02)
    # a cue that one kind never has stands in the other's function alone
    cues = [{"a": v} | ({"b": float(v > 0)} if k == "x" else {}) for v, k in zip(values.tolist(), kinds, strict=True)]
    fits = fit_logistics(kinds, cues, truth)
    assert set(fits["y"].weights) == {"a"}
    assert set(fits["x"].weights) == {"a", "b"}


def test_auroc_against_all_pairs() -> None:
    generator = np.random.default_rng(3)
    values, positive = generator.integers(0, 5, 40).astype(float), generator.random(40) > 0.6
    pairs = [float(p > n) + 0.5 * float(p == n) for p in values[positive] for n in values[~positive]]
    assert auroc(values, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(values, np.ones(40, dtype=bool)))


def test_what_cannot_be_fitted_on_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "test", "test")
    write_run(tmp_path / "few", "dev", episodes=8)
    write_run(tmp_path / "other", "dev", ttga_steps=7)
    out = tmp_path / "calibration.json"
    for folder, message in (("test", "development"), ("few", "too few"), ("nowhere", "holds no run")):
        assert main([str(tmp_path / folder), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert main([str(tmp_path / "few"), str(tmp_path / "other"), "--out", str(out)]) == 2
    assert "another recipe (ttga_steps)" in capsys.readouterr().err
    write_run(tmp_path / "large", "dev", models="default")
    write_run(tmp_path / "five", "dev", shots=5)
    for other, message in (("large", "with models default"), ("five", "with shots 5")):
        assert main([str(tmp_path / "few"), str(tmp_path / other), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda setting: [setting], "holds no run"),
        (lambda setting: {**setting, "recipe": "quick"}, "holds no run"),
        (lambda setting: {**setting, "recipe": {"mode": "full"}}, "lacks"),
        (lambda setting: {name: value for name, value in setting.items() if name != "shots"}, "lacks 'shots'"),
    ],
)
def test_a_damaged_setting_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    write_run(tmp_path / "dev", "dev")
    stored = tmp_path / "dev" / "setting.json"
    stored.write_text(json.dumps(change(json.loads(stored.read_text()))))
    assert main([str(tmp_path / "dev"), "--out", str(tmp_path / "calibration.json")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_told_before_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "dev", "dev")
    for out in (tmp_path / "nowhere" / "calibration.json", tmp_path):
        assert main([str(tmp_path / "dev"), "--out", str(out)]) == 2
        told = capsys.readouterr()
        assert str(out) in told.err
        assert not told.out
    assert main([str(tmp_path / "dev"), "--out", "/proc/calibration.json"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_weights_that_it_was_fitted_for_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, digest in enumerate(("aa", "aa", "bb")):
        write_run(tmp_path / f"run{number}", "dev", seed=number)
        setting = json.loads((tmp_path / f"run{number}" / "setting.json").read_text())
        (tmp_path / f"run{number}" / "setting.json").write_text(json.dumps({**setting, "sam2": digest}))
    out = tmp_path / "calibration.json"
    assert main([str(tmp_path / "run0"), str(tmp_path / "run1"), "--out", str(out)]) == 0
    assert Calibration.load(out).sam2 == "aa"
    assert main([str(tmp_path / "run0"), str(tmp_path / "run2"), "--out", str(out)]) == 2
    assert "different SAM2 weights" in capsys.readouterr().err


def test_one_domain_cannot_be_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "dev", "dev", domains=1)
    out = tmp_path / "calibration.json"
    assert main([str(tmp_path / "dev"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "needs at least two" in told
    assert "|" not in told
    assert Calibration.load(out).overlap
