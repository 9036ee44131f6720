"""The model process's own side: holds the model, turns regions into masks and masks into regions.

Runs as `python -m backend.worker.model_server`, started by `model_process.ModelProcess`, with two inherited file
descriptors: one end of a connection for jobs and results, and a pipe that ends when the parent does.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backend import logs
from backend.labelstudio.masks import BoolMask, mask_names, prediction_regions, reference_masks
from backend.labelstudio.regions import Slot
from backend.learning.candidates import KeptCandidate, Place, pack
from backend.worker import messages
from backend.worker.messages import (
    Answer,
    BadReference,
    Example,
    Failed,
    Loaded,
    NotLoaded,
    Result,
    SegmentTask,
    read_message,
    write_message,
)
from backend.worker.oddities import oddities
from backend.worker.remarks import most_parts, remarks_on
from cavsam.errors import CavSamError, ImageError, InvalidReference, ModelError
from cavsam.images import read_image
from cavsam.recipe import Recipe
from cavsam.types import Progress, Reference, TargetResult
from cavsam.weights.sources import ModelSources

log = logging.getLogger(__name__)

ADAPTED_KEPT = 2
PROGRESS_PAUSE = 0.5


class Segmenter(Protocol):
    """What is asked of a model; `cavsam.CavSam` is one.

    Its `device`, if it has one, is shown to people; `cells`, if it has that, tells masks that are too small for it.
    """

    def adapt(
        self,
        references: Sequence[Reference],
        *,
        class_name: str | None = None,
        shots: int = 0,
        progress: Progress | None = None,
    ) -> Any:
        """Do once what depends on the references only; `shots` of them, those most like it, serve each target."""

    def segment(
        self, adapted: Any, targets: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[TargetResult]:
        """Segment targets, given as paths, one after the other; also asked with an `experience` if there is one."""


def open_cavsam(options: Mapping[str, Any]) -> Segmenter:
    """Load CAV-SAM as `options` (sources, recipe, device) say."""
    from cavsam import CavSam

    return CavSam.from_pretrained(
        ModelSources(**options["sources"]), device=options["device"], recipe=Recipe.from_dict(options["recipe"])
    )


@dataclass(frozen=True)
class _Adapted:
    """The model adapted to the examples on one image tag.

    Attributes:
        references: what the segmenter made of them.
        slots: where the mask of each of its labels belongs.
        parts: of each label, how many parts its mask has on the examples.
        oddities: what makes an example a poor one, in sentences that name its annotation.
    """

    references: Any
    slots: dict[str, Slot]
    parts: dict[str, int]
    oddities: list[str]


class ModelServer:
    """A loaded model and the references it is adapted to, by the key of the reference and the image tag."""

    def __init__(self, segmenter: Segmenter):
        self._segmenter = segmenter
        self._adapted: OrderedDict[tuple[str, str], _Adapted] = OrderedDict()

    def run(self, job: SegmentTask, progress: Progress) -> Answer:
        """Find what the examples show on each of a task's images that they are drawn on."""
        regions: list[dict[str, Any]] = []
        warnings: list[str] = []
        remarks: list[str] = []
        odd: list[str] = []
        results: list[TargetResult] = []
        candidates: list[KeptCandidate] = []
        # who segments without candidates, as stand-ins do, need not know of experience
        taught = {"experience": job.experience} if job.experience else {}
        seconds = 0.0
        for to_name in sorted(frozenset().union(*(example.drawn_on for example in job.examples))):
            path = job.images.get(to_name)
            if path is None:
                continue  # a task need not have every image that the reference has
            try:
                adapted = self._adapt(job, to_name, progress)
            except _BadExample as error:
                return BadReference(error.annotation, str(error))
            except CavSamError as error:  # the computation failed, which is no fault of the annotation
                return Failed(str(error))
            started = time.monotonic()
            result = next(iter(self._segmenter.segment(adapted.references, [path], progress=progress, **taught)))
            if result.error is not None:
                return Failed(result.error)
            for name, mask in result.masks.items():
                if mask.any():
                    drawn, unsaid = prediction_regions(adapted.slots[name], mask, _score(result.scores.get(name, 0.0)))
                    regions += drawn
                    warnings += unsaid
            remarks += remarks_on(result, adapted.parts)
            odd += adapted.oddities
            results.append(result)
            candidates += kept_candidates(result, adapted.slots)
            seconds += time.monotonic() - started
        if not results:
            return Failed("The task has none of the images that the reference has.")
        score = min(_score(result.score) for result in results)
        calibrated = all(result.calibrated for result in results)
        said, found = tuple(dict.fromkeys(remarks)), tuple(candidates)
        return Result(tuple(regions), score, seconds, tuple(warnings), calibrated, said, found, tuple(odd))

    def _adapt(self, job: SegmentTask, to_name: str, progress: Progress) -> _Adapted:
        """The model adapted to the examples on one image tag, which need not be all."""
        key = (job.reference_key, to_name)
        if key not in self._adapted:
            drawn = [one for one in job.examples if to_name in one.drawn_on]
            read = [_read_example(one, to_name) for one in drawn]
            names = mask_names({slot: None for _, masks in read for slot in masks})
            named = [{names[slot]: mask for slot, mask in masks.items()} for _, masks in read]
            references = [Reference(image, masks) for (image, _), masks in zip(read, named, strict=True)]
            # a name may tell two control tags apart, which is not for the text that the diffusion model gets
            class_name = ", ".join(dict.fromkeys(slot.label for slot in names))
            adapted = self._segmenter.adapt(references, class_name=class_name, shots=job.shots, progress=progress)
            slots = {name: slot for slot, name in names.items()}
            cells = int(getattr(self._segmenter, "cells", 0))
            odd = [
                f"Annotation {one.annotation}, which is learned from: {text}"
                for one, reference in zip(drawn, references, strict=True)
                for text in oddities(reference.image, reference.masks, cells)
            ]
            self._adapted[key] = _Adapted(adapted, slots, most_parts(named), odd)
            while len(self._adapted) > ADAPTED_KEPT:
                self._adapted.popitem(last=False)
        self._adapted.move_to_end(key)
        return self._adapted[key]


class _BadExample(Exception):
    """An annotation that teaches nothing, and why."""

    def __init__(self, annotation: int, message: str):
        super().__init__(message)
        self.annotation = annotation


def _read_example(example: Example, to_name: str) -> tuple[NDArray[np.uint8], dict[Slot, BoolMask]]:
    """The image, uint8 (H, W, 3), and the masks, bool (H, W), of one example; raises `_BadExample`."""
    try:
        path = example.images.get(to_name)
        if path is None:
            raise InvalidReference(f"The reference's task has no image for the tag {to_name!r}.")
        image = read_image(path)
        masks = reference_masks(example.regions, to_name, (image.shape[0], image.shape[1]))
    except (InvalidReference, ImageError) as error:
        raise _BadExample(example.annotation, str(error)) from error
    return image, masks


def kept_candidates(result: TargetResult, slots: Mapping[str, Slot]) -> list[KeptCandidate]:
    """The ways to the masks of one image that were tried, small; `slots` says where the mask of each name belongs."""
    return [
        KeptCandidate(
            Place.of(slots[name]),
            one.kind,
            _score(one.own),
            one.calibrated,
            _score(one.presence),
            dict(one.cues),
            one.chosen,
            one.chosen and name in result.masks,
            one.seconds,
            pack(one.mask),
        )
        for name, tried in result.candidates.items()
        for one in tried
    ]


def _score(value: float) -> float:
    """A finite number from 0 to 1: Label Studio refuses the whole batch for anything else."""
    return min(1.0, max(0.0, float(value))) if math.isfinite(value) else 0.0


class Runner(Protocol):
    """Whoever does the jobs of a process, or those of its kinds that it is asked for; `ModelServer` is one."""

    def run(self, job: Any, progress: Progress) -> Answer:
        """Do one job."""


def serve(
    jobs: Connection, open_segmenter: Callable[[], Segmenter], runner: Callable[[Segmenter], Runner] = ModelServer
) -> int:
    """Load the model, then do jobs until the connection ends; returns the exit status."""
    started = time.monotonic()
    try:
        segmenter = open_segmenter()
        running = runner(segmenter)
    except ModelError as error:
        _send(jobs, NotLoaded(str(error)))
        return 3
    device = str(getattr(segmenter, "device", ""))
    _send(jobs, Loaded(time.monotonic() - started, device, gpu_bytes()))
    while True:
        try:
            raw = jobs.recv_bytes()
        except EOFError:
            return 0
        try:
            answer = running.run(read_message(raw), _Reporter(jobs))
        except Exception as error:  # a fault of ours or of a library: this target fails, the next ones go on
            log.exception("A task failed in the model's process.")
            answer = Failed(f"The model failed on this task ({type(error).__name__}: {error}).")
        _send(jobs, replace(answer, gpu_bytes=gpu_bytes()))


def gpu_bytes() -> int | None:
    """Memory that this process holds on CUDA devices; `None` where it uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))


class _Reporter:
    """Passes the steps of a job on, at most two a second."""

    def __init__(self, jobs: Connection):
        self._jobs = jobs
        self._last = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        if time.monotonic() - self._last >= PROGRESS_PAUSE:
            self._last = time.monotonic()
            _send(self._jobs, messages.Progress(step, done, total))


def _send(jobs: Connection, message: messages.Message) -> None:
    jobs.send_bytes(write_message(message))


def _end_with(parent: int) -> None:
    """End this process at once when the pipe `parent` ends: whoever would want our result is gone."""

    def watch() -> None:
        while os.read(parent, 1):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main(arguments: Sequence[str]) -> int:
    """Serve; the arguments are the two file descriptors, and the first message says which model to open."""
    connection, parent = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us in order
    _end_with(int(parent))
    jobs = Connection(int(connection))
    spec = read_message(jobs.recv_bytes())
    if not isinstance(spec, messages.ModelSpec):
        raise TypeError(f"The model process was begun with {type(spec).__name__}.")
    logs.configure(spec.log_level, spec.log_format, "model process")
    factory, runner = _imported(spec.segmenter), _imported(spec.runner)
    return serve(jobs, lambda: factory(spec.options), runner)


def _imported(path: str) -> Any:
    """What an import path such as `package.module:name` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
