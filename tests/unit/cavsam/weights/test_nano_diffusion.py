"""The bundled diffusion pipeline: the ordinary loaders, its size, any text, and how well it reconstructs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from scipy.stats import spearmanr
from transformers import CLIPTextModel, CLIPTokenizer

from cavsam import lora, transition
from cavsam.recipe import Recipe
from cavsam.weights.loading import load_diffusion
from cavsam.weights.sources import NANO, ModelSources
from research import synth

FOLDER = NANO / "diffusion"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(FOLDER, subfolder="tokenizer")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(FOLDER, subfolder="vae").float().eval()


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


def test_the_plain_stable_diffusion_pipeline_runs_on_it() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "striped star", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert image.shape == (256, 256, 3)
    assert np.isfinite(image).all()


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


def test_the_loader_of_cavsam_takes_it_as_any_other_folder() -> None:
    model = load_diffusion(ModelSources.named("nano"), torch.device("cpu"))
    assert model.native_size == 256
    assert model.vae_stride == 8
    image = torch.from_numpy(held_out("textures", 1)[0]).permute(2, 0, 1)[None].float() / 255
    latent = model.encode(image)
    assert latent.shape == (1, model.unet.config.in_channels, 32, 32)
    assert model.decode(latent).shape == image.shape


def held_out(domain: str, count: int) -> list[np.ndarray]:
    names = synth.classes(domain, "dev")
    return [
        synth.generate(domain, (names[i % len(names)],), seed=synth.seed_of("dev", 6000 + i), size=256).image
        for i in range(count)
    ]


def psnr(vae: AutoencoderKL, images: list[np.ndarray]) -> float:
    """Mean dB over the images, through the posterior mean."""
    figures = []
    for image in images:
        truth = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            decoded = vae.decode(vae.encode(truth * 2 - 1).latent_dist.mean).sample
        error = ((decoded / 2 + 0.5).clamp(0, 1) - truth).square().mean()
        figures.append(-10 * float(error.log10()))
    return float(np.mean(figures))


def test_latents_have_unit_deviation(vae: AutoencoderKL) -> None:
    images = np.stack(held_out("textures", 8)).astype(np.float32) / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latent_dist.mean
    assert float(latents.std()) * vae.config.scaling_factor == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("domain", "bound"), [("textures", 25.0), ("lesions", 29.0), ("lungs", 33.0), ("satellite", 25.0), ("cells", 26.0)]
)
def test_the_vae_gives_held_out_images_back(vae: AutoencoderKL, domain: str, bound: float) -> None:
    # measured over 24 images of each: 27.4, 32.9, 37.4, 27.7, 28.6 dB
    assert psnr(vae, held_out(domain, 3)) >= bound


def test_the_frames_between_two_instances_lead_from_one_to_the_other() -> None:
    model = load_diffusion(ModelSources.named("nano"), torch.device("cpu"))
    recipe = Recipe(lora_steps=40, ddim_steps=10, frames=5)
    name = synth.classes("textures", "dev")[7]
    pictures = [synth.generate("textures", (name,), seed=synth.seed_of("dev", 6100 + i)).image for i in range(2)]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    ends = [transition.invert(model, fitted, recipe) for fitted in transition.fit_images(model, images, name, recipe)]
    frames = transition.frames_between(model, ends[0], ends[1], recipe)
    video = F.avg_pool2d(torch.cat([images[:1], frames, images[1:]]), 8)  # colours and places, no detail
    from_reference = (video - video[0]).square().mean(dim=(1, 2, 3))
    from_target = (video - video[-1]).square().mean(dim=(1, 2, 3))
    order = np.arange(len(video))
    assert spearmanr(order, from_reference).statistic >= 0.9
    assert spearmanr(order, from_target).statistic <= -0.9
