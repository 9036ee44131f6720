"""`cavsam evaluate`: the method and baselines on one's own pictures, on the paper's sets, or the tracker on videos."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from cavsam.errors import CavSamError
from cavsam.evaluation import runs
from cavsam.evaluation.datasets import (
    READERS,
    ListedEpisode,
    draw_absent_episodes,
    draw_episodes,
    draw_far_episodes,
    list_text,
    load_episode,
    read_dataset,
    read_list,
    write_list,
)
from cavsam.evaluation.episodes import Episode
from cavsam.evaluation.frames import FrameStore

FOLDER, VIDEO = "folder", "video"

# Mean IoU in percent, 1 shot, as published; 5-shot figures are published as a mean over the sets only.
PUBLISHED: dict[str, dict[str, float]] = {
    "CAV-SAM (paper)": {"deepglobe": 39.11, "isic": 50.36, "chest": 86.97, "fss1000": 79.78},
    "APSeg (paper)": {"deepglobe": 35.94, "isic": 45.43, "chest": 84.10, "fss1000": 79.71},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cavsam evaluate`."""
    parser.add_argument("root", type=Path, metavar="PATH", help="where the data set lies")
    parser.add_argument(
        "--dataset",
        choices=(FOLDER, VIDEO, *(name for name in READERS if name != FOLDER)),
        default=FOLDER,
        help="what lies there: CLASS/{images,masks} or DOMAIN/CLASS/{images,masks} (folder), the same with a sequence "
        "for each class (video), or one of the paper's sets (default: folder)",
    )
    runs.add_run_arguments(parser)
    group = parser.add_argument_group("episodes")
    group.add_argument("--shots", type=int, default=1, metavar="K", help="references per episode (default: 1)")
    group.add_argument(
        "--episodes",
        type=int,
        metavar="N",
        help="how many, of each class of a folder; with --list, the first N (default: each object is a target once)",
    )
    group.add_argument("--per-domain", type=int, metavar="N", help="folder: at most N of a domain, its classes in turn")
    group.add_argument(
        "--absent",
        type=int,
        metavar="N",
        help="folder: and N targets for each class that lack it, pictures of other domains (default: none)",
    )
    group.add_argument("--list", type=Path, metavar="FILE", help="a list of episodes written by an earlier run")
    group.add_argument("--list-seed", type=int, help="seed of the list that is drawn (default: that of --seed)")
    group.add_argument("--every", type=int, default=1, metavar="K", help="video: every K-th frame (default: 1)")
    group.add_argument("--at-most", type=int, metavar="N", help="video: frames of a sequence (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="shards may share it")
    parser.add_argument("--json", action="store_true", help="print report.json instead of the tables")


def run(options: argparse.Namespace) -> int:
    """Run this shard's episodes; report over all shards' records in --out. Returns 1 if an episode failed.

    Raises:
        CavSamError: the set is not there, --out holds another run, or the models cannot be had.
    """
    for name, least in (
        ("episodes", 1),
        ("per_domain", 1),
        ("absent", 1),
        ("shots", 1),
        ("every", 1),
        ("at_most", 2),
        ("seed", 0),
        ("list_seed", 0),
    ):
        value = getattr(options, name)
        if value is not None and value < least:
            raise CavSamError(f"--{name.replace('_', '-')} must be at least {least}, not {value}.")
    return _run_videos(options) if options.dataset == VIDEO else _run_episodes(options)


def _run_episodes(options: argparse.Namespace) -> int:
    # The report draws with scipy, which `cavsam --help` need not wait for.
    from cavsam.evaluation import report

    shard, shards = runs.shard_of(options.shard)
    method = runs.Method.of(options)
    episodes = _episodes(options)
    digest = _digest(episodes)
    setting = {"dataset": options.dataset, "shots": options.shots, "episodes": digest, **method.setting()}
    if options.dataset == FOLDER:
        setting["split"] = options.root.resolve().name
    log, records = runs.open_shard(options.out, shard, shards, setting, options.resume)
    write_list(options.out / f"episodes-{shard}.jsonl", episodes)

    lookup = _lookup(options, episodes)
    domain_of = [episode.target.domain or options.dataset for episode in episodes]
    tasks = [(domain_of[index], index) for index in range(shard, len(episodes), shards)]
    store = FrameStore.of(options.frames or options.out / "frames", digest, method.sources, method.recipe)
    runs.run_episodes(options.out, log, method, tasks, lookup, records, store)
    asked = [record for record in runs.all_records(options.out) if record.mode in method.compared]
    title = f"{options.root.resolve().name if options.dataset == FOLDER else options.dataset}, {options.shots}-shot"
    published = PUBLISHED if options.shots == 1 else {}
    domains = tuple(dict.fromkeys(domain_of))
    text = report.write(options.out, asked, title, setting, method.compared, domains, lookup, published)
    _print(text, options)
    return 1 if any(record.error for record in asked) else 0


def _print(text: str, options: argparse.Namespace) -> None:
    """Print the report as text, or as the JSON that lies in --out."""
    print(json.dumps(json.loads((options.out / "report.json").read_text())) if options.json else text)


def _run_videos(options: argparse.Namespace) -> int:
    from cavsam.evaluation import report, videos

    shard, shards = runs.shard_of(options.shard)
    method = runs.Method.of(options)
    if options.list:
        episodes = read_list(options.list)
    else:
        episodes = videos.list_frames(read_dataset(FOLDER, options.root), options.every, options.at_most)
    setting = {"dataset": VIDEO, "episodes": _digest(episodes), **method.setting()}
    log, records = runs.open_shard(options.out, shard, shards, setting, options.resume)
    write_list(options.out / f"episodes-{shard}.jsonl", episodes)

    lookup = _lookup(options, episodes)
    own = videos.sequences_of(episodes)[shard::shards]
    videos.run_sequences(options.out, log, method, options.root, own, lookup, records)
    tracked = runs.all_records(options.out)
    summary = videos.summarise(tracked)
    text = videos.markdown(summary, f"{options.root.resolve().name}, every frame of {options.every}", setting)
    (options.out / "report.json").write_text(json.dumps({"setting": setting, **summary}, indent=2) + "\n")
    (options.out / "report.md").write_text(text)
    domains = tuple(summary["domains"])
    report.contact_sheet(options.out, tracked, videos.MODE, domains, lookup, options.out / "episodes.png")
    _print(text, options)
    return 0


def _episodes(options: argparse.Namespace) -> list[ListedEpisode]:
    """Read the list that --list names, or draw one."""
    seed = options.seed if options.list_seed is None else options.list_seed
    if options.list:
        episodes = read_list(options.list)[: options.episodes]
        if any(len(episode.references) != options.shots for episode in episodes):
            raise CavSamError(f"{options.list} does not have {options.shots} references in every episode.")
        return episodes
    samples = read_dataset(options.dataset, options.root)
    if options.dataset == FOLDER:
        bound = options.per_domain
        shown = draw_far_episodes(options.root, samples, options.shots, options.episodes, seed, bound)
        if not options.absent:
            return shown
        lacking = draw_absent_episodes(options.root, samples, options.shots, options.absent, seed, bound)
        return [replace(episode, index=index) for index, episode in enumerate([*shown, *lacking])]
    return draw_episodes(samples, options.shots, options.episodes, seed)


def _digest(episodes: list[ListedEpisode]) -> str:
    return hashlib.sha256(list_text(episodes).encode()).hexdigest()[:16]


def _lookup(options: argparse.Namespace, episodes: list[ListedEpisode]) -> partial[Episode]:
    """Make the function that reads the episode of a domain and an index."""
    return partial(_load, options.dataset, options.root, episodes)


def _load(name: str, root: Path, episodes: list[ListedEpisode], domain: str, index: int) -> Episode:
    return load_episode(name, root, episodes[index])
