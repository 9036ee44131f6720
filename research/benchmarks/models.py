"""The models that the benchmarks run: the bundled ones, or the paper's sizes with random weights."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cavsam.diffusion import LatentDiffusion, ddim_schedule
from cavsam.pipeline import CavSam
from cavsam.recipe import Recipe
from cavsam.tracking import Tracker
from cavsam.transition import DiffusionTransition
from cavsam.weights.files import SAM2_CHECKPOINTS
from cavsam.weights.loading import SAM2_PACKAGE, autocast, build_sam2, select_device
from cavsam.weights.sources import NANO


def load(sizes: str, recipe: Recipe, device: str) -> CavSam:
    """Load the models of `sizes`, "nano" or "paper"."""
    if sizes == "nano":
        return CavSam.from_pretrained("nano", device=device, recipe=recipe)
    return random_paper_model(recipe, device)


def describe_machine(device: torch.device) -> str:
    """Say where a measurement ran."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {device}"
    )


def random_paper_model(recipe: Recipe, device: str) -> CavSam:
    """SAM2.1 hiera-tiny and a diffusion model of SD 2.1-base's shape, both with random weights."""
    torch.manual_seed(0)
    where = select_device(device)
    context = autocast(where, recipe.precision)
    predictor = build_sam2(SAM2_PACKAGE / SAM2_CHECKPOINTS["sam2.1_hiera_tiny"], None).to(where)
    if not recipe.generates_frames:
        return CavSam(Tracker(predictor, context), None, recipe)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=768,
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    )
    text: Any = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_attention_heads=16,
            num_hidden_layers=23,
            hidden_act="gelu",
        )
    )
    for part in (vae, unet, text):
        part.to(where).eval().requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(NANO / "diffusion" / "tokenizer")
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    diffusion = LatentDiffusion(vae, unet, text, tokenizer, ddim_schedule(dict(schedule.config)), context)
    return CavSam(Tracker(predictor, context), DiffusionTransition(diffusion, recipe), recipe)
