"""Small models with random weights, built from the same classes as the real ones, and pictures to segment with them."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cavsam.diffusion import LatentDiffusion, ddim_schedule
from cavsam.tracking import Tracker
from cavsam.types import Reference
from cavsam.weights.loading import build_sam2
from cavsam.weights.sources import NANO

SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make_tracker(image_size: int = 256) -> Tracker:
    """Build SAM2-nano's architecture with random weights, its object score pushed up so that masks appear."""
    config = OmegaConf.load(NANO / "sam2" / "sam2_nano.yaml")
    config.model.image_size = image_size
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sam2_tiny.yaml"
        OmegaConf.save(config, path)
        predictor = build_sam2(path, None)
    with torch.no_grad():
        predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    return Tracker(predictor, contextlib.nullcontext)


def write_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer of single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(str({w: i for i, w in enumerate(words)}).replace("'", '"'))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


def make_diffusion(tokenizer_folder: Path, prediction_type: str = "epsilon") -> LatentDiffusion:
    """Build a latent diffusion model of a few thousand random weights: 64 px pictures, 8x8 latents."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=16,
        norm_num_groups=4,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    scheduler = DDIMScheduler(**SD_SCHEDULE, prediction_type=prediction_type)
    for part in (vae, unet, text_encoder):
        part.eval().requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    schedule = ddim_schedule(dict(scheduler.config))
    return LatentDiffusion(vae, unet, text_encoder, tokenizer, schedule, contextlib.nullcontext)


def save_diffusion(diffusion: LatentDiffusion, folder: Path, *, half: bool = False, pickled: bool = False) -> None:
    """Write a model as diffusers lays a Stable Diffusion model out.

    Args:
        diffusion: the model.
        folder: where to; made if need be.
        half: whether to write the variant "fp16" only.
        pickled: whether to write PyTorch's own files, without safetensors.
    """
    for name in ("vae", "unet", "text_encoder"):
        getattr(diffusion, name).save_pretrained(folder / name)
        written = next((folder / name).glob("*.safetensors"))
        weights = {key: tensor.half() if half else tensor for key, tensor in load_file(written).items()}
        written.unlink()
        variant = ".fp16" if half else ""
        if pickled:
            stem = written.stem if written.stem != "model" else "pytorch_model"
            torch.save(weights, folder / name / f"{stem}{variant}.bin")
        else:
            save_file(weights, folder / name / f"{written.stem}{variant}.safetensors", {"format": "pt"})
    diffusion.tokenizer.save_pretrained(folder / "tokenizer")
    PNDMScheduler(**SD_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False).save_pretrained(folder / "scheduler")


class Touch:
    """An object in a pickle that writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def blob_picture(rng: np.random.Generator, height: int, width: int) -> Reference:
    """Draw a noisy picture with a bright and a dark rectangle, both with their masks."""
    image = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)
    bright, dark = np.zeros((2, height, width), dtype=bool)
    bright[height // 5 : height // 2, width // 6 : width // 2] = True
    dark[height // 2 : height - height // 6, width // 2 + 3 : width - width // 6] = True
    image[bright] += 120
    image[dark] //= 4
    return Reference(image, {"bright": bright, "dark": dark})
