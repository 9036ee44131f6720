"""Does teaching the scores help? Projects of generated pictures on which the models' own calibration is wrong.

    python -m research.learning collect --out runs/learning --seeds 10
    python -m research.learning report runs/learning

A project has one reference and `TARGETS` targets of one class of SynthFSS, all seen by a camera that the calibration
knows nothing of: inverted, noisy, in low contrast. Every candidate of every target is made once and kept with its cues
and its true IoU, one file per project. The report then plays an annotator who corrects the first `CORRECTED` targets
of a project, and holds the taught scores of all others against the models' own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cavsam.errors import CavSamError
from cavsam.evaluation.metrics import ScoreQuality, score_quality
from cavsam.scoring.experience import Experience, Measured, learn
from cavsam.scoring.ladder import SAME_IOU, TriedMask, first_enough, rungs
from cavsam.types import Reference, TargetResult
from cavsam.weights.sources import ModelSources
from research import synth

TARGETS = 60
CORRECTED = 15
SIZE = 256
DOMAINS = ("satellite", "cells", "lesions", "lungs")
FIRST_SEED = 900_000
"""Of the development split; those of SynthFSS's episodes lie above."""
FRAMES = {"frames": 2, "ddim_steps": 2, "lora_steps": 4, "lora_lr": 1e-3}
"""The candidate with generated frames on a CPU that has other things to do."""


def camera(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Show an image, uint8 (H, W, 3), as the project's camera does: inverted, in half the contrast, noisy."""
    noise = np.random.default_rng([seed, 5]).normal(0, 18, image.shape)
    seen = 255 - (128 + (image.astype(np.float64) - 128) * 0.5) + noise
    return seen.clip(0, 255).astype(np.uint8)


def project(
    seed: int, targets: int = TARGETS
) -> tuple[Reference, Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]]:
    """Draw a project: its reference, and its targets with the truth, bool (H, W); a tenth do not show the class."""
    domain = DOMAINS[seed % len(DOMAINS)]
    names = synth.classes(domain, "dev")
    name = names[seed // len(DOMAINS) % len(names)]
    first = synth.seed_of("dev", FIRST_SEED + seed * 1000)
    shown = synth.generate(domain, [name], seed=first, size=SIZE)

    def drawn() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
        for number in range(1, targets + 1):
            absent = number % 10 == 7
            scene = synth.generate(
                domain, [] if absent else [name], seed=first + number, size=SIZE, avoid=[name] if absent else []
            )
            truth = np.zeros((SIZE, SIZE), bool) if absent else scene.masks[name]
            yield camera(scene.image, first + number), truth

    return Reference(camera(shown.image, first), {name: shown.masks[name]}), drawn()


def measured(result: TargetResult, truth: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Measure each candidate of a target with one label against the truth."""
    ((_, candidates),) = result.candidates.items()
    rows = []
    for one in candidates:
        union = int((one.mask | truth).sum())
        iou = int((one.mask & truth).sum()) / union if union else 1.0
        rows.append(
            {
                "kind": one.kind,
                "score": one.score,
                "presence": one.presence,
                "cues": one.cues,
                "iou": iou,
                "found": bool(one.mask.any()),
                "seconds": getattr(one, "seconds", 0.0),
            }
        )
    return rows


def collect(folder: Path, seeds: Sequence[int], frames: bool) -> None:
    """Make every candidate of the projects that have no file yet."""
    import torch

    from cavsam.pipeline import CavSam

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    sources = ModelSources.named("nano")
    changes: dict[str, Any] = {"mode": "auto", "auto_threshold": 1.0 if frames else 0.0, "min_presence": 0.0}
    changes |= {"min_score": 0.0} | (FRAMES if frames else {})
    model = CavSam.from_pretrained(sources, device="cpu", recipe=sources.recipe("quick", **changes))
    for seed in seeds:
        path = folder / f"{seed}.json"
        if path.exists():
            continue
        started = time.monotonic()
        reference, targets = project(seed)
        adapted = model.adapt([reference])
        rows = []
        for image, truth in targets:
            (result,) = model.segment(adapted, [image])
            if result.error is not None:
                raise CavSamError(f"Project {seed}: {result.error}")
            rows.append(measured(result, truth))
        path.write_text(json.dumps({"seed": seed, "frames": frames, "targets": rows}) + "\n")
        print(f"project {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def masks_of(rows: Sequence[Sequence[dict[str, Any]]]) -> list[Measured]:
    """The candidates of targets that found something."""
    return [
        Measured(number, one["kind"], one["score"], one["cues"], one["iou"])
        for number, row in enumerate(rows)
        for one in row
        if one["found"]
    ]


def tried_of(row: Sequence[dict[str, Any]], experience: Experience) -> list[TriedMask]:
    """One target's candidates, scored."""
    return [
        TriedMask(
            one["kind"],
            experience.score(one["kind"], one["score"], one["cues"]) if one["found"] else 0.0,
            one["iou"],
            one["seconds"],
        )
        for one in row
    ]


@dataclass(frozen=True)
class Outcome:
    """One project: scores before and after, on the targets that nobody corrected, and the ladder.

    Attributes:
        before, after: quality of the scores of the masks that were delivered, chosen by the models' own scores.
        iou, taught_iou: mean IoU of the masks chosen by own scores among all candidates, and by taught scores among
            those up to the last rung.
        last: the rung that the corrected targets chose.
        hindsight: the first rung whose mean IoU on the others is within `SAME_IOU` of the best.
        seconds, taught_seconds: of a target, the candidates alone.
    """

    seed: int
    before: ScoreQuality
    after: ScoreQuality
    iou: float
    taught_iou: float
    last: str
    hindsight: str
    loss: float
    seconds: float
    taught_seconds: float


def outcome(seed: int, rows: Sequence[Sequence[dict[str, Any]]], corrected: int = CORRECTED) -> Outcome:
    """Correct the first targets of a project, learn, and measure on the others."""
    first, rest = rows[:corrected], rows[corrected:]
    learned = learn(masks_of(first))
    experience, own = Experience(learned.corrections), Experience()
    estimates = iter(learned.held_out)
    tried = [
        [[TriedMask(c["kind"], next(estimates) if c["found"] else 0.0, c["iou"], c["seconds"]) for c in row]]
        for row in first
    ]
    ladder = rungs(tried)
    enough = first_enough(ladder)
    # what was delivered was chosen by the models' own scores; learning gives it another score
    delivered = [int(np.argmax([one["score"] if one["found"] else 0.0 for one in row])) for row in rest]
    ious = np.array([row[n]["iou"] for row, n in zip(rest, delivered, strict=True)])
    absent = np.zeros(len(rest), bool)
    scores = {
        name: np.array([tried_of(row, how)[n].score for row, n in zip(rest, delivered, strict=True)])
        for name, how in (("before", own), ("after", experience))
    }
    others = rungs([[tried_of(row, experience)] for row in rest])
    means = [float(rung.ious.mean()) for rung in others]
    hindsight = next(n for n, mean in enumerate(means) if mean >= max(means) - SAME_IOU)
    top = rungs([[tried_of(row, own)] for row in rest])[-1]
    return Outcome(
        seed,
        score_quality(scores["before"], ious, absent),
        score_quality(scores["after"], ious, absent),
        float(top.ious.mean()),
        means[enough],
        ladder[enough].kind,
        others[hindsight].kind,
        max(means) - means[enough],
        float(top.seconds.mean()),
        float(others[enough].seconds.mean()),
    )


def report(folder: Path) -> list[str]:
    """Lines of a table of all projects of a folder, and what it comes to."""
    outcomes = []
    for path in sorted(folder.glob("*.json"), key=lambda path: int(path.stem)):
        held = json.loads(path.read_text())
        outcomes.append(outcome(held["seed"], held["targets"]))
    if not outcomes:
        raise CavSamError(f"{folder} holds no project; run collect first.")
    lines = ["| project | Spearman | taught | ECE | taught | mean IoU | taught | rung | hindsight | s | taught |"]
    lines.append("|" + "---|" * 11)
    for one in outcomes:
        figures = [one.before.spearman, one.after.spearman, one.before.calibration_error, one.after.calibration_error]
        written = " | ".join(f"{figure:.3f}" for figure in (*figures, one.iou, one.taught_iou))
        seconds = f"{one.seconds:.2f} | {one.taught_seconds:.2f}"
        lines.append(f"| {one.seed} | {written} | {one.last} | {one.hindsight} | {seconds} |")
    gains = {
        "Spearman": [one.after.spearman - one.before.spearman for one in outcomes],
        "ECE": [one.after.calibration_error - one.before.calibration_error for one in outcomes],
        "mean IoU": [one.taught_iou - one.iou for one in outcomes],
        "IoU lost to the best rung": [one.loss for one in outcomes],
    }
    for name, values in gains.items():
        lines.append(f"{name}: {np.mean(values):+.3f}, 95% interval {_interval(values)} over {len(values)} projects")
    same = sum(one.last == one.hindsight for one in outcomes)
    lines.append(f"The rung of hindsight was chosen in {same} of {len(outcomes)}.")
    return lines


def _interval(values: Sequence[float]) -> str:
    """Of the mean, by Student's t."""
    from scipy.stats import t

    reach = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values) - reach:+.3f} to {np.mean(values) + reach:+.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make candidates, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="make the candidates of some projects")
    collecting.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    collecting.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="of the projects")
    collecting.add_argument("--frames", action="store_true", help="make the candidate with generated frames too")
    reporting = commands.add_parser("report", help="hold taught scores against the models' own")
    reporting.add_argument("folder", type=Path, help="that collect wrote")
    options = parser.parse_args(arguments)
    try:
        if options.command == "collect":
            collect(options.out, options.seeds, frames=options.frames)
        else:
            print("\n".join(report(options.folder)))
    except CavSamError as error:
        print(f"learning: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
