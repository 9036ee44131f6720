"""Running episodes in several modes, with records that survive an interruption."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cavsam.errors import CavSamError
from cavsam.evaluation.baselines import BASELINES
from cavsam.evaluation.episodes import Episode
from cavsam.evaluation.frames import FrameStore, KeptTransition
from cavsam.evaluation.metrics import Counts, boundary_f, count
from cavsam.images import Mask, resize_mask
from cavsam.options import MODES, add_method_arguments, announce, recipe_of, sources_of
from cavsam.recipe import Recipe
from cavsam.types import CandidateMask
from cavsam.weights.sources import ModelSources, features_digest, fingerprint, sam2_digest

if TYPE_CHECKING:
    from cavsam.adapted import AdaptedReference
    from cavsam.pipeline import CavSam
    from cavsam.tracking import Tracker


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose models, recipe and modes, and how a run is split up and resumed."""
    add_method_arguments(parser, several_modes=True)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--baseline", action="append", choices=BASELINES, default=[], help="compare with this too; repeatable"
    )
    group.add_argument("--resume", action="store_true", help="go on with what --out holds")
    group.add_argument("--shard", default="0/1", metavar="I/N", help="run every N-th episode from the I-th, from 0")
    group.add_argument(
        "--frames", type=Path, metavar="DIR", help="where generated frames are kept for other runs (default: in --out)"
    )


def shard_of(text: str) -> tuple[int, int]:
    """Read the number of a shard and how many there are from "I/N"; raises `CavSamError` if it is neither."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise CavSamError(f"--shard needs I/N with I from 0 to N-1, such as 0/4, not {text!r}.")
    return int(first), int(second)


def all_records(out: Path) -> list[Record]:
    """Read the records of all shards in a folder."""
    return [record for file in sorted(out.glob("records-*.jsonl")) for record in read_records(file)]


@dataclass(frozen=True)
class Method:
    """What the options choose: models, recipe (its mode left out), and the modes and baselines to compare."""

    sources: ModelSources
    recipe: Recipe
    modes: tuple[str, ...]
    device: str
    baselines: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: argparse.Namespace) -> Method:
        """Read parsed options; raises `CavSamError` if they do not fit together."""
        modes = tuple(mode for mode in MODES if mode in (options.mode or MODES))
        baselines = tuple(name for name in BASELINES if name in options.baseline)
        return cls(sources_of(options), recipe_of(options, "full"), modes, options.device, baselines)

    @property
    def compared(self) -> tuple[str, ...]:
        """The names of all that is compared, as the records have them in `mode`: the baselines, then the modes."""
        return (*self.baselines, *self.modes)

    def setting(self) -> dict[str, Any]:
        """List what must agree for two runs to be one, ready for JSON."""
        return {
            "models": self.sources.name,
            "recipe": {name: value for name, value in self.recipe.to_dict().items() if name != "mode"},
            "fingerprint": fingerprint(self.sources, self.recipe),
            "sam2": sam2_digest(self.sources),
            "features": features_digest(self.sources),
        }

    def load(self) -> dict[str, CavSam]:
        """Build a `CavSam` for each mode; the weights are loaded once and shared."""
        from cavsam.pipeline import CavSam

        generating = (mode for mode in self.modes if self.recipe.replace(mode=mode).generates_frames)
        largest = next(generating, self.modes[0])
        loaded = CavSam.from_pretrained(self.sources, device=self.device, recipe=self.recipe.replace(mode=largest))
        models = {}
        for mode in self.modes:
            own = self.recipe.replace(mode=mode)
            transition = loaded.transition if own.generates_frames else None
            name = fingerprint(self.sources, own)
            models[mode] = CavSam(loaded.tracker, transition, own, name, loaded.calibration, loaded.backbone)
        return models


@dataclass(frozen=True)
class Record:
    """One episode in one mode or baseline, a line of its shard's file."""

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
    candidates: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Every way to the mask that was tried: kind, whether it found a mask and was chosen, score, presence, cues, and
    its IoU with the ground truth on SAM2's square."""
    boundary_f: float | None = None
    """F-measure of the boundary, 0..1; None in a run from before it was measured."""

    @property
    def counts(self) -> Counts:
        """Its pixels, for the metrics."""
        return Counts(
            self.class_name, self.intersection, self.union, self.background_intersection, self.background_union
        )


def run_episodes(
    out: Path,
    log: Path,
    method: Method,
    tasks: Sequence[tuple[str, int]],
    lookup: Callable[[str, int], Episode],
    records: list[Record],
    store: FrameStore,
) -> None:
    """Run what `records` lacks of `tasks` (domain, index) in every mode and baseline.

    What is run is appended to `records` and to the file `log`.
    The modes share what does not depend on them: the adaptation to the references and the generated frames.
    """
    from tqdm import tqdm

    done = {(record.domain, record.index, record.mode) for record in records}
    todo = [
        (domain, index, [name for name in method.compared if (domain, index, name) not in done])
        for domain, index in tasks
    ]
    total = sum(len(missing) for _, _, missing in todo)
    announce(method.sources, method.recipe)
    if not total:
        return
    models = method.load()
    with tqdm(total=total, unit="run", disable=None) as bar, log.open("a") as lines:
        for domain, index, missing in todo:
            if not missing:
                continue
            try:
                task = lookup(domain, index)
            except CavSamError as error:  # a picture that cannot be read costs its own episode only
                print(f"cavsam: {domain} {index}: {error}", file=sys.stderr)
                unreadable = [_unreadable(domain, index, mode, str(error)) for mode in missing]
                lines.writelines(json.dumps(dataclasses.asdict(record)) + "\n" for record in unreadable)
                records += unreadable
                bar.update(len(missing))
                continue
            shared: dict[bool, tuple[AdaptedReference, float]] = {}
            for mode in missing:
                bar.set_description(f"{domain} {index} {mode}")
                if mode in BASELINES:
                    record, mask = measure_baseline(mode, task, next(iter(models.values())).tracker)
                else:
                    model, kept = with_kept_frames(models[mode], task, store)
                    if model.recipe.aligns not in shared:
                        shared[model.recipe.aligns] = _adapt(model, task)
                    adapted, seconds = shared[model.recipe.aligns]
                    adapted = dataclasses.replace(adapted, fingerprint=model.fingerprint)
                    record, mask = measure(model, task, mode, adapted, seconds, kept)
                save_mask(mask, mask_path(out, record))
                lines.write(json.dumps(dataclasses.asdict(record)) + "\n")
                lines.flush()
                records.append(record)
                bar.update()


def _adapt(model: CavSam, task: Episode) -> tuple[AdaptedReference, float]:
    begun = time.perf_counter()
    adapted = model.adapt(task.references, class_name=task.class_name)
    return adapted, time.perf_counter() - begun


def with_kept_frames(model: CavSam, task: Episode, store: FrameStore) -> tuple[CavSam, KeptTransition | None]:
    """Give a model an episode's frames from a store, if its mode needs any."""
    from cavsam.pipeline import CavSam
    from cavsam.transition import DiffusionTransition

    if not isinstance(model.transition, DiffusionTransition):
        return model, None
    kept = KeptTransition(store, model.transition, task)
    return CavSam(model.tracker, kept, model.recipe, model.fingerprint, model.calibration, model.backbone), kept


def measure(
    model: CavSam,
    task: Episode,
    mode: str,
    adapted: AdaptedReference,
    adapt_seconds: float,
    kept: KeptTransition | None = None,
) -> tuple[Record, NDArray[np.bool_]]:
    """Segment the episode's target and count pixels; returns the record and the mask found, bool (H, W).

    Generated frames count with the seconds that they took to make, now or in an earlier run; `kept` is where the model
    has them from.
    """
    (result,) = model.segment(adapted, [task.image])
    added = kept.made - kept.waited if kept else 0.0
    mask = result.masks.get(task.class_name, np.zeros(task.truth.shape, dtype=bool))
    record = record_of(
        task,
        mode,
        mask,
        score=result.scores.get(task.class_name, 0.0),
        adapt_seconds=adapt_seconds,
        target_seconds=result.seconds + added,
        error=result.error,
        candidates=[_candidate(one, task.truth) for one in result.candidates.get(task.class_name, ())],
    )
    return record, mask


def measure_baseline(name: str, task: Episode, tracker: Tracker) -> tuple[Record, NDArray[np.bool_]]:
    """Let a baseline segment the episode's target; the time to learn from the references counts with the target."""
    begun = time.perf_counter()
    error = None
    try:
        mask = BASELINES[name](task, tracker)
    except CavSamError as failure:
        mask, error = np.zeros(task.truth.shape, dtype=bool), str(failure)
    seconds = time.perf_counter() - begun
    return record_of(task, name, mask, score=0.0, adapt_seconds=0.0, target_seconds=seconds, error=error), mask


def record_of(
    task: Episode,
    mode: str,
    mask: NDArray[np.bool_],
    *,
    score: float,
    adapt_seconds: float,
    target_seconds: float,
    error: str | None = None,
    candidates: Sequence[dict[str, Any]] = (),
) -> Record:
    """Compare a mask, bool (H, W), with the ground truth of its episode."""
    counts = count(task.class_name, mask, task.truth)
    return Record(
        domain=task.domain,
        index=task.index,
        mode=mode,
        class_name=task.class_name,
        absent=task.absent,
        intersection=counts.intersection,
        union=counts.union,
        background_intersection=counts.background_intersection,
        background_union=counts.background_union,
        score=score,
        adapt_seconds=round(adapt_seconds, 4),
        target_seconds=round(target_seconds, 4),
        error=error,
        candidates=list(candidates),
        boundary_f=round(boundary_f(mask, task.truth), 6),
    )


def _unreadable(domain: str, index: int, mode: str, error: str) -> Record:
    """Make the record of an episode that cannot be read: it counts as an error and in no figure."""
    return Record(
        domain=domain,
        index=index,
        mode=mode,
        class_name="",
        absent=False,
        intersection=0,
        union=0,
        background_intersection=0,
        background_union=0,
        score=0.0,
        adapt_seconds=0.0,
        target_seconds=0.0,
        error=error,
    )


def _candidate(candidate: CandidateMask, truth: Mask) -> dict[str, Any]:
    square = resize_mask(truth, (candidate.mask.shape[0], candidate.mask.shape[1]))
    union = int((candidate.mask | square).sum())
    return {
        "kind": candidate.kind,
        "found": bool(candidate.mask.any()),
        "chosen": candidate.chosen,
        "score": round(candidate.score, 6),
        "presence": round(candidate.presence, 6),
        "iou": round(int((candidate.mask & square).sum()) / union, 6) if union else 1.0,
        "cues": {name: round(value, 6) for name, value in candidate.cues.items()},
    }


def mask_path(out: Path, record: Record) -> Path:
    """Name the file of a record's mask, a 1-bit PNG."""
    return out / "masks" / f"{record.domain}-{record.index:05d}-{record.mode}.png"


def open_shard(out: Path, shard: int, shards: int, setting: dict[str, Any], resume: bool) -> tuple[Path, list[Record]]:
    """Open a shard in `out`: the file of its records, and those it holds from an earlier run; makes the folder.

    Raises:
        CavSamError: the folder holds records of this shard and --resume was not given, or a run with another setting or
            another number of shards, or what it holds is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    stored, log = out / "setting.json", out / f"records-{shard}-of-{shards}.jsonl"
    if log.exists() and not resume:
        raise CavSamError(f"{out} already holds a run; add --resume to go on with it, or choose another --out.")
    others = [file.name for file in out.glob("records-*.jsonl") if not file.stem.endswith(f"-of-{shards}")]
    if others:
        raise CavSamError(f"{out} holds a run in another number of shards ({others[0]}); choose another --out.")
    if not stored.exists():
        partial = out / f"setting.json.{os.getpid()}.partial"
        partial.write_text(json.dumps(setting, indent=2) + "\n")
        os.replace(partial, stored)
    try:
        same = json.loads(stored.read_text()) == setting
        records = list(read_records(log, repair=True)) if log.exists() else []
    except (ValueError, TypeError) as error:
        raise CavSamError(f"What {out} holds of an earlier run is damaged ({error}); choose another --out.") from error
    if not same:
        raise CavSamError(f"{out} holds a run with other models or settings; choose another --out.")
    return log, records


def read_records(log: Path, *, repair: bool = False) -> Iterator[Record]:
    """Read the records of a file without an interrupted last line, which `repair` cuts off the file."""
    lines = log.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        if repair:
            log.write_text("".join(lines))
    for line in lines:
        yield Record(**json.loads(line))


def save_mask(mask: NDArray[np.bool_], path: Path) -> None:
    """Write a mask, bool (H, W), as a 1-bit PNG; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path, optimize=True)
