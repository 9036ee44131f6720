"""Generated frames kept on disk: they cost by far the most and depend neither on SAM2 nor on the alignment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cavsam.evaluation.episodes import Episode
from cavsam.recipe import Recipe
from cavsam.types import order_of_content
from cavsam.weights.sources import ModelSources, frames_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from cavsam.observe.run import Run
    from cavsam.transition import DiffusionTransition, Frames


@dataclass(frozen=True)
class FrameStore:
    """Generated frames of episodes as one PNG each, so rounded to 8 bits.

    Attributes:
        folder: of the frames of one set of episodes, one diffusion model and one recipe for it.
    """

    folder: Path

    @classmethod
    def of(cls, root: Path, episodes: str, sources: ModelSources, recipe: Recipe) -> FrameStore:
        """Name the store below `root` of the set called `episodes`; each diffusion model and recipe has its own."""
        return cls(root / f"{episodes}-{frames_fingerprint(sources, recipe)}")

    def frames(self, generator: DiffusionTransition, task: Episode, reference: int) -> tuple[Tensor, float]:
        """Read the frames from a reference of an episode, by number, to its target; generate them if there are none.

        Returns:
            float (frames, 3, D, D) in 0..1, and the seconds that they took when they were made.
        """
        import torch

        path = self.folder / f"{task.domain}-{task.index:05d}-{reference}.png"
        if not path.exists():
            self._make(generator, task, reference, path)
        with Image.open(path) as stored:
            strip, seconds = np.asarray(stored), float(stored.info["seconds"])
        side = strip.shape[1]
        frames = torch.from_numpy(strip.reshape(-1, side, side, 3).astype(np.float32) / 255)
        return frames.permute(0, 3, 1, 2).contiguous(), seconds

    def _make(self, generator: DiffusionTransition, task: Episode, reference: int, path: Path) -> None:
        begun = time.perf_counter()
        frames = generator.generate(task.references[reference].image, task.image, task.class_name)
        seconds = time.perf_counter() - begun
        strip = (frames.permute(0, 2, 3, 1).cpu().numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)
        notes = PngInfo()
        notes.add_text("seconds", f"{seconds:.3f}")
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        Image.fromarray(strip.reshape(-1, strip.shape[2], 3)).save(partial, format="PNG", pnginfo=notes)
        partial.replace(path)


@dataclass
class KeptTransition:
    """A `Transition` over one episode's frames in a store; references cost nothing in advance.

    Attributes:
        store: holds the frames.
        generator: makes those that are not there yet.
        task: the episode.
        waited: seconds spent here so far.
        made: seconds that the frames used so far took when they were made, now or in an earlier run.
    """

    store: FrameStore
    generator: DiffusionTransition
    task: Episode
    waited: float = 0.0
    made: float = 0.0

    def prepare(self, references: Sequence[NDArray[np.uint8]], prompt: str, run: Run) -> list[Any]:
        """Prepare nothing."""
        return []

    def between(
        self, ends: Sequence[Any], references: Sequence[int], target: NDArray[np.uint8], prompt: str, run: Run
    ) -> Iterator[Frames]:
        """Read the frames from each of some references, numbered as `CavSam.adapt` orders them, to the target."""
        from cavsam.transition import Frames

        listed = order_of_content(self.task.references)
        for reference in references:
            begun = time.perf_counter()
            frames, seconds = self.store.frames(self.generator, self.task, listed[reference])
            self.waited, self.made = self.waited + time.perf_counter() - begun, self.made + seconds
            yield Frames(frames, [])
