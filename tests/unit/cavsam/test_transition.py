"""slerp, AdaIN, DDIM and the generated frames, against independent computations."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from cavsam import lora
from cavsam.diffusion import LatentDiffusion
from cavsam.recipe import Recipe
from cavsam.transition import Endpoint, adain, fit_images, frames_between, interpolate_latents, invert, slerp
from tests.support.tiny_models import make_diffusion

RECIPE = Recipe(frames=4, ddim_steps=6, lora_steps=8, lora_rank=2, lora_lr=1e-3)


def latents(seed: int, count: int = 1) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_slerp_walks_the_great_circle(alpha: float) -> None:
    """On a sphere the result has the same norm and splits the angle in the ratio alpha : 1 - alpha."""
    first, second = latents(1)[0], latents(2)[0]
    second = second / second.norm() * first.norm()

    def angle(a: Tensor, b: Tensor) -> float:
        return math.acos(max(-1.0, min(1.0, float((a.double() * b.double()).sum() / (a.norm() * b.norm())))))

    point = slerp(first, second, alpha)
    whole = angle(first, second)
    assert float(point.norm()) == pytest.approx(float(first.norm()), rel=1e-4)
    assert angle(first, point) == pytest.approx(alpha * whole, abs=2e-3)
    assert angle(point, second) == pytest.approx((1 - alpha) * whole, abs=2e-3)


def test_slerp_formula_with_unequal_norms() -> None:
    a, b = latents(3)[0].numpy().astype(np.float64), 3 * latents(4)[0].numpy().astype(np.float64)
    phi = np.arccos((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    expected = np.sin(0.7 * phi) / np.sin(phi) * a + np.sin(0.3 * phi) / np.sin(phi) * b
    result = slerp(torch.from_numpy(a).float(), torch.from_numpy(b).float(), 0.3)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_slerp_falls_back_to_lerp_where_the_angle_says_nothing(factor: float) -> None:
    first = latents(5)[0]
    torch.testing.assert_close(slerp(first, factor * first, 0.25), 0.75 * first + 0.25 * factor * first)


def test_adain_gives_the_interpolated_statistics_per_channel() -> None:
    first, second, latent = latents(6)[0] * 2 + 1, latents(7)[0] * 0.5 - 3, latents(8)[0]
    result = adain(latent, first, second, 0.3).numpy().astype(np.float64)
    for channel in range(4):
        mean = 0.7 * first[channel].numpy().mean() + 0.3 * second[channel].numpy().mean()
        deviation = 0.7 * first[channel].numpy().std(ddof=1) + 0.3 * second[channel].numpy().std(ddof=1)
        assert result[channel].mean() == pytest.approx(mean, abs=1e-4)
        assert result[channel].std(ddof=1) == pytest.approx(deviation, abs=1e-4)
    # an affine change per channel: the pattern stays
    for channel in range(4):
        assert np.corrcoef(result[channel].ravel(), latent[channel].numpy().ravel())[0, 1] == pytest.approx(1, abs=1e-5)


def test_interpolation_meets_both_ends() -> None:
    first, second = latents(9)[0], latents(10)[0]
    torch.testing.assert_close(interpolate_latents(first, second, 0.0), first, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(interpolate_latents(first, second, 1.0), second, atol=1e-4, rtol=1e-4)


class GaussianDenoiser(torch.nn.Module):
    """The perfect UNet for latents that are normal with deviation 0.7: its prediction has a closed form."""

    def __init__(self, cumulative: np.ndarray, prediction_type: str) -> None:
        super().__init__()
        self.cumulative, self.prediction_type = cumulative, prediction_type
        self.parameter = torch.nn.Parameter(torch.zeros(1))

    def forward(self, noisy: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        a = float(self.cumulative[int(timestep)])
        variance = a * 0.49 + 1 - a
        clean, epsilon = a**0.5 * 0.49 / variance * noisy, (1 - a) ** 0.5 / variance * noisy
        velocity = a**0.5 * epsilon - (1 - a) ** 0.5 * clean
        return SimpleNamespace(sample=epsilon if self.prediction_type == "epsilon" else velocity)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_inversion_then_denoising_restores_the_latent(tokenizer_folder: Path, prediction_type: str) -> None:
    """DDIM solves an ODE: the round trip's error vanishes with the number of steps, and the noise has unit variance."""
    model = make_diffusion(tokenizer_folder, prediction_type)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    model = dataclasses.replace(model, unet=GaussianDenoiser(np.cumprod(1 - betas), prediction_type))
    start = 0.7 * torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(11))
    embeddings = model.embed(["cell"])
    errors = []
    for steps in (20, 100, 500):
        noise = model.invert(start, embeddings, steps)
        assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
        restored = model.denoise(noise, embeddings, steps)
        errors.append(float((restored - start).norm() / start.norm()))
    assert errors[0] < 0.2
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


def test_ddim_step_against_the_formula(diffusion: LatentDiffusion) -> None:
    """One step of `denoise` from the last timestep, written out from equation 12 of the DDIM paper."""
    start, embeddings = latents(12), diffusion.embed(["cell"])
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    cumulative = np.cumprod(1 - betas)
    timestep = 1  # one step: the first (and last) timestep of the leading spacing, offset by one
    with torch.no_grad():
        epsilon = diffusion.predict(start, timestep, embeddings).numpy()
    clean = (start.numpy() - np.sqrt(1 - cumulative[1]) * epsilon) / np.sqrt(cumulative[1])
    expected = np.sqrt(cumulative[0]) * clean + np.sqrt(1 - cumulative[0]) * epsilon
    np.testing.assert_allclose(diffusion.denoise(start, embeddings, 1).numpy(), expected, atol=1e-4)


def both_ends(diffusion: LatentDiffusion, pictures: Tensor, recipe: Recipe) -> list[Endpoint]:
    """Two pictures, each with a prompt of its own."""
    named = zip(pictures, "ab", strict=True)
    return [invert(diffusion, fit_images(diffusion, one[None], name, recipe)[0], recipe) for one, name in named]


def test_frames_in_one_batch_equal_frames_one_by_one(diffusion: LatentDiffusion) -> None:
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(13))
    ends = [invert(diffusion, fitted, RECIPE) for fitted in fit_images(diffusion, pictures, "cell", RECIPE)]
    together = frames_between(diffusion, ends[0], ends[1], RECIPE)
    single = frames_between(diffusion, ends[0], ends[1], RECIPE.replace(frame_batch=1))
    assert together.shape == (4, 3, 64, 64)
    assert float(together.min()) >= 0
    assert float(together.max()) <= 1
    torch.testing.assert_close(together, single, atol=1e-4, rtol=1e-3)


def test_a_frame_is_denoised_with_its_own_share_of_both_ends(diffusion: LatentDiffusion) -> None:
    """The frame at alpha = 0 is the reference's own reconstruction, with its own adapter."""
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(14))
    recipe = RECIPE.replace(alpha_min=0.0, alpha_max=1.0, frames=2)
    ends = both_ends(diffusion, pictures, recipe)
    frames = frames_between(diffusion, ends[0], ends[1], recipe)
    for end, frame in zip(ends, frames, strict=True):
        with lora.attached(diffusion.unet, end.adapter, torch.ones(1, 1)):
            expected = diffusion.decode(diffusion.denoise(end.latent[None], end.embedding[None], recipe.ddim_steps))
        torch.testing.assert_close(frame[None], expected, atol=2e-3, rtol=1e-2)


def test_encoding_is_the_scaled_posterior_mean(diffusion: LatentDiffusion) -> None:
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(15))
    with torch.no_grad():
        mean = diffusion.vae.encode(pictures * 2 - 1).latent_dist.mean
    torch.testing.assert_close(diffusion.encode(pictures), mean * diffusion.vae.config.scaling_factor)
    assert diffusion.native_size == 64


def test_the_two_ways_to_mix_adapters_give_different_frames(diffusion: LatentDiffusion) -> None:
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(16))
    recipe = RECIPE.replace(lora_lr=0.05)
    ends = both_ends(diffusion, pictures, recipe)
    delta, factor = (
        frames_between(diffusion, ends[0], ends[1], recipe.replace(lora_mix=mix)) for mix in ("delta", "factor")
    )
    assert not torch.allclose(delta, factor, atol=1e-4)
