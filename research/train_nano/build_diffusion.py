"""Build the bundled try-out diffusion model with random weights, in the ordinary folder layout of diffusers.

Run `python -m research.train_nano.build_diffusion --out FOLDER`. `train_vae.py` and `train_unet.py` start from these
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
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from research.synth.patterns import PATTERNS
from research.synth.shapes import SHAPES

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
    """An untrained VAE: 256 x 256 pixels to a latent (12, 32, 32) that starts with the image in miniature."""
    levels = len(VAE_CHANNELS)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        sample_size=NATIVE_SIZE,
        mid_block_add_attention=False,
    )
    start_as_thumbnail(vae)
    return vae


@torch.no_grad()
def start_as_thumbnail(vae: AutoencoderKL, constant: float = 10.0) -> None:
    """Set the weights so that the VAE averages 8 x 8 pixels into the first three latent channels and repeats them.

    From random weights a small VAE learns detail long before colour, because each group norm takes away the mean
    and the contrast that the next layer would need. Here the colours have a straight way through, in channels 0 to
    2 of every level; the residual branches start at zero, and training adds what the miniature lacks.
    """
    for half, blocks in ((vae.encoder, vae.encoder.down_blocks), (vae.decoder, vae.decoder.up_blocks)):
        _carry_colours(half.conv_in)
        for block in (*blocks, half.mid_block):
            for resnet in block.resnets:
                nn.init.zeros_(resnet.conv2.weight)
                nn.init.zeros_(resnet.conv2.bias)
                if resnet.conv_shortcut is not None:
                    _carry_colours(resnet.conv_shortcut)
            for sampler in (*(getattr(block, "downsamplers", None) or ()), *(getattr(block, "upsamplers", None) or ())):
                _carry_colours(sampler.conv)
        shortcuts = [resnet.conv_shortcut for block in blocks for resnet in block.resnets]
        _pass_last_norm(half, [conv for conv in shortcuts if conv is not None][-1], constant)
    latents = vae.config.latent_channels
    vae.encoder.conv_out.weight[latents:] *= 0.1  # a small log-variance, alike for every image
    vae.encoder.conv_out.bias[latents:] = -4
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)


def _carry_colours(conv: Any) -> None:
    """Make `conv` hand on its first three channels as they are, or averaged over 2 x 2 where it halves the size."""
    conv.weight[:3] = 0
    conv.bias[:3] = 0
    middle = conv.kernel_size[0] // 2
    taps = [(0, 0), (0, 1), (1, 0), (1, 1)] if conv.stride[0] == 2 else [(middle, middle)]
    for row, column in taps:
        conv.weight[[0, 1, 2], [0, 1, 2], row, column] = 1 / len(taps)


def _pass_last_norm(half: Any, before: Any, constant: float) -> None:
    """Bring the colours through the last group norm and SiLU of an encoder or decoder.

    `before` is the last convolution ahead of them. It gets, beside the colours, their negatives, since
    silu(x) - silu(-x) = x, and two large opposite constants, which keep the norm's mean and scale nearly fixed.
    """
    before.weight[3:6] = -before.weight[:3]
    before.bias[3:6] = 0
    before.weight[6:8] = 0
    before.bias[6:8] = torch.tensor([constant, -constant])
    norm, out = half.conv_norm_out, half.conv_out
    norm.weight[:6] = constant * (2 * norm.num_groups / norm.num_channels) ** 0.5
    out.weight[:3] = 0
    out.bias[:3] = 0
    out.weight[:, :8] = 0
    out.weight[[0, 1, 2], [0, 1, 2], 1, 1] = 1
    out.weight[[0, 1, 2], [3, 4, 5], 1, 1] = -1


def build_unet() -> UNet2DConditionModel:
    """An untrained UNet; self- and cross-attention at the two coarser levels, every residual branch starts at zero."""
    unet = UNet2DConditionModel(
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
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out")) or name == "conv_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


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
        merges=merges,  # type: ignore[arg-type]  # annotated as text, read as pairs
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
    parts: dict[str, Any] = {"vae": vae, "unet": unet, "text_encoder": text_encoder}
    for name, part in parts.items():
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
    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:  # a path of this machine
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
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
    parts: dict[str, Any] = {"vae": vae, "unet": unet, "text_encoder": text_encoder}
    for name, part in parts.items():
        print(f"{name:<13}{parameter_count(part):>10,} parameters")


if __name__ == "__main__":
    main()
