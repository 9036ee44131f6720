"""SAM2 as a video tracker over frames in memory: the paper's iVOS model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import sam2.sam2_video_predictor
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

from cavsam.errors import NumericalError

# SAM2 draws a progress bar on stderr for every propagation and has no switch for it
sam2.sam2_video_predictor.tqdm = functools.partial(tqdm, disable=True)

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
SURE = 10.0
"""Logit that SAM2 gives to the pixels of a mask prompt."""


@dataclass(frozen=True)
class Prompt:
    """A hint to SAM2 about one object on one frame: a mask, a box or a point on it.

    Attributes:
        frame: number of the frame in the video.
        label: number of the label or object.
        mask: bool (S, S).
        box: (x0, y0, x1, y1) in pixels.
        point: (x, y) in pixels.
    """

    frame: int
    label: int
    mask: Tensor | None = None
    box: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None

    @classmethod
    def of(cls, frame: int, label: int, mask: Tensor, kind: str) -> Prompt:
        """Make a prompt of `kind` ("mask" or "box") from a non-empty mask, bool (S, S)."""
        return cls(frame, label, mask=mask) if kind == "mask" else cls(frame, label, box=bounding_box(mask))


@dataclass(frozen=True)
class Track:
    """What SAM2 says of one frame of one propagation.

    Attributes:
        logits: float (labels, S, S); above 0 is the object.
        object_scores: float (labels,), the logit that the object is on the frame at all.
        predicted_ious: float (labels,) in 0..1, SAM2's own guess of how good each mask is.
    """

    logits: Tensor
    object_scores: Tensor
    predicted_ious: Tensor


class Tracker:
    """SAM2's image encoder and memory over sequences of frames. Holds the weights; no call changes them.

    A frame is float (3, S, S) in 0..1 with S = `image_size`. Not for use by several threads at once.
    """

    def __init__(self, predictor: SAM2VideoPredictor, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self.predictor = predictor.eval().requires_grad_(False)
        self.autocast = autocast

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.predictor.device

    @property
    def image_size(self) -> int:
        """Side S in pixels of the square that every frame is squashed to."""
        return int(self.predictor.image_size)

    @property
    def neck_weights(self) -> dict[str, Tensor]:
        """The FPN neck's own parameters by name, not copied."""
        return dict(self.predictor.image_encoder.neck.named_parameters())

    @torch.no_grad()
    def trunk(self, frames: Tensor) -> list[Tensor]:
        """Compute backbone features of float (N, 3, S, S) in 0..1: one (N, C, h, w) per level, finest first."""
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
        with self.autocast():
            return list(self.predictor.image_encoder.trunk((frames.to(self.device) - mean) / std))

    def neck(self, trunk: Sequence[Tensor], weights: Mapping[str, Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Run the FPN neck over trunk features, with gradients to `weights` if they ask for them.

        Args:
            trunk: from `trunk`.
            weights: parameters to use instead of the neck's own.

        Returns:
            Features of stride 16 (SAM2's `vision_features`), float32 (N, C, S/16, S/16), and all kept levels.
        """
        levels, _ = self._neck_with_positions(trunk, weights)
        return levels[-1].float(), levels

    def features(self, trunk: Sequence[Tensor], stride: int, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Compute the neck's features of `stride` 4, 8 or 16 pixels, float32 (N, C, S/stride, S/stride); see `neck`.

        Stride 0 is the one with 64 x 64 cells, or as near to it as there is.
        """
        _, levels = self.neck(trunk, weights)
        return self.level(levels, stride)

    def level(self, levels: Sequence[Tensor], stride: int) -> Tensor:
        """Pick the level of `stride`, as in `features`, of those that `neck` returns."""
        stride = stride or (4 if self.image_size <= 256 else 8 if self.image_size <= 512 else 16)
        return levels[{16: -1, 8: -2, 4: -3}[stride]].float()

    def _neck_with_positions(
        self, trunk: Sequence[Tensor], weights: Mapping[str, Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        encoder = self.predictor.image_encoder
        with self.autocast():
            levels, positions = functional_call(encoder.neck, dict(weights or {}), (list(trunk),))
        kept = len(levels) - encoder.scalp
        return levels[:kept], positions[:kept]

    @torch.inference_mode()
    def track(
        self,
        trunk: Sequence[Tensor],
        prompts: Sequence[Prompt],
        labels: int,
        *,
        read: int,
        neck_weights: Mapping[str, Tensor] | None = None,
        reverse: bool = False,
        corrections: Sequence[Prompt] = (),
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Track:
        """Prompt, propagate, and read one frame.

        Args:
            trunk: features of all N frames of the video, each level (N, C, h, w).
            prompts: at least one for each label in 0..labels-1.
            labels: number of objects tracked.
            read: index of the frame whose masks are returned.
            neck_weights: a tuned neck; the model's own when None.
            reverse: play from the last prompted frame back to the first.
            corrections: boxes and points on the frame that is read, for what was tracked there.
            watch: called with each frame on the way, the one that is read included, and its logits, (labels, S, S).

        Raises:
            NumericalError: SAM2 gave values that are not finite.
        """
        with self.autocast(), self._predicted_ious() as ious, self._memory_as_computed():
            state = self.state(trunk, neck_weights)
            for prompt in sorted(prompts, key=lambda p: (p.label, p.frame)):
                self._prompt(state, prompt)
            start = max(p.frame for p in prompts) if reverse else min(p.frame for p in prompts)
            logits = None
            for frame, _, masks in self.predictor.propagate_in_video(state, start_frame_idx=start, reverse=reverse):
                if watch:
                    watch(frame, masks[:, 0].float())
                if frame == read:
                    logits = masks[:, 0].float()
                    break
            if logits is None:
                raise ValueError(f"frame {read} is not on the way from frame {start} (reverse={reverse})")
            # SAM2's decoder makes the masks of a frame one label after the other
            guesses = ious[-labels:]
            for correction in corrections:
                logits = self._prompt(state, correction)[:, 0].float()
                guesses[correction.label] = ious[-1]
        object_scores = torch.cat([_object_score(state, label, read) for label in range(labels)]).float()
        predicted_ious = torch.stack(guesses).float()
        # if the object score is not a number, SAM2 still writes finite logits that mean "no object"
        if not all(values.isfinite().all() for values in (logits, object_scores, predicted_ious)):
            raise NumericalError("SAM2 gave values that are not finite; try precision float32.")
        return Track(logits, object_scores, predicted_ious)

    def _prompt(self, state: dict[str, Any], prompt: Prompt) -> Tensor:
        """Give SAM2 a prompt; returns the frame's logits of all labels, (labels, 1, S, S)."""
        if prompt.mask is not None:
            return self.predictor.add_new_mask(state, prompt.frame, prompt.label, prompt.mask)[2]
        if prompt.box is not None:
            given: dict[str, Any] = {"box": list(prompt.box)}
        else:
            given = {"points": [list(prompt.point or ())], "labels": [1]}
        return self.predictor.add_new_points_or_box(state, prompt.frame, prompt.label, **given)[2]

    @contextmanager
    def _predicted_ious(self) -> Iterator[list[Tensor]]:
        """Collect SAM2's guess of the IoU of each mask that it decodes, which its video predictor drops."""
        ious: list[Tensor] = []

        def collect(_module: Any, _inputs: Any, outputs: tuple[Tensor, ...]) -> None:
            # of several masks SAM2 takes the one with the highest guess
            ious.append(outputs[1].amax())

        hook = self.predictor.sam_mask_decoder.register_forward_hook(collect)
        try:
            yield ious
        finally:
            hook.remove()

    @contextmanager
    def _memory_as_computed(self) -> Iterator[None]:
        """Give memory to the attention in the type that it computes in.

        SAM2 keeps memories as bfloat16 and counts on object pointers in float32 beside them. An object whose first
        prompt comes later in the video has no pointer yet.
        """

        def promote(
            _module: Any, inputs: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return inputs, {**named, "memory": named["memory"].float()}

        hook = self.predictor.memory_attention.register_forward_pre_hook(promote, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def state(self, trunk: Sequence[Tensor], neck_weights: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """Make from features of frames in memory what `SAM2VideoPredictor.init_state` makes from files."""
        size, device = self.image_size, self.device
        count = len(trunk[0])
        levels, positions = self._neck_with_positions(trunk, neck_weights)
        if self.predictor.use_high_res_features_in_sam:
            decoder = self.predictor.sam_mask_decoder
            levels = [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), *levels[2:]]
        # the pixels of a frame are only passed through beside its features; nothing reads them
        no_pixels = torch.empty(1, 3, 1, 1, device=device)
        features = {
            index: (
                no_pixels,
                {
                    "backbone_fpn": [level[index : index + 1] for level in levels],
                    "vision_pos_enc": [position[index : index + 1] for position in positions],
                },
            )
            for index in range(count)
        }
        return {
            "images": [None] * count,
            "num_frames": count,
            "offload_video_to_cpu": False,
            "offload_state_to_cpu": False,
            "video_height": size,
            "video_width": size,
            "device": device,
            "storage_device": device,
            "point_inputs_per_obj": {},
            "mask_inputs_per_obj": {},
            "cached_features": features,
            "constants": {},
            "obj_id_to_idx": {},
            "obj_idx_to_id": {},
            "obj_ids": [],
            "output_dict_per_obj": {},
            "temp_output_dict_per_obj": {},
            "frames_tracked_per_obj": {},
        }


def mean_track(tracks: Sequence[Track]) -> Track:
    """Average several propagations to the same frame.

    Logits are held within the bounds that SAM2 gives to a mask prompt, so that one propagation which sees no object
    does not outvote all others.
    """
    if len(tracks) == 1:
        return tracks[0]
    return Track(
        torch.stack([track.logits.clamp(-SURE, SURE) for track in tracks]).mean(dim=0),
        torch.stack([track.object_scores.clamp(-SURE, SURE) for track in tracks]).mean(dim=0),
        torch.stack([track.predicted_ious for track in tracks]).mean(dim=0),
    )


def _object_score(state: dict[str, Any], label: int, frame: int) -> Tensor:
    """Find the latest logit, (1,), that an object is on a frame."""
    kept = [state["temp_output_dict_per_obj"][label], state["output_dict_per_obj"][label]]
    outputs = [out[kind].get(frame) for out in kept for kind in ("cond_frame_outputs", "non_cond_frame_outputs")]
    return next(out for out in outputs if out is not None)["object_score_logits"].flatten()


def bounding_box(mask: Tensor) -> tuple[float, float, float, float]:
    """Find the box (x0, y0, x1, y1) in pixels around a non-empty mask, bool (H, W); the far edges are exclusive."""
    rows, columns = (torch.nonzero(mask.any(dim=axis)).flatten() for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
