"""The second, small process: SAM2 alone, for people who click and cannot wait until the first has finished a target.

It runs as the first one does, `python -m backend.worker.model_server`, with `Clicks` to do its jobs.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from backend.labelstudio.masks import BoolMask, prediction_regions, reference_masks
from backend.labelstudio.regions import Rectangle, Region, Slot
from backend.labelstudio.shapes import box_corners
from backend.worker.messages import Answer, CorrectMask, Failed, Result, SegmentTask
from backend.worker.model_server import ModelServer
from cavsam.errors import CavSamError, InvalidReference
from cavsam.images import read_image
from cavsam.interactive import Box, Click, EncodedImage, Refiner
from cavsam.pipeline import CavSam
from cavsam.recipe import Recipe
from cavsam.types import Progress
from cavsam.weights.sources import ModelSources

ENCODED_KEPT = 8
"""Encoded images kept; with a SAM2 of 1024 pixels each takes some 17 MB."""


def open_sam2(options: Mapping[str, Any]) -> CavSam:
    """Load CAV-SAM in its quickest mode, which needs SAM2 alone, as `options` (sources, recipe, device) say."""
    recipe = Recipe.from_dict(options["recipe"]).replace(mode="concat")
    sources = ModelSources(**options["sources"] | {"features": None})
    return CavSam.from_pretrained(sources, device=options["device"], recipe=recipe)


class Clicks:
    """SAM2, and the images that were clicked last, encoded."""

    def __init__(self, cavsam: CavSam):
        self._refiner = Refiner(cavsam.tracker)
        self._quick = ModelServer(cavsam)
        self._encoded: OrderedDict[str, EncodedImage] = OrderedDict()

    def run(self, job: CorrectMask | SegmentTask, progress: Progress) -> Answer:
        """Correct a mask, or find one in the quickest mode if there is none yet; see `ModelServer.run`."""
        if isinstance(job, SegmentTask):
            return self._quick.run(job, progress)
        started = time.monotonic()
        try:
            encoded = self._encode(job.image)
            height, width = encoded.size
            clicks = [Click(x * width / 100, y * height / 100, positive) for x, y, positive in job.clicks]
            boxes = [_bounds(box, height, width) for box in job.boxes]
            mask, score = self._refiner.refine(encoded, clicks, boxes, _drawn(job.start, job.slot, encoded.size))
        except CavSamError as error:
            return Failed(str(error))
        regions, warnings = prediction_regions(job.slot, mask, score) if mask.any() else ([], [])
        return Result(tuple(regions), score, time.monotonic() - started, tuple(warnings))

    def _encode(self, path: str) -> EncodedImage:
        if path not in self._encoded:
            self._encoded[path] = self._refiner.encode(read_image(path))
            while len(self._encoded) > ENCODED_KEPT:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(path)
        return self._encoded[path]


def _drawn(regions: Sequence[Region], slot: Slot, size: tuple[int, int]) -> BoolMask | None:
    """The mask, bool (H, W), that some regions draw; `None` where they draw nothing.

    Raises `InvalidReference` where they were drawn on an image of another size.
    """
    drawn_on = {region.size for region in regions}
    if not regions:
        return None
    try:
        masks = reference_masks(regions, slot.to_name, size)
    except InvalidReference:
        if drawn_on == {size}:
            return None  # rubbed out
        raise
    mask: BoolMask = np.logical_or.reduce(list(masks.values()))
    return mask


def _bounds(box: Rectangle, height: int, width: int) -> Box:
    """The upright box in pixels around a box that may be turned."""
    x, y = zip(*box_corners(box, height, width), strict=True)
    return min(x), min(y), max(x), max(y)
