"""Decide whether a nano diffusion pipeline is taken: reconstruction, and transitions between two instances.

    python -m research.train_nano.evaluate_diffusion cavsam/weights/nano/diffusion \
        --sam2 cavsam/weights/nano/sam2 --sheet sheet.png

Held-out development images only. A transition counts as monotone when along its frames the feature distance to the
reference rises and the distance to the target falls: rank correlation with the frame number of at least 0.9 and at
most -0.9. Features are SAM2's, at stride 16, of each whole frame. The share of single steps that go the right way
and of transitions without one wrong step are printed as well. Exit status 1 when a figure misses its aim.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from cavsam import transition
from cavsam.diffusion import LatentDiffusion
from cavsam.recipe import Recipe
from cavsam.tracking import Tracker
from cavsam.weights.loading import load_diffusion, load_tracker
from cavsam.weights.sources import ModelSources
from research import synth
from research.train_nano.train_vae import psnr_of_domain

LEAST_PSNR = 25.0  # dB, mean over the training domain's held-out images
LEAST_MONOTONE = 0.9  # share of transitions
LEAST_CORRELATION = 0.9


@dataclass(frozen=True)
class Transition:
    """video: float (frames + 2, 3, D, D) with the real images at its ends; distances: (frames + 2,) to either end."""

    class_name: str
    video: Tensor
    from_reference: NDArray[np.floating]
    from_target: NDArray[np.floating]

    @property
    def monotone(self) -> bool:
        order = np.arange(len(self.from_reference))
        rising = spearmanr(order, self.from_reference).statistic
        falling = spearmanr(order, self.from_target).statistic
        return bool(rising >= LEAST_CORRELATION and falling <= -LEAST_CORRELATION)

    @property
    def right_steps(self) -> NDArray[np.bool_]:
        """bool (2, frames + 1): whether each single step goes the right way, for either distance."""
        return np.stack([np.diff(self.from_reference) > 0, np.diff(self.from_target) < 0])


def main() -> int:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    sources = ModelSources(sam2=str(args.sam2), diffusion=str(args.pipeline))
    model = load_diffusion(sources, device)
    tracker = load_tracker(sources, device)
    recipe = Recipe(lora_steps=args.lora_steps)

    psnr = {domain: float(np.mean(psnr_of_domain(model.vae, domain, args.images))) for domain in synth.DOMAINS}
    transitions: list[Transition] = []
    began = time.monotonic()
    names = synth.classes("textures", "dev")
    for index in range(args.classes):
        for done in class_transitions(model, tracker, names[(7 * index) % len(names)], index, recipe):
            transitions.append(done)
            print(
                f"{done.class_name:<18}monotone {done.monotone!s:<6}right steps {done.right_steps.mean():.2f}",
                file=sys.stderr,
                flush=True,
            )
    figures = {
        "psnr": {domain: round(value, 2) for domain, value in psnr.items()},
        "pairs": len(transitions),
        "monotone_pairs": round(float(np.mean([t.monotone for t in transitions])), 3),
        "pairs_without_a_wrong_step": round(float(np.mean([t.right_steps.all() for t in transitions])), 3),
        "right_steps": round(float(np.mean([t.right_steps.mean() for t in transitions])), 3),
        "lora_steps": args.lora_steps,
        "seconds_per_pair": round((time.monotonic() - began) / len(transitions), 1),
    }
    print(json.dumps(figures, indent=2))
    if args.sheet:
        contact_sheet([t.video for t in transitions]).save(args.sheet)
    taken = figures["psnr"]["textures"] >= LEAST_PSNR and figures["monotone_pairs"] >= LEAST_MONOTONE
    print("taken" if taken else f"not taken: aims are {LEAST_PSNR} dB and {LEAST_MONOTONE} of the pairs")
    return 0 if taken else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--sam2", type=Path, required=True, help="folder of the SAM2 whose features measure distance")
    parser.add_argument("--images", type=int, default=24, help="held-out images of each domain for the PSNR")
    parser.add_argument(
        "--classes", type=int, default=8, help="unseen classes, three instances and so three pairs of each"
    )
    parser.add_argument("--lora-steps", type=int, default=Recipe.lora_steps)
    parser.add_argument("--sheet", type=Path, help="save the transitions as one picture, a row each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def class_transitions(
    model: LatentDiffusion, tracker: Tracker, name: str, index: int, recipe: Recipe
) -> Iterator[Transition]:
    """The pseudo videos between three development images of a class, with their features' distances to both ends."""
    seeds = [synth.seed_of("dev", 7000 + 3 * index + number) for number in range(3)]
    pictures = [synth.generate("textures", (name,), seed=seed, size=model.native_size).image for seed in seeds]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(model.device).float() / 255
    ends = [transition.invert(model, fitted, recipe) for fitted in transition.fit_images(model, images, name, recipe)]
    for first, second in itertools.combinations(range(3), 2):
        between = transition.frames_between(model, ends[first], ends[second], recipe)
        video = torch.cat([images[first][None], between, images[second][None]])
        features = features_of(tracker, video)
        yield Transition(name, video.cpu(), distances(features, 0), distances(features, -1))


def features_of(tracker: Tracker, video: Tensor) -> Tensor:
    """SAM2's stride-16 features of each frame, flattened: float (frames, n)."""
    size = (tracker.image_size, tracker.image_size)
    frames = F.interpolate(video, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        return tracker.neck(tracker.trunk(frames))[0].flatten(1)


def distances(features: Tensor, end: int) -> NDArray[np.float64]:
    """Cosine distance of each frame's features to those of the frame `end`."""
    return (1 - F.cosine_similarity(features, features[end][None])).double().cpu().numpy()


def contact_sheet(videos: Sequence[Tensor], side: int = 96) -> Image.Image:
    rows = [F.interpolate(video, size=(side, side), mode="area").permute(2, 0, 3, 1).flatten(1, 2) for video in videos]
    return Image.fromarray((torch.cat(rows).numpy() * 255).round().astype(np.uint8))


if __name__ == "__main__":
    sys.exit(main())
