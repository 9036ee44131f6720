"""Mean IoU after each of several clicks, simulated as people make them: into the middle of the largest error.

    python -m research.benchmarks.clicks [--real FOLDER]

A mask to correct is what the bundled models find in mode `concat` after one reference of the class; without one, it is
empty. The drawn pictures are those of the development split. FOLDER holds real ones, in `DOMAIN/CLASS/images` and
`DOMAIN/CLASS/masks`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cavsam.evaluation.datasets import draw_episodes, load_episode, read_dataset
from cavsam.evaluation.episodes import Episode
from cavsam.images import Mask
from cavsam.interactive import Click, Refiner
from cavsam.pipeline import CavSam
from cavsam.weights.sources import ModelSources
from research import synth
from research.episodes import episode

SEED = 0


def main() -> int:
    """Print a row for each domain, and whether the mean rises with every click."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, metavar="FOLDER", help="real pictures, beside the drawn ones")
    parser.add_argument("--targets", type=int, default=20, help="targets of each domain (default: 20)")
    parser.add_argument("--clicks", type=int, default=5, help="clicks on each (default: 5)")
    options = parser.parse_args()
    nano = ModelSources.named("nano")
    model = CavSam.from_pretrained(nano, device="cpu", recipe=nano.recipe(mode="concat"))
    domains = [(f"drawn, {name}", drawn(name)) for name in synth.DOMAINS]
    if options.real:
        domains += [(f"real, {folder.name}", real(folder)) for folder in sorted(options.real.iterdir())]
    print(f"{'domain':<30} {'n':>3}  {'start':>5} " + " ".join(f"{n + 1:>5}" for n in range(options.clicks)))
    rising, rows = True, []
    for name, episodes in domains:
        made = [corrected(model, one, options.clicks) for one in islice(episodes, options.targets)]
        rows += made
        rising = print_row(name, made) and rising
    print_row("all", rows)
    return 0 if rising else 1


def print_row(name: str, rows: list[list[float]]) -> bool:
    """Print the means of IoUs (targets, clicks + 1) in percent; returns whether they rise with each click."""
    means = np.mean(rows, axis=0)
    rises = bool((np.diff(means) > 0).all())
    print(
        f"{name:<30} {len(rows):>3}  " + " ".join(f"{100 * mean:5.1f}" for mean in means) + ("" if rises else "  falls")
    )
    return rises


def drawn(domain: str) -> Iterator[Episode]:
    """Episodes of SynthFSS whose target shows the object."""
    return (one for one in (episode(domain, "dev", 1, index) for index in count()) if not one.absent)


def real(folder: Path) -> Iterator[Episode]:
    """Episodes of a folder, in a seeded order."""
    for listed in draw_episodes(read_dataset("folder", folder), 1, None, SEED):
        one = load_episode("folder", folder, listed)
        if not one.absent:
            yield one


def corrected(model: CavSam, one: Episode, clicks: int) -> list[float]:
    """IoU of the mask that one reference leads to, and of it after each click."""
    (result,) = model.segment(model.adapt(one.references), [one.image])
    start = next(iter(result.masks.values()), np.zeros_like(one.truth))
    refiner = Refiner(model.tracker)
    encoded = refiner.encode(one.image)
    mask, made = start, list[Click]()
    overlaps = [iou(mask, one.truth)]
    for _ in range(clicks):
        click = next_click(mask, one.truth)
        if click is not None:
            made.append(click)
            mask, _ = refiner.refine(encoded, made, start=start if start.any() else None)
        overlaps.append(iou(mask, one.truth))
    return overlaps


def next_click(mask: Mask, truth: Mask) -> Click | None:
    """The click into the middle of the largest connected error of a mask (H, W); None if there is none."""
    errors = [
        (positive, part) for positive in (True, False) for part in largest(truth & ~mask if positive else mask & ~truth)
    ]
    if not errors:
        return None
    positive, part = max(errors, key=lambda error: int(error[1].sum()))
    depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return Click(float(column) + 0.5, float(row) + 0.5, positive)


def largest(mask: NDArray[np.bool_]) -> list[Mask]:
    """The largest connected part of a mask (H, W), or nothing if it is empty."""
    parts, number = ndimage.label(mask)
    if not number:
        return []
    return [parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())]


def iou(one: Mask, other: Mask) -> float:
    """Intersection over union; 1 if both are empty."""
    union = int((one | other).sum())
    return float((one & other).sum()) / union if union else 1.0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
