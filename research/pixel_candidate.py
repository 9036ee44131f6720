"""An experiment: what a forest on features of pixels at several scales would add to the present candidates.

    python -m research.pixel_candidate RUN FOLDER

RUN is the --out of `cavsam evaluate --dataset folder FOLDER --model nano` with the mode `auto`: its episodes and their
candidates, with scores and true IoU, are taken from there. The forest's masks are scored as those of `linear` are. The
table gives the mean of the episodes' IoU by domain, on SAM2's square: of the forest alone, of the present choice and of
the best in hindsight, and of both with the forest among the candidates.

Measured on 65 real dev episodes (docs/benchmark.md), mean of domains: the forest on 128 x 128 pixels, unbalanced and
without SAM2's features, takes 0.14 s a target beside its fit; the choice rises from 38.6 to 48.9 and the best in
hindsight from 42.4 to 52.1. With SAM2's features or at 256 x 256 pixels the choice gains less (47.8, 47.6).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import ExtraTreesClassifier

from cavsam.candidates.base import Candidate, Proposal, Scene, presence_said_by
from cavsam.candidates.tracked import Tracked
from cavsam.cli import run_command
from cavsam.evaluation.datasets import load_episode, read_list
from cavsam.evaluation.runs import Record, all_records
from cavsam.features import iou
from cavsam.images import resize_mask
from cavsam.observe.run import Run
from cavsam.pipeline import CavSam
from cavsam.recipe import Recipe
from cavsam.video import picture_square

SAMPLES = 4000
"""Pixels of the references that the forest learns from, half of them the object's."""


@dataclass
class Pixels:
    """The region that a forest finds among the target's pixels.

    Attributes:
        model: its tracker.
        side: of the square on which pixels are classified.
        with_sam2: whether SAM2's features are among a pixel's.
        balanced: whether both sides weigh the same; otherwise as on the references.
        seconds: of the last target: features and classification.
    """

    model: CavSam
    side: int
    with_sam2: bool
    balanced: bool
    seconds: float = 0.0

    def logits(self, scene: Scene, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Classify the target's pixels; float (1, S, S), above 0 is the object.

        Args:
            scene: with one label.
            images: the references as SAM2 sees them, float (3, S, S), in the order of the scene's video.
        """
        masks = F.interpolate(scene.masks.float(), size=(self.side, self.side), mode="area")[:, 0]
        known = np.concatenate([self._features(scene, image, index) for index, image in enumerate(images)])
        inside = (masks >= masks.amax().clamp(max=0.5)).flatten().numpy()
        rng = np.random.default_rng(0)
        if self.balanced:
            drawn = np.concatenate(
                [rng.permutation(np.flatnonzero(inside == side))[: SAMPLES // 2] for side in (True, False)]
            )
        else:
            drawn = rng.permutation(len(inside))[:SAMPLES]
        forest = ExtraTreesClassifier(
            n_estimators=40,
            max_depth=12,
            min_samples_leaf=2,
            class_weight="balanced" if self.balanced else None,
            n_jobs=1,
            random_state=0,
        )
        forest.fit(known[drawn], inside[drawn])
        begun = time.perf_counter()
        features = self._features(scene, scene.square, len(images))
        likely = forest.predict_proba(features)[:, -1].reshape(self.side, self.side)
        self.seconds = time.perf_counter() - begun
        size = (self.model.tracker.image_size,) * 2
        found = torch.from_numpy(likely).float()[None, None]
        return F.interpolate(found, size=size, mode="bilinear", align_corners=False)[0] - 0.5

    def _features(self, scene: Scene, image: torch.Tensor, frame: int) -> NDArray[np.float32]:
        small = F.interpolate(image[None], size=(self.side, self.side), mode="area")[0].permute(1, 2, 0).numpy()
        basic = multiscale_basic_features(small, sigma_max=8, workers=1, channel_axis=2)
        parts = [basic.reshape(-1, basic.shape[2])]
        if self.with_sam2:
            for stride in (4, 8):
                level = F.normalize(self.model.tracker.level(scene.levels, stride)[frame], dim=0)[None]
                full = F.interpolate(level, size=(self.side, self.side), mode="bilinear", align_corners=False)[0]
                parts.append(full.permute(1, 2, 0).reshape(self.side**2, -1).numpy())
        return np.concatenate(parts, axis=1).astype(np.float32)


def run(options: argparse.Namespace) -> int:
    """Run every episode that the mode `auto` has in RUN, print the tables."""
    torch.set_num_threads(1)
    model = CavSam.from_pretrained("nano", device="cpu", recipe=Recipe.preset("quick").replace(mode="concat"))
    overlap = {**model.calibration.overlap, "pixels": model.calibration.overlap["linear"]}
    presence = {**model.calibration.presence, "pixels": model.calibration.presence["linear"]}
    model.calibration = dataclasses.replace(model.calibration, overlap=overlap, presence=presence)
    variants = {
        "128": Pixels(model, 128, with_sam2=False, balanced=False),
        "128 balanced": Pixels(model, 128, with_sam2=False, balanced=True),
        "128 SAM2": Pixels(model, 128, with_sam2=True, balanced=False),
        "256 SAM2": Pixels(model, 256, with_sam2=True, balanced=False),
    }
    listed = read_list(next(options.out.glob("episodes-*.jsonl")))
    kept = [r for r in all_records(options.out) if r.mode == "auto" and r.candidates and not r.absent]
    kept = sorted(kept, key=lambda record: record.index)[: options.episodes]
    rows: dict[str, list[tuple[str, dict[str, float]]]] = defaultdict(list)
    for record in kept:
        episode = load_episode("folder", options.root, listed[record.index])
        label, size = record.class_name, model.tracker.image_size
        adapted = model.adapt(episode.references, class_name=label)
        scene = Scene.of(adapted, episode.image, model.tracker)
        images = [picture_square(one.image, size, model.device) for one in episode.references]
        images = [images[index] for index in scene.video.order]
        concat = _assessed(model, Tracked(model.tracker, model.recipe).propose(scene, [], Run()), scene)
        truth = torch.from_numpy(resize_mask(episode.truth, (size, size)))
        for name, strategy in variants.items():
            logits = strategy.logits(scene, images)
            said = presence_said_by("concat", [concat])
            proposal = Proposal("pixels", scene.video, None, scene.objects("union"), logits, said, "concat")
            found = _assessed(model, proposal, scene)
            rows[name].append((record.domain, _row(record, found, iou(found.masks[0], truth), strategy.seconds)))
    for name, own in rows.items():
        print(f"\n## {name}\n")
        _print(own)
    return 0


def _assessed(model: CavSam, proposal: Proposal, scene: Scene) -> Candidate:
    return model._assess(proposal, scene, Run())


def _row(record: Record, found: Candidate, value: float, seconds: float) -> dict[str, float]:
    ways: list[dict[str, Any]] = [*record.candidates, {"kind": "pixels", "iou": value, "score": found.scores[0]}]
    before = max(record.candidates, key=lambda way: way["score"])
    after = max(ways, key=lambda way: way["score"])
    maximum = max(way["iou"] for way in record.candidates)
    return {
        "pixels": 100 * value,
        "chosen": 100 * before["iou"],
        "chosen with pixels": 100 * after["iou"],
        "pixels chosen": 100.0 * (after["kind"] == "pixels"),
        "hindsight": 100 * maximum,
        "hindsight with pixels": 100 * max(maximum, value),
        "s": seconds,
    }


def _print(rows: list[tuple[str, dict[str, float]]]) -> None:
    columns = list(rows[0][1])
    print("| domain | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    means = []
    for domain in sorted({domain for domain, _ in rows}):
        means.append([np.mean([row[column] for name, row in rows if name == domain]) for column in columns])
        print(f"| {domain} | " + " | ".join(f"{value:.2f}" for value in means[-1]) + " |")
    print("| mean | " + " | ".join(f"{value:.2f}" for value in np.mean(means, axis=0)) + " |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m research.pixel_candidate", description=__doc__)
    parser.add_argument("out", type=Path, metavar="RUN")
    parser.add_argument("root", type=Path, metavar="FOLDER")
    parser.add_argument("--episodes", type=int, metavar="N", help="at most (default: all)")
    parser.set_defaults(run=run)
    return run_command("pixel_candidate", parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
