"""Small models with random weights, made once, and a seeded generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cavsam.candidates import pixels
from cavsam.diffusion import LatentDiffusion
from cavsam.tracking import Tracker
from tests.support.tiny_models import blob_picture, make_diffusion, make_tracker, write_tokenizer

# the models are so small that a second thread costs more than it brings
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tracker() -> Tracker:
    """See `make_tracker`."""
    return make_tracker()


@pytest.fixture(scope="session")
def small_tracker() -> Tracker:
    """The tracker of the tests that run the whole method: half the side, a third of the time."""
    return make_tracker(image_size=128)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP tokenizer of single letters."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def diffusion(tokenizer_folder: Path) -> LatentDiffusion:
    """See `make_diffusion`."""
    return make_diffusion(tokenizer_folder)


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small forest in place of the real one, which is slower than all else that runs on models of random weights."""
    monkeypatch.setattr(pixels, "TREES", 4)


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh numpy generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that has nothing of the hub and cannot reach it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def square_reference(small_tracker: Tracker, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One picture (1, 3, S, S) and its two masks (1, 2, S, S), as large as the small tracker sees them."""
    blobs = blob_picture(rng, small_tracker.image_size, small_tracker.image_size)
    image = torch.from_numpy(blobs.image).permute(2, 0, 1).float() / 255
    masks = torch.from_numpy(np.stack(list(blobs.masks.values()))).float()
    return image[None], masks[None]
