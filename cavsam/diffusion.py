"""A latent diffusion model taken apart: encode, decode, embed, predict, invert, denoise.

The parts are the ones of `diffusers` and `transformers`; a Stable Diffusion 1.x or 2.x folder holds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from cavsam import lora
from cavsam.recipe import Recipe


@dataclass(frozen=True)
class LatentDiffusion:
    """The parts of one latent diffusion model, on one device, in evaluation mode.

    Attributes:
        vae: `AutoencoderKL`.
        unet: `UNet2DConditionModel`.
        schedule: configuration of the noise schedule as diffusers stores it.
        autocast: makes the context that the large networks run in.
    """

    vae: Any  # diffusers loads its classes lazily, which hides AutoencoderKL and UNet2DConditionModel from mypy
    unet: Any
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    schedule: dict[str, Any]
    autocast: Callable[[], AbstractContextManager[Any]]

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.unet.parameters()).device

    @property
    def vae_stride(self) -> int:
        """Pixels per latent cell."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def native_size(self) -> int:
        """Side in pixels of the square pictures the model was trained on."""
        return int(self.unet.config.sample_size) * self.vae_stride

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Scale the posterior mean of float (N, 3, D, D) in 0..1: (N, C, D/stride, D/stride)."""
        with self.autocast():
            posterior = self.vae.encode(images.to(self.device) * 2 - 1).latent_dist
        return posterior.mean.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Invert `encode`: (N, C, h, w) -> float (N, 3, D, D) clamped to 0..1."""
        with self.autocast():
            images = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed `prompts` as (N, tokens, width); longer prompts are cut to the encoder's length."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.text_encoder.config.max_position_embeddings,
            return_tensors="pt",
        )
        with self.autocast():
            return self.text_encoder(tokens.input_ids.to(self.device))[0].float()

    def predict(self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        """Run the UNet; the meaning of its prediction, shape of `latents`, is the schedule's `prediction_type`."""
        with self.autocast():
            return self.unet(latents, timestep, encoder_hidden_states=embeddings).sample.float()

    def fit_loras(
        self,
        latents: Tensor,
        embeddings: Tensor,
        recipe: Recipe,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[lora.LoraBank, list[list[float]]]:
        """Fit one adapter per latent (N, C, h, w) and embedding (N, tokens, width), in one batch; see `lora.fit`."""
        scheduler = DDIMScheduler.from_config(self.schedule)

        def loss(timestep: Tensor, noise: Tensor) -> Tensor:
            noise = noise.expand_as(latents)
            steps = timestep.expand(len(latents))
            noisy = scheduler.add_noise(latents, noise, steps)
            return lora.per_sample_mse(
                self.predict(noisy, steps, embeddings), training_target(scheduler, latents, noise, steps)
            )

        return lora.fit(
            self.unet,
            loss,
            latents.shape[1:],
            len(latents),
            rank=recipe.lora_rank,
            steps=recipe.lora_steps,
            lr=recipe.lora_lr,
            weight_decay=recipe.lora_weight_decay,
            train_timesteps=scheduler.config.num_train_timesteps,
            seed=recipe.seed,
            progress=progress,
        )

    @torch.no_grad()
    def invert(self, latents: Tensor, embeddings: Tensor, steps: int) -> Tensor:
        """Invert by deterministic DDIM without guidance: latents of images (N, C, h, w) -> latents of noise."""
        scheduler = DDIMInverseScheduler.from_config(self.schedule)
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            prediction = self.predict(latents, timestep.to(self.device), embeddings)
            latents = scheduler.step(prediction, int(timestep), latents).prev_sample
        return latents

    @torch.no_grad()
    def denoise(self, latents: Tensor, embeddings: Tensor, steps: int) -> Tensor:
        """Sample by deterministic DDIM without guidance: latents of noise (N, C, h, w) -> latents of images."""
        scheduler = DDIMScheduler.from_config(self.schedule)
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            prediction = self.predict(latents, timestep.to(self.device), embeddings)
            latents = scheduler.step(prediction, int(timestep), latents, eta=0.0).prev_sample
        return latents


def ddim_schedule(config: dict[str, Any]) -> dict[str, Any]:
    """Make the schedule for inversion and sampling from whatever scheduler the model was saved with.

    Clipping or thresholding the predicted image, which is meant for pixels, would break the inversion of latents.
    """
    kept = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
    )
    fixed = {
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    }
    return {name: config[name] for name in kept if config.get(name) is not None} | fixed


def training_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Compute what the UNet is asked to predict, by the schedule's `prediction_type`; shape of `latents`."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return latents
