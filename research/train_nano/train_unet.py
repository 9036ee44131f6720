"""Train the UNet and the text encoder of the nano diffusion model on latents of SynthFSS training images.

    python -m research.train_nano.train_unet --out runs/unet --vae cavsam/weights/nano/diffusion --steps 2000
    python -m research.train_nano.train_unet --out runs/unet --vae cavsam/weights/nano/diffusion --steps 2000 --resume
    python -m research.train_nano.train_unet --out runs/unet --vae cavsam/weights/nano/diffusion \
        --export cavsam/weights/nano/diffusion

The prompt of an image is the name of its class, now and then empty. Batch k is a function of (--seed, k), so a
resumed run goes on exactly where it stopped. `evaluate_diffusion.py` decides whether the result is taken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel

from research import synth
from research.train_nano.build_diffusion import (
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    save_pipeline,
)
from research.train_nano.diffusion_data import SIZE, crop, example, recolour
from research.train_nano.train_vae import held_out_images, log, save_checkpoint

BATCH = 8
FRESH = 0.5  # new training images per step
WARM_UP = 100  # steps of a rising learning rate
NO_PROMPT = 0.1  # share of the examples whose prompt is the empty string
MIN_SNR = 5.0  # loss weight min(SNR, 5) / SNR: almost clean latents do not drown the others
AVERAGE = 0.998  # decay of the averaged weights, which are the ones exported


@dataclass
class Denoiser:
    """The two networks that are trained together."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel

    def modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder})

    def predict(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """The noise in latents (N, C, h, w), for prompts given as tokens int64 (N, length)."""
        with torch.autocast(latents.device.type, torch.bfloat16):
            embeddings = self.text_encoder(tokens)[0]
            return self.unet(latents, timesteps, encoder_hidden_states=embeddings).sample.float()


class LatentPool:
    """Latents of a growing stream of training images; each comes with its class's index.

    It starts with `first` images and takes in `FRESH` a step: rendering and encoding one costs a quarter of a step.
    """

    def __init__(self, vae: AutoencoderKL, seed: int, *, first: int = 512) -> None:
        self.vae = vae
        self.seed = seed
        self.names = list(synth.classes("textures", "train"))
        self.first = first
        self.latents: list[Tensor] = []
        self.classes: list[int] = []

    def grow(self, step: int) -> None:
        """Take in all images that belong to `step`."""
        while len(self.latents) < self.first + int(step * FRESH):
            self._add(len(self.latents))

    def _add(self, index: int) -> None:
        item = example(self.seed, index)
        rng = np.random.default_rng([self.seed, 2, index])
        image: NDArray[np.floating] = crop(rng, item.image, SIZE).astype(np.float32) / 255
        if rng.random() < 0.3:
            image = recolour(rng, image)
        self.latents.append(encode(self.vae, image)[0].half())
        self.classes.append(self.names.index(item.prompt))

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, list[int]]:
        """float32 (count, C, h, w) and the index of each one's class."""
        chosen = rng.integers(len(self.latents), size=count)
        return torch.stack([self.latents[i] for i in chosen]).float(), [self.classes[i] for i in chosen]


@torch.no_grad()
def encode(vae: AutoencoderKL, image: np.ndarray) -> Tensor:
    """Scaled posterior mean float32 (1, C, h, w) of float32 (H, W, 3) in 0..1."""
    device = next(vae.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device) * 2 - 1
    with torch.autocast(device.type, torch.bfloat16):
        mean = vae.encode(pixels).latent_dist.mean
    return mean.float().cpu() * vae.config.scaling_factor


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    vae = AutoencoderKL.from_pretrained(args.vae, subfolder="vae").float().eval()
    if args.export:
        export(vae, checkpoint, args.export)
    else:
        train(args, vae.to(args.device), checkpoint)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and of log.jsonl")
    parser.add_argument("--vae", type=Path, required=True, help="pipeline folder with the trained VAE")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--export", type=Path, help="do not train: write the averaged weights as a pipeline here")
    return parser.parse_args()


def build() -> Denoiser:
    return Denoiser(build_unet(), build_text_encoder(build_tokenizer()))


def train(args: argparse.Namespace, vae: AutoencoderKL, checkpoint: Path) -> None:
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    model = build()
    networks = model.modules().to(device).train()
    average: Any = build().modules().to(device).eval()
    average.load_state_dict(networks.state_dict())
    # on CPUs the backward pass of the plain attention takes a third of the time of the fused one, in bfloat16
    model.unet.set_attn_processor(AttnProcessor())
    optimizer = torch.optim.AdamW(networks.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    start, seconds = 0, 0.0
    if args.resume:
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        networks.load_state_dict(saved["networks"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        start, seconds = saved["step"], saved["seconds"]
    scheduler = build_scheduler()
    pool = LatentPool(vae, args.seed)
    tokens = tokens_of([*pool.names, ""]).to(device)
    judge = HeldOut(vae, scheduler)
    began = time.monotonic() - seconds
    losses: list[float] = []
    for step in range(start, args.steps):
        # no decay: the averaged weights take its place, and the run may be stopped or lengthened at any step
        optimizer.param_groups[0]["lr"] = args.lr * min(1.0, (step + 1) / WARM_UP)
        rng = np.random.default_rng([args.seed, 3, step])
        pool.grow(step)
        latents, classes = pool.draw(rng, BATCH)
        prompts = [len(tokens) - 1 if rng.random() < NO_PROMPT else index for index in classes]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        loss = denoising_loss(model, scheduler, latents.to(device), tokens[prompts], generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        update_average(average, networks, min(AVERAGE, (step + 1) / (step + 10)))
        losses.append(float(loss.detach()))
        done = step + 1
        if done % 100 == 0:
            entry: dict[str, Any] = {"step": done, "seconds": time.monotonic() - began, "loss": float(np.mean(losses))}
            losses.clear()
            if done % 500 == 0 or done == args.steps:
                entry |= judge.losses(Denoiser(average["unet"], average["text_encoder"]))
            log(args.out, entry)
        if done % 250 == 0 or done == args.steps:
            state: dict[str, Any] = {"networks": networks.state_dict(), "average": average.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": done, "seconds": time.monotonic() - began}
            save_checkpoint(checkpoint, state)


def denoising_loss(
    model: Denoiser, scheduler: DDIMScheduler, latents: Tensor, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """Error of the predicted noise at random timesteps, weighted by the signal-to-noise ratio; a scalar."""
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    kept = scheduler.alphas_cumprod[timesteps]
    weight = ((1 - kept) / kept * MIN_SNR).clamp(max=1).to(latents.device)
    timesteps = timesteps.to(latents.device)
    predicted = model.predict(scheduler.add_noise(latents, noise, timesteps), timesteps, tokens)
    return (weight * F.mse_loss(predicted, noise, reduction="none").mean(dim=(1, 2, 3))).mean()


@torch.no_grad()
def update_average(average: nn.Module, networks: nn.Module, decay: float) -> None:
    old: list[Tensor] = list(average.parameters())
    new = [parameter.detach() for parameter in networks.parameters()]
    torch._foreach_lerp_(old, new, 1 - decay)


def tokens_of(prompts: Sequence[str]) -> Tensor:
    """int64 (prompts, length), padded to the encoder's length."""
    tokenizer = build_tokenizer()
    return tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids


class HeldOut:
    """Development images, of classes that training has not seen, with fixed noise at fixed timesteps."""

    TIMESTEPS = (50, 200, 400, 600, 800, 950)

    def __init__(self, vae: AutoencoderKL, scheduler: DDIMScheduler, count: int = 12) -> None:
        images = held_out_images("textures", count)
        names = synth.classes("textures", "dev")
        self.latents = torch.cat([encode(vae, image.astype(np.float32) / 255) for image in images])
        self.noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(0))
        self.tokens = tokens_of([names[i % len(names)] for i in range(count)])
        self.scheduler = scheduler

    @torch.no_grad()
    def losses(self, model: Denoiser) -> dict[str, float]:
        """Mean squared error of the predicted noise at each timestep and over all of them."""
        device = next(model.unet.parameters()).device
        result = {}
        for timestep in self.TIMESTEPS:
            timesteps = torch.full((len(self.latents),), timestep)
            noisy = self.scheduler.add_noise(self.latents, self.noise, timesteps)
            predicted = model.predict(noisy.to(device), timesteps.to(device), self.tokens.to(device))
            result[f"dev_{timestep}"] = float(F.mse_loss(predicted.cpu(), self.noise))
        return result | {"dev": float(np.mean(list(result.values())))}


def export(vae: AutoencoderKL, checkpoint: Path, folder: Path) -> None:
    """Write the averaged weights, beside the VAE they were trained on, as a pipeline."""
    model = build()
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.modules().load_state_dict(saved["average"])
    save_pipeline(folder, vae, model.unet, model.text_encoder, build_tokenizer(), build_scheduler())
    print(f"Wrote {folder}: the averaged weights of step {saved['step']}.")


if __name__ == "__main__":
    main()
