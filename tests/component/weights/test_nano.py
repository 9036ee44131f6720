"""What the bundled models can do: SAM2-nano tracks, the diffusion model reconstructs and leads from one to another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from scipy.stats import spearmanr

from cavsam import transition
from cavsam.recipe import Recipe
from cavsam.tracking import Prompt, Tracker
from cavsam.weights.loading import load_diffusion, load_tracker
from cavsam.weights.sources import NANO, ModelSources
from research import synth

FOLDER = NANO / "diffusion"


@pytest.fixture(scope="module")
def tracker() -> Tracker:
    return load_tracker(ModelSources.named("nano"), torch.device("cpu"))


def test_it_follows_an_object_through_smooth_clips(tracker: Tracker) -> None:
    ious = []
    names = synth.classes("textures", "dev")
    for index in range(8):
        clip = synth.clip(names[index], seed=synth.seed_of("dev", 500 + index), length=3, absent=False)
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 255
        prompt = Prompt(frame=0, label=0, mask=torch.from_numpy(clip.masks[0]))
        track = tracker.track(tracker.trunk(frames), [prompt], 1, read=2)
        found, truth = (track.logits[0] > 0).numpy(), clip.masks[2]
        if truth.any():
            ious.append((found & truth).sum() / (found | truth).sum())
    assert np.mean(ious) > 0.6


def test_its_object_score_is_lower_where_the_object_is_gone(tracker: Tracker) -> None:
    names = synth.classes("textures", "dev")
    scores: dict[bool, list[float]] = {True: [], False: []}
    for index in range(40):
        clip = synth.clip(names[index % len(names)], seed=synth.seed_of("dev", 600 + index), length=3)
        shown = bool(clip.masks[2].any())
        if shown and len(scores[True]) > 6:
            continue
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 255
        prompt = Prompt(frame=0, label=0, mask=torch.from_numpy(clip.masks[0]))
        track = tracker.track(tracker.trunk(frames), [prompt], 1, read=2)
        scores[shown].append(float(track.object_scores[0]))
    assert len(scores[False]) >= 3
    assert np.median(scores[True]) > np.median(scores[False])


def held_out(domain: str, count: int) -> list[np.ndarray]:
    names = synth.classes(domain, "dev")
    return [
        synth.generate(domain, (names[i % len(names)],), seed=synth.seed_of("dev", 6000 + i), size=256).image
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(FOLDER, subfolder="vae").float().eval()


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


def test_the_plain_stable_diffusion_pipeline_runs_on_it() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "striped star", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert image.shape == (256, 256, 3)
    assert np.isfinite(image).all()


def test_the_loader_of_cavsam_takes_it_as_any_other_folder() -> None:
    model = load_diffusion(ModelSources.named("nano"), torch.device("cpu"))
    assert model.native_size == 256
    assert model.vae_stride == 8
    image = torch.from_numpy(held_out("textures", 1)[0]).permute(2, 0, 1)[None].float() / 255
    latent = model.encode(image)
    assert latent.shape == (1, model.unet.config.in_channels, 32, 32)
    assert model.decode(latent).shape == image.shape


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
