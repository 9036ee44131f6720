"""CAV-SAM from end to end: adapt to annotated references once, then segment any number of targets."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cavsam import alignment, scoring, transition
from cavsam.adapted import AdaptedReference
from cavsam.diffusion import LatentDiffusion
from cavsam.errors import CavSamError, InvalidReference, ModelError
from cavsam.images import ImageSource, Mask, read_image, resize_mask
from cavsam.models import load_diffusion, load_tracker, select_device
from cavsam.recipe import Recipe
from cavsam.sources import ModelSources, fingerprint
from cavsam.trace import CandidateTrace, Trace
from cavsam.tracking import Prompt, Track, Tracker
from cavsam.transition import Endpoint
from cavsam.types import Progress, Reference, TargetResult

log = logging.getLogger(__name__)


class CavSam:
    """Holds the two models. Not for use by several threads at once.

    The diffusion model is only there in the modes that generate frames.
    """

    def __init__(
        self, tracker: Tracker, diffusion: LatentDiffusion | None, recipe: Recipe, models: str = "custom"
    ) -> None:
        if recipe.generates_frames and diffusion is None:
            raise ModelError(f"The mode {recipe.mode} needs a diffusion model; give one or choose concat or ttga.")
        self.tracker = tracker
        self.diffusion = diffusion
        self.recipe = recipe
        self.fingerprint = models

    @classmethod
    def from_pretrained(
        cls, model: str | ModelSources = "default", *, device: str = "auto", recipe: Recipe | None = None
    ) -> CavSam:
        """Load a pair of models.

        Args:
            model: a name ("default", "paper", "nano") or the sources themselves.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            recipe: hyperparameters; the defaults when None.

        Raises:
            ModelError: weights are missing, do not fit, or cannot be fetched; or there is no such device.
        """
        recipe = recipe or Recipe()
        sources = ModelSources.named(model) if isinstance(model, str) else model
        where = select_device(device)
        tracker = load_tracker(sources, where, recipe.precision)
        diffusion = load_diffusion(sources, where, recipe.precision) if recipe.generates_frames else None
        return cls(tracker, diffusion, recipe, fingerprint(sources, recipe))

    def adapt(
        self,
        references: Sequence[Reference],
        *,
        class_name: str | None = None,
        progress: Progress | None = None,
        trace: Trace | None = None,
    ) -> AdaptedReference:
        """Do once what depends on the references only.

        Args:
            references: one or more annotated images; a label need not be on all of them.
            class_name: text for the diffusion model; the labels themselves when None.
            progress: told of each step.
            trace: keeps what happens inside.

        Raises:
            InvalidReference: there is no reference.
            NumericalError: a step gave values that are not finite.
        """
        if not references:
            raise InvalidReference("There is no reference; annotate at least one image.")
        clock = _Clock(progress, trace)
        labels = tuple(dict.fromkeys(label for reference in references for label in reference.masks))
        prompt = class_name if class_name is not None else ", ".join(labels)
        images = torch.stack([self._canvas(reference.image, self.tracker.image_size) for reference in references])
        masks = torch.stack([self._mask_canvas(reference, labels) for reference in references])
        if trace:
            trace.references = images.cpu()

        with clock("encode"):
            trunk = self.tracker.trunk(images)
            descriptors = _descriptors(self.tracker.neck(trunk)[0])
        aligned = None
        if self.recipe.aligns:
            with clock("align"):
                aligned = alignment.align(self.tracker, images, masks.float(), trunk, self.recipe, clock.steps("align"))
        endpoints = []
        if self.recipe.generates_frames:
            endpoints = self._endpoints([reference.image for reference in references], prompt, clock)
        return AdaptedReference(
            labels,
            masks,
            trunk,
            descriptors,
            prompt,
            aligned,
            endpoints,
            self.fingerprint,
            dict(clock.seconds),
        )

    def segment(
        self,
        adapted: AdaptedReference,
        targets: Iterable[ImageSource],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        trace: Trace | None = None,
        between: Callable[[int], Tensor] | None = None,
    ) -> Iterator[TargetResult]:
        """Segment targets one after another; a result does not depend on the other targets.

        A target that cannot be read or computed gives a result with its `error`; the rest goes on.

        Args:
            adapted: from `adapt` of this object or of one with the same models and recipe.
            targets: paths, encoded bytes, PIL images or arrays.
            progress: told of each step within a target.
            cancelled: asked before each target; True ends the iteration.
            trace: keeps what happens inside on the first target.
            between: gives frames made before, float (n, 3, D, D) in 0..1, from the reference of an index to the one
                target there is; none are generated then. For studies, in which frames are dear and often wanted again.

        Raises:
            ModelError: `adapted` was made with other models or another recipe.
        """
        if adapted.fingerprint != self.fingerprint:
            raise ModelError("The reference was adapted with other models or another recipe; adapt it again.")
        for index, target in enumerate(targets):
            if cancelled and cancelled():
                return
            seen = trace if index == 0 else None
            clock = _Clock(progress, seen)
            try:
                result = self._segment_one(adapted, read_image(target), clock, seen, between)
            except CavSamError as error:
                result = TargetResult(index, error=str(error))
            except Exception as error:  # out of memory, a fault in a kernel: this target is lost, the batch is not
                log.exception("target %d failed", index)
                result = TargetResult(index, error=f"The computation failed: {error}")
            yield replace(result, index=index, seconds=clock.total(), timings=dict(clock.seconds))

    def generate(self, reference: NDArray[np.uint8], target: NDArray[np.uint8], prompt: str) -> Tensor:
        """The frames that DBST puts between two images, uint8 (H, W, 3): float (frames, 3, D, D) in 0..1.

        Raises:
            ModelError: this object has no diffusion model.
        """
        if self.diffusion is None:
            raise ModelError(f"The mode {self.recipe.mode} generates no frames; choose dbst or full.")
        clock = _Clock(None)
        # one after the other, as adapt and segment do: a fit's random draws depend on its batch
        ends = [self._endpoints([image], prompt, clock)[0] for image in (reference, target)]
        return transition.frames_between(self.diffusion, ends[0], ends[1], self.recipe)

    def _segment_one(
        self,
        adapted: AdaptedReference,
        image: NDArray[np.uint8],
        clock: _Clock,
        trace: Trace | None,
        between_from: Callable[[int], Tensor] | None,
    ) -> TargetResult:
        """The method on one target: fill the video, prompt it, track, read the last frame, check it backwards."""
        target = self._canvas(image, self.tracker.image_size)
        with clock("encode"):
            target_trunk = self.tracker.trunk(target[None])
            nearest = self._nearest(adapted, target_trunk)
        between = self._transition(adapted, nearest, image, clock, trace, between_from)
        video = self._video(adapted, nearest, between, target_trunk, clock)
        seen = trace.candidate(self.recipe.mode, len(video[0])) if trace else None
        with clock("prompt"):
            prompts = self._prompts(adapted, nearest, video, seen)
        neck = adapted.alignment.neck if adapted.alignment and self.recipe.propagate_with == "tuned" else None
        target_frame = len(video[0]) - 1
        with clock("track"):
            track = self.tracker.track(
                video,
                prompts,
                len(adapted.labels),
                read=target_frame,
                neck_weights=neck,
                watch=seen.forward if seen else None,
            )
        found = _without_overlap(track.logits)
        with clock("score"):
            # the reference next to the transition is the last one of the video's head
            reference_frame = len(adapted.masks) - 1
            consistency = scoring.reverse_consistency(
                self.tracker,
                video,
                found,
                adapted.masks[nearest],
                reference_frame,
                neck,
                watch=seen.back if seen else None,
            )
            scores = scoring.mask_scores(track, consistency)
        if trace and seen:
            maps = alignment.activations(self.tracker, video, adapted.alignment) if adapted.alignment else None
            trace.close(adapted, _reference_order(len(adapted.masks), nearest), target, maps)
            seen.close(prompts, found, consistency, track.object_scores, scores, chosen=True)
        return _result(adapted.labels, track, scores, (image.shape[0], image.shape[1]))

    def _nearest(self, adapted: AdaptedReference, target_trunk: Sequence[Tensor]) -> int:
        """Index of the reference whose features are most like the target's."""
        descriptor = _descriptors(self.tracker.neck(target_trunk)[0])
        return int((adapted.descriptors @ descriptor[0]).argmax())

    def _transition(
        self,
        adapted: AdaptedReference,
        nearest: int,
        image: NDArray[np.uint8],
        clock: _Clock,
        trace: Trace | None,
        between_from: Callable[[int], Tensor] | None,
    ) -> Tensor | None:
        """Generated frames from the nearest reference to the target at SAM2's size, or None without DBST."""
        losses: list[float] = []
        if not self.recipe.generates_frames:
            return None
        if between_from:
            frames = between_from(nearest).to(self.tracker.device)
        else:
            assert self.diffusion is not None  # checked when the object was made
            (target,) = self._endpoints([image], adapted.prompt, clock)
            losses = target.losses
            with clock("generate"):
                frames = transition.frames_between(self.diffusion, adapted.endpoints[nearest], target, self.recipe)
        size = (self.tracker.image_size, self.tracker.image_size)
        video = F.interpolate(frames, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        if trace:
            trace.generated, trace.target_losses = video.cpu(), losses
        return video

    def _video(
        self,
        adapted: AdaptedReference,
        nearest: int,
        between: Tensor | None,
        target_trunk: Sequence[Tensor],
        clock: _Clock,
    ) -> list[Tensor]:
        """Backbone features of the pseudo video: other references, nearest reference, generated frames, target."""
        order = _reference_order(len(adapted.masks), nearest)
        parts = [[level[order] for level in adapted.trunk]]
        if between is not None:
            with clock("encode"):
                parts.append(self.tracker.trunk(between))
        parts.append(list(target_trunk))
        return [torch.cat(levels) for levels in zip(*parts, strict=True)]

    def _prompts(
        self, adapted: AdaptedReference, nearest: int, video: Sequence[Tensor], seen: CandidateTrace | None
    ) -> list[Prompt]:
        """The references' masks, and pseudo-labels on the first generated frames."""
        references = len(adapted.masks)
        prompts = [
            Prompt.of(frame, label, adapted.masks[index, label], self.recipe.reference_prompt)
            for frame, index in enumerate(_reference_order(references, nearest))
            for label in range(len(adapted.labels))
            if adapted.masks[index, label].any()
        ]
        generated = len(video[0]) - references - 1
        if adapted.alignment and generated:
            count = int(generated * self.recipe.prompted_fraction)
            middle = range(references, references + count)
            masks = adapted.masks[_reference_order(references, nearest)]
            watch = seen.decision if seen else None
            prompts += alignment.pseudo_prompts(
                self.tracker, video, masks, adapted.alignment, middle, self.recipe, watch
            )[0]
        return prompts

    def _endpoints(self, images: Sequence[NDArray[np.uint8]], prompt: str, clock: _Clock) -> list[Endpoint]:
        """Adapters, fitted in one batch, and inverted latents of some images."""
        assert self.diffusion is not None  # checked when the object was made
        size = self.recipe.diffusion_size or self.diffusion.native_size
        canvases = torch.stack([self._canvas(image, size) for image in images])
        with clock("lora"):
            fitted = transition.fit_images(self.diffusion, canvases, prompt, self.recipe, clock.steps("lora"))
        with clock("invert"):
            return [transition.invert(self.diffusion, one, self.recipe) for one in fitted]

    def _canvas(self, image: NDArray[np.uint8], size: int) -> Tensor:
        """Squash uint8 (H, W, 3) to the square that a model sees: float (3, size, size) in 0..1."""
        squashed = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(squashed)).permute(2, 0, 1).float().to(self.tracker.device) / 255

    def _mask_canvas(self, reference: Reference, labels: Sequence[str]) -> Tensor:
        """Masks squashed like the image, bool (labels, S, S); an object thinner than a cell keeps its best pixel."""
        size = self.tracker.image_size
        canvas = np.zeros((len(labels), size, size), dtype=bool)
        for index, label in enumerate(labels):
            if label in reference.masks:
                canvas[index] = _squash_mask(reference.masks[label], size)
        return torch.from_numpy(canvas).to(self.tracker.device)


def _squash_mask(mask: Mask, size: int) -> Mask:
    squashed = resize_mask(mask, (size, size))
    if not squashed.any():
        rows, columns = np.nonzero(mask)
        squashed[int(np.median(rows)) * size // mask.shape[0], int(np.median(columns)) * size // mask.shape[1]] = True
    return squashed


def _reference_order(count: int, nearest: int) -> list[int]:
    """References in video order: the nearest stands next to the transition."""
    return [index for index in range(count) if index != nearest] + [nearest]


def _descriptors(features: Tensor) -> Tensor:
    return F.normalize(features.mean(dim=(2, 3)), dim=1)


def _without_overlap(logits: Tensor) -> Tensor:
    """bool (labels, H, W) from logits: above 0, and a contested pixel goes to the highest."""
    best = logits.max(dim=0, keepdim=True)
    winner = torch.arange(len(logits), device=logits.device)[:, None, None] == best.indices
    return winner & (logits > 0)


def _result(labels: Sequence[str], track: Track, scores: Tensor, size: tuple[int, int]) -> TargetResult:
    """Masks at the target's own size (H, W), found labels only."""
    full = F.interpolate(track.logits[None].cpu(), size=size, mode="bilinear", align_corners=False)[0]
    masks = _without_overlap(full).numpy()
    return TargetResult(
        index=0,
        size=size,
        masks={label: masks[i] for i, label in enumerate(labels) if masks[i].any()},
        scores={label: round(float(scores[i]), 6) for i, label in enumerate(labels)},
    )


class _Clock:
    """Seconds per step, and the caller's progress callback."""

    def __init__(self, progress: Progress | None, trace: Trace | None = None) -> None:
        self.progress = progress
        self.trace = trace
        self.seconds: dict[str, float] = defaultdict(float)
        self.started = time.perf_counter()

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        if self.trace:
            self.trace.step_begins()
        start = time.perf_counter()
        if self.progress:
            self.progress(step, 0, 1)
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            self.seconds[step] += seconds
            if self.trace:
                self.trace.step_ends(step, seconds)
            if self.progress:
                self.progress(step, 1, 1)

    def steps(self, step: str) -> Callable[[int, int], None] | None:
        """A callback for the inner loop of `step`, or None when nobody listens."""
        progress = self.progress
        return (lambda done, total: progress(step, done, total)) if progress else None

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.started
