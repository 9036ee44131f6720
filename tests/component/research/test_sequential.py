"""The yardstick against the library: two ways to the same frames and masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cavsam.features import iou
from cavsam.observe.run import Run
from cavsam.pipeline import CavSam
from cavsam.recipe import Recipe
from cavsam.transition import DiffusionTransition, Endpoint, Frames
from cavsam.video import frames_square
from research.benchmarks.counting import Counted
from research.benchmarks.sequential import Sequential, scenes
from tests.support.tiny_models import make_diffusion, make_tracker, write_tokenizer

FEW = Recipe(lora_steps=3, lora_lr=0.05, ttga_steps=3, ddim_steps=3, frames=4, precision="float32")


@dataclass(frozen=True)
class Stored:
    """A transition of frames made before, in the eight bits a colour that SAM2's folder holds."""

    frames: Tensor

    def prepare(self, references: Sequence[NDArray[np.uint8]], prompt: str, run: Run) -> list[Endpoint]:
        return []

    def between(
        self, ends: Sequence[Endpoint], references: Sequence[int], target: NDArray[np.uint8], prompt: str, run: Run
    ) -> Iterator[Frames]:
        yield Frames(self.frames, [])


def test_peft_and_a_folder_of_frames_give_what_the_library_gives(tmp_path: Path) -> None:
    tracker = make_tracker()
    write_tokenizer(tmp_path)
    diffusion = make_diffusion(tmp_path)
    transition = DiffusionTransition(diffusion, FEW)
    reference, picture = scenes(1, tracker.image_size)
    before = {name: weight.clone() for name, weight in diffusion.unet.state_dict().items()}

    pair = Sequential(tracker, diffusion, FEW, lossless=True).segment(reference, picture.image, "cells")

    after = diffusion.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    ends = transition.prepare([reference.image], "cells", Run())
    (frames,) = transition.between(ends, [0], picture.image, "cells", Run())
    torch.testing.assert_close(pair.frames, frames.images, atol=1e-4, rtol=1e-3)
    square = frames_square(frames.images, tracker.image_size)
    model = CavSam(tracker, Stored((square * 255).round() / 255), FEW)
    (result,) = model.segment(model.adapt([reference], class_name="cells"), [picture.image])
    assert not result.error
    for label, mask in zip(reference.masks, pair.masks, strict=True):
        assert mask.any()
        # the two sum in another order, so a pixel on an edge may fall to the other side
        assert iou(torch.from_numpy(result.masks[label]), mask) > 0.99


def test_operations_are_counted_as_by_hand() -> None:
    left, right = torch.ones(3, 4), torch.ones(4, 5)
    with Counted() as counted:
        product = (left @ right).T.reshape(5, 3)
        product + 1
    assert counted.launches == 2
    assert counted.flops == 2 * 3 * 4 * 5
    assert counted.bytes == 4 * (3 * 4 + 4 * 5 + 3 * 5) + 4 * 2 * 3 * 5
