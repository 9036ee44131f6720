"""Stable Diffusion from one checkpoint file, under the names that its authors published."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from cavsam.errors import ModelError

SD2 = Path(__file__).parent / "sd2"
"""The configuration of Stable Diffusion 2.x: its published repositories have been withdrawn."""

UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
UNET_CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
TEXT_OF_SD1 = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
TEXT_OF_SD2 = "cond_stage_model.model.token_embedding.weight"
TEXT_OF_SDXL = "conditioner.embedders."
LATENT_CHANNELS = 4

PredictionType = Literal["epsilon", "v_prediction"]


def load_single_file(file: Path, config: Path = SD2) -> dict[str, Any]:
    """Load the parts of a Stable Diffusion checkpoint.

    Args:
        file: `.safetensors`, or `.ckpt` with nothing but tensors in it.
        config: folder in diffusers' layout without weights, for a checkpoint with the text encoder of version 2.

    Returns:
        vae, unet, text_encoder, tokenizer, scheduler.

    Raises:
        ModelError: the file cannot be read, or is not of Stable Diffusion 1.x or 2.x.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    shapes = _shapes(file)
    _check_kind(file, shapes)
    options: dict[str, Any] = {}
    sample_size = None
    if TEXT_OF_SD2 in shapes:
        kind = _prediction_type(file)
        scheduler = DDIMScheduler.from_config(
            {**DDIMScheduler.load_config(config, subfolder="scheduler"), "prediction_type": kind}
        )
        options = {"config": str(config), "local_files_only": True, "scheduler": scheduler}
        options["tokenizer"] = read_tokenizer(config / "tokenizer")
        if config == SD2 and kind == "v_prediction":
            sample_size = 96  # latents of 768 pixels
    try:
        pipeline = StableDiffusionPipeline.from_single_file(str(file), safety_checker=None, **options)
    except Exception as error:  # the loader fails in many ways, and asks the hub for the configuration of version 1
        remedy = (
            "fetch it again, or use a folder in the diffusers layout"
            if options
            else "its configuration comes from the hub, so go online once or use a folder in the diffusers layout"
        )
        raise ModelError(f"{file} cannot be loaded as one Stable Diffusion checkpoint ({error}); {remedy}.") from error
    if sample_size:
        pipeline.unet.register_to_config(sample_size=sample_size)
    return {name: getattr(pipeline, name) for name in ("vae", "unet", "text_encoder", "tokenizer", "scheduler")}


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a checkpoint's tensors, by name, without reading the tensors."""
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as opened:
                return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        stored = stored.get("state_dict", stored)
        return {name: tuple(tensor.shape) for name, tensor in stored.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # pickle, zip and safetensors each fail in their own way, and in many lines
        raise ModelError(
            f"{file} cannot be read without running code in it, or is broken ({type(error).__name__}); "
            "use the model's .safetensors file."
        ) from error


def _check_kind(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    if any(name.startswith(TEXT_OF_SDXL) for name in shapes):
        found = "Stable Diffusion XL, which has two text encoders"
    elif UNET_INPUT not in shapes:
        found = "no whole Stable Diffusion checkpoint (an adapter, or one part of a model)"
    elif TEXT_OF_SD1 not in shapes and TEXT_OF_SD2 not in shapes:
        found = "a UNet without the text encoder of version 1 or 2"
    elif shapes[UNET_INPUT][1] != LATENT_CHANNELS:
        found = f"a model with {shapes[UNET_INPUT][1]} input channels (inpainting, depth or upscaling)"
    else:
        return
    raise ModelError(f"{file} is {found}; use a text-to-image checkpoint of Stable Diffusion 1.x or 2.x.")


def _prediction_type(file: Path) -> PredictionType:
    """Find out what the UNet of a version 2 checkpoint predicts; its weights do not tell.

    Raises:
        ModelError: neither the original configuration beside the file nor its name tells.
    """
    beside = file.with_suffix(".yaml")
    if beside.is_file():
        import yaml

        try:
            settings = yaml.safe_load(beside.read_text(encoding="utf-8"))["model"]["params"]
        except (yaml.YAMLError, OSError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ModelError(
                f"{beside} is not the original configuration of a checkpoint; remove or replace it."
            ) from error
        return "v_prediction" if settings.get("parameterization") == "v" else "epsilon"
    if "768" in file.name:
        return "v_prediction"
    if "512" in file.name or "base" in file.name:
        return "epsilon"
    raise ModelError(
        f"{file} does not tell whether it is a model of 512 or of 768 pixels; put 512 or 768 into its name, "
        f"or its original configuration beside it as {beside.name}."
    )


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """Read a CLIP tokenizer of `merges.txt`, from which its vocabulary follows, or as transformers writes one."""
    if (folder / "tokenizer_config.json").is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()]
    # CLIP's alphabet: bytes that print stand for themselves, the others for characters from 256 on
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = [chr(byte) for byte in printing] + [chr(256 + number) for number in range(256 - len(printing))]
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    # the class asks for strings and hands them on to one that asks for pairs
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!", model_max_length=77)  # type: ignore[arg-type]
