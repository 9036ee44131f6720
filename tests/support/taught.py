"""A stand-in that offers two candidates of known worth for every mask, and is wrong about both.

On the pictures of `picture_of`, the object lies on the ground in the reference's colour. The candidate `concat` is the
left part of it, the candidate `full` all of it but some rows. What each is worth is written into the picture's corner,
so a test knows every IoU beforehand; the own scores say the opposite of the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cavsam.images import read_image
from cavsam.scoring.experience import Experience
from cavsam.types import CandidateMask, Progress, TargetResult
from tests.support.fake_label_studio import CAT, GROUND, png
from tests.support.threshold import ThresholdSegmenter

SIDE = 64
OBJECT = (slice(8, 48), slice(10, 50))
"""Rows and columns of the object on every picture of `SIDE` x `SIDE`."""


def truth() -> np.ndarray:
    """The object's mask, bool."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[OBJECT] = True
    return mask


def picture_of(cheap: int, costly: int) -> bytes:
    """A picture on which the candidates find so many of the object's 40 columns."""
    image = np.full((SIDE, SIDE, 3), GROUND, np.uint8)
    image[OBJECT] = CAT
    image[0, 0] = (cheap, costly, 0)
    return png(image)


def columns(count: int) -> np.ndarray:
    """The first columns of the object, bool."""
    mask = truth()
    mask[:, 10 + count :] = False
    return mask


class WrongSegmenter(ThresholdSegmenter):
    """Says of every mask how bad it is, and believes what it says."""

    def segment(
        self,
        adapted: Any,
        targets: Iterable[str],
        *,
        progress: Progress | None = None,
        experience: Experience | None = None,
    ) -> Iterator[TargetResult]:
        experience = experience or Experience()
        (label,) = (name for name in adapted if name)
        for index, target in enumerate(targets):
            cheap, costly, _ = read_image(target)[0, 0].tolist()
            tried: list[CandidateMask] = []
            for kind, found, seconds in (("concat", cheap, 0.1), ("full", costly, 2.0)):
                if any(one.kind == experience.last for one in tried):
                    break
                own, cues = 1 - found / 41, {"consistency": found / 41}
                score = experience.score(kind, own, cues)
                tried.append(CandidateMask(kind, columns(found), score, 1.0, cues, False, own, True, seconds))
            best = max(range(len(tried)), key=lambda number: tried[number].score)
            shown = [CandidateMask(**{**vars(one), "chosen": n == best}) for n, one in enumerate(tried)]
            masks = {label: tried[best].mask} if tried[best].mask.any() else {}
            yield TargetResult(
                index,
                (SIDE, SIDE),
                masks,
                {label: tried[best].score},
                seconds=sum(one.seconds for one in tried),
                calibrated=True,
                candidates={label: tuple(shown)},
            )


def open_wrong(options: Mapping[str, Any]) -> WrongSegmenter:
    return WrongSegmenter()
