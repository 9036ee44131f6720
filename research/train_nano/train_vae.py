"""Train the VAE of the nano diffusion model on SynthFSS training images and export it into the package.

    python -m research.train_nano.train_vae --out runs/vae --steps 5000
    python -m research.train_nano.train_vae --out runs/vae --steps 5000 --resume
    python -m research.train_nano.train_vae --out runs/vae --export cavsam/weights/nano/diffusion

Batch k is a function of (--seed, k), so a resumed run goes on exactly where it stopped. `--export` measures the
latents' deviation for `scaling_factor`, evaluates on held-out images, and refuses weights below --least-psnr.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from research import synth
from research.train_nano.build_diffusion import build_vae
from research.train_nano.diffusion_data import SIZE, RollingPool, crop, example, recolour

# (side, images, probability) of a batch: mostly small crops, which cost least for what they teach, and now and then
# larger ones up to a whole image, whose statistics the group norms must know too
BATCHES = ((64, 4, 0.6), (128, 1, 0.3), (SIZE, 1, 0.1))
KL_WEIGHT = 5e-5  # per latent element
EQUIVARIANCE = 0.25  # share of the steps that decode a shrunken latent


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    checkpoint = args.out / "checkpoint.pt"
    if args.export:
        export(load_vae(checkpoint).to(device).eval(), args.export, args.least_psnr)
        return
    train(args, device, checkpoint)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and of log.jsonl")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--export", type=Path, help="do not train: evaluate the checkpoint and write it here")
    parser.add_argument("--least-psnr", type=float, default=25.0, help="dB on held-out images, needed to export")
    return parser.parse_args()


def train(args: argparse.Namespace, device: torch.device, checkpoint: Path) -> None:
    torch.manual_seed(args.seed)
    vae = build_vae().to(device).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    start, seconds = 0, 0.0
    if args.resume:
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        start, seconds = saved["step"], saved["seconds"]
    pool = RollingPool(args.seed, start)
    began = time.monotonic() - seconds
    losses: list[dict[str, float]] = []
    for step in range(start, args.steps):
        optimizer.param_groups[0]["lr"] = args.lr * schedule(step, args.steps)
        rng = np.random.default_rng([args.seed, 1, step])
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        pool.advance()
        batch = make_batch(rng, pool).to(device)
        terms = losses_of(vae, batch, generator, shrink=rng.random() < EQUIVARIANCE)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        losses.append({name: float(value.detach()) for name, value in terms.items()})
        done = step + 1
        if done % 100 == 0:
            entry = {name: float(np.mean([terms[name] for terms in losses])) for name in losses[0]}
            losses.clear()
            if done % 500 == 0 or done == args.steps:
                entry["dev_psnr"] = float(np.mean(psnr_of_domain(vae.eval(), "textures", 12)))
                vae.train()
            log(args.out, {"step": done, "seconds": time.monotonic() - began} | entry)
        if done % 250 == 0 or done == args.steps:
            state: dict[str, Any] = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            save_checkpoint(checkpoint, state | {"seconds": time.monotonic() - began})


def make_batch(rng: np.random.Generator, pool: RollingPool) -> Tensor:
    """float32 (N, 3, S, S) in -1..1 of one of the shapes in `BATCHES`."""
    side, count, _ = BATCHES[int(rng.choice(len(BATCHES), p=[share for _, _, share in BATCHES]))]
    images = [crop(rng, item.image, side).astype(np.float32) / 255 for item in pool.draw(rng, count)]
    stack = np.stack([recolour(rng, image) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous() * 2 - 1


def losses_of(vae: AutoencoderKL, images: Tensor, generator: torch.Generator, *, shrink: bool) -> dict[str, Tensor]:
    """Reconstruction over three scales, edges, and a small KL term; "loss" is their sum.

    With `shrink` the latent is halved in size and has to decode to the halved image: it keeps the latent an
    image-like map, which the UNet learns sooner and which may be interpolated.
    """
    with torch.autocast(images.device.type, torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        latents = posterior.sample(generator=generator)
        if shrink:
            latents = F.interpolate(latents, scale_factor=0.5, mode="area")
        decoded = vae.decode(latents).sample
    truth = F.interpolate(images, scale_factor=0.5, mode="area") if shrink else images
    reconstruction = multi_scale_l1(decoded.float(), truth)
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return {"loss": reconstruction + KL_WEIGHT * kl, "reconstruction": reconstruction, "kl": kl}


def multi_scale_l1(decoded: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error, also of halved and quartered images and of the differences of neighbouring pixels."""
    error = decoded - truth
    loss = error.abs().mean() + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    for _ in range(2):
        error = F.avg_pool2d(error, 2)
        loss = loss + 0.5 * error.abs().mean()
    return loss


def schedule(step: int, steps: int, warm_up: int = 100) -> float:
    """Share of the learning rate: a linear rise, then a cosine to almost zero."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def log(folder: Path, entry: dict[str, float]) -> None:
    """One line of the curve: appended to log.jsonl and printed."""
    line = json.dumps({name: round(value, 5) for name, value in entry.items()})
    with (folder / "log.jsonl").open("a") as stream:
        stream.write(line + "\n")
    print(line, flush=True)


def save_checkpoint(path: Path, state: dict) -> None:
    """Written beside and moved into place, so that an interrupted run leaves the last one whole."""
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    beside.replace(path)


def load_vae(checkpoint: Path) -> AutoencoderKL:
    vae = build_vae()
    vae.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["vae"])
    return vae


# ---------------------------------------------------------------------------------------- evaluation


def held_out_images(domain: str, count: int) -> list[NDArray[np.uint8]]:
    """Development images of a domain, each of another class as far as there are enough."""
    names = synth.classes(domain, "dev")
    return [
        synth.generate(domain, (names[i % len(names)],), seed=synth.seed_of("dev", 5000 + i), size=SIZE).image
        for i in range(count)
    ]


@torch.no_grad()
def psnr_of_domain(vae: AutoencoderKL, domain: str, count: int) -> list[float]:
    """dB between each held-out image and its reconstruction through the posterior mean, clamped to 8 bits' range."""
    device = next(vae.parameters()).device
    result = []
    for image in held_out_images(domain, count):
        truth = torch.from_numpy(image).permute(2, 0, 1)[None].to(device).float() / 255
        decoded = vae.decode(vae.encode(truth * 2 - 1).latent_dist.mean).sample
        error = F.mse_loss((decoded / 2 + 0.5).clamp(0, 1), truth)
        result.append(float(-10 * torch.log10(error)))
    return result


@torch.no_grad()
def latent_deviation(vae: AutoencoderKL, count: int = 100) -> float:
    """Standard deviation of all latent elements over training images that the run has not used."""
    device = next(vae.parameters()).device
    latents = []
    for index in range(count):
        image = torch.from_numpy(example(1_000_003, index).image).permute(2, 0, 1)[None].to(device).float()
        latents.append(vae.encode(image / 127.5 - 1).latent_dist.mean)
    return float(torch.cat(latents).std())


def export(vae: AutoencoderKL, folder: Path, least_psnr: float) -> None:
    """Evaluate, and write the VAE in fp16 with its scaling factor when it is good enough; SystemExit otherwise."""
    figures = {domain: float(np.mean(psnr_of_domain(vae, domain, 24))) for domain in synth.DOMAINS}
    for domain, value in figures.items():
        print(f"PSNR {domain:<12}{value:6.2f} dB over 24 held-out images")
    if figures["textures"] < least_psnr:
        raise SystemExit(f"Not exported: {figures['textures']:.2f} dB on textures is below {least_psnr} dB.")
    vae.register_to_config(scaling_factor=round(1 / latent_deviation(vae), 5))
    vae.half().save_pretrained(folder / "vae")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").chmod(0o644)
    print(f"Wrote {folder / 'vae'}, scaling_factor {vae.config.scaling_factor}.")


if __name__ == "__main__":
    main()
