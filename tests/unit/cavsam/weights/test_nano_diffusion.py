"""The bundled diffusion pipeline: its shape, its size, and any text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from cavsam import lora
from cavsam.weights.sources import NANO
from research import synth

FOLDER = NANO / "diffusion"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(FOLDER, subfolder="tokenizer")


def weight_files() -> list[Path]:
    return sorted(NANO.rglob("*.safetensors"))


def test_both_nano_models_fit_in_twenty_megabytes() -> None:
    assert {file.relative_to(NANO).parts[0] for file in weight_files()} == {"sam2", "diffusion"}
    assert sum(file.stat().st_size for file in weight_files()) <= 20 * MEGABYTE


def test_weights_are_half_precision_and_finite() -> None:
    from safetensors.torch import load_file

    files = [file for file in weight_files() if file.is_relative_to(FOLDER)]
    assert len(files) == 3
    for file in files:
        for name, tensor in load_file(file).items():
            assert tensor.dtype == torch.float16, name
            assert tensor.isfinite().all(), name


def test_it_is_shaped_like_stable_diffusion_and_its_native_size_follows_from_its_configuration() -> None:
    vae = AutoencoderKL.load_config(FOLDER, subfolder="vae")
    unet = UNet2DConditionModel.load_config(FOLDER, subfolder="unet")
    scheduler = DDIMScheduler.from_pretrained(FOLDER, subfolder="scheduler")
    assert unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1) == vae["sample_size"] == 256
    assert unet["in_channels"] == unet["out_channels"] == vae["latent_channels"]
    # the noise schedule of Stable Diffusion: the signal's share that is left at the first and at the last step
    kept = scheduler.alphas_cumprod
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(kept.numpy(), np.cumprod(1 - betas), rtol=1e-4)
    assert scheduler.config.prediction_type == "epsilon"
    assert not scheduler.config.clip_sample
    assert not scheduler.config.set_alpha_to_one
    assert scheduler.config.steps_offset == 1


def test_every_attention_projection_of_the_lower_levels_takes_an_adapter() -> None:
    unet = UNet2DConditionModel.from_pretrained(FOLDER, subfolder="unet")
    names = set(lora.attention_projections(unet))
    for block in ("down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"):
        for attention in ("attn1", "attn2"):
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                ending = f"{attention}.{projection}"
                assert any(name.startswith(block) and name.endswith(ending) for name in names), f"{block} {ending}"


@pytest.mark.parametrize("domain", synth.DOMAINS)
def test_class_names_need_no_more_than_a_few_tokens_each_of_its_own(tokenizer: CLIPTokenizer, domain: str) -> None:
    names = synth.classes(domain, "train" if domain == "textures" else "test")
    encoded = {name: tuple(tokenizer(name).input_ids) for name in names}
    assert len(set(encoded.values())) == len(names)
    if domain == "textures":  # the training domain's words are whole in the vocabulary: start, two words, end
        assert {len(ids) for ids in encoded.values()} == {4}


@pytest.mark.parametrize(
    "text", ["", "kidney", "Straße № 5", "肺", "🫁 lung", "a/b_c-d", "'s", "ﬁ\x00\t x", "star " * 500]
)
def test_any_text_is_encoded_and_embedded(tokenizer: CLIPTokenizer, text: str) -> None:
    encoder = CLIPTextModel.from_pretrained(FOLDER, subfolder="text_encoder", dtype=torch.float32)
    ids = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, encoder.config.max_position_embeddings)
    assert ids.max() < encoder.config.vocab_size
    assert encoder(ids)[0].isfinite().all()


def test_unknown_words_are_spelled_and_not_dropped(tokenizer: CLIPTokenizer) -> None:
    for text in ("kidney", "naïve 肺", "woven-gear7"):
        ids = tokenizer(text).input_ids
        assert str(tokenizer.decode(ids, skip_special_tokens=True)).replace(" ", "") == text.replace(" ", "")
    assert tokenizer("kidney").input_ids != tokenizer("spleen").input_ids
    assert tokenizer("Striped STAR").input_ids == tokenizer("striped star").input_ids
