"""`cavsam bench`: what each part of the method is worth, on procedural images with known truth."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cavsam import synth
from cavsam.errors import CavSamError
from cavsam.evaluation import report
from cavsam.evaluation.episodes import Episode, episode
from cavsam.evaluation.metrics import Counts, count
from cavsam.recipe import Mode
from cavsam.sources import fingerprint
from cavsam.types import Reference

if TYPE_CHECKING:
    from cavsam.pipeline import CavSam

MODES: tuple[str, ...] = get_args(Mode)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cavsam bench`."""
    from cavsam.cli import add_source_arguments

    add_source_arguments(parser)
    parser.add_argument("--domain", action="append", choices=synth.DOMAINS, help="repeatable (default: all)")
    parser.add_argument("--shots", type=int, default=1, choices=(1, 5), help="references per episode (default: 1)")
    parser.add_argument("--episodes", type=int, default=80, metavar="N", help="per domain (default: 80)")
    parser.add_argument("--mode", action="append", choices=MODES, help="repeatable (default: all four)")
    parser.add_argument(
        "--split", choices=("dev", "test"), default="dev", help="test is for reporting only (default: dev)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="(default: runs/bench)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the method's random draws (default: 0)")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="an option of the recipe; repeatable"
    )


@dataclass(frozen=True)
class Record:
    """One episode in one mode, as it stands in records.jsonl."""

    domain: str
    index: int
    mode: str
    class_name: str
    absent: bool
    intersection: int
    union: int
    background_intersection: int
    background_union: int
    score: float
    adapt_seconds: float
    target_seconds: float
    error: str | None

    @property
    def counts(self) -> Counts:
        """Its pixels, for the metrics."""
        return Counts(
            self.class_name, self.intersection, self.union, self.background_intersection, self.background_union
        )


def run(options: argparse.Namespace) -> int:
    """Run every episode in every mode, write records, masks and the report; returns 1 when an episode failed.

    Raises:
        CavSamError: --out holds another run, or the models cannot be had.
    """
    from tqdm import tqdm

    from cavsam.cli import TRY_OUT, recipe_of, sources_of

    if options.episodes < 1:
        raise CavSamError(f"--episodes must be at least 1, not {options.episodes}.")
    domains = tuple(dict.fromkeys(options.domain or synth.DOMAINS))
    modes = [mode for mode in MODES if mode in (options.mode or MODES)]
    sources = sources_of(options)
    recipe = recipe_of(argparse.Namespace(mode="full", seed=options.seed, set=options.set))
    setting = {
        "split": options.split,
        "shots": options.shots,
        "models": sources.name,
        "recipe": {name: value for name, value in recipe.to_dict().items() if name != "mode"},
        "fingerprint": fingerprint(sources, recipe),
    }
    records = _open_run(options.out, setting, options.resume)
    done = {(record.domain, record.index, record.mode) for record in records}
    todo = [
        (domain, index, [mode for mode in modes if (domain, index, mode) not in done])
        for index in range(options.episodes)
        for domain in domains
    ]
    todo = [task for task in todo if task[2]]
    if sources.is_nano:
        print(f"cavsam: {TRY_OUT}", file=sys.stderr)

    models: dict[str, CavSam] = {}
    if todo:
        models = _models(sources, recipe, modes, options.device)
    total = sum(len(missing) for _, _, missing in todo)
    with tqdm(total=total, unit="run", disable=None) as bar, (options.out / "records.jsonl").open("a") as log:
        for domain, index, missing in todo:
            task = episode(domain, options.split, options.shots, index)
            for mode in missing:
                bar.set_description(f"{domain} {index} {mode}")
                record, mask = evaluate(models[mode], task, mode)
                _save_mask(mask, mask_path(options.out, record))
                log.write(json.dumps(dataclasses.asdict(record)) + "\n")
                log.flush()
                records.append(record)
                bar.update()
    asked = [r for r in records if r.domain in domains and r.index < options.episodes and r.mode in modes]
    text = report.write(options.out, asked, setting, modes, domains)
    print(text)
    return 1 if any(record.error for record in asked) else 0


def evaluate(model: CavSam, task: Episode, mode: str) -> tuple[Record, NDArray[np.bool_]]:
    """Adapt to the episode's references, segment its target, count pixels; also returns the mask found (H, W)."""
    references = [Reference(image.image, {task.class_name: image.masks[task.class_name]}) for image in task.references]
    begun = time.perf_counter()
    adapted = model.adapt(references, class_name=task.class_name)
    adapt_seconds = time.perf_counter() - begun
    (result,) = model.segment(adapted, [task.target.image])
    mask = result.masks.get(task.class_name, np.zeros(task.truth.shape, dtype=bool))
    counts = count(task.class_name, mask, task.truth)
    record = Record(
        domain=task.domain,
        index=task.index,
        mode=mode,
        class_name=task.class_name,
        absent=task.absent,
        intersection=counts.intersection,
        union=counts.union,
        background_intersection=counts.background_intersection,
        background_union=counts.background_union,
        score=result.scores.get(task.class_name, 0.0),
        adapt_seconds=round(adapt_seconds, 4),
        target_seconds=round(result.seconds, 4),
        error=result.error,
    )
    return record, mask


def mask_path(out: Path, record: Record) -> Path:
    """Where the mask of a record lies, a 1-bit PNG."""
    return out / "masks" / f"{record.domain}-{record.index:05d}-{record.mode}.png"


def _models(sources: Any, recipe: Any, modes: Sequence[str], device: str) -> dict[str, CavSam]:
    """One `CavSam` for each mode; the weights are loaded once and shared."""
    from cavsam.pipeline import CavSam

    largest = next((mode for mode in ("full", "dbst") if mode in modes), modes[0])
    loaded = CavSam.from_pretrained(sources, device=device, recipe=recipe.replace(mode=largest))
    models = {}
    for mode in modes:
        own = recipe.replace(mode=mode)
        diffusion = loaded.diffusion if own.generates_frames else None
        models[mode] = CavSam(loaded.tracker, diffusion, own, fingerprint(sources, own))
    return models


def _open_run(out: Path, setting: dict[str, Any], resume: bool) -> list[Record]:
    """The records that `out` holds from an earlier run of the same setting; makes the folder.

    Raises:
        CavSamError: the folder holds a run, and it is another one or --resume was not given.
    """
    out.mkdir(parents=True, exist_ok=True)
    stored, log = out / "setting.json", out / "records.jsonl"
    if not stored.exists():
        partial = out / "setting.json.partial"
        partial.write_text(json.dumps(setting, indent=2) + "\n")
        os.replace(partial, stored)
        return []
    if not resume:
        raise CavSamError(f"{out} already holds a run; add --resume to go on with it, or choose another --out.")
    if json.loads(stored.read_text()) != setting:
        raise CavSamError(f"{out} holds a run with other models or settings; choose another --out.")
    return list(read_records(log)) if log.exists() else []


def read_records(log: Path) -> Iterator[Record]:
    """The records in a file; an interrupted last line is cut off the file."""
    lines = log.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        log.write_text("".join(lines[:-1]))
        lines.pop()
    for line in lines:
        yield Record(**json.loads(line))


def _save_mask(mask: NDArray[np.bool_], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path, optimize=True)
