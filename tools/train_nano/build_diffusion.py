"""Build the bundled try-out diffusion model with random weights, in the ordinary folder layout of diffusers.

Run `python -m tools.train_nano.build_diffusion --out FOLDER`. `train_vae.py` and `train_unet.py` start from these
architectures and save into the same layout, so the folder loads exactly as a Stable Diffusion 2.1-base folder does.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cavsam.synth.patterns import PATTERNS
from cavsam.synth.shapes import SHAPES

NATIVE_SIZE = 256  # pixels
LATENT_CHANNELS = 12
VAE_CHANNELS = (16, 32, 64, 96)  # four levels: one latent cell is 8 x 8 pixels
UNET_CHANNELS = (64, 96, 96)  # at 32 x 32, 16 x 16 and 8 x 8 latent cells
TEXT_WIDTH = 96
TOKENS = 24  # of a prompt, start and end included

# The words the vocabulary holds whole. Any other text is spelled in pieces, at worst byte by byte.
WORDS = (*PATTERNS, *SHAPES, "lesion", "lung", "lungs", "road", "roads", "forest", "water", "field", "cell", "cells")

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
WORD_END = "</w>"


def build_vae() -> AutoencoderKL:
    """A VAE with random weights: 256 x 256 pixels to a latent (12, 32, 32)."""
    levels = len(VAE_CHANNELS)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=NATIVE_SIZE,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """A UNet with random weights; self- and cross-attention at the two coarser levels."""
    return UNet2DConditionModel(
        sample_size=NATIVE_SIZE // 2 ** (len(VAE_CHANNELS) - 1),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        use_linear_projection=True,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder with random weights over the vocabulary of `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_tokenizer(words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """CLIP's byte-level BPE whose merges make each of `words` one token; every byte has a token of its own."""
    merges = byte_pair_merges(words)
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [letter + WORD_END for letter in letters] + ["".join(pair) for pair in merges]
    vocabulary = {token: i for i, token in enumerate([*tokens, START, END, PAD])}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=PAD,
        model_max_length=TOKENS,
    )


def byte_pair_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """The merges that byte-pair encoding learns from `words` until each of them is one token."""
    spellings = [[*word[:-1], word[-1] + WORD_END] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while any(len(spelling) > 1 for spelling in spellings):
        pairs = Counter(pair for spelling in spellings for pair in itertools.pairwise(spelling))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = [_merged(spelling, best) for spelling in spellings]
    return merges


def _merged(spelling: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for part in spelling:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 2.1-base."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="epsilon",
    )


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the parts into `folder` as a StableDiffusionPipeline does; the weights on disk are in `dtype`."""
    for name, part in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
        copy.deepcopy(part).to(dtype).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # saved for the owner only, which an installed package must not be


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the pipeline into")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    vae, unet, text_encoder = build_vae(), build_unet(), build_text_encoder(tokenizer)
    save_pipeline(args.out, vae, unet, text_encoder, tokenizer, build_scheduler())
    for name, part in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
        print(f"{name:<13}{parameter_count(part):>10,} parameters")


if __name__ == "__main__":
    main()
