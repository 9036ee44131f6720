"""The report of a benchmark run: JSON, Markdown, a plot and a contact sheet, from the records alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from cavsam.evaluation.baselines import BASELINES
from cavsam.evaluation.episodes import Episode
from cavsam.evaluation.metrics import (
    Counts,
    Interval,
    foreground_background_iou,
    interval,
    mean_iou,
    paired_difference,
    score_quality,
)
from cavsam.evaluation.runs import Record, mask_path

PLAIN = "concat"
"""The mode that the others are compared with."""
CHOSEN, HINDSIGHT = "chosen", "best in hindsight"
TILE = 160


def write(
    out: Path,
    records: Sequence[Record],
    title: str,
    setting: dict[str, Any],
    modes: Sequence[str],
    domains: Sequence[str],
    lookup: Callable[[str, int], Episode],
    published: dict[str, dict[str, float]] | None = None,
) -> str:
    """Write report.json, report.md, report.png and episodes.png into `out`; returns the Markdown.

    Args:
        out: a folder that exists.
        records: of all episodes.
        title: heading of the report.
        setting: what the run was made with.
        modes: names of the modes and baselines to compare; the last one is shown in the contact sheet and compared with
            each other one.
        domains: in the order in which they should stand.
        lookup: gives the episode of a domain and index again, for the contact sheet.
        published: figures to stand below ours, name -> domain -> percent.
    """
    summary = summarise(records, modes, domains)
    text = markdown(summary, title, setting, published or {})
    (out / "report.json").write_text(json.dumps({"setting": setting, **summary}, indent=2) + "\n")
    (out / "report.md").write_text(text)
    plot(summary, out / "report.png")
    contact_sheet(out, records, modes[-1], domains, lookup, out / "episodes.png")
    return text


def summarise(records: Sequence[Record], modes: Sequence[str], domains: Sequence[str]) -> dict[str, Any]:
    """Work out all figures: IoU over the targets that show the object, abstention over those that do not."""
    modes = [mode for mode in modes if any(record.mode == mode for record in records)]
    kept = sorted((r for r in records if r.class_name), key=lambda record: (record.domain, record.index))
    unreadable = [record for record in records if not record.class_name]
    shown = {
        mode: [[r.counts for r in kept if r.mode == mode and r.domain == d and not r.absent] for d in domains]
        for mode in modes
    }
    figures = {}
    for mode in modes:
        own = [record for record in kept if record.mode == mode]
        absent = [record for record in own if record.absent]
        figures[mode] = {
            "domains": {d: _domain_figures([r for r in own if r.domain == d and not r.absent]) for d in domains},
            "mean_iou": asdict(interval([counts for counts in shown[mode] if counts])),
            "mean_with_background": float(
                np.mean([foreground_background_iou(counts) for counts in shown[mode] if counts])
            ),
            "abstained_on_absent": {
                "of": len(absent),
                "right": sum(record.union == 0 for record in absent),
            },
            "missed_though_shown": sum(record.intersection == 0 for record in own if not record.absent),
            "seconds_per_target": float(np.mean([record.target_seconds for record in own])),
            "seconds_per_reference_set": float(np.mean([record.adapt_seconds for record in own])),
            "errors": sum(r.error is not None for r in own) + sum(r.mode == mode for r in unreadable),
            "score": None if mode in BASELINES else _score_figures(own),
            "candidates": _candidate_figures([record for record in own if not record.absent], domains),
        }
    return {
        "modes": figures,
        "differences": {
            f"{second} - {first}": {
                **asdict(_difference(kept, first, second, domains)),
                "domains": {d: asdict(_difference(kept, first, second, [d])) for d in domains},
            }
            for first, second in _pairs(modes)
        },
        "episodes": {d: len({r.index for r in kept if r.domain == d}) for d in domains},
    }


def _pairs(modes: Sequence[str]) -> list[tuple[str, str]]:
    """Pair each of our modes with the plain one, and the last mode with each other one."""
    pairs = [(PLAIN, mode) for mode in modes if PLAIN in modes and mode != PLAIN and mode not in BASELINES]
    return list(dict.fromkeys([*pairs, *((mode, modes[-1]) for mode in modes[:-1])]))


def _candidate_figures(records: Sequence[Record], domains: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Average the episodes' IoU by kind of candidate and domain, on SAM2's square; and that of the best in hindsight.

    A kind counts where it was tried. Empty if there was nothing to choose.
    """
    kinds = list(dict.fromkeys(one["kind"] for record in records for one in record.candidates))
    if len(kinds) < 2:
        return {}

    def mean(kind: str, domain: str) -> float | None:
        own = [record.candidates for record in records if record.domain == domain and record.candidates]
        ious = [one["iou"] for candidates in own for one in candidates if one["kind"] == kind]
        if kind == HINDSIGHT:
            ious = [max(one["iou"] for one in candidates) for candidates in own]
        if kind == CHOSEN:
            ious = [one["iou"] for candidates in own for one in candidates if one["chosen"]]
        return float(np.mean(ious)) if ious else None

    return {kind: {domain: mean(kind, domain) for domain in domains} for kind in (*kinds, CHOSEN, HINDSIGHT)}


def _score_figures(records: Sequence[Record]) -> dict[str, float | None]:
    quality = score_quality(
        np.array([record.score for record in records], dtype=float),
        np.array([0.0 if record.absent else record.counts.iou for record in records], dtype=float),
        np.array([record.absent for record in records], dtype=bool),
    )
    return {name: None if np.isnan(value) else value for name, value in asdict(quality).items()}


def _domain_figures(records: Sequence[Record]) -> dict[str, Any]:
    if not records:
        return {"mean_iou": None, "with_background": None, "episodes": 0, "episode_iou": None, "boundary_f": None}
    counts = [record.counts for record in records]
    names = sorted({c.class_name for c in counts})
    return {
        "mean_iou": asdict(interval([counts])),
        "with_background": foreground_background_iou(counts),
        **_episode_figures(records),
        "classes": {
            name: {
                "mean_iou": mean_iou([c for c in counts if c.class_name == name]),
                **_episode_figures([record for record in records if record.class_name == name]),
            }
            for name in names
        },
    }


def _episode_figures(records: Sequence[Record]) -> dict[str, Any]:
    """Average over episodes; None for a figure that is not in the records."""
    boundaries = [record.boundary_f for record in records if record.boundary_f is not None]
    return {
        "episodes": len(records),
        "episode_iou": float(np.mean([record.counts.iou for record in records])),
        "boundary_f": float(np.mean(boundaries)) if boundaries else None,
    }


def _difference(records: Sequence[Record], first: str, second: str, domains: Sequence[str]) -> Interval:
    """Compare two modes over the episodes that both have run."""
    pairs: list[tuple[list[Counts], list[Counts]]] = []
    for domain in domains:
        found = [
            {r.index: r.counts for r in records if r.domain == domain and r.mode == mode and not r.absent}
            for mode in (first, second)
        ]
        common = sorted(set(found[0]) & set(found[1]))
        if common:
            pairs.append(([found[0][index] for index in common], [found[1][index] for index in common]))
    return paired_difference([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def markdown(
    summary: dict[str, Any], title: str, setting: dict[str, Any], published: dict[str, dict[str, float]]
) -> str:
    """Write the figures as tables."""
    counts = ", ".join(f"{domain} {number}" for domain, number in summary["episodes"].items())
    lines = [
        f"# {title}",
        "",
        f"Models {setting['models']}, fingerprint {setting['fingerprint']}. Episodes: {counts}.",
        *_overlap_table(summary, published),
        *_difference_table(summary),
        "",
        "Each domain alone, in percent: IoU added up over each class's episodes, the mean over the classes with its "
        "interval, the mean of the episodes' IoU, and the mean F-measure of the boundary (as DAVIS defines it).",
    ]
    for domain in summary["episodes"]:
        lines += ["", *_domain_table(summary, domain)]
    for mode, figures in summary["modes"].items():
        if figures["candidates"]:
            lines += ["", *_candidate_table(figures["candidates"], mode)]
    return "\n".join([*lines, *_absence_table(summary), *_score_table(summary)]) + "\n"


def _overlap_table(summary: dict[str, Any], published: dict[str, dict[str, float]]) -> list[str]:
    """Write the pooled IoU of each mode and domain, beside published ones."""
    domains = list(summary["episodes"])
    lines = [
        "",
        "Mean IoU in percent: foreground intersection and union added up per class, then the mean over the classes "
        "(the protocol of PATNet and HSNet), over the targets that show the object. 95% bootstrap intervals.",
        "",
        "| mode | " + " | ".join(domains) + " | mean |",
        "|---|" + "---|" * (len(domains) + 1),
    ]
    for mode, figures in summary["modes"].items():
        cells = [_cell(figures["domains"][domain]["mean_iou"]) for domain in domains]
        lines.append(f"| {mode} | " + " | ".join([*cells, _cell(figures["mean_iou"])]) + " |")
    for name, known in published.items():
        if set(domains) & set(known):
            cells = [f"{known[domain]:.1f}" if domain in known else "-" for domain in domains]
            lines.append(f"| {name} | " + " | ".join([*cells, "-"]) + " |")
    return lines


def _difference_table(summary: dict[str, Any]) -> list[str]:
    """Write the paired differences of the modes, if there are any."""
    if not summary["differences"]:
        return []
    lines = ["", "| paired difference | points | 95% interval |", "|---|---|---|"]
    for name, value in summary["differences"].items():
        bounds = f"{100 * value['low']:+.1f} to {100 * value['high']:+.1f}"
        lines.append(f"| {name} | {100 * value['value']:+.2f} | {bounds} |")
    return lines


def _absence_table(summary: dict[str, Any]) -> list[str]:
    """Write IoU with background, what was made of absent objects, and the time."""
    lines = [
        "",
        "Another figure, not to be compared with the above: IoU *with background* (mean of the pooled foreground and "
        "background IoU), absent objects, and time.",
        "",
        "| mode | with background | nothing found where nothing is | nothing right though shown | s per target "
        "| s per reference | errors |",
        "|---|---|---|---|---|---|---|",
    ]
    for mode, f in summary["modes"].items():
        absent = f["abstained_on_absent"]
        lines.append(
            f"| {mode} | {100 * f['mean_with_background']:.1f} | {absent['right']} of {absent['of']} "
            f"| {f['missed_though_shown']} | {f['seconds_per_target']:.2f} | {f['seconds_per_reference_set']:.2f} "
            f"| {f['errors']} |"
        )
    return lines


def _score_table(summary: dict[str, Any]) -> list[str]:
    """Write how well the scores tell the true IoU."""
    lines = [
        "",
        "The score against the true IoU (0 where the object is absent): rank correlation, the area under the ROC curve "
        "for an IoU above 0.5 and for an absent object, and the expected calibration error.",
        "",
        "| mode | Spearman | AUROC IoU > 0.5 | AUROC absent | ECE |",
        "|---|---|---|---|---|",
    ]
    for mode, figures in summary["modes"].items():
        if quality := figures["score"]:
            cells = ["-" if value is None else f"{value:.2f}" for value in quality.values()]
            lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return lines


def _domain_table(summary: dict[str, Any], domain: str) -> list[str]:
    """Write the table of a domain: the pooled IoU of its classes and the means over its episodes, for each mode."""
    figures = {mode: every["domains"][domain] for mode, every in summary["modes"].items()}
    classes = list(dict.fromkeys(name for one in figures.values() for name in one.get("classes", ())))
    lines = [
        f"## {domain}",
        "",
        "| mode | " + " | ".join([*classes, "mean of classes", "mean of episodes", "boundary F"]) + " |",
        "|---|" + "---|" * (len(classes) + 3),
    ]
    for mode, one in figures.items():
        own = [one.get("classes", {}).get(name, {}).get("mean_iou") for name in classes]
        cells = [*map(_percent, own), _cell(one["mean_iou"]), _percent(one["episode_iou"]), _percent(one["boundary_f"])]
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return lines


def _candidate_table(candidates: dict[str, dict[str, float | None]], mode: str) -> list[str]:
    domains = list(next(iter(candidates.values())))
    lines = [
        f"Candidates of `{mode}`: mean of the episodes' IoU in percent, on the square that SAM2 sees, where each was "
        "tried; what was chosen; and the best of them in hindsight.",
        "",
        "| candidate | " + " | ".join([*domains, "mean"]) + " |",
        "|---|" + "---|" * (len(domains) + 1),
    ]
    for kind, own in candidates.items():
        known = [value for value in own.values() if value is not None]
        cells = [*map(_percent, own.values()), _percent(float(np.mean(known)) if known else None)]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value['value']:.1f} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def plot(summary: dict[str, Any], path: Path) -> None:
    """Plot the mean IoU of each mode by domain, with its intervals, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    modes, domains = list(summary["modes"]), [*summary["episodes"], "mean"]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(modes))
    for number, mode in enumerate(modes):
        figures = summary["modes"][mode]
        values = [figures["domains"][d]["mean_iou"] for d in domains[:-1]] + [figures["mean_iou"]]
        places = [i + (number - (len(modes) - 1) / 2) * width for i, value in enumerate(values) if value]
        heights = np.array([100 * value["value"] for value in values if value])
        low = np.array([100 * value["low"] for value in values if value])
        high = np.array([100 * value["high"] for value in values if value])
        # a percentile interval need not contain the figure itself
        errors = np.maximum(np.stack([heights - low, high - heights]), 0)
        axes.bar(places, heights, width, yerr=errors, capsize=2, label=mode, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylabel("mean IoU (%), 95% interval")
    axes.set_ylim(0, 100)
    axes.legend(ncols=len(modes), frameon=False)
    figure.savefig(path, dpi=110)


def contact_sheet(
    out: Path,
    records: Sequence[Record],
    mode: str,
    domains: Sequence[str],
    lookup: Callable[[str, int], Episode],
    path: Path,
) -> None:
    """Show the best, median and worst episode of each domain in `mode`: reference, ground truth and what was found."""
    rows = []
    for domain in domains:
        own = [r for r in records if r.domain == domain and r.mode == mode and r.class_name and not r.absent]
        own.sort(key=lambda record: record.counts.iou, reverse=True)
        if not own:
            continue
        row = []
        for label, record in (("best", own[0]), ("median", own[len(own) // 2]), ("worst", own[-1])):
            task = lookup(domain, record.index)
            with Image.open(mask_path(out, record)) as stored:
                found = np.array(stored, dtype=bool)
            reference = task.references[0]
            tiles = [
                _outlined(reference.image, reference.masks[task.class_name], (255, 220, 0)),
                _outlined(task.image, task.truth, (0, 255, 255)),
                _outlined(task.image, found, (255, 0, 255)),
            ]
            row.append(_titled(tiles, f"{domain}: {label}, {task.class_name}, IoU {record.counts.iou:.2f}"))
        rows.append(np.concatenate(row, axis=1))
    if rows:
        Image.fromarray(np.concatenate(rows)).save(path)


def _outlined(image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    painted = image.copy()
    painted[mask & ~binary_erosion(mask, iterations=2, border_value=1)] = colour
    return painted


def _titled(tiles: Sequence[NDArray[np.uint8]], title: str) -> NDArray[np.uint8]:
    """Lay tiles side by side under a line of text, uint8 (TILE + 16, 3 * TILE + 8, 3)."""
    small = [np.asarray(Image.fromarray(tile).resize((TILE, TILE))) for tile in tiles]
    sheet = Image.new("RGB", (len(small) * TILE + 8, TILE + 16), "white")
    for number, tile in enumerate(small):
        sheet.paste(Image.fromarray(tile), (number * TILE, 16))
    ImageDraw.Draw(sheet).text((2, 2), title, fill="black")
    return np.asarray(sheet)
