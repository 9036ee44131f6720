"""The yardstick: the published method, one pair after another, on the libraries that its authors used.

peft fits one adapter to each image and mixes two of them for each frame, frames are denoised one by one, SAM2 reads its
video from a folder of JPEGs, all in float32, and nothing of the reference is kept from one pair to the next. Draws of
random numbers are those of `cavsam`, so the two can be held against each other: seconds, operations, and masks.

    python -m research.benchmarks.sequential                      the bundled models on both cores, two targets
    python -m research.benchmarks.sequential --count              also operations, launches and bytes of a target
    python -m research.benchmarks.sequential --sizes paper --cut 50 --count      the paper's sizes, random weights

With `--cut N` both sides take an N-th of the optimiser steps.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMInverseScheduler, DDIMScheduler
from numpy.typing import NDArray
from peft import LoraConfig
from PIL import Image
from skimage.filters import threshold_otsu
from torch import Tensor

from cavsam import lora
from cavsam.alignment import augment
from cavsam.diffusion import LatentDiffusion, training_target
from cavsam.features import grid_of, iou
from cavsam.pipeline import CavSam
from cavsam.recipe import Recipe
from cavsam.tracking import PIXEL_MEAN, PIXEL_STD, Tracker
from cavsam.transition import DiffusionTransition, interpolate_latents
from cavsam.types import Reference
from cavsam.video import masks_square, picture_square
from research import synth
from research.benchmarks.counting import Counted
from research.benchmarks.models import describe_machine, load

JPEG_QUALITY = 95


@dataclass
class Pair:
    """What the yardstick made of one reference and one target.

    Attributes:
        masks: bool (labels, S, S) on the target, overlaps given to the higher logit.
        frames: the generated frames, float (n, 3, D, D) in 0..1.
        seconds: step -> seconds.
    """

    masks: Tensor
    frames: Tensor
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sequential:
    """The published method.

    Attributes:
        tracker: SAM2, of which copies are tuned.
        diffusion: the diffusion model.
        recipe: with the published choices; others are not read.
        lossless: whether SAM2's folder holds the pixels as they are, for comparisons, instead of JPEGs.
    """

    tracker: Tracker
    diffusion: LatentDiffusion
    recipe: Recipe
    lossless: bool = False

    def segment(self, reference: Reference, target: NDArray[np.uint8], prompt: str) -> Pair:
        """Do all of one pair: `reference`, and a target uint8 (H, W, 3)."""
        seconds: dict[str, float] = defaultdict(float)

        @contextmanager
        def step(name: str) -> Iterator[None]:
            start = time.perf_counter()
            yield
            seconds[name] += time.perf_counter() - start

        frames = self._frames(reference.image, target, prompt, step)
        size, device = self.tracker.image_size, self.tracker.device
        masks = masks_square(reference.masks, list(reference.masks), size).float().to(device)
        with step("align"):
            predictor = copy.deepcopy(self.tracker.predictor)
            self._align(predictor, picture_square(reference.image, size, device), masks)
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder), [reference.image, *frames, target])
            with step("track"):
                found = self._track(predictor, folder, masks, len(frames))
        return Pair(found, frames, dict(seconds))

    # DBST

    def _frames(self, reference: NDArray[np.uint8], target: NDArray[np.uint8], prompt: str, step: Any) -> Tensor:
        model, recipe = self.diffusion, self.recipe
        unet, size = model.unet, recipe.diffusion_size or model.native_size
        projections = list(lora.attention_projections(unet))
        start = lora.new_bank(unet, 1, recipe.lora_rank, recipe.seed)
        embedding = model.embed([prompt])
        ends = {}
        try:
            for name, image in {"reference": reference, "target": target}.items():
                latent = model.encode(picture_square(image, size, model.device)[None])
                unet.add_adapter(
                    LoraConfig(r=recipe.lora_rank, lora_alpha=recipe.lora_rank, target_modules=projections), name
                )
                unet.set_adapters([name])
                with step("lora"):
                    self._fit(name, start, latent, embedding)
                with step("invert"):
                    ends[name] = self._ddim(DDIMInverseScheduler, latent, embedding)[0]
            frames = []
            with step("generate"):
                for alpha in torch.linspace(recipe.alpha_min, recipe.alpha_max, recipe.frames).tolist():
                    unet.set_adapters(["reference", "target"], [1 - alpha, alpha])
                    latent = interpolate_latents(ends["reference"], ends["target"], alpha)[None]
                    frames.append(model.decode(self._ddim(DDIMScheduler, latent, embedding)))
        finally:
            unet.unload_lora()
        return torch.cat(frames)

    def _fit(self, name: str, start: lora.LoraBank, latent: Tensor, embedding: Tensor) -> None:
        """Fit the active adapter of peft to one latent, beginning with the adapter `start`."""
        recipe, unet = self.recipe, self.diffusion.unet
        fitted = []
        for layer, down in start.down.items():
            module = unet.get_submodule(layer)
            for part, begin in ((module.lora_A[name], down[0]), (module.lora_B[name], start.up[layer][0])):
                part.weight.data.copy_(begin)
                fitted.append(part.weight.requires_grad_(True))
        optimizer = torch.optim.AdamW(fitted, lr=recipe.lora_lr, weight_decay=recipe.lora_weight_decay)
        scheduler = DDIMScheduler.from_config(self.diffusion.schedule)
        generator = torch.Generator().manual_seed(recipe.seed + 1)
        for _ in range(recipe.lora_steps):
            timestep = torch.randint(scheduler.config.num_train_timesteps, (1,), generator=generator).to(latent.device)
            noise = torch.randn(latent.shape, generator=generator).to(latent.device)
            noisy = scheduler.add_noise(latent, noise, timestep)
            predicted = unet(noisy, timestep, encoder_hidden_states=embedding).sample
            loss = F.mse_loss(predicted, training_target(scheduler, latent, noise, timestep))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for weight in fitted:
            weight.requires_grad_(False)

    @torch.no_grad()
    def _ddim(self, kind: Any, latent: Tensor, embedding: Tensor) -> Tensor:
        scheduler = kind.from_config(self.diffusion.schedule)
        scheduler.set_timesteps(self.recipe.ddim_steps)
        for timestep in scheduler.timesteps:
            predicted = self.diffusion.unet(latent, timestep.to(latent.device), encoder_hidden_states=embedding).sample
            latent = scheduler.step(predicted, int(timestep), latent).prev_sample
        return latent

    # TTGA

    def _align(self, predictor: Any, image: Tensor, masks: Tensor) -> None:
        """Tune the neck of `predictor` by augmentative cyclic consistency on the reference."""
        recipe = self.recipe
        neck = predictor.image_encoder.neck.requires_grad_(True)
        optimizer = torch.optim.Adam(neck.parameters(), lr=recipe.ttga_lr, weight_decay=recipe.ttga_weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.ttga_steps)
        generator = torch.Generator().manual_seed(recipe.seed + 2)
        for _ in range(recipe.ttga_steps):
            torch.randint(1, (), generator=generator)  # which of one reference: `cavsam` draws it as well
            changed, changed_masks = augment(image, masks, generator)
            known, changed_features = _features(predictor, image), _features(predictor, changed)
            forward = _cosine(changed_features, _prototypes(known, masks))
            predicted = torch.stack([(one > _otsu(one)).float() for one in forward.detach()])
            loss = _loss(forward, changed_masks)
            shown = changed_masks.flatten(1).any(dim=1)
            if shown.any():
                backward = _cosine(known, _prototypes(changed_features, predicted))
                loss = loss + _loss(backward[shown], masks[shown])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        neck.requires_grad_(False)

    @torch.no_grad()
    def _pseudo_labels(self, predictor: Any, images: Sequence[Tensor], masks: Tensor) -> Iterator[tuple[int, int, Any]]:
        """Give frame, label and mask, bool (S, S), of each prompt on the first half of the generated frames."""
        prototypes = _prototypes(_features(predictor, images[0]), masks)
        for frame in range(1, len(images)):
            small = _cosine(_features(predictor, images[frame]), prototypes)
            full = F.interpolate(small[None], size=masks.shape[-2:], mode="bilinear", align_corners=False)[0]
            for label, one in enumerate(small):
                mask = (full[label] > _otsu(one)) & (full.argmax(dim=0) == label)
                if mask.any() and not mask.all():
                    yield frame, label, mask

    # iVOS

    def _write(self, folder: Path, images: Sequence[NDArray[np.uint8] | Tensor]) -> None:
        """Write the frames, squashed to SAM2's square, as SAM2 reads them."""
        size = self.tracker.image_size
        for number, image in enumerate(images):
            if isinstance(image, Tensor):
                image = F.interpolate(image[None], size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
            else:
                image = picture_square(image, size)
            pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            data = io.BytesIO()
            # SAM2 asks for the ending .jpg only; Pillow looks at the content
            Image.fromarray(pixels).save(data, "PNG" if self.lossless else "JPEG", quality=JPEG_QUALITY)
            (folder / f"{number}.jpg").write_bytes(data.getvalue())

    def _track(self, predictor: Any, folder: str, masks: Tensor, generated: int) -> Tensor:
        state = predictor.init_state(folder)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
        prompted = int(generated * self.recipe.prompted_fraction)
        images = [state["images"][n].cpu() * std + mean for n in range(1 + prompted)]
        for label, mask in enumerate(masks):
            predictor.add_new_mask(state, 0, label, mask > 0.5)
        for frame, label, mask in self._pseudo_labels(predictor, [one.to(masks.device) for one in images], masks):
            predictor.add_new_mask(state, frame, label, mask)
        for frame, _, logits in predictor.propagate_in_video(state):
            if frame == generated + 1:
                logits = logits[:, 0].float()
                return (logits > 0) & (logits == logits.amax(dim=0))
        raise RuntimeError("SAM2 did not reach the target.")


def _features(predictor: Any, image: Tensor) -> Tensor:
    """Encode a picture, float (3, S, S) in 0..1, as SAM2 does: (C, S/16, S/16)."""
    mean, std = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    return predictor.image_encoder(((image - mean) / std)[None])["vision_features"][0]


def _prototypes(features: Tensor, masks: Tensor) -> Tensor:
    """Average features (C, h, w) under masks (labels, S, S): (labels, C)."""
    small = F.adaptive_avg_pool2d(masks, grid_of(features))
    weights = small.flatten(1)
    return (weights @ features.flatten(1).T) / weights.sum(dim=1, keepdim=True).clamp_min(1e-6)


def _cosine(features: Tensor, prototypes: Tensor) -> Tensor:
    """Compare features (C, h, w) with prototypes (labels, C): (labels, h, w) in -1..1."""
    return F.cosine_similarity(features[None], prototypes[:, :, None, None], dim=1)


def _otsu(values: Tensor) -> float:
    return float(threshold_otsu(values.detach().cpu().double().numpy(), nbins=256))


def _loss(similarity: Tensor, masks: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(similarity, F.adaptive_avg_pool2d(masks, grid_of(similarity)))


def main() -> int:
    """Run both on the same targets, in turn, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=("nano", "paper"), default="nano", help="which architectures")
    parser.add_argument("--targets", type=int, default=2, help="targets to segment (default: 2)")
    parser.add_argument("--cut", type=int, default=1, help="divide the number of optimiser steps by this")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--count", action="store_true", help="count operations, launches and bytes of one target")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    whole = Recipe()
    recipe = whole.replace(
        precision="float32",
        lora_steps=max(1, whole.lora_steps // options.cut),
        ttga_steps=max(1, whole.ttga_steps // options.cut),
    )
    model = load(options.sizes, recipe, options.device)
    figures = compare(model, options.targets)
    if options.count:
        figures["counts"] = count(model)
    figures |= {"machine": describe_machine(model.device), "sizes": options.sizes, "cut": options.cut}
    print(report(figures))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def scenes(count: int, size: int) -> list[Reference]:
    """Draw cells of two classes, as many pictures as asked for and one more, of `size` pixels."""
    names = synth.classes("cells", "dev")[:2]
    drawn = (synth.generate("cells", names, seed=synth.seed_of("dev", n), size=size) for n in range(512))
    both = (Reference(one.image, one.masks) for one in drawn if set(one.masks) == set(names))
    return [one for one, _ in zip(both, range(count + 1), strict=False)]


def compare(model: CavSam, targets: int) -> dict[str, Any]:
    """Segment with `cavsam`, its reference warm, and with the yardstick, in turn, so that both are slowed alike.

    Returns:
        By side the seconds of each step and target, and for each target the IoU of the two sides' masks by label.
    """
    reference, *pictures = scenes(targets, model.tracker.image_size)
    yardstick = yardstick_of(model)
    start = time.perf_counter()
    adapted = model.adapt([reference])
    figures: dict[str, Any] = {"reference": time.perf_counter() - start, "ours": [], "yardstick": [], "agreement": []}
    for picture in pictures:
        (result,) = model.segment(adapted, [picture.image])
        if result.error:
            raise RuntimeError(result.error)
        pair = yardstick.segment(reference, picture.image, adapted.prompt)
        figures["ours"].append(result.timings)
        figures["yardstick"].append(pair.seconds)
        masks = dict(zip(reference.masks, pair.masks.cpu(), strict=True))
        figures["agreement"].append(
            {label: iou(torch.from_numpy(result.masks[label]), mask) for label, mask in masks.items()}
        )
    return figures


def yardstick_of(model: CavSam) -> Sequential:
    """Take a model apart for the yardstick."""
    if not isinstance(model.transition, DiffusionTransition):
        raise RuntimeError("The yardstick needs a diffusion model.")
    return Sequential(model.tracker, model.transition.model, model.recipe)


def count(model: CavSam) -> dict[str, dict[str, int]]:
    """Count what one target costs each side, the reference being warm on ours."""
    reference, picture = scenes(1, model.tracker.image_size)
    adapted = model.adapt([reference])
    with Counted() as ours:
        list(model.segment(adapted, [picture.image]))
    with Counted() as theirs:
        yardstick_of(model).segment(reference, picture.image, adapted.prompt)
    return {
        side: {"flops": counted.flops, "launches": counted.launches, "bytes": counted.bytes}
        for side, counted in (("ours", ours), ("yardstick", theirs))
    }


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    ours, theirs = ([sum(one.values()) for one in figures[side]] for side in ("ours", "yardstick"))
    ratios = [their / own for own, their in zip(ours, theirs, strict=True)]
    weights = "bundled models" if figures["sizes"] == "nano" else "the paper's sizes, RANDOM weights"
    cut = f", a {figures['cut']}th of the optimiser steps" if figures["cut"] > 1 else ""
    lines = [f"{weights}, published recipe, 2 labels{cut}; {figures['machine']}", ""]
    lines.append(f"the reference of ours, once {figures['reference']:.2f} s; then seconds of a target, mean")
    lines.append(f"  {'':<12}{'ours':>10}{'yardstick':>12}")
    steps = dict.fromkeys(step for side in ("yardstick", "ours") for one in figures[side] for step in one)
    for step in steps:
        means = [np.mean([one.get(step, 0.0) for one in figures[side]]) for side in ("ours", "yardstick")]
        lines.append(f"  {step:<12}{means[0]:>10.2f}{means[1]:>12.2f}")
    lines.append(f"  {'sum':<12}{np.mean(ours):>10.2f}{np.mean(theirs):>12.2f}")
    lines.append(f"yardstick / ours: {np.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    agreement = [value for one in figures["agreement"] for value in one.values()]
    lines.append(f"IoU of the two sides' masks: {np.mean(agreement):.3f} (least {min(agreement):.3f})")
    for name in ("flops", "launches", "bytes") if "counts" in figures else ():
        own, their = (figures["counts"][side][name] for side in ("ours", "yardstick"))
        lines.append(f"{name:<9} of a target: ours {own:.3g}, yardstick {their:.3g}, ratio {their / own:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
