"""Fit the calibration of scores on records of development episodes, real ones and drawn ones.

    cavsam evaluate PATH/dev --out runs/real --model nano --preset quick --episodes 10 --absent 4 --list-seed 1 \
        --mode auto --set auto_threshold=0
    cavsam evaluate PATH/dev --out runs/real-frames --model nano --preset quick --episodes 4 --per-domain 14 \
        --mode dbst --mode auto --set auto_threshold=1
    python -m research.bench --out runs/drawn --model nano --preset quick --episodes 36 --mode auto \
        --set auto_threshold=0
    python -m research.fit_calibration runs/real runs/real-frames runs/drawn \
        --out cavsam/weights/nano/sam2/calibration.json

Those are the runs of the bundled file: the cheap candidates on many episodes, all candidates on fewer. A folder of real
pictures counts as the split that it is called.

A candidate of an episode counts once, whatever modes made it. Each kind gets two logistic functions of its cues, whose
weights are not negative: one estimates the IoU of its mask with the truth, one whether the object is on the target. All
kinds are fitted together, because what a cue means is much the same for all. How much the weights are held small is
what is best on domains that were left out, each in its turn.
Printed is how well the estimates order masks, and choose among them, on domains that they were not fitted on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import spearmanr

from cavsam.errors import CavSamError
from cavsam.evaluation.metrics import auroc, score_quality
from cavsam.evaluation.runs import all_records
from cavsam.scoring.calibration import OPTIONS, Calibration, Logistic

Floats = NDArray[np.float64]

RECIPE = tuple(dict.fromkeys(name for names in OPTIONS.values() for name in names))
"""The options that some kind of mask depends on."""

SAME = ("models", "shots")
"""What else must agree among runs."""

PENALTIES = ((0.0003, 0.003), (0.001, 0.01), (0.003, 0.03), (0.01, 0.1), (0.03, 0.3))
"""Of the weights that all kinds share, and of each kind's own; what is best on held-out domains is taken."""


@dataclass(frozen=True)
class Sample:
    """One mask of one candidate: its cues, its IoU with the truth (0 where the object is absent), the rest known.

    Samples of one `episode`, a list's name and a number, are what there is to choose from.
    """

    kind: str
    domain: str
    episode: tuple[str, int]
    cues: dict[str, float]
    iou: float
    shown: bool


def read_samples(folders: Sequence[Path]) -> tuple[list[Sample], dict[str, Any]]:
    """The masks that candidates found, from the records of runs over development episodes, and the runs' recipe.

    Raises:
        CavSamError: a folder holds no such run, or one over test episodes, which are for reporting only, or the runs
            differ in their models, their shots or an option that masks depend on.
    """
    samples: dict[tuple[str, str, tuple[str, int]], Sample] = {}
    first: dict[str, Any] = {}
    for folder in folders:
        try:
            setting = json.loads((folder / "setting.json").read_text())
            records = all_records(folder)
            split = setting["split"]
            listed = str(setting.get("episodes", "drawn"))
            known = {name: setting[name] for name in SAME} | {name: setting["recipe"][name] for name in RECIPE}
        except KeyError as error:
            raise CavSamError(f"The setting.json of {folder} lacks {error}; run it again.") from error
        except (OSError, ValueError, TypeError) as error:
            raise CavSamError(f"{folder} holds no run that can be read ({error}).") from error
        if split != "dev":
            raise CavSamError(f"{folder} is a run over the split {split}; fit on development episodes.")
        first = first or known
        for name in SAME:
            if first[name] != known[name]:
                was = f"with {name} {known[name]}, {folders[0]} with {first[name]}"
                raise CavSamError(f"{folder} was run {was}; fit on runs of the same {name}.")
        differ = sorted(name for name in RECIPE if first[name] != known[name])
        if differ:
            raise CavSamError(f"{folder} was run with another recipe ({', '.join(differ)}); fit on runs of one recipe.")
        for record in records:
            for one in record.candidates:
                if one["found"]:
                    iou = 0.0 if record.absent else one["iou"]
                    episode = listed, record.index
                    key = one["kind"], record.domain, episode
                    samples[key] = Sample(one["kind"], record.domain, episode, one["cues"], iou, not record.absent)
    return list(samples.values()), {name: first[name] for name in RECIPE}


def weights_of(folders: Sequence[Path]) -> tuple[str, str]:
    """The digests of SAM2 and of the backbone that runs were made with; empty in runs from before they were written.

    Raises:
        CavSamError: they were made with different weights.
    """
    settings = [json.loads((folder / "setting.json").read_text()) for folder in folders]
    found = {(str(setting.get("sam2", "")), str(setting.get("features", ""))) for setting in settings}
    if len(found) > 1:
        raise CavSamError("The runs were made with different SAM2 weights or features; fit on runs of the same.")
    return found.pop()


def fit_logistics(
    kinds: Sequence[str],
    cues: Sequence[dict[str, float]],
    truth: Floats,
    shared: float = 0.003,
    own: float = 0.03,
) -> dict[str, Logistic]:
    """For each kind the logistic function with weights >= 0 that is nearest to `truth` in 0..1 (N,) in cross entropy.

    A weight is the sum of one that all kinds share and one of the kind's own: what holds for all is learned from all.

    Args:
        kinds, cues: of each mask.
        shared, own: penalties of the squared weights (of cues scaled to unit deviation) beside the mean cross entropy.
    """
    names = sorted({name for one in cues for name in one})
    table = np.array([[one.get(name, np.nan) for name in names] for one in cues])
    usual, scale = np.nanmean(table, axis=0), np.nanstd(table, axis=0)
    scale[scale < 1e-9] = np.inf  # a cue that never changes tells nothing
    scaled = np.nan_to_num((table - usual) / scale)
    members = np.array([[kind == one for kind in sorted(set(kinds))] for one in kinds], dtype=float)  # (N, kinds)
    # columns: the shared weights, each kind's own ones, each kind's bias
    design = np.hstack([scaled, *(scaled * member[:, None] for member in members.T), members])
    count, own_count = scaled.shape[1], scaled.shape[1] * members.shape[1]
    penalty = np.concatenate([np.full(count, shared), np.full(own_count, own), np.zeros(members.shape[1])])

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logits = design @ parameters
        value = np.mean(np.logaddexp(0, logits) - truth * logits) + penalty @ parameters**2
        slope = design.T @ (1 / (1 + np.exp(-logits)) - truth) / len(truth)
        return float(value), slope + 2 * penalty * parameters

    bounds = [(0.0, None)] * (count + own_count) + [(-30.0, 30.0)] * members.shape[1]
    best = minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x
    fits = {}
    for index, kind in enumerate(sorted(set(kinds))):
        known = ~np.isnan(table[members[:, index] > 0]).all(axis=0)  # a kind without a cue does without its weight
        total = best[:count] + best[count * (index + 1) : count * (index + 2)]
        weights = {names[i]: float(total[i] / scale[i]) for i in range(count) if known[i] and total[i] > 1e-9}
        means = {name: float(usual[names.index(name)]) for name in weights}
        bias = float(best[count + own_count + index] - sum(weights[name] * means[name] for name in weights))
        fits[kind] = Logistic(bias, weights, means)
    return fits


def fit(
    samples: Sequence[Sample], penalties: tuple[float, float], fitted: str, recipe: dict[str, Any], least: int = 30
) -> Calibration:
    """Two functions for each kind that has at least `least` masks; see `Calibration` for `fitted` and `recipe`."""
    counts = Counter(sample.kind for sample in samples)
    used = [sample for sample in samples if counts[sample.kind] >= least]
    kinds, cues = [sample.kind for sample in used], [sample.cues for sample in used]
    if not used:
        return Calibration({}, {}, fitted, recipe)
    shown = np.array([float(sample.shown) for sample in used])
    return Calibration(
        fit_logistics(kinds, cues, np.array([sample.iou for sample in used]), *penalties),
        fit_logistics(kinds, cues, shown, *penalties) if 0 < shown.sum() < len(shown) else {},
        fitted,
        recipe,
    )


def held_out_estimates(samples: Sequence[Sample], penalties: tuple[float, float]) -> tuple[Floats, Floats]:
    """Each mask's estimated IoU and presence, both (N,), by what was fitted on all other domains."""
    scores, presence = np.full((2, len(samples)), np.nan)
    for domain in {sample.domain for sample in samples}:
        rest = fit([sample for sample in samples if sample.domain != domain], penalties, "", {})
        for index, sample in enumerate(samples):
            if sample.domain == domain:
                scores[index] = rest.score(sample.kind, sample.cues)
                presence[index] = rest.present(sample.kind, sample.cues)
    return scores, presence


def best_penalties(samples: Sequence[Sample]) -> tuple[float, float]:
    """Those of `PENALTIES` whose estimates have the least cross entropy on held-out domains, each domain alike."""
    domains = np.array([sample.domain for sample in samples])
    truth = np.array([sample.iou for sample in samples])

    def loss(penalties: tuple[float, float]) -> float:
        scores = held_out_estimates(samples, penalties)[0].clip(1e-6, 1 - 1e-6)
        entropy = -(truth * np.log(scores) + (1 - truth) * np.log(1 - scores))
        return float(np.mean([entropy[domains == domain].mean() for domain in set(domains)]))

    return min(PENALTIES, key=loss) if len(set(domains)) > 1 else PENALTIES[len(PENALTIES) // 2]


def held_out(samples: Sequence[Sample], penalties: tuple[float, float]) -> list[str]:
    """Lines of two tables: how each kind's estimates order the masks of domains that they were not fitted on, and what
    the choice by them is worth there.

    One sentence instead where there is only one domain.
    """
    domains = {sample.domain for sample in samples}
    if len(domains) < 2:
        return [f"There are only masks of {', '.join(domains)}: a check on held-out domains needs at least two."]
    lines = ["| kind | masks | Spearman with IoU | AUROC IoU > 0.5 | AUROC object absent |", "|---|---|---|---|---|"]
    scores, presence = held_out_estimates(samples, penalties)
    kinds, truth = np.array([s.kind for s in samples]), np.array([s.iou for s in samples])
    shown = np.array([s.shown for s in samples])
    for kind in sorted(set(kinds)):
        own = kinds == kind
        figures = [
            spearmanr(scores[own], truth[own]).statistic,
            auroc(scores[own], truth[own] > 0.5),
            auroc(-presence[own], ~shown[own]),
        ]
        lines.append(f"| {kind} | {own.sum()} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    return [*lines, "", *_choices(samples, scores)]


def _choices(samples: Sequence[Sample], scores: Floats) -> list[str]:
    """The mask with the highest score of each episode: its IoU by domain, and how well its score tells it."""
    episodes: dict[tuple[str, tuple[str, int]], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        episodes[sample.domain, sample.episode].append(index)
    chosen = np.array([max(own, key=lambda i: scores[i]) for own in episodes.values()])
    best = np.array([max(samples[i].iou for i in own) for own in episodes.values()])
    iou, shown = np.array([samples[i].iou for i in chosen]), np.array([samples[i].shown for i in chosen])
    domain = np.array([samples[i].domain for i in chosen])
    lines = ["| held-out domain | episodes | IoU of the choice | best in hindsight |", "|---|---|---|---|"]
    for name in sorted(set(domain)):
        own = shown & (domain == name)
        lines.append(f"| {name} | {own.sum()} | {100 * iou[own].mean():.1f} | {100 * best[own].mean():.1f} |")
    quality = score_quality(scores[chosen], iou, ~shown)
    told = f"Spearman {quality.spearman:.2f}, ECE {quality.calibration_error:.3f}, AUROC absent {quality.absent:.2f}"
    return [*lines, "", f"Score of the choice: {told}."]


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print how good it is on held-out domains, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run over the split dev")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="calibration.json to write")
    options = parser.parse_args(arguments)
    try:
        if options.out.is_dir() or not options.out.parent.is_dir():
            raise CavSamError(f"--out must name a file in a folder that is there, not {options.out}.")
        samples, recipe = read_samples(options.runs)
        described = ", ".join(folder.name for folder in options.runs)
        sam2, features = weights_of(options.runs)
        penalties = best_penalties(samples)
        fitted = fit(samples, penalties, f"{len(samples)} masks of {described}", recipe)
        fitted = replace(fitted, sam2=sam2, features=features)
        if not fitted.overlap:
            raise CavSamError("These runs hold too few masks to fit anything; run more episodes.")
    except CavSamError as error:
        print(f"fit_calibration: {error}", file=sys.stderr)
        return 2
    print("\n".join(held_out(samples, penalties)))
    try:
        fitted.save(options.out)
    except OSError as error:
        print(f"fit_calibration: {options.out} cannot be written ({error}).", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
