"""What each part of the method is worth, on procedural images with known ground truth: `python -m research.bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cavsam.cli import run_command
from cavsam.errors import CavSamError
from cavsam.evaluation import report, runs
from cavsam.evaluation.episodes import Episode
from cavsam.evaluation.frames import FrameStore
from research import synth
from research.episodes import episode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    runs.add_run_arguments(parser)
    parser.add_argument("--domain", action="append", choices=synth.DOMAINS, help="repeatable (default: all)")
    parser.add_argument("--shots", type=int, default=1, choices=(1, 5), help="references per episode (default: 1)")
    parser.add_argument("--episodes", type=int, default=80, metavar="N", help="per domain (default: 80)")
    parser.add_argument(
        "--split", choices=("dev", "test"), default="dev", help="test is for reporting only (default: dev)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="shards may share it")


def run(options: argparse.Namespace) -> int:
    """Run every episode in every mode, write records, masks and the report; returns 1 when an episode failed.

    Raises:
        CavSamError: --out holds another run, or the models cannot be had.
    """
    if options.episodes < 1:
        raise CavSamError(f"--episodes must be at least 1, not {options.episodes}.")
    method = runs.Method.of(options)
    domains = tuple(dict.fromkeys(options.domain or synth.DOMAINS))
    setting = {"split": options.split, "shots": options.shots, **method.setting()}
    shard, shards = runs.shard_of(options.shard)
    log, records = runs.open_shard(options.out, shard, shards, setting, options.resume)
    # episode by episode, so that an interrupted run has every domain
    tasks = [(domain, index) for index in range(options.episodes) for domain in domains]
    lookup = partial(_lookup, options.split, options.shots)
    episodes = f"synthfss-{options.split}-{options.shots}-shot"
    store = FrameStore.of(options.frames or options.out / "frames", episodes, method.sources, method.recipe)
    runs.run_episodes(options.out, log, method, tasks[shard::shards], lookup, records, store)
    asked = [r for r in runs.all_records(options.out) if (r.domain, r.index) in set(tasks) and r.mode in method.modes]
    title = f"SynthFSS, {options.shots}-shot, split {options.split}"
    print(report.write(options.out, asked, title, setting, method.modes, domains, lookup))
    return 1 if any(record.error for record in asked) else 0


def _lookup(split: synth.Split, shots: int, domain: str, index: int) -> Episode:
    return episode(domain, split, shots, index)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status, 2 when nothing could be done."""
    parser = argparse.ArgumentParser(prog="python -m research.bench", description=__doc__)
    add_arguments(parser)
    parser.set_defaults(run=run)
    return run_command("bench", parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
