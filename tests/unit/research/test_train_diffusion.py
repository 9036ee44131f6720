"""The parts of the nano diffusion model's training that a figure at the end would not show to be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from research import synth
from research.train_nano import diffusion_data, evaluate_diffusion, train_unet, train_vae
from research.train_nano.build_diffusion import (
    build_scheduler,
    build_tokenizer,
    build_unet,
    build_vae,
    byte_pair_merges,
)


def test_merges_make_each_word_one_token_and_leave_other_words_in_pieces() -> None:
    tokenizer = build_tokenizer(["star", "start", "tart"])
    assert len(byte_pair_merges(["ab"])) == 1
    for word in ("star", "start", "tart"):
        assert len(tokenizer(word).input_ids) == 3  # start, the word, end
    assert len(tokenizer("rats").input_ids) > 3


def test_the_untrained_vae_returns_the_miniature_of_an_image() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    image = torch.rand(1, 3, 1, 1) * torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latent = vae.encode(image).latent_dist.mean
        decoded = vae.decode(latent).sample
    small = F.avg_pool2d(image, 8)
    torch.testing.assert_close(latent[:, :3], small, atol=0.03, rtol=0)
    torch.testing.assert_close(decoded, F.interpolate(small, scale_factor=8), atol=0.05, rtol=0)


def test_the_miniature_survives_any_constant_shift_of_colour() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    for level in (-0.9, 0.0, 0.9):
        grey = torch.full((1, 3, 64, 64), level)
        with torch.no_grad():
            decoded = vae.decode(vae.encode(grey).latent_dist.mean).sample
        torch.testing.assert_close(decoded, grey, atol=0.06, rtol=0)  # of a range of 2


def test_the_untrained_unet_predicts_nothing_but_learns_in_every_layer_after_a_step() -> None:
    torch.manual_seed(0)
    unet = build_unet()
    latents, embeddings = torch.randn(1, unet.config.in_channels, 32, 32), torch.randn(1, 4, 96)
    assert unet(latents, 5, embeddings).sample.abs().max() == 0
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(unet(latents, 5, embeddings).sample, latents).backward()
        optimizer.step()
    untouched = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    # to_k's bias-free projection of one prompt has a gradient as well: nothing may be left out
    assert untouched == []


def test_a_pool_holds_the_same_images_whether_or_not_the_run_was_interrupted() -> None:
    through = diffusion_data.RollingPool(3, 0, first=2, capacity=4)
    for _ in range(3):
        through.advance()
    resumed = diffusion_data.RollingPool(3, 3, first=2, capacity=4)
    assert len(through.examples) == len(resumed.examples) == 4
    for one, other in zip(through.examples, resumed.examples, strict=True):
        assert one.prompt == other.prompt
        np.testing.assert_array_equal(one.image, other.image)


def test_training_sees_training_classes_only() -> None:
    prompts = {diffusion_data.example(0, index).prompt for index in range(20)}
    assert len(prompts) > 10
    assert prompts <= set(synth.classes("textures", "train"))
    assert not prompts & set(synth.classes("textures", "dev") + synth.classes("textures", "test"))


def test_recolouring_stays_in_range_and_keeps_the_layout() -> None:
    image = diffusion_data.example(0, 0).image / np.float32(255)
    for seed in range(20):
        changed = diffusion_data.recolour(np.random.default_rng(seed), image)
        assert changed.dtype == np.float32
        assert changed.shape == image.shape
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_box_blur_is_the_mean_of_a_square() -> None:
    image = np.random.default_rng(0).random((7, 8, 3)).astype(np.float32)
    blurred = diffusion_data.box_blur(image, 1)
    np.testing.assert_allclose(blurred[3, 4], image[2:5, 3:6].mean(axis=(0, 1)), rtol=1e-5)


def test_the_denoising_loss_is_zero_for_the_true_noise_and_weighted_by_the_signal_to_noise_ratio() -> None:
    scheduler = build_scheduler()
    latents = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    seen: dict[str, torch.Tensor] = {}

    class Oracle:
        """Knows the latents, so that it can tell the noise; off by `error`."""

        error = 0.0

        def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            kept = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
            seen["kept"] = kept.flatten()
            return (noisy - kept.sqrt() * latents) / (1 - kept).sqrt() + self.error

    oracle: Any = Oracle()

    def loss() -> float:
        generator = torch.Generator().manual_seed(1)
        return float(train_unet.denoising_loss(oracle, scheduler, latents, torch.zeros(4, 3).long(), generator))

    assert loss() == pytest.approx(0, abs=1e-6)
    oracle.error = 0.5
    ratio = seen["kept"] / (1 - seen["kept"])
    assert loss() == pytest.approx(float((0.25 * torch.clamp(5.0 / ratio, max=1)).mean()), rel=1e-3)


def test_the_learning_rate_rises_and_then_falls_to_almost_nothing() -> None:
    rates = [train_vae.schedule(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in range(99, 102)
    assert rates[-1] < 0.011
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_a_monotone_transition_is_told_from_one_that_jumps_back() -> None:
    rising, falling = np.linspace(0.0, 1.0, 11), np.linspace(1.0, 0.0, 11)
    video = torch.zeros(11, 3, 4, 4)
    good = evaluate_diffusion.Transition("star", video, rising, falling)
    assert good.monotone
    assert good.right_steps.all()
    back = evaluate_diffusion.Transition("star", video, rising[[0, 8, 7, 6, 5, 4, 3, 2, 1, 9, 10]], falling)
    assert not back.monotone
    assert 0 < back.right_steps.mean() < 1
    noise = evaluate_diffusion.Transition("star", video, np.r_[0, rising[[2, 1, 3, 4, 5, 6, 7, 8, 9, 10]]], falling)
    assert noise.monotone
    assert not noise.right_steps.all()
