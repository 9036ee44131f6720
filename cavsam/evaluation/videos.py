"""Video object segmentation with the tracker alone: DAVIS's J and F of all frames after the first."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cavsam.errors import CavSamError
from cavsam.evaluation.datasets import ListedEpisode, Sample, read_sample
from cavsam.evaluation.episodes import Episode
from cavsam.evaluation.runs import Method, Record, mask_path, record_of, save_mask

if TYPE_CHECKING:
    from cavsam.tracking import Tracker

MODE = "track"
"""What the records of tracked frames have for a mode."""


def list_frames(samples: Sequence[Sample], every: int, at_most: int | None) -> list[ListedEpisode]:
    """List an episode for each frame after the first of a sequence; the first is the reference.

    Args:
        samples: frames in order, each sequence a class.
        every: keep every so many frames, the first included.
        at_most: frames of a sequence that are kept; None for all.

    Raises:
        CavSamError: a sequence has one frame only.
    """
    sequences = defaultdict(list)
    for sample in samples:
        sequences[sample.domain, sample.class_name].append(sample)
    listed = []
    for (_, name), frames in sequences.items():
        kept = frames[::every][:at_most]
        if len(kept) < 2:
            raise CavSamError(f"The sequence {name!r} has one frame only; lower --every or add frames.")
        listed += [(frame, kept[0]) for frame in kept[1:]]
    return [ListedEpisode(index, frame, (first,)) for index, (frame, first) in enumerate(listed)]


def sequences_of(episodes: Sequence[ListedEpisode]) -> list[list[ListedEpisode]]:
    """Group episodes by sequence, in order."""
    groups: dict[Sample, list[ListedEpisode]] = defaultdict(list)
    for episode in episodes:
        groups[episode.references[0]].append(episode)
    return list(groups.values())


def run_sequences(
    out: Path,
    log: Path,
    method: Method,
    root: Path,
    sequences: Sequence[Sequence[ListedEpisode]],
    lookup: Callable[[str, int], Episode],
    records: list[Record],
) -> None:
    """Track what `records` lacks of `sequences`; append to `records` and to the file `log`.

    Raises:
        CavSamError: a frame cannot be read, or the models cannot be had.
    """
    from tqdm import tqdm

    from cavsam.weights.loading import load_tracker, select_device

    done = {(record.domain, record.index) for record in records}
    todo = [frames for frames in sequences if any((f.target.domain, f.index) not in done for f in frames)]
    if not todo:
        return
    tracker = load_tracker(method.sources, select_device(method.device), method.recipe.precision)
    with tqdm(total=len(todo), unit="sequence", disable=None) as bar, log.open("a") as lines:
        for frames in todo:
            bar.set_description(frames[0].target.class_name)
            pictures = [read_sample(root, sample) for sample in (frames[0].references[0], *(f.target for f in frames))]
            if not pictures[0][1].any():
                raise CavSamError(
                    f"The first frame of {frames[0].target.class_name!r} shows no object; begin the sequence later."
                )
            begun = time.perf_counter()
            masks = track(tracker, [image for image, _ in pictures], pictures[0][1])
            seconds = (time.perf_counter() - begun) / len(frames)
            for frame, mask in zip(frames, masks, strict=True):
                if (frame.target.domain, frame.index) in done:
                    continue
                task = lookup(frame.target.domain, frame.index)
                record = record_of(task, MODE, mask, score=0.0, adapt_seconds=0.0, target_seconds=seconds)
                save_mask(mask, mask_path(out, record))
                lines.write(json.dumps(dataclasses.asdict(record)) + "\n")
                records.append(record)
            lines.flush()
            bar.update()


def track(tracker: Tracker, images: Sequence[NDArray[np.uint8]], first: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Track an object through a video.

    Args:
        tracker: SAM2.
        images: at least two frames, each uint8 (H, W, 3).
        first: the object's mask on the first frame, bool (H, W).

    Returns:
        Its masks on all other frames, bool (H, W).
    """
    import torch
    import torch.nn.functional as F

    from cavsam.tracking import Prompt
    from cavsam.video import encode, masks_square, picture_square

    side = tracker.image_size
    trunk = encode(tracker, torch.stack([picture_square(image, side, tracker.device) for image in images]))
    square = masks_square({"object": first}, ["object"], side)[0]
    found: dict[int, NDArray[np.bool_]] = {}

    def keep(frame: int, logits: torch.Tensor) -> None:
        size = images[frame].shape[:2]
        full = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)
        found[frame] = (full[0, 0] > 0).cpu().numpy()

    prompt = Prompt(0, 0, mask=square.to(tracker.device))
    tracker.track(trunk, [prompt], 1, read=len(images) - 1, watch=keep)
    return [found[frame] for frame in range(1, len(images))]


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Average J (IoU) and F (F-measure of the boundary) over the frames of each sequence, 0..1.

    Both are averaged over the sequences of each domain and over all sequences, too.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.domain, record.class_name].append(record)
    sequences = [
        {
            "domain": domain,
            "sequence": name,
            "frames": len(own),
            "J": float(np.mean([record.counts.iou for record in own])),
            "F": float(np.mean([record.boundary_f or 0.0 for record in own])),
        }
        for (domain, name), own in groups.items()
    ]
    domains = {
        domain: {figure: float(np.mean([s[figure] for s in sequences if s["domain"] == domain])) for figure in "JF"}
        for domain in dict.fromkeys(domain for domain, _ in groups)
    }
    return {
        "sequences": sequences,
        "domains": domains,
        "mean": {figure: float(np.mean([s[figure] for s in sequences])) for figure in "JF"},
        "seconds_per_frame": float(np.mean([record.target_seconds for record in records])),
    }


def markdown(summary: dict[str, Any], title: str, setting: dict[str, Any]) -> str:
    """Write the figures as a table."""
    lines = [
        f"# {title}",
        "",
        f"Models {setting['models']}, fingerprint {setting['fingerprint']}. The tracker alone, prompted with the mask "
        "of the first frame; in percent, over all frames after it: J (mean IoU) and F (mean F-measure of the boundary) "
        f"as the DAVIS benchmark defines them. {summary['seconds_per_frame']:.3f} s per frame.",
        "",
        "| domain | sequence | frames after the first | J | F | J&F |",
        "|---|---|---|---|---|---|",
    ]
    for one in summary["sequences"]:
        lines.append(f"| {one['domain']} | {one['sequence']} | {one['frames']} | {_cells(one)} |")
    for domain, one in summary["domains"].items():
        lines.append(f"| {domain} | mean of its sequences | | {_cells(one)} |")
    if len(summary["domains"]) > 1:
        lines.append(f"| all | mean of all sequences | | {_cells(summary['mean'])} |")
    return "\n".join(lines) + "\n"


def _cells(figures: dict[str, float]) -> str:
    values = (figures["J"], figures["F"], (figures["J"] + figures["F"]) / 2)
    return " | ".join(f"{100 * value:.1f}" for value in values)
