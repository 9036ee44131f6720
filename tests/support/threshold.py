"""A segmenter with an answer anyone can compute: a pixel belongs to the label whose reference colour is nearest.

Adapting takes the mean colour under each label's masks and of the rest; segmenting labels each pixel of the target by
the nearest of these. On flat-coloured pictures the result is exact, so tests know what has to come out.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cavsam.errors import ImageError, ModelError
from cavsam.images import read_image
from cavsam.types import Progress, Reference, TargetResult

DEADLY = (255, 0, 255)
"""A picture that is all of this colour ends the process that opens it, as an out-of-memory killer would."""
DEADLY_ONCE = (254, 0, 254)
"""...and one of this colour does so the first time only."""


class ThresholdSegmenter:
    def __init__(self, pause: float = 0.0, adapted_log: Path | None = None):
        self.pause = pause
        self.adapted_log = adapted_log

    def adapt(
        self,
        references: Sequence[Reference],
        *,
        class_name: str | None = None,
        shots: int = 0,
        progress: Progress | None = None,
    ) -> dict[str, np.ndarray]:
        seen: dict[str, list[np.ndarray]] = {}
        for reference in references:
            inside = np.zeros(reference.image.shape[:2], bool)
            for label, mask in reference.masks.items():
                seen.setdefault(label, []).append(reference.image[mask])
                inside |= mask
            seen.setdefault("", []).append(reference.image[~inside])
        if self.adapted_log is not None:
            with self.adapted_log.open("a") as file:
                file.write(f"{len(references)} references, {shots} shots\n")
        return {label: np.concatenate(pixels).mean(0) for label, pixels in seen.items()}

    def segment(
        self, adapted: Any, targets: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[TargetResult]:
        for index, target in enumerate(targets):
            started = time.monotonic()
            time.sleep(self.pause)
            try:
                image = read_image(target)
            except ImageError as error:
                yield TargetResult(index, error=str(error))
                continue
            _die_if_deadly(image, target)
            names = list(adapted)
            distance = np.stack([np.abs(image - adapted[name]).sum(-1) for name in names])
            nearest = distance.argmin(0)
            masks = {n: nearest == i for i, n in enumerate(names) if n and (nearest == i).any()}
            scores = {n: 0.75 if n in masks else 0.0 for n in names if n}
            size = (image.shape[0], image.shape[1])
            yield TargetResult(index, size, masks, scores, time.monotonic() - started, calibrated=True)


def _die_if_deadly(image: np.ndarray, target: str) -> None:
    mark = Path(target).parent.parent / "died-once"
    if (image == DEADLY).all():
        os.kill(os.getpid(), signal.SIGKILL)
    if (image == DEADLY_ONCE).all() and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def open_threshold(options: Mapping[str, Any]) -> ThresholdSegmenter:
    return ThresholdSegmenter()


def open_slow(options: Mapping[str, Any]) -> ThresholdSegmenter:
    return ThresholdSegmenter(pause=1.0)


def open_unhurried(options: Mapping[str, Any]) -> ThresholdSegmenter:
    return ThresholdSegmenter(pause=0.2)


def open_logged(options: Mapping[str, Any]) -> ThresholdSegmenter:
    """Writes a line per adaptation into the file that the environment names."""
    return ThresholdSegmenter(pause=0.3, adapted_log=Path(os.environ["ADAPTED_LOG"]))


class EndlessSegmenter(ThresholdSegmenter):
    """Never finishes a target; says beside it that it began."""

    def segment(
        self, adapted: Any, targets: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[TargetResult]:
        for target in targets:
            (Path(target).parent / "working").touch()
            time.sleep(3600)
            yield TargetResult(0)


def open_endless(options: Mapping[str, Any]) -> ThresholdSegmenter:
    return EndlessSegmenter()


def open_once_allowed(options: Mapping[str, Any]) -> ThresholdSegmenter:
    """Ends its process, as an out-of-memory killer would, until the file that the environment names is there."""
    allowed = Path(os.environ["LOADING_ALLOWED"])
    if not allowed.exists():
        with allowed.with_suffix(".tries").open("a") as tries:
            tries.write("one more\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return ThresholdSegmenter()


def open_missing(options: Mapping[str, Any]) -> ThresholdSegmenter:
    raise ModelError("There is no checkpoint; set CAVSAM_MODEL to a pair that is installed.")


def open_fetching(options: Mapping[str, Any]) -> ThresholdSegmenter:
    """Fetches its weights while it is loaded, as from the hub: small files where the sources say."""
    for name in ("sam2", "diffusion"):
        Path(options["sources"][name]).write_bytes(b"weights")
    return ThresholdSegmenter()


class OrderSegmenter(ThresholdSegmenter):
    """Has no calibration: its scores are the share of the picture that a mask covers, in tenths of a percent."""

    def segment(
        self, adapted: Any, targets: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[TargetResult]:
        for result in super().segment(adapted, targets, progress=progress):
            scores = {name: round(float(mask.mean()), 3) for name, mask in result.masks.items()}
            yield replace(result, scores={**result.scores, **scores}, calibrated=False)


def open_uncalibrated(options: Mapping[str, Any]) -> ThresholdSegmenter:
    return OrderSegmenter()
