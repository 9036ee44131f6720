"""CAV-SAM from end to end: adapt to annotated references once, then segment any number of targets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cavsam.adapted import AdaptedReference
from cavsam.alignment import align
from cavsam.backbone import Backbone
from cavsam.candidates.base import NO_EXPERIENCE, Candidate, Proposal, Scene
from cavsam.candidates.linear import backbone_linear_logits
from cavsam.candidates.selection import choose, enough, strategies, with_consensus
from cavsam.errors import CavSamError, InvalidReference, ModelError, NumericalError, UsageError
from cavsam.features import descriptors, iou, without_overlap
from cavsam.images import ImageSource, is_one_picture, read_image
from cavsam.observe.run import Run
from cavsam.observe.trace import Trace
from cavsam.recipe import Recipe
from cavsam.result import to_result
from cavsam.scoring.appearance import appearance_cues, pictures_of
from cavsam.scoring.calibration import REGIONS, Calibration
from cavsam.scoring.cues import backward_consistency, similarity_cues
from cavsam.scoring.experience import Experience
from cavsam.tracking import Tracker
from cavsam.transition import DiffusionTransition, Transition
from cavsam.types import Progress, Reference, TargetResult, order_of_content
from cavsam.video import encode, masks_square, picture_square
from cavsam.weights.loading import load_backbone, load_calibration, load_diffusion, load_tracker, select_device
from cavsam.weights.sources import ModelSources, fingerprint, recipe_digest

log = logging.getLogger(__name__)


class CavSam:
    """The method with its models. Not for use by several threads at once.

    Attributes:
        tracker: SAM2.
        transition: where generated frames come from; None in the modes without them.
        recipe: the hyperparameters.
        fingerprint: of the models and the recipe.
        calibration: turns cues into scores.
        backbone: whose features the candidates of regions use; None for SAM2's own.
    """

    def __init__(
        self,
        tracker: Tracker,
        transition: Transition | None,
        recipe: Recipe,
        models: str = "",
        calibration: Calibration | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        calibration = (calibration or Calibration()).beside(backbone.digest if backbone else "")
        if recipe.mode == "auto" and not calibration.overlap:
            # without estimates of the IoU there is nothing to choose between kinds of candidates by
            log.warning(
                "Mode auto runs as full until measured targets teach it more: there is no calibration of scores for "
                "these models."
            )
        if recipe.generates_frames and transition is None:
            raise ModelError(f"The mode {recipe.mode} needs a diffusion model; give one or choose concat or ttga.")
        self.tracker = tracker
        self.transition = transition
        self.recipe = recipe
        self.fingerprint = models or f"custom {recipe_digest(recipe)}"
        self.calibration = calibration
        self.backbone = backbone
        self.strategies = strategies(recipe, tracker, transition, calibration)

    @classmethod
    def from_pretrained(
        cls, model: str | ModelSources = "default", *, device: str = "auto", recipe: Recipe | None = None
    ) -> CavSam:
        """Load a pair of models.

        Args:
            model: a name ("default", "paper", "nano") or the sources themselves.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            recipe: hyperparameters; those that belong to the pair when None.

        Raises:
            ModelError: weights are missing, do not fit, or cannot be fetched; or there is no such device.
        """
        sources = ModelSources.named(model) if isinstance(model, str) else model
        recipe = recipe or sources.recipe()
        where = select_device(device)
        tracker = load_tracker(sources, where, recipe.precision)
        transition = None
        if recipe.generates_frames:
            transition = DiffusionTransition(load_diffusion(sources, where, recipe.precision), recipe)
        backbone = load_backbone(sources, where, recipe.precision) if sources.features else None
        return cls(tracker, transition, recipe, fingerprint(sources, recipe), load_calibration(sources), backbone)

    @property
    def device(self) -> torch.device:
        """Where the models run."""
        return self.tracker.device

    @property
    def cells(self) -> int:
        """How many cells of SAM2's coarsest features lie along either side of a picture."""
        return self.tracker.image_size // 16

    def adapt(
        self,
        references: Sequence[Reference],
        *,
        class_name: str | None = None,
        shots: int = 0,
        progress: Progress | None = None,
        trace: Trace | None = None,
    ) -> AdaptedReference:
        """Do once what depends on the references only.

        Args:
            references: one or more annotated images; a label need not be on all of them. How they are listed makes no
                difference.
            class_name: text for the diffusion model; the labels themselves when None.
            shots: how many of the references serve each target, those most like it; 0 for all.
            progress: told of each step.
            trace: keeps what happens inside.

        Raises:
            UsageError: an argument is of another kind.
            InvalidReference: there is no reference.
            NumericalError: a step gave values that are not finite.
        """
        references = _checked_references(references)
        references = [references[index] for index in order_of_content(references)]
        _check_adapt_options(class_name, shots)
        run, size = Run(progress, trace), self.tracker.image_size
        labels = tuple(dict.fromkeys(label for reference in references for label in reference.masks))
        prompt = class_name if class_name is not None else ", ".join(labels)
        images = torch.stack([picture_square(one.image, size, self.device) for one in references])
        masks = torch.stack([masks_square(one.masks, labels, size) for one in references]).to(self.device)

        with run.step("encode"):
            trunk = encode(self.tracker, images)
            alike = descriptors(self.tracker.neck(trunk)[0])
            features = self.backbone(images) if self.backbone else None
        alignment, endpoints = None, []
        if self.recipe.aligns:
            with run.step("align"):
                alignment = align(self.tracker, images, masks.float(), trunk, self.recipe, run.within("align"))
        unprepared = tuple(one.image for one in references) if self.transition and self.recipe.generates_frames else ()
        if self.transition and unprepared and self.recipe.mode != "auto":  # there a target may never ask for frames
            endpoints = self.transition.prepare(unprepared, prompt, run)
            unprepared = ()
        if trace:
            trace.adapted(labels, images, alignment.losses if alignment else [])
        pictures, seconds = pictures_of(images), dict(run.seconds)
        return AdaptedReference(
            labels,
            masks,
            trunk,
            pictures,
            alike,
            prompt,
            alignment,
            endpoints,
            self.fingerprint,
            seconds,
            shots,
            features,
            unprepared,
        )

    def segment(
        self,
        adapted: AdaptedReference,
        targets: Iterable[ImageSource],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        trace: Trace | None = None,
        experience: Experience = NO_EXPERIENCE,
    ) -> Iterator[TargetResult]:
        """Segment targets one after another; a result does not depend on the other targets.

        A target that cannot be read or computed gives a result with its `error`; the rest goes on.

        Args:
            adapted: from `adapt` of this object or of one with the same models and recipe.
            targets: paths, encoded bytes, PIL images or arrays.
            progress: told of each step within a target; what it raises ends the iteration.
            cancelled: asked before each target; True ends the iteration.
            trace: keeps what happens inside on the first target.
            experience: what measured targets taught about scores, and in `auto` about candidates worth trying.

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

        def observe(first: bool) -> Run:
            return Run(progress, trace if first else None, cancelled)

        # the arguments are checked at the call, the targets computed as they are asked for
        return self._segment(adapted, targets, observe, experience)

    def _segment(
        self,
        adapted: AdaptedReference,
        targets: Iterable[ImageSource],
        observe: Callable[[bool], Run],
        experience: Experience,
    ) -> Iterator[TargetResult]:
        """Segment every target with a run of its own; an error stays with its target."""
        for index, target in enumerate(targets):
            run = observe(index == 0)
            if run.is_cancelled():
                return
            try:
                result = self._segment_one(adapted, read_image(target), run, experience)
            except Exception as error:  # this target is lost, the batch is not
                if run.raised(error):
                    raise
                if isinstance(error, CavSamError):
                    result = TargetResult(index, error=str(error))
                else:  # out of memory, a fault in a kernel
                    log.exception("target %d failed", index)
                    result = TargetResult(index, error=f"The computation failed: {error or type(error).__name__}")
            yield replace(result, index=index, seconds=run.total(), timings=dict(run.seconds))

    def _segment_one(
        self, adapted: AdaptedReference, image: NDArray[np.uint8], run: Run, experience: Experience
    ) -> TargetResult:
        """Propose masks, check each one backwards, keep the most trusted."""
        with run.step("encode"):
            scene = Scene.of(adapted, image, self.tracker, self.backbone)
        candidates: list[Candidate] = []
        for strategy in self.strategies:
            known = self._scored(candidates, experience) if strategy.generates_frames else candidates
            if enough(known, strategy, self.recipe, experience):
                break
            begun = run.total()
            proposal = strategy.propose(scene, candidates, run)
            candidate = self._assess(proposal, scene, candidates, run)
            candidates.append(replace(candidate, seconds=run.total() - begun))
        candidates = self._scored(candidates, experience)
        chosen = choose(candidates, self.recipe)
        if run.trace:
            self._complete(run.trace, scene, candidates, chosen)
        size = (image.shape[0], image.shape[1])
        return to_result(adapted.labels, candidates, chosen, size, self.recipe, self.calibration)

    def _assess(self, proposal: Proposal, scene: Scene, before: Sequence[Candidate], run: Run) -> Candidate:
        """Check a proposal: track it backwards, compare its features and its colours with the references'."""
        if not proposal.logits.isfinite().all():
            raise NumericalError(
                f"The candidate {proposal.kind} gave values that are not finite; try precision float32."
            )
        with run.step("score"):
            found = without_overlap(proposal.logits)
            shown = proposal.objects.masks[proposal.video.nearest]
            consistency = backward_consistency(self.tracker, proposal.video, found, shown, proposal.neck, run)
            masks = proposal.objects.per_label(found)
            alike = similarity_cues(self.tracker, scene.levels, scene.masks, masks)
            looks = appearance_cues(scene.appearances, scene.picture, masks)
            agreed = _agreement(proposal.kind, masks, scene, before)
        run.proposed(proposal.prompts, masks)
        of_labels = [{**one, **two, **three} for one, two, three in zip(alike, looks, agreed, strict=True)]
        return Candidate.of(proposal, of_labels, consistency, shown)

    def _scored(self, candidates: Sequence[Candidate], experience: Experience) -> list[Candidate]:
        """Score candidates; in `auto`, where several ways to a mask are tried, also by how much they agree."""
        compared = with_consensus(candidates) if self.recipe.mode == "auto" else candidates
        return [one.scored(self.calibration, experience) for one in compared]

    def _complete(
        self, trace: Trace, scene: Scene, candidates: Sequence[Candidate], chosen: Sequence[Candidate]
    ) -> None:
        """Add to a trace what the candidates came to, and the activations of the longest video."""
        for seen, candidate in zip(trace.candidates, candidates, strict=True):
            seen.judged(candidate.cues, candidate.scores, [candidate is believed for believed in chosen])
        adapted, video, maps = scene.adapted, scene.video, None
        if adapted.alignment:
            if trace.generated is not None:
                video = video.with_frames(encode(self.tracker, trace.generated))
            maps = adapted.alignment.activations(self.tracker, video.trunk, self.recipe)
        losses = adapted.endpoints[video.nearest].losses if adapted.endpoints else []
        trace.close(video.order, adapted.masks, losses, scene.square, maps)


def _agreement(kind: str, masks: Tensor, scene: Scene, before: Sequence[Candidate]) -> list[dict[str, float]]:
    """Compare masks (labels, S, S) of SAM2 with what a backbone marks, and those of a backbone with what SAM2 tracked.

    Returns:
        Of each label the cue `agreement`, the IoU of the two; no cue without a backbone.
    """
    if scene.features is None:
        return [{} for _ in masks]
    others = (
        before[0].masks if kind in REGIONS else without_overlap(backbone_linear_logits(scene.features, scene.masks))
    )
    return [{"agreement": iou(mask, other)} for mask, other in zip(masks, others, strict=True)]


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


def _check_adapt_options(class_name: str | None, shots: int) -> None:
    """Refuse what cannot be meant; raises `UsageError`."""
    if class_name is not None and not isinstance(class_name, str):
        raise UsageError(f"class_name must be a text or None, not {class_name!r}.")
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
        raise UsageError(f"shots must be a whole number, 0 for all references or more, not {shots!r}.")
