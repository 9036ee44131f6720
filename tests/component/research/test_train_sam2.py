"""Training of the bundled SAM2: a few real steps."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from research.train_nano import train_sam2


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)  # the training turns it on for its process


def options(out, steps: int, resume: bool) -> argparse.Namespace:
    return argparse.Namespace(
        out=out,
        steps=steps,
        small_steps=steps,
        small_size=128,
        videos=None,
        minutes=None,
        lr=1e-3,
        decay=0.3,
        device="cpu",
        ema=0.9,
        seed=4,
        evaluate_every=1000,
        resume=resume,
        init=None,
        workers=1,
        threads=1,
    )


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    train_sam2.train(options(whole, 3, resume=False))
    train_sam2.train(options(parts, 2, resume=False))
    halfway = load_file(parts / train_sam2.EXPORT)
    train_sam2.train(options(parts, 3, resume=True))
    expected, resumed = load_file(whole / train_sam2.EXPORT), load_file(parts / train_sam2.EXPORT)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert any(not torch.equal(halfway[name], resumed[name]) for name in expected)


def test_better_weights_replace_the_packaged_ones_and_worse_do_not(tmp_path: Path):
    """The bundled, trained weights against fresh ones."""
    trained, fresh = tmp_path / "trained", tmp_path / "fresh"
    trained.mkdir()
    fresh.mkdir()
    (trained / train_sam2.EXPORT).write_bytes(train_sam2.PACKAGED.read_bytes())
    torch.manual_seed(0)
    train_sam2.export(train_sam2.build_model().state_dict(), fresh / train_sam2.EXPORT)
    packaged = tmp_path / "packaged.safetensors"
    assert train_sam2.decide(fresh, packaged, episodes=2), "anything is better than nothing"
    assert train_sam2.decide(trained, packaged, episodes=2)
    assert not train_sam2.decide(fresh, packaged, episodes=2)
    assert packaged.read_bytes() == train_sam2.PACKAGED.read_bytes()


def test_a_run_ends_when_its_minutes_are_over(tmp_path):
    run = options(tmp_path, 1000, resume=False)
    run.minutes = 0.1
    train_sam2.train(run)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] < 1000
    assert saved["seconds"] >= 6
