"""CAV-SAM from end to end: adapt to annotated references once, then segment any number of targets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cavsam import alignment, transition
from cavsam.adapted import AdaptedReference
from cavsam.alignment import Alignment
from cavsam.candidates import selection as candidates
from cavsam.candidates.linear import linear_logits
from cavsam.candidates.selection import ACTIVATION, LINEAR, REGIONS, Candidate, Instance
from cavsam.diffusion import LatentDiffusion
from cavsam.errors import CavSamError, InvalidReference, ModelError, NumericalError, UsageError
from cavsam.images import ImageSource, Mask, is_one_picture, read_image, resize_mask
from cavsam.instances import Objects, components
from cavsam.memory import in_batches
from cavsam.observe.run import Clock
from cavsam.observe.trace import ObjectsTrace, Trace
from cavsam.recipe import Recipe
from cavsam.scoring import appearance
from cavsam.scoring import cues as scoring
from cavsam.scoring.appearance import Look
from cavsam.scoring.calibration import Calibration
from cavsam.tracking import Prompt, Track, Tracker, mean_track
from cavsam.transition import Endpoint
from cavsam.types import InstanceMask, Progress, Reference, TargetResult
from cavsam.weights.loading import load_calibration, load_diffusion, load_tracker, select_device
from cavsam.weights.sources import ModelSources, fingerprint, recipe_digest

log = logging.getLogger(__name__)


class CavSam:
    """Holds the two models. Not for use by several threads at once.

    The diffusion model is only there in the modes that generate frames.
    """

    def __init__(
        self,
        tracker: Tracker,
        diffusion: LatentDiffusion | None,
        recipe: Recipe,
        models: str = "",
        calibration: Calibration | None = None,
    ) -> None:
        if recipe.generates_frames and diffusion is None:
            raise ModelError(f"The mode {recipe.mode} needs a diffusion model; give one or choose concat or ttga.")
        self.tracker = tracker
        self.diffusion = diffusion
        self.recipe = recipe
        self.fingerprint = models or f"custom {recipe_digest(recipe)}"
        self.calibration = calibration or Calibration()

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
        return cls(tracker, diffusion, recipe, fingerprint(sources, recipe), load_calibration(sources))

    @property
    def device(self) -> torch.device:
        """Where the models run."""
        return self.tracker.device

    def adapt(
        self,
        references: Sequence[Reference],
        *,
        class_name: str | None = None,
        shots: int = 0,
        progress: Progress | None = None,
        trace: Trace | None = None,
        generate: bool = True,
    ) -> AdaptedReference:
        """Do once what depends on the references only.

        Args:
            references: one or more annotated images; a label need not be on all of them.
            class_name: text for the diffusion model; the labels themselves when None.
            shots: how many of the references serve each target, those most like it; 0 for all.
            progress: told of each step.
            trace: keeps what happens inside.
            generate: False leaves out what only generated frames need; `segment` must then be given the frames.

        Raises:
            UsageError: an argument is of another kind.
            InvalidReference: there is no reference.
            NumericalError: a step gave values that are not finite.
        """
        references = _checked_references(references)
        if class_name is not None and not isinstance(class_name, str):
            raise UsageError(f"class_name must be a text or None, not {class_name!r}.")
        if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
            raise UsageError(f"shots must be a whole number, 0 for all references or more, not {shots!r}.")
        clock = Clock(progress, trace)
        labels = tuple(dict.fromkeys(label for reference in references for label in reference.masks))
        prompt = class_name if class_name is not None else ", ".join(labels)
        images = torch.stack([self._canvas(reference.image, self.tracker.image_size) for reference in references])
        masks = torch.stack([self._mask_canvas(reference, labels) for reference in references])
        if trace:
            trace.references = images.cpu()

        with clock("encode"):
            trunk = self._encoded(images)
            descriptors = _descriptors(self.tracker.neck(trunk)[0])
        aligned = None
        if self.recipe.aligns:
            with clock("align"):
                aligned = alignment.align(self.tracker, images, masks.float(), trunk, self.recipe, clock.steps("align"))
        endpoints = []
        if self.recipe.generates_frames and generate:
            endpoints = self._endpoints([reference.image for reference in references], prompt, clock)
        return AdaptedReference(
            labels,
            masks,
            trunk,
            appearance.pictures_of(images),
            descriptors,
            prompt,
            aligned,
            endpoints,
            self.fingerprint,
            dict(clock.seconds),
            shots,
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
            progress: told of each step within a target; what it raises ends the iteration.
            cancelled: asked before each target; True ends the iteration.
            trace: keeps what happens inside on the first target.
            between: gives frames made before, float (n, 3, D, D) in 0..1, from the reference of an index to the one
                target there is; none are generated then. For studies, in which frames are dear and often wanted again.

        Raises:
            UsageError: `adapted` is not from `adapt`, `targets` is a single picture, or `cancelled` no function.
            ModelError: `adapted` was made with other models or another recipe.
        """
        if not isinstance(adapted, AdaptedReference):
            raise UsageError(f"segment needs what adapt returned, not {type(adapted).__name__}.")
        if is_one_picture(targets) or not isinstance(targets, Iterable):
            raise UsageError(f"segment takes several targets, not {type(targets).__name__}; pass a list: [target].")
        if cancelled is not None and not callable(cancelled):
            raise UsageError(f"cancelled must be a function that is asked, not {cancelled!r}.")
        if adapted.fingerprint != self.fingerprint:
            raise ModelError("The reference was adapted with other models or another recipe; adapt it again.")
        return self._segment(adapted, targets, progress, cancelled, trace, between)

    def _segment(
        self,
        adapted: AdaptedReference,
        targets: Iterable[ImageSource],
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
        trace: Trace | None,
        between: Callable[[int], Tensor] | None,
    ) -> Iterator[TargetResult]:
        """`segment` once its arguments are known to be good."""
        for index, target in enumerate(targets):
            if cancelled and cancelled():
                return
            seen = trace if index == 0 else None
            clock = Clock(progress, seen)
            try:
                result = self._segment_one(adapted, read_image(target), clock, seen, between)
            except Exception as error:  # this target is lost, the batch is not
                if error is clock.refused:
                    raise
                if isinstance(error, CavSamError):
                    result = TargetResult(index, error=str(error))
                else:  # out of memory, a fault in a kernel
                    log.exception("target %d failed", index)
                    result = TargetResult(index, error=f"The computation failed: {error or type(error).__name__}")
            yield replace(result, index=index, seconds=clock.total(), timings=dict(clock.seconds))

    def generate(self, reference: NDArray[np.uint8], target: NDArray[np.uint8], prompt: str) -> Tensor:
        """The frames that DBST puts between two images, uint8 (H, W, 3): float (frames, 3, D, D) in 0..1.

        Raises:
            ModelError: this object has no diffusion model.
        """
        if self.diffusion is None:
            raise ModelError(f"The mode {self.recipe.mode} generates no frames; choose dbst or full.")
        first, second = self._endpoints([reference, target], prompt, Clock(None))
        return transition.frames_between(self.diffusion, first, second, self.recipe)

    def _segment_one(
        self,
        adapted: AdaptedReference,
        image: NDArray[np.uint8],
        clock: Clock,
        trace: Trace | None,
        given: Callable[[int], Tensor] | None,
    ) -> TargetResult:
        """The method on one target: one candidate or several, each checked backwards, and the choice between them."""
        canvas = self._canvas(image, self.tracker.image_size)
        with clock("encode"):
            trunk = self.tracker.trunk(canvas[None])
            order = adapted.order(_descriptors(self.tracker.neck(trunk)[0])[0])
            looks = appearance.looks(adapted.pictures[order], adapted.masks[order])
            scene = _Scene(adapted, image, trunk, order, given, appearance.pictures_of(canvas[None]), looks)
        found = self._candidates(scene, clock, trace)
        chosen = candidates.choose(found, self.recipe)
        if trace:
            for index, (seen, one) in enumerate(zip(trace.candidates, found, strict=True)):
                seen.judged(one.signs, one.scores, [index == believed for believed in chosen])
            video = self._video(scene, trace.generated, Clock(None))  # a look costs the run itself no time
            aligned = adapted.alignment
            maps = alignment.activations(self.tracker, video, aligned, self.recipe) if aligned else None
            trace.close(adapted, scene.order, canvas, maps)
        return self._result(adapted.labels, found, chosen, (image.shape[0], image.shape[1]))

    def _candidates(self, scene: _Scene, clock: Clock, trace: Trace | None) -> list[Candidate]:
        """The ways to a mask that the mode asks for, with their scores; in `auto` the costly one only at need."""
        with clock("encode"):
            levels = self.tracker.neck(scene.trunk)[1]
        found: list[Candidate] = []
        for kind in candidates.kinds(self.recipe):
            found.append(self._candidate(kind, scene, levels, found, clock, trace))
        if self.recipe.mode == "auto" and not candidates.settled(found, self.recipe):
            found.append(self._candidate("full", scene, levels, found, clock, trace))
        return found

    def _candidate(
        self,
        kind: str,
        scene: _Scene,
        levels: Sequence[Tensor],
        before: Sequence[Candidate],
        clock: Clock,
        trace: Trace | None,
    ) -> Candidate:
        """Fill the video, prompt it, track, read the last frame, and check it by playing the video backwards.

        Args:
            levels: of SAM2's original neck, of `scene.trunk`.
            before: the candidates made so far, scored.
        """
        tuned = scene.adapted.alignment if kind in ("ttga", "full", ACTIVATION) else None
        neck = tuned.neck if tuned and self.recipe.propagate_with == "tuned" else None
        nearest = scene.order[-1]
        objects = Objects.of(scene.adapted.masks, nearest, self.recipe.instances)
        scattered: tuple[int, ...] = ()
        if kind in REGIONS:
            scattered = objects.several()
            objects = Objects.of(scene.adapted.masks, nearest, "union")
            video = scene.trunk
            seen = ObjectsTrace.of(trace, kind, video, objects)
            with clock("prompt"):
                if kind == ACTIVATION:
                    logits, prompts = self._activated(scene, video, neck)
                else:
                    logits, prompts = linear_logits(self.tracker, levels, scene.masks), []
            # whether the object is there is what SAM2 said when it tracked it, with the alignment or without
            tracked = before[0 if kind == LINEAR else -1]
            spoken = [{"presence": signs["presence"]} for signs in tracked.signs]
        else:
            video, track, prompts, seen = self._tracked(kind, scene, objects, tuned, neck, clock, trace)
            logits, spoken = track.logits, scoring.track_signs(track)
        if not logits.isfinite().all():
            raise NumericalError(f"The candidate {kind} gave values that are not finite; try precision float32.")
        with clock("score"):
            found = candidates.without_overlap(logits)
            # the reference next to the transition is the last one of the video's head
            consistency = scoring.reverse_consistency(
                self.tracker,
                video,
                found,
                objects.masks[nearest],
                len(scene.order) - 1,
                neck,
                watch=seen.back if seen else None,
            )
            masks = objects.per_label(found)
            alike = scoring.similarity_signs(self.tracker, levels, scene.masks, masks)
            looks = appearance.appearance_signs(scene.looks, scene.picture, masks)
            signs = [{**one, **other} for one, other in zip(alike, looks, strict=True)]
        if seen:
            seen.close(prompts, masks)
        if len(objects.owners) == len(signs):
            whole = Candidate(kind, logits, scoring.joined(signs, spoken, consistency), scattered=scattered)
            return whole.scored(self.calibration)
        alone = scoring.joined([{} for _ in spoken], spoken, consistency)
        instances = [
            [Instance(logits[index], alone[index]) for index in objects.owned_by(label)] for label in range(len(signs))
        ]
        spoken, consistency = scoring.of_labels(spoken, consistency, objects, objects.masks[nearest])
        labelled = scoring.joined(signs, spoken, consistency)
        return Candidate(kind, objects.per_label(logits), labelled, instances).scored(self.calibration)

    def _tracked(
        self,
        kind: str,
        scene: _Scene,
        objects: Objects,
        tuned: Alignment | None,
        neck: Mapping[str, Tensor] | None,
        clock: Clock,
        trace: Trace | None,
    ) -> tuple[list[Tensor], Track, list[Prompt], ObjectsTrace | None]:
        """Track the objects to the target through one pseudo video, or through one from each reference.

        Returns:
            The video from the nearest reference, what was tracked, that video's prompts, and what watches it.
        """
        generates = kind in ("dbst", "full")
        firsts = scene.order if generates and self.recipe.transition_from == "all" else scene.order[-1:]
        end = None
        if generates and not scene.given:
            (end,) = self._endpoints([scene.image], scene.adapted.prompt, clock)
        tracks = []
        for first in firsts:  # the nearest comes last, as in the video
            turned = replace(scene, order=[index for index in scene.order if index != first] + [first])
            looked = trace if first == firsts[-1] else None
            between = self._transition(turned, end, clock, looked) if generates else None
            video = self._video(turned, between, clock)
            seen = ObjectsTrace.of(looked, kind, video, objects)
            with clock("prompt"):
                prompts, corrections = self._prompts(turned, objects, video, tuned, seen)
            with clock("track"):
                tracks.append(
                    self.tracker.track(
                        video,
                        prompts,
                        len(objects.owners),
                        read=len(video[0]) - 1,
                        neck_weights=neck,
                        corrections=corrections,
                        watch=seen.forward if seen else None,
                    )
                )
        return video, mean_track(tracks), [*prompts, *corrections], seen

    def _activated(
        self, scene: _Scene, video: Sequence[Tensor], neck: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, list[Prompt]]:
        """The activation on the target as logits (labels, S, S), or what SAM2 sees in its boxes, and those boxes."""
        aligned = scene.adapted.alignment
        assert aligned is not None  # only modes with TTGA have this candidate
        last = [level[-1:] for level in video]
        logits = alignment.activation_logits(self.tracker, last, aligned, self.recipe)
        masks = candidates.without_overlap(logits)
        found = [label for label in range(len(masks)) if masks[label].any()]
        if self.recipe.refine_activation == "none" or not found:
            return logits, []
        boxes = [Prompt.of(0, index, masks[label], "box") for index, label in enumerate(found)]
        refined = self.tracker.track(last, boxes, len(found), read=0, neck_weights=neck).logits
        logits = logits.clamp(max=0).index_copy(0, torch.tensor(found, device=logits.device), refined)
        prompts = [replace(box, frame=len(video[0]) - 1, label=label) for box, label in zip(boxes, found, strict=True)]
        return logits, prompts

    def _transition(self, scene: _Scene, target: Endpoint | None, clock: Clock, trace: Trace | None) -> Tensor:
        """Frames from the scene's last reference to the target at SAM2's size; given ones, where `target` is None."""
        if target is None:
            assert scene.given is not None
            frames, losses = scene.given(scene.order[-1]).to(self.tracker.device), []
        else:
            assert self.diffusion is not None  # checked when the object was made
            reference, losses = scene.adapted.endpoints[scene.order[-1]], target.losses
            with clock("generate"):
                frames = transition.frames_between(self.diffusion, reference, target, self.recipe)
        size = (self.tracker.image_size, self.tracker.image_size)
        video = F.interpolate(frames, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        if trace:
            trace.generated, trace.target_losses = video.cpu(), losses
        return video

    def _video(self, scene: _Scene, between: Tensor | None, clock: Clock) -> list[Tensor]:
        """Backbone features of the pseudo video: references, the nearest last, generated frames, target."""
        if between is None:
            return scene.trunk
        with clock("encode"):
            middle = self._encoded(between)
        return [torch.cat([level[:-1], frames, level[-1:]]) for level, frames in zip(scene.trunk, middle, strict=True)]

    def _encoded(self, frames: Tensor) -> list[Tensor]:
        """Backbone features of frames, float (N, 3, S, S) in 0..1, in as large a batch as the device can hold."""
        batches = in_batches(lambda chosen: self.tracker.trunk(frames[chosen]), len(frames), len(frames))
        return [torch.cat(levels) for levels in zip(*batches, strict=True)]

    def _prompts(
        self,
        scene: _Scene,
        objects: Objects,
        video: Sequence[Tensor],
        tuned: Alignment | None,
        seen: ObjectsTrace | None,
    ) -> tuple[list[Prompt], list[Prompt]]:
        """The references' masks with pseudo-labels on the first generated frames, and corrections on the target."""
        references = len(scene.order)
        shown = objects.masks[scene.order]
        prompts = [
            Prompt.of(frame, index, shown[frame, index], self.recipe.reference_prompt)
            for frame in range(references)
            for index in range(len(objects.owners))
            if shown[frame, index].any()
        ]
        if tuned is None:
            return prompts, []
        target = len(video[0]) - 1
        count = int((target - references) * self.recipe.prompted_fraction)
        watch = seen.decision if seen else None

        def pseudo(frames: Sequence[int], kind: str) -> list[Prompt]:
            found, _ = alignment.pseudo_prompts(
                self.tracker, video, scene.masks, tuned, frames, self.recipe, kind, watch
            )
            return objects.from_labels(found)

        if count:
            prompts += pseudo(range(references, references + count), self.recipe.pseudo_label)
        corrected = self.recipe.target_prompt != "none"
        return prompts, pseudo([target], self.recipe.target_prompt) if corrected else []

    def _result(
        self, labels: Sequence[str], found: Sequence[Candidate], chosen: Sequence[int], size: tuple[int, int]
    ) -> TargetResult:
        """Masks at the target's own size (H, W), found labels only."""
        picked = [found[index] for index in chosen]
        mixed = len({one.kind for one in picked}) > 1
        logits = torch.stack([one.claim(label) if mixed else one.logits[label] for label, one in enumerate(picked)])
        full = F.interpolate(logits[None].cpu(), size=size, mode="bilinear", align_corners=False)[0]
        holds = [self.calibration.holds(one.kind, self.recipe) for one in picked]
        scores, kept, held_back = {}, [], {}
        for label, one in enumerate(picked):
            score, presence, found_one = one.scores[label], one.presence[label], bool(one.masks[label].any())
            why = ""
            if presence < self.recipe.min_presence:
                score = min(score, presence)
                why = f"probability {presence:.3f} that it is on the target < min_presence {self.recipe.min_presence:g}"
            # a label that lost all its pixels to another has no mask of its own to hold back
            elif holds[label] and score < self.recipe.min_score and found_one:
                why = f"score {score:.3f} < min_score {self.recipe.min_score:g}"
            if why:
                full[label] = -1
            else:
                kept.append(label)
            if why and found_one:
                held_back[labels[label]] = why
            scores[labels[label]] = round(score, 6)
        if mixed:
            full = candidates.comparable(full, list(scores.values()))
        masks = candidates.without_overlap(full).numpy()
        shown = [(label, name) for label, name in enumerate(labels) if masks[label].any()]
        instances = {}
        if self.recipe.instances == "split":
            instances = {name: _instances(picked[i], i, masks[i], scores[name]) for i, name in shown}
        return TargetResult(
            index=0,
            size=size,
            masks={name: masks[i] for i, name in shown},
            scores=scores,
            instances=instances,
            held_back=held_back,
            contested=candidates.contested(logits[kept], [labels[label] for label in kept]),
            calibrated=all(holds),
            candidates={
                label: tuple(one.described(i, chosen=index == chosen[i]) for index, one in enumerate(found))
                for i, label in enumerate(labels)
            },
        )

    def _endpoints(self, images: Sequence[NDArray[np.uint8]], prompt: str, clock: Clock) -> list[Endpoint]:
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


@dataclass(frozen=True)
class _Scene:
    """One target beside the references of its video, from which every candidate starts.

    Attributes:
        image: the target, uint8 (H, W, 3).
        target_trunk: backbone features of the target.
        order: indices of the references in the order of the video; the nearest is the last.
        given: frames made before, see `CavSam.segment`.
        picture: the target, small, see `appearance.pictures_of`.
        looks: of each label on the video's references.
    """

    adapted: AdaptedReference
    image: NDArray[np.uint8]
    target_trunk: list[Tensor]
    order: list[int]
    given: Callable[[int], Tensor] | None
    picture: Tensor
    looks: list[Look]

    @property
    def masks(self) -> Tensor:
        """Of the references in the order of the video, bool (K, labels, S, S)."""
        return self.adapted.masks[self.order]

    @property
    def trunk(self) -> list[Tensor]:
        """Backbone features of the shortest video: references, target."""
        pairs = zip(self.adapted.trunk, self.target_trunk, strict=True)
        return [torch.cat([level[self.order], target]) for level, target in pairs]


def _checked_references(references: Sequence[Reference]) -> list[Reference]:
    """As a list; raises `UsageError` where it is anything but references, `InvalidReference` where it is empty."""
    if isinstance(references, Reference) or not isinstance(references, Iterable):
        raise UsageError(f"adapt takes several references, not {type(references).__name__}; pass a list: [reference].")
    found = list(references)
    for each in found:
        if not isinstance(each, Reference):
            raise UsageError(f"adapt takes references, not {type(each).__name__}; make one with Reference.of.")
    if not found:
        raise InvalidReference("There is no reference; annotate at least one image.")
    return found


def _instances(candidate: Candidate, label: int, mask: Mask, score: float) -> tuple[InstanceMask, ...]:
    """The objects of a label that have a pixel; their masks part its mask (H, W) by the highest logit.

    A region was not tracked object by object: its components are the objects, and share its score.
    """
    if label in candidate.scattered:
        return tuple(InstanceMask(part.numpy(), score) for part in components(torch.from_numpy(mask)))
    own = candidate.instances[label] if candidate.instances else []
    if len(own) < 2:
        return (InstanceMask(mask, score),)
    logits = torch.stack([one.logits for one in own])[None].cpu()
    full = F.interpolate(logits, size=mask.shape, mode="bilinear", align_corners=False)[0]
    winner = full.argmax(dim=0).numpy()
    parts = [InstanceMask(mask & (winner == index), round(one.score, 6)) for index, one in enumerate(own)]
    return tuple(part for part in parts if part.mask.any())


def _squash_mask(mask: Mask, size: int) -> Mask:
    squashed = resize_mask(mask, (size, size))
    if not squashed.any():
        rows, columns = np.nonzero(mask)
        squashed[int(np.median(rows)) * size // mask.shape[0], int(np.median(columns)) * size // mask.shape[1]] = True
    return squashed


def _descriptors(features: Tensor) -> Tensor:
    return F.normalize(features.mean(dim=(2, 3)), dim=1)
