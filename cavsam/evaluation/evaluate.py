"""`cavsam evaluate`: the paper's protocol on its own sets, where these have been fetched."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from cavsam.errors import CavSamError
from cavsam.evaluation import runs
from cavsam.evaluation.datasets import (
    READERS,
    draw_episodes,
    list_text,
    load_episode,
    read_dataset,
    read_list,
    write_list,
)
from cavsam.evaluation.episodes import Episode
from cavsam.evaluation.frames import FrameStore

# Mean IoU in percent, 1 shot, as published; 5-shot figures are published as a mean over the sets only.
PUBLISHED: dict[str, dict[str, float]] = {
    "CAV-SAM (paper)": {"deepglobe": 39.11, "isic": 50.36, "chest": 86.97, "fss1000": 79.78},
    "APSeg (paper)": {"deepglobe": 35.94, "isic": 45.43, "chest": 84.10, "fss1000": 79.71},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cavsam evaluate`."""
    parser.add_argument("dataset", choices=READERS, help="which set")
    parser.add_argument("root", type=Path, metavar="FOLDER", help="where it lies")
    runs.add_run_arguments(parser)
    parser.add_argument("--shots", type=int, default=1, choices=(1, 5), help="references per episode (default: 1)")
    parser.add_argument("--episodes", type=int, metavar="N", help="how many (default: each object is a target once)")
    parser.add_argument("--list", type=Path, metavar="FILE", help="a list of episodes written by an earlier run")
    parser.add_argument("--list-seed", type=int, default=0, help="seed of the list that is drawn (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="shards may share it")


def run(options: argparse.Namespace) -> int:
    """Run this shard's episodes; report over all shards' records in --out. Returns 1 when an episode failed.

    Raises:
        CavSamError: the set is not there, --out holds another run, or the models cannot be had.
    """
    # The report draws with scipy, which `cavsam --help` need not wait for.
    from cavsam.evaluation import report

    shard, shards = runs.shard_of(options.shard)
    if options.episodes is not None and options.episodes < 1:
        raise CavSamError(f"--episodes must be at least 1, not {options.episodes}.")
    method = runs.Method.of(options)
    if options.list:
        episodes = read_list(options.list)[: options.episodes]
    else:
        samples = read_dataset(options.dataset, options.root)
        episodes = draw_episodes(samples, options.shots, options.episodes, options.list_seed)
    if any(len(episode.references) != options.shots for episode in episodes):
        raise CavSamError(f"{options.list} does not have {options.shots} references in every episode.")

    digest = hashlib.sha256(list_text(episodes).encode()).hexdigest()[:16]
    setting = {"dataset": options.dataset, "shots": options.shots, "episodes": digest, **method.setting()}
    log, records = runs.open_shard(options.out, shard, shards, setting, options.resume)
    write_list(options.out / f"episodes-{shard}.jsonl", episodes)

    def lookup(name: str, index: int) -> Episode:
        return load_episode(name, options.root, episodes[index])

    tasks = [(options.dataset, index) for index in range(shard, len(episodes), shards)]
    store = FrameStore.of(options.frames or options.out / "frames", digest, method.sources, method.recipe)
    runs.run_episodes(options.out, log, method, tasks, lookup, records, store)
    asked = [record for record in runs.all_records(options.out) if record.mode in method.modes]
    title = f"{options.dataset}, {options.shots}-shot"
    published = PUBLISHED if options.shots == 1 else {}
    domains = (options.dataset,)
    print(report.write(options.out, asked, title, setting, method.modes, domains, lookup, published))
    return 1 if any(record.error for record in asked) else 0
