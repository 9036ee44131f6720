"""Fit the calibration of scores on the records of `cavsam bench` over development episodes.

    cavsam bench --model nano --preset quick --mode dbst --mode auto --set auto_threshold=1 --out runs/dev
    python -m tools.fit_calibration runs/dev --out cavsam/nano/sam2/calibration.json

A candidate of an episode counts once, whatever modes made it. Each kind gets two logistic functions of its signs, whose
weights are not negative: one estimates the IoU of its mask with the truth, one whether the object is on the target.
Printed is how well they order episodes of a domain that they were not fitted on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import spearmanr

from cavsam.calibration import OPTIONS, Calibration, Logistic
from cavsam.errors import CavSamError
from cavsam.evaluation.metrics import auroc
from cavsam.evaluation.runs import all_records

Floats = NDArray[np.float64]

RECIPE = tuple(dict.fromkeys(name for names in OPTIONS.values() for name in names))
"""The options that some kind of mask depends on."""


@dataclass(frozen=True)
class Sample:
    """One mask of one candidate: its signs, its IoU with the truth (0 where the object is absent), the rest known."""

    kind: str
    domain: str
    signs: dict[str, float]
    iou: float
    shown: bool


def read_samples(folders: Sequence[Path]) -> tuple[list[Sample], dict[str, Any]]:
    """The masks that candidates found, from the records of runs over development episodes, and the runs' recipe.

    Raises:
        CavSamError: a folder holds no such run, or one over test episodes, which are for reporting only, or the runs
            differ in an option that masks depend on.
    """
    samples: dict[tuple[str, str, int], Sample] = {}
    recipe: dict[str, Any] = {}
    for folder in folders:
        try:
            setting = json.loads((folder / "setting.json").read_text())
            records = all_records(folder)
        except (OSError, ValueError, TypeError) as error:
            raise CavSamError(f"{folder} holds no run of `cavsam bench` that can be read ({error}).") from error
        if setting.get("split") != "dev":
            raise CavSamError(f"{folder} is a run over the split {setting.get('split')}; fit on development episodes.")
        options = {name: setting["recipe"][name] for name in RECIPE}
        recipe = recipe or options
        differ = sorted(name for name in RECIPE if recipe[name] != options[name])
        if differ:
            raise CavSamError(f"{folder} was run with another recipe ({', '.join(differ)}); fit on runs of one recipe.")
        for record in records:
            for one in record.candidates:
                if one["found"]:
                    iou = 0.0 if record.absent else one["iou"]
                    key = one["kind"], record.domain, record.index
                    samples[key] = Sample(one["kind"], record.domain, one["signs"], iou, not record.absent)
    return list(samples.values()), recipe


def fit_logistic(signs: Sequence[dict[str, float]], truth: Floats, penalty: float = 0.01) -> Logistic:
    """The logistic function with weights >= 0 that is nearest to `truth` in 0..1 (N,) in cross entropy.

    Args:
        penalty: weight of the squared weights (of signs scaled to unit deviation) beside the mean cross entropy.
    """
    names = sorted({name for one in signs for name in one})
    usual = {name: float(np.mean([one[name] for one in signs if name in one])) for name in names}
    table = np.array([[one.get(name, usual[name]) for name in names] for one in signs])
    scale = table.std(axis=0)
    # a sign that never changes tells nothing
    kept = [i for i in range(len(names)) if scale[i] > 1e-9]
    scaled = (table[:, kept] - table[:, kept].mean(axis=0)) / scale[kept]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logits = parameters[0] + scaled @ parameters[1:]
        value = np.mean(np.logaddexp(0, logits) - truth * logits) + penalty * np.sum(parameters[1:] ** 2)
        slope = (1 / (1 + np.exp(-logits)) - truth) / len(truth)
        return float(value), np.concatenate([[slope.sum()], scaled.T @ slope + 2 * penalty * parameters[1:]])

    bounds = [(-30.0, 30.0)] + [(0.0, None)] * len(kept)
    best = minimize(loss, np.zeros(1 + len(kept)), jac=True, method="L-BFGS-B", bounds=bounds).x
    weights = {names[i]: float(w / scale[i]) for i, w in zip(kept, best[1:], strict=True) if w > 1e-9}
    bias = float(best[0] - sum(weight * usual[name] for name, weight in weights.items()))
    return Logistic(bias, weights, {name: usual[name] for name in weights})


def fit(samples: Sequence[Sample], fitted: str, recipe: dict[str, Any], least: int = 30) -> Calibration:
    """One pair of functions for each kind that has at least `least` masks; see `Calibration` for `fitted`, `recipe`."""
    by_kind: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_kind[sample.kind].append(sample)
    by_kind = {kind: own for kind, own in by_kind.items() if len(own) >= least}
    overlap = {
        kind: fit_logistic([s.signs for s in own], np.array([s.iou for s in own])) for kind, own in by_kind.items()
    }
    presence = {
        kind: fit_logistic([s.signs for s in own], np.array([float(s.shown) for s in own]))
        for kind, own in by_kind.items()
        if 0 < sum(s.shown for s in own) < len(own)
    }
    return Calibration(overlap, presence, fitted, recipe)


def held_out(samples: Sequence[Sample]) -> list[str]:
    """Lines of a table: how each kind's estimates order the masks of domains that they were not fitted on."""
    lines = ["| kind | masks | Spearman with IoU | AUROC IoU > 0.5 | AUROC object absent |", "|---|---|---|---|---|"]
    for kind in sorted({sample.kind for sample in samples}):
        own = [sample for sample in samples if sample.kind == kind]
        scores, presence = np.full((2, len(own)), np.nan)
        for domain in {sample.domain for sample in own}:
            rest = fit([sample for sample in own if sample.domain != domain], "", {})
            for index, sample in enumerate(own):
                if sample.domain == domain:
                    scores[index] = rest.score(kind, sample.signs)
                    presence[index] = rest.present(kind, sample.signs)
        truth, shown = np.array([s.iou for s in own]), np.array([s.shown for s in own])
        figures = [spearmanr(scores, truth).statistic, auroc(scores, truth > 0.5), auroc(-presence, ~shown)]
        lines.append(f"| {kind} | {len(own)} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print how good it is on held-out domains, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a `cavsam bench` run, split dev")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="calibration.json to write")
    options = parser.parse_args(arguments)
    try:
        samples, recipe = read_samples(options.runs)
        described = ", ".join(folder.name for folder in options.runs)
        fitted = fit(samples, f"{len(samples)} masks of {described}", recipe)
        if not fitted.overlap:
            raise CavSamError("These runs hold too few masks to fit anything; run more episodes.")
    except CavSamError as error:
        print(f"fit_calibration: {error}", file=sys.stderr)
        return 2
    print("\n".join(held_out(samples)))
    fitted.save(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
