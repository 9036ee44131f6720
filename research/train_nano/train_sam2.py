"""Train SAM2-nano on clips of one moving object, as SAM 2 is trained, and export it into the package.

    python -m research.train_nano.train_sam2 --out runs/sam2_nano --steps 8000
    python -m research.train_nano.train_sam2 --out runs/sam2_nano --steps 8000 --resume
    python -m research.train_nano.train_sam2 --out runs/sam2_nano --evaluate-only     # of the bundled weights
    python -m research.train_nano.train_sam2 --out runs/sam2_nano --videos PATH --minutes 120 --init WEIGHTS

With --videos, most clips are made from real videos with a mask for every frame (`real_clips`); the others are drawn.
With --minutes, the clock decides when the rate falls and the run ends, and --steps only bounds it.

Drawn clips come from the training classes of the domain "textures" (`research.synth`), their colours, contrast and
sharpness changed at random; a clip shows one and the same object, never two of a class: to match another instance is
what CAV-SAM has to add. Batch k is a function of (--seed, k) and the worker, so a resumed run with as many workers
continues exactly where it stopped. At the end the new weights replace the bundled ones if they track better on the
development split.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import queue
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from research import synth
from research.train_nano import real_clips
from research.train_nano.diffusion_data import recolour

SAM2 = Any  # SAM2VideoPredictor: its package has no types, and what is read from a module may be anything

PACKAGE = Path(__file__).resolve().parents[2] / "cavsam" / "weights" / "nano" / "sam2"
PACKAGED = PACKAGE / "sam2_nano.safetensors"
EXPORT = "sam2_nano.safetensors"  # the run's own weights, in its folder
SIZE = 256
SMALL_SIZE = 128  # of the first steps, which cost a quarter: what an object is can be learned there
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIPS_OF_LENGTH = {2: 6, 3: 4, 4: 3, 6: 2, 8: 2, 12: 1}  # batch size: every step costs about the same
BEST_PART = 0.3  # of the mask loss is that of the best of the three masks, the rest their mean
DRAWN_LENGTHS = {2: 0.5, 3: 0.25, 4: 0.13, 8: 0.12}  # how often a batch's clips have this length
SMALL_DRAWN_LENGTHS = {2: 0.6, 3: 0.25, 4: 0.15}  # the same, in the small steps
REAL_LENGTHS = {2: 0.26, 3: 0.14, 4: 0.16, 6: 0.14, 8: 0.16, 12: 0.14}  # the same, in a run on real videos
FAR_PART, SMALL_FAR_PART = 0.5, 0.4  # part of the drawn clips with far jumps: the easy ones come first
DRAWN_PART = 0.25  # part of the clips that are drawn, in a run on real videos
SINGLE_FRAMES = 5  # so many frames of a batch are segmented by themselves besides
CORRECTED = 0.3  # part of the batches in which these have a mask that is to be corrected by clicks
MASK_LOGIT = 10.0  # what SAM2 takes a given mask for: +10 inside, -10 outside
POSITIVE_WEIGHT = 2.0  # of the object's pixels in the cross entropy: they are the fewer
PROMPTS = {"mask": 0.7, "box": 0.15, "points": 0.15}
RECOLOURED = 0.6  # part of the clips whose colours, contrast and sharpness are changed
RELIT = 0.3  # part of these in which every frame is changed in its own way


@dataclass(frozen=True)
class SinglePrompts:
    """Boxes or points to segment frames by themselves, without memory, as SAM 2 learns on still images.

    rows: (P,) numbers t * N + n of masks that are not empty; points, labels as in `Batch`, P of them.
    frames: (P,) numbers t * B + b of the frames that they lie on.
    given: None, or masks to be corrected, float32 (P, 1, H / 4, W / 4) logits.
    """

    rows: NDArray[np.int64]
    frames: NDArray[np.int64]
    points: NDArray[np.float32]
    labels: NDArray[np.int32]
    given: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Batch:
    """frames: uint8 (B, T, H, W, 3); masks: bool (N, T, H, W), of one target after the other.

    prompt: what is given on the frames in `prompted` (always the first; a second one only with masks).
    points: float32 (N, P, 2) x, y in pixels, labels: int32 (N, P); both None for mask prompts.
    clips: (N,) which clip each target belongs to; None where every clip has one, in order.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    prompt: str
    prompted: tuple[int, ...]
    points: NDArray[np.float32] | None
    labels: NDArray[np.int32] | None
    single: SinglePrompts | None = None
    clips: NDArray[np.int64] | None = None

    @property
    def owners(self) -> NDArray[np.int64]:
        """(N,) the clip of each target."""
        return np.arange(len(self.frames)) if self.clips is None else self.clips


# ------------------------------------------------------------------------------------------------ data


def make_batch(seed: int, step: int, size: int, worker: int = 0, videos: list[real_clips.Video] | None = None) -> Batch:
    """The batch of one step and worker, a function of its arguments alone; all workers' clips are equally long."""
    odds = REAL_LENGTHS if videos else DRAWN_LENGTHS if size == SIZE else SMALL_DRAWN_LENGTHS
    length = int(np.random.default_rng([seed, step]).choice(list(odds), p=list(odds.values())))
    rng = np.random.default_rng([seed, step, worker])
    clips = []
    for _ in range(CLIPS_OF_LENGTH[length]):
        if videos and rng.random() >= DRAWN_PART:
            clips.append(real_clips.clip(rng, videos, length, size))
        else:
            clips.append(_drawn_clip(rng, length, size))
    frames = np.stack([_recoloured(rng, frames) if rng.random() < RECOLOURED else frames for frames, _ in clips])
    masks = np.concatenate([masks for _, masks in clips])
    owners = np.repeat(np.arange(len(clips)), [len(masks) for _, masks in clips])
    prompt = str(rng.choice(list(PROMPTS), p=list(PROMPTS.values())))
    prompted = (
        (0, 1) if prompt == "mask" and length > 2 and masks[:, 1].any((1, 2)).all() and rng.random() < 0.4 else (0,)
    )
    points, labels = (None, None) if prompt == "mask" else _drawn_points(rng, prompt, masks[:, 0])
    return Batch(frames, masks, prompt, prompted, points, labels, _single_prompts(rng, masks, owners), owners)


def _drawn_clip(rng: np.random.Generator, length: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    names = synth.classes("textures", "train")
    far = FAR_PART if size == SIZE else SMALL_FAR_PART
    clip = synth.clip(
        names[int(rng.integers(len(names)))],
        seed=synth.seed_of("train", int(rng.integers(len(synth.SEEDS["train"])))),
        size=size,
        length=length,
        motion="far" if rng.random() < far else "smooth",
    )
    return clip.frames, clip.masks[None]


def _single_prompts(rng: np.random.Generator, masks: NDArray[np.bool_], owners: NDArray[np.int64]) -> SinglePrompts:
    """Prompts for some frames of a batch, whose masks are (N, T, H, W) and belong to the clips `owners`."""
    flat = masks.swapaxes(0, 1).reshape(-1, *masks.shape[2:])
    rows = rng.permutation(np.flatnonzero(flat.any((1, 2))))[:SINGLE_FRAMES]
    frames = rows // len(masks) * (owners.max() + 1) + owners[rows % len(masks)]
    if rng.random() >= CORRECTED:
        return SinglePrompts(rows, frames, *_drawn_points(rng, str(rng.choice(["box", "points"])), flat[rows]))
    faulty = np.stack([damaged(rng, mask) for mask in flat[rows]])
    points, labels = _corrections(rng, flat[rows], faulty)
    share = F.interpolate(
        torch.from_numpy(faulty[:, None]).float(),
        scale_factor=0.25,
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    return SinglePrompts(rows, frames, points, labels, ((2 * share - 1) * MASK_LOGIT).numpy())


def damaged(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask as a tracker gets it wrong: too wide or too narrow, with a ragged border, a part missing or too much."""
    size = mask.shape[0]
    ragged = real_clips.smooth_field(rng, size, 1.0)[..., 0] + cv2.GaussianBlur(
        rng.normal(0, 6, mask.shape).astype(np.float32), (0, 0), 3
    )
    depth = real_clips.signed_distance(mask)
    result = depth + size * float(rng.normal(0, 0.008)) + size * 0.008 * ragged > 0
    for _ in range(int(rng.integers(3))):
        inside = bool(rng.random() < 0.5)
        ys, xs = np.nonzero(mask if inside else ~mask)
        if not len(ys):
            continue
        pick = int(rng.integers(len(ys)))
        radius = 0.5 * np.sqrt(mask.sum()) * float(rng.uniform(0.3, 1.0)) + 2
        disc = np.zeros(mask.shape, dtype=np.uint8)
        cv2.circle(disc, (int(xs[pick]), int(ys[pick])), int(radius), 1, -1)
        result = np.where(disc.astype(bool), not inside, result)
    return result


def _corrections(
    rng: np.random.Generator, masks: NDArray[np.bool_], faulty: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """A click in the wrong part of each mask, in three batches of four, and padding (label -1) up to two points.

    With two points SAM2 puts out one mask, as the smart tools have it do when a mask is given.
    """
    points = np.zeros((len(masks), 2, 2), dtype=np.float32)
    labels = np.full((len(masks), 2), -1, dtype=np.int32)
    if rng.random() < 0.25:
        return points, labels
    for n, (mask, wrong) in enumerate(zip(masks, masks ^ faulty, strict=True)):
        depth = cv2.distanceTransform(wrong.astype(np.uint8), cv2.DIST_L2, 3)
        if depth.max() < 1.5:
            continue
        ys, xs = np.nonzero(depth >= 0.5 * depth.max())
        pick = int(rng.integers(len(ys)))
        points[n, 0], labels[n, 0] = (xs[pick], ys[pick]), int(mask[ys[pick], xs[pick]])
    return points, labels


def _recoloured(rng: np.random.Generator, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (T, H, W, 3) in other colours: the same change for all frames, or each frame its own."""
    seeds = rng.integers(2**32, size=len(frames))
    if rng.random() >= RELIT:
        seeds[:] = seeds[0]
    changed = [
        recolour(np.random.default_rng(seed), frame.astype(np.float32) / 255)
        for seed, frame in zip(seeds, frames, strict=True)
    ]
    return (np.stack(changed) * 255 + 0.5).astype(np.uint8)


def _drawn_points(
    rng: np.random.Generator, prompt: str, masks: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """A jittered box (as two corners, labels 2 and 3) or one to three clicks (labels 1 and 0) for each mask."""
    if prompt == "box":
        corners = []
        for mask in masks:
            ys, xs = np.nonzero(mask)
            box = np.array([[xs.min(), ys.min()], [xs.max(), ys.max()]], dtype=np.float32)
            corners.append(box + rng.normal(0, 0.04, (2, 2)) * (box[1] - box[0]))
        points = np.stack(corners).astype(np.float32)
        return points, np.tile(np.array([2, 3], dtype=np.int32), (len(masks), 1))
    count = int(rng.integers(1, 4))
    labels = np.ones((len(masks), count), dtype=np.int32)
    points = np.zeros((len(masks), count, 2), dtype=np.float32)
    for b, mask in enumerate(masks):
        for p in range(count):
            labels[b, p] = 1 if p == 0 or rng.random() < 0.6 else 0
            ys, xs = np.nonzero(mask if labels[b, p] else ~mask)
            pick = int(rng.integers(len(ys)))
            points[b, p] = xs[pick], ys[pick]
    return points, labels


@dataclass(frozen=True)
class Plan:
    """What batches a run has: `stop` of them, the first `small` in `small_size` pixels; videos: real ones' folder."""

    seed: int
    stop: int
    small: int = 0
    small_size: int = SMALL_SIZE
    videos: Path | None = None


def _produce(out: multiprocessing.Queue, plan: Plan, first: int, worker: int) -> None:
    parent = os.getppid()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    videos = real_clips.load_videos(plan.videos) if plan.videos else None
    for step in range(first, plan.stop):
        batch = make_batch(plan.seed, step, plan.small_size if step < plan.small else SIZE, worker, videos)
        while True:
            try:
                out.put(batch, timeout=10)
                break
            except queue.Full:
                if os.getppid() != parent:  # the training was killed
                    return


def batches(plan: Plan, first: int = 0, worker: int = 0) -> Iterator[Batch]:
    """The batches first .. plan.stop - 1 in order, made by a process of their own."""
    context = multiprocessing.get_context("spawn")
    ready: multiprocessing.Queue = context.Queue(maxsize=6)
    process = context.Process(target=_produce, args=(ready, plan, first, worker), daemon=True)
    process.start()
    try:
        for _ in range(first, plan.stop):
            while True:
                try:
                    yield ready.get(timeout=60)
                    break
                except queue.Empty:
                    if not process.is_alive():
                        raise RuntimeError("The process that makes the clips has ended early.") from None
    finally:
        process.terminate()


# ------------------------------------------------------------------------------------------------ model


def build_model() -> SAM2:
    """SAM2-nano with fresh weights (float32), from the package's own configuration."""
    return instantiate(OmegaConf.load(PACKAGE / "sam2_nano.yaml").model, _recursive_=True)


def load_weights(path: Path) -> SAM2:
    """SAM2-nano with the weights of an export, in float32."""
    model = build_model()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return model


def set_image_size(model: SAM2, size: int) -> None:
    """Make SAM2 work on images of `size` pixels: none of its weights depends on it."""
    model.image_size = size
    model.sam_image_embedding_size = size // model.backbone_stride
    encoder = model.sam_prompt_encoder
    encoder.input_image_size = (size, size)
    encoder.image_embedding_size = (model.sam_image_embedding_size,) * 2
    encoder.mask_input_size = (4 * model.sam_image_embedding_size,) * 2


def initialise(model: SAM2) -> None:
    """Truncated normal weights for the trunk as in its paper, position embeddings included."""
    trunk = model.image_encoder.trunk
    for module in trunk.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02 if module.in_features > 64 else 0.05)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(trunk.pos_embed, std=0.02)
    nn.init.trunc_normal_(trunk.pos_embed_window, std=0.02)
    for block in model.memory_encoder.fuser.layers:
        nn.init.constant_(block.gamma, 0.1)  # 1e-6 would need far more steps than these to come alive


@dataclass(frozen=True)
class FrameOutput:
    """What the mask decoder said about one frame, before SAM2 overwrites absent objects with -1024.

    masks: (B, M, 64, 64) logits; ious: (B, M) estimates in 0..1; presence: (B, 1) logits.
    """

    masks: Tensor
    ious: Tensor
    presence: Tensor
    chosen: Tensor  # (B, 1, 256, 256) logits of the mask that SAM2 puts out


def normalised(frames: NDArray[np.uint8]) -> Tensor:
    """float32 (N, 3, H, W) with ImageNet's mean and deviation, from uint8 (N, H, W, 3)."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255)
    images.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))
    return images.contiguous(memory_format=torch.channels_last)


def _on(model: SAM2, array: NDArray) -> Tensor:
    return torch.from_numpy(array).to(model.device)


@dataclass(frozen=True)
class Encoded:
    """Image features of all frames, frame by frame: each tensor (h * w, T * B, C), finest level first."""

    features: list[Tensor]
    positions: list[Tensor]
    sizes: list[tuple[int, int]]

    def rows(self, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [level[:, rows] for level in self.features], [level[:, rows] for level in self.positions]


def encode(model: SAM2, batch: Batch) -> Encoded:
    """Image features of all frames; a frame that is its predecessor again is encoded once."""
    images = batch.frames.swapaxes(0, 1)
    length, count = images.shape[:2]
    rows = np.arange(length * count).reshape(length, count)
    for t in range(1, length):
        for b in range(count):
            if np.array_equal(images[t, b], images[t - 1, b]):
                rows[t, b] = rows[t - 1, b]
    distinct, inverse = np.unique(rows, return_inverse=True)
    flat = images.reshape(-1, *images.shape[2:])[distinct]
    _, features, positions, sizes = model._prepare_backbone_features(
        model.forward_image(normalised(flat).to(model.device))
    )
    if len(distinct) < length * count:
        again = _on(model, inverse.reshape(-1))
        features, positions = [level[:, again] for level in features], [level[:, again] for level in positions]
    return Encoded(features, positions, sizes)


@contextmanager
def listening(model: SAM2) -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """What the mask decoder last said, under "decoder": masks, IoU estimates, tokens, presence."""
    said: dict[str, tuple[Tensor, ...]] = {}
    hook = model.sam_mask_decoder.register_forward_hook(lambda _m, _i, output: said.update(decoder=output))
    try:
        yield said
    finally:
        hook.remove()


def single(model: SAM2, encoded: Encoded, prompts: SinglePrompts) -> FrameOutput:
    """Segment frames by themselves from boxes, points, or masks and clicks that correct them."""
    features, positions = encoded.rows(_on(model, prompts.frames))
    with listening(model) as said:
        out = model.track_step(
            frame_idx=0,
            is_init_cond_frame=True,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=encoded.sizes,
            point_inputs={
                "point_coords": _on(model, prompts.points),
                "point_labels": _on(model, prompts.labels),
            },
            mask_inputs=None,
            output_dict={},
            num_frames=1,
            run_mem_encoder=False,
            prev_sam_mask_logits=None if prompts.given is None else _on(model, prompts.given),
        )
    low_res, ious, _, presence = said["decoder"]
    return FrameOutput(low_res.float(), ious.float(), presence.float(), out["pred_masks_high_res"])


def track(model: SAM2, batch: Batch, encoded: Encoded) -> list[FrameOutput | None]:
    """Run SAM2 along the clips; None for a frame whose mask was given (there is nothing to learn from it)."""
    count, length = batch.frames.shape[:2]
    owners = _on(model, batch.owners)
    memory: dict[str, dict[int, dict]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    outputs: list[FrameOutput | None] = []
    with listening(model) as said:
        for t in range(length):
            features, positions = encoded.rows(t * count + owners)
            given = t in batch.prompted
            points = None
            if given and batch.points is not None and batch.labels is not None:
                points = {
                    "point_coords": _on(model, batch.points),
                    "point_labels": _on(model, batch.labels),
                }
            masks = _on(model, batch.masks[:, t, None]).float() if given and points is None else None
            out = model.track_step(
                frame_idx=t,
                is_init_cond_frame=given,
                current_vision_feats=features,
                current_vision_pos_embeds=positions,
                feat_sizes=encoded.sizes,
                point_inputs=points,
                mask_inputs=masks,
                output_dict=memory,
                num_frames=length,
            )
            memory["cond_frame_outputs" if given else "non_cond_frame_outputs"][t] = out
            low_res, ious, _, presence = said["decoder"]
            frame = FrameOutput(low_res.float(), ious.float(), presence.float(), out["pred_masks_high_res"])
            outputs.append(None if masks is not None else frame)
    return outputs


# ------------------------------------------------------------------------------------------------ loss


def frame_loss(output: FrameOutput, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of one frame: cross entropy + dice of the masks, IoU and presence heads.

    It differs from SAM 2's in two points, for a small model in few steps. The cross entropy stands for 20 focal,
    whose weights keep the masks empty for long. Three tenths of the mask loss are that of the best of the three
    masks, the rest their mean: with the best alone the IoU head, still poor, often picks one that was never taught.

    truth: float (B, H, W) of 0 and 1. Masks and IoU count only where the object is there.
    """
    present = truth.flatten(1).any(1)
    presence = F.binary_cross_entropy_with_logits(output.presence[:, 0], present.float())
    parts = {"presence": presence.item()}
    if not present.any():
        return presence, parts
    size = (truth.shape[1] // 2, truth.shape[2] // 2)
    logits = F.interpolate(output.masks[present], size=size, mode="bilinear", align_corners=False)
    target = F.interpolate(truth[present, None], size=size, mode="area").expand_as(logits)
    probability = logits.sigmoid()
    weight = torch.tensor(POSITIVE_WEIGHT, device=logits.device)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weight).mean((2, 3))
    overlap = 2 * (probability * target).sum((2, 3)) + 1
    dice = 1 - overlap / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
    per_mask = cross_entropy + dice
    best = per_mask.argmin(1, keepdim=True)
    with torch.no_grad():
        hard, solid = logits > 0, target > 0.5
        union = (hard | solid).sum((2, 3)).clamp(min=1)
        actual = (hard & solid).sum((2, 3)) / union
    mask_loss = BEST_PART * per_mask.gather(1, best).mean() + (1 - BEST_PART) * per_mask.mean()
    iou = F.mse_loss(output.ious[present], actual)
    parts |= {"mask": mask_loss.item(), "iou_head": iou.item(), "iou": float(actual.gather(1, best).mean())}
    return mask_loss + iou + presence, parts


def batch_loss(model: SAM2, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Mean loss over the tracked frames plus that of the frames segmented by themselves, and the parts."""
    encoded = encode(model, batch)
    losses, parts = [], []
    for t, output in enumerate(track(model, batch, encoded)):
        if output is not None:
            loss, part = frame_loss(output, _on(model, batch.masks[:, t]).float())
            losses.append(loss)
            parts.append(part)
    total = torch.stack(losses).mean()
    keys = {key for part in parts for key in part}
    means = {key: float(np.mean([part[key] for part in parts if key in part])) for key in sorted(keys)}
    if batch.single is not None:
        flat = batch.masks.swapaxes(0, 1).reshape(-1, *batch.masks.shape[2:])
        truth = _on(model, flat[batch.single.rows]).float()
        loss, part = frame_loss(single(model, encoded, batch.single), truth)
        total = total + loss
        means["single_iou"] = part["iou"]
    return total, means


# ------------------------------------------------------------------------------------------------ evaluation


@torch.no_grad()
def evaluate(model: SAM2, split: synth.Split, episodes: int) -> dict[str, float]:
    """Mean IoU of tracked frames on classes and seeds of `split`, and how often presence is judged right.

    smooth, far: clips of four frames, the first one's mask given. cross: an image of a class given with its
    mask (reference) and another image of the class (target) as a clip of two frames: what the mode `concat` does.
    """
    model.eval()
    names = synth.classes("textures", split)
    figures: dict[str, float] = {}
    right: list[bool] = []
    for motion in ("smooth", "far"):
        ious = []
        for index in range(episodes):
            clip = synth.clip(names[index % len(names)], seed=synth.seed_of(split, index), length=4, motion=motion)
            batch = Batch(clip.frames[None], clip.masks[None], "mask", (0,), None, None)
            for t, output in enumerate(track(model, batch, encode(model, batch))):
                if output is None:
                    continue
                right.append(bool((output.presence[0, 0] > 0).item()) == bool(clip.masks[t].any()))
                if clip.masks[t].any():
                    ious.append(_iou(output, clip.masks[t]))
        figures[motion] = float(np.mean(ious))
    figures["presence"] = float(np.mean(right))
    cross = []
    for index in range(episodes):
        name = names[index % len(names)]
        pair = [synth.generate("textures", [name], seed=synth.seed_of(split, 10_000 + 2 * index + k)) for k in (0, 1)]
        frames = np.stack([image.image for image in pair])[None]
        masks = np.stack([image.masks[name] for image in pair])[None]
        pair_batch = Batch(frames, masks, "mask", (0,), None, None)
        output = track(model, pair_batch, encode(model, pair_batch))[1]
        assert output is not None
        cross.append(_iou(output, masks[0, 1]))
    figures["cross"] = float(np.mean(cross))
    return figures


def better(new: dict[str, float], old: dict[str, float]) -> bool:
    """Whether weights with the figures `new` are to replace those with `old`: how well they track decides."""
    return new["smooth"] + new["far"] > old["smooth"] + old["far"]


def decide(out: Path, packaged: Path, episodes: int) -> bool:
    """Put the run's weights into the package when the development split says that they are better; says so too."""
    new = evaluate(load_weights(out / EXPORT), "dev", episodes)
    old = evaluate(load_weights(packaged), "dev", episodes) if packaged.exists() else None
    taken = old is None or better(new, old)
    if taken:
        shutil.copyfile(out / EXPORT, packaged)
    print(json.dumps({"new": new, "packaged before": old, "taken": taken}, indent=2))
    return taken


def _iou(output: FrameOutput, truth: NDArray[np.bool_]) -> float:
    predicted = output.chosen[0, 0].cpu().numpy() > 0
    return float((predicted & truth).sum() / (predicted | truth).sum())


# ------------------------------------------------------------------------------------------------ training


def learning_rate(step: int, left: float, peak: float, warmup: int = 200, decay: float = 0.3) -> float:
    """Warm-up, plateau, then linear to zero over the last `decay` of the run; left: the part of it still to come."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * max(0.0, min(1.0, left / decay))


def export(state: dict[str, Tensor], path: Path) -> None:
    """Write the weights as fp16 safetensors, in one move so that a reader never sees half a file."""
    temporary = path.with_suffix(".partial")
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, temporary)
    temporary.chmod(0o644)
    temporary.replace(path)


def average_gradients(model: SAM2, workers: int) -> None:
    """Give every worker the mean of all workers' gradients; a parameter that a batch did not reach counts as 0."""
    if workers == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= workers
    for p, gradient in zip(model.parameters(), flat.split([g.numel() for g in gradients]), strict=True):
        p.grad = gradient.view_as(p)


def train(arguments: argparse.Namespace, worker: int = 0) -> SAM2:
    """Train as the arguments say, as one of `arguments.workers` equal processes; number 0 writes the files."""
    torch.manual_seed(arguments.seed)
    torch.set_flush_denormal(True)  # the tiny numbers in saturated sigmoids cost a fifth of the backward pass
    if arguments.init:
        model = load_weights(arguments.init)
    else:
        model = build_model()
        initialise(model)
    model = model.to(arguments.device, memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=arguments.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    first, spent = 0, 0.0
    checkpoint = arguments.out / "checkpoint.pt"
    if arguments.resume:
        saved = torch.load(checkpoint, map_location=arguments.device, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        for group in optimiser.param_groups:
            group["fused"] = True
        first, spent = saved["step"], saved["seconds"]

    def save(step: int) -> None:
        temporary = checkpoint.with_suffix(".partial")
        torch.save(
            {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "seconds": spent + time.monotonic() - begun,
            },
            temporary,
        )
        temporary.replace(checkpoint)
        export(average.state_dict(), arguments.out / EXPORT)

    begun = time.monotonic()
    saved_at = begun
    recent: list[dict[str, float]] = []
    with (arguments.out / "curve.jsonl" if worker == 0 else Path(os.devnull)).open("a") as curve:
        plan = Plan(arguments.seed, arguments.steps, arguments.small_steps, arguments.small_size, arguments.videos)
        for step, batch in enumerate(batches(plan, first, worker), start=first):
            left = 1 - step / arguments.steps
            if arguments.minutes:
                left = 1 - (spent + time.monotonic() - begun) / (60 * arguments.minutes)
            if left <= 0:
                break
            set_image_size(model, batch.frames.shape[2])
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, left, arguments.lr, decay=arguments.decay)
            model.train()
            loss, parts = batch_loss(model, batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(model, arguments.workers)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            keep = min(arguments.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
            recent.append({"loss": loss.item(), "norm": norm.item(), **parts})
            if (step + 1) % 25 == 0:
                keys = sorted({key for entry in recent for key in entry})
                means = {k: round(float(np.mean([e[k] for e in recent if k in e])), 4) for k in keys}
                seconds = round(spent + time.monotonic() - begun, 1)
                curve.write(json.dumps({"step": step + 1, "seconds": seconds, **means}) + "\n")
                curve.flush()
                recent.clear()
            if worker == 0 and time.monotonic() - saved_at > 180:
                save(step + 1)
                saved_at = time.monotonic()
            if worker == 0 and (step + 1) % arguments.evaluate_every == 0:
                set_image_size(average, SIZE)
                figures = {k: round(v, 4) for k, v in evaluate(average, "dev", 40).items()}
                curve.write(json.dumps({"step": step + 1, "evaluation": figures}) + "\n")
                curve.flush()
        else:
            step = arguments.steps
    if worker == 0:
        save(step)
    return average


def _train_as(worker: int, arguments: argparse.Namespace, meeting: str) -> None:
    torch.set_num_threads(arguments.threads)
    distributed.init_process_group("gloo", init_method=meeting, rank=worker, world_size=arguments.workers)
    try:
        train(arguments, worker)
    finally:
        distributed.destroy_process_group()


def train_together(arguments: argparse.Namespace) -> None:
    """Train in `arguments.workers` processes that average their gradients: as many times the clips in a step."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        torch.multiprocessing.spawn(_train_as, (arguments, meeting), nprocs=arguments.workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the curve")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--small-steps", type=int, default=4000, help=f"steps at {SMALL_SIZE} pixels")
    parser.add_argument("--small-size", type=int, default=SMALL_SIZE)
    parser.add_argument("--videos", type=Path, help="folder SEQUENCE/{images,masks} of real videos to train on")
    parser.add_argument("--minutes", type=float, help="the run's length, over all its parts, instead of --steps")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument(
        "--decay", type=float, default=0.3, help="last part of the run, in which the rate falls to zero"
    )
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a batch of its own every step")
    parser.add_argument("--init", type=Path, help="weights (safetensors) to start from instead of fresh ones")
    parser.add_argument("--evaluate-every", type=int, default=2000)
    parser.add_argument("--episodes", type=int, default=200, help="episodes of the final evaluation")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--evaluate-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.evaluate_only:
        if arguments.workers > 1:
            train_together(arguments)
        else:
            train(arguments)
        decide(arguments.out, PACKAGED, arguments.episodes)
    packaged = load_weights(PACKAGED)
    figures = {split: evaluate(packaged, split, arguments.episodes) for split in ("dev", "test")}
    (arguments.out / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
