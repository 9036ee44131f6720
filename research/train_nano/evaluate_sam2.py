"""Judge weights of SAM2-nano on real videos and pictures, and on drawn clips: the tracker alone.

    python -m research.train_nano.evaluate_sam2 --real PATH --split dev [--weights FILE] [--out FILE.json]

PATH holds SPLIT/DOMAIN/CLASS/{images,masks}; the classes of a domain whose name begins with "video" are sequences.

videos   DAVIS's region similarity J and boundary measure F, of every second frame, at most 24 of a sequence, from the
         first one's mask. The mean over the frames after the first, then over the sequences.
pairs    A picture with its mask, then another picture of its class: IoU of the second (`concat` without adaptation).
         The mean over a class's pairs, the classes of a domain, the domains.
repeated The same with nine times the target between: what a tracker loses on its way when nothing changes.
drawn    `train_sam2.evaluate`: smooth clips, clips with far jumps, pairs of a drawn class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from cavsam.evaluation.metrics import boundary_f
from research.train_nano import train_sam2

EVERY, AT_MOST = 2, 24  # frames of a sequence
REPEATS = 9

Mask = NDArray[np.bool_]


def region_similarity(predicted: Mask, truth: Mask) -> float:
    """J: intersection over union; 1 where both are empty."""
    union = (predicted | truth).sum()
    return float((predicted & truth).sum() / union) if union else 1.0


def read_pair(folder: Path, stem: str) -> tuple[NDArray[np.uint8], Mask]:
    """A picture, uint8 (H, W, 3), and its mask, bool (H, W)."""
    image = cv2.imread(str(next((folder / "images").glob(f"{stem}.*"))), cv2.IMREAD_COLOR)
    mask = cv2.imread(str(folder / "masks" / f"{stem}.png"), cv2.IMREAD_GRAYSCALE)
    if image is None or mask is None:
        raise FileNotFoundError(f"{folder}: {stem} or its mask cannot be read.")
    return np.ascontiguousarray(image[..., ::-1]), mask > 0


def stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "masks").iterdir())


def squashed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture in SAM2-nano's size, uint8 (256, 256, 3)."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, (train_sam2.SIZE,) * 2, mode="bilinear", align_corners=False, antialias=True)
    return small[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


@torch.no_grad()
def follow(model: nn.Module, images: list[NDArray[np.uint8]], first: Mask, sizes: list[tuple[int, int]]) -> list[Mask]:
    """Track an object from its mask in the first of some squashed pictures; the other frames' masks, in `sizes`."""
    pixels = torch.from_numpy(first)[None, None].float()
    given = F.interpolate(pixels, (train_sam2.SIZE,) * 2, mode="bilinear", align_corners=False, antialias=True)
    masks = np.zeros((1, len(images), train_sam2.SIZE, train_sam2.SIZE), dtype=bool)
    masks[0, 0] = given[0, 0].numpy() >= 0.5
    batch = train_sam2.Batch(np.stack(images)[None], masks, "mask", (0,), None, None)
    found = []
    for output, size in zip(
        train_sam2.track(model, batch, train_sam2.encode(model, batch))[1:], sizes[1:], strict=True
    ):
        assert output is not None
        logits = F.interpolate(output.chosen, size, mode="bilinear", align_corners=False)
        found.append((logits[0, 0] > 0).numpy())
    return found


def video_figures(model: nn.Module, folders: list[Path]) -> dict[str, dict[str, float]]:
    """J, F and their mean in per cent for each sequence, and the mean of all under "mean"."""
    figures = {}
    for folder in folders:
        pairs = [read_pair(folder, stem) for stem in stems(folder)[::EVERY][:AT_MOST]]
        masks = [mask for _, mask in pairs]
        found = follow(model, [squashed(image) for image, _ in pairs], masks[0], [mask.shape for mask in masks])
        j = float(np.mean([region_similarity(a, b) for a, b in zip(found, masks[1:], strict=True)]))
        f = float(np.mean([boundary_f(a, b) for a, b in zip(found, masks[1:], strict=True)]))
        figures[folder.name] = {"J": 100 * j, "F": 100 * f, "J&F": 50 * (j + f)}
    figures["mean"] = {key: float(np.mean([each[key] for each in figures.values()])) for key in ("J", "F", "J&F")}
    return figures


def pair_figures(model: nn.Module, domains: list[Path], count: int, repeats: int = 0) -> dict[str, float]:
    """IoU in per cent of the second picture of `count` pairs of each class, by domain; the mean under "mean".

    repeats: so many times the second picture comes before it is judged.
    """
    figures = {}
    for domain in domains:
        classes = []
        for folder in sorted(path for path in domain.iterdir() if (path / "masks").is_dir()):
            names = stems(folder)
            ious = []
            for k in range(min(count, len(names))):
                number = k * len(names) // min(count, len(names))
                reference, target = (
                    read_pair(folder, names[n % len(names)]) for n in (number, number + len(names) // 2)
                )
                small = [squashed(image) for image, _ in (reference, target)]
                images = [small[0]] + [small[1]] * (repeats + 1)
                sizes = [reference[1].shape] + [target[1].shape] * (repeats + 1)
                ious.append(region_similarity(follow(model, images, reference[1], sizes)[-1], target[1]))
            classes.append(float(np.mean(ious)))
        figures[domain.name] = 100 * float(np.mean(classes))
    figures["mean"] = float(np.mean(list(figures.values())))
    return figures


def judge(model: nn.Module, split: Path, pairs: int, drawn: int, repeats: int = REPEATS) -> dict[str, Any]:
    """The figures of the module's head for the pictures of one split.

    pairs: of each class. drawn: clips of each kind. repeats: of the target. 0 leaves the part out.
    """
    model.eval()
    domains = sorted(path for path in split.iterdir() if path.is_dir())
    videos = [folder for d in domains if d.name.startswith("video") for folder in sorted(d.iterdir())]
    stills = [domain for domain in domains if not domain.name.startswith("video")]
    figures: dict[str, Any] = {"videos": video_figures(model, videos)}
    if pairs:
        figures["pairs"] = pair_figures(model, stills, pairs)
    if pairs and repeats:
        figures["repeated"] = pair_figures(model, stills, pairs, repeats)
    if drawn:
        figures["drawn"] = train_sam2.evaluate(model, "test" if split.name == "test" else "dev", drawn)
    return figures


def rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder SPLIT/DOMAIN/CLASS/{images,masks}")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--weights", type=Path, default=train_sam2.PACKAGED)
    parser.add_argument("--pairs", type=int, default=8, help="pairs of each class; 0 for videos alone")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of the target; 0 leaves them out")
    parser.add_argument("--drawn", type=int, default=0, help="drawn clips of each kind; 0 for none")
    parser.add_argument("--out", type=Path, help="file for the figures, besides printing them")
    arguments = parser.parse_args()
    split = arguments.real / arguments.split
    if not split.is_dir():
        parser.error(f"{split} is not there; give the folder that has the pictures with --real")
    torch.set_num_threads(1)
    model = train_sam2.load_weights(arguments.weights)
    figures = rounded(judge(model, split, arguments.pairs, arguments.drawn, arguments.repeats))
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
