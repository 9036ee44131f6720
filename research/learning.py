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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cavsam.errors import CavSamError
from cavsam.types import Reference, TargetResult
from cavsam.weights.sources import ModelSources
from research import synth

TARGETS = 60
CORRECTED = 15
SIZE = 256
DOMAINS = ("satellite", "cells", "lesions", "lungs")
FIRST_SEED = 900_000
"""Of the development split; those of SynthFSS's episodes lie above."""
FRAMES = {"frames": 3, "ddim_steps": 4, "lora_steps": 8, "lora_lr": 1e-3}
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Make candidates, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="make the candidates of some projects")
    collecting.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    collecting.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="of the projects")
    collecting.add_argument("--frames", action="store_true", help="make the candidate with generated frames too")
    options = parser.parse_args(arguments)
    collect(options.out, options.seeds, frames=options.frames)
    return 0


if __name__ == "__main__":
    sys.exit(main())
