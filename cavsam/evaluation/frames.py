"""Generated frames kept on disk: they cost by far the most and depend neither on SAM2 nor on the alignment."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cavsam.evaluation.episodes import Episode
from cavsam.recipe import Recipe
from cavsam.weights.sources import ModelSources, frames_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from cavsam.pipeline import CavSam


@dataclass(frozen=True)
class FrameStore:
    """Generated frames of episodes as one PNG each, so rounded to 8 bits.

    Attributes:
        folder: of the frames of one set of episodes, one diffusion model and one recipe for it.
    """

    folder: Path

    @classmethod
    def of(cls, root: Path, episodes: str, sources: ModelSources, recipe: Recipe) -> FrameStore:
        """The store below `root` of the set called `episodes`; another diffusion model or recipe has another one."""
        return cls(root / f"{episodes}-{frames_fingerprint(sources, recipe)}")

    def frames(self, model: CavSam, task: Episode, nearest: int) -> tuple[Tensor, float]:
        """Frames from reference `nearest` of an episode to its target, made by `model` if they are not there yet.

        Returns:
            float (frames, 3, D, D) in 0..1, and the seconds that they took when they were made.
        """
        import torch

        path = self.folder / f"{task.domain}-{task.index:05d}-{nearest}.png"
        if not path.exists():
            self._make(model, task, nearest, path)
        with Image.open(path) as stored:
            strip, seconds = np.asarray(stored), float(stored.info["seconds"])
        side = strip.shape[1]
        frames = torch.from_numpy(strip.reshape(-1, side, side, 3).astype(np.float32) / 255)
        return frames.permute(0, 3, 1, 2).contiguous(), seconds

    def _make(self, model: CavSam, task: Episode, nearest: int, path: Path) -> None:
        begun = time.perf_counter()
        frames = model.generate(task.references[nearest].image, task.image, task.class_name)
        seconds = time.perf_counter() - begun
        strip = (frames.permute(0, 2, 3, 1).cpu().numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)
        notes = PngInfo()
        notes.add_text("seconds", f"{seconds:.3f}")
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        Image.fromarray(strip.reshape(-1, strip.shape[2], 3)).save(partial, format="PNG", pnginfo=notes)
        partial.replace(path)
