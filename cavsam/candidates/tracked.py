"""Masks that SAM2 tracks to the target through the pseudo video: where DBST, TTGA and iVOS meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cavsam.alignment import Alignment
from cavsam.candidates.base import Candidate, Proposal, Scene, propagating_neck
from cavsam.instances import Objects
from cavsam.observe.run import Run
from cavsam.pseudo_labels import pseudo_labels
from cavsam.recipe import Recipe, ReferencePrompt
from cavsam.scoring.cues import track_cues
from cavsam.tracking import Prompt, Tracker, mean_track
from cavsam.transition import Transition
from cavsam.video import Video, encode, frames_square

KINDS = {(False, False): "concat", (True, False): "ttga", (False, True): "dbst", (True, True): "full"}
"""Whether it aligns and whether it generates frames -> the mode of the paper."""


@dataclass(frozen=True)
class Tracked:
    """The paper's method, with or without its two parts.

    Attributes:
        tracker: SAM2.
        recipe: how it is prompted and on which neck it tracks.
        aligns: whether TTGA takes part.
        transition: makes the frames of DBST; None to go without.
    """

    tracker: Tracker
    recipe: Recipe
    aligns: bool = False
    transition: Transition | None = None

    @property
    def generates_frames(self) -> bool:
        """Whether DBST takes part."""
        return self.transition is not None

    @property
    def kind(self) -> str:
        """The mode that this is."""
        return KINDS[self.aligns, self.generates_frames]

    def propose(self, scene: Scene, before: Sequence[Candidate], run: Run) -> Proposal:
        """Track the objects to the target through one pseudo video, or through one from each reference."""
        objects = scene.objects(self.recipe.instances)
        alignment = scene.adapted.alignment if self.aligns else None
        neck = propagating_neck(alignment, self.recipe)
        tracks = []
        for video in self._videos(scene, run):
            if video.nearest == scene.video.nearest:  # of several videos this is the last, and the one that is shown
                run.candidate(self.kind, len(video), objects)
            with run.step("prompt"):
                prompts = reference_prompts(video, objects, self.recipe.reference_prompt)
                pseudo, corrections = self._aligned_prompts(scene, video, objects, alignment, run)
            with run.step("track"):
                track = self.tracker.track(
                    video.trunk,
                    [*prompts, *pseudo],
                    len(objects.owners),
                    read=video.target,
                    neck_weights=neck,
                    corrections=corrections,
                    watch=run.tracked,
                )
            tracks.append(track)
        mean = mean_track(tracks)
        given = [*prompts, *pseudo, *corrections]
        return Proposal(self.kind, video, neck, objects, mean.logits, track_cues(mean), self.kind, given)

    def _videos(self, scene: Scene, run: Run) -> Iterator[Video]:
        """Make the pseudo videos, one after another; the one from the reference most like the target comes last."""
        if self.transition is None:
            yield scene.video
            return
        adapted, nearest = scene.adapted, scene.video.nearest
        references = scene.video.order if self.recipe.transition_from == "all" else [nearest]
        ends = adapted.prepared(self.transition, run)
        transitions = self.transition.between(ends, references, scene.image, adapted.prompt, run)
        for reference, frames in zip(references, transitions, strict=True):
            square = frames_square(frames.images.to(self.tracker.device), self.tracker.image_size)
            run.generated(square, frames.losses)
            with run.step("encode"):
                generated = encode(self.tracker, square)
            yield scene.video.beginning_at(reference).with_frames(generated)

    def _aligned_prompts(
        self, scene: Scene, video: Video, objects: Objects, alignment: Alignment | None, run: Run
    ) -> tuple[list[Prompt], list[Prompt]]:
        """Prompt the first generated frames by their pseudo-labels, and correct the target by its own."""
        if alignment is None:
            return [], []

        def prompts(frames: Sequence[int], kind: str) -> list[Prompt]:
            masks = scene.adapted.masks[video.order]
            labels = pseudo_labels(self.tracker, video.trunk, masks, alignment, frames, self.recipe)
            run.decided(labels)
            return objects.from_labels([label.prompt(kind) for label in labels if not label.refused])

        count = int(len(video.generated) * self.recipe.prompted_fraction)
        pseudo = prompts(video.generated[:count], self.recipe.pseudo_label) if count else []
        corrected = self.recipe.target_prompt != "none"
        return pseudo, prompts([video.target], self.recipe.target_prompt) if corrected else []


def reference_prompts(video: Video, objects: Objects, kind: ReferencePrompt) -> list[Prompt]:
    """Prompt each reference's frame by the masks, or their boxes, of the objects that it shows."""
    shown = objects.masks[video.order]
    return [
        Prompt.of(frame, index, shown[frame, index], kind)
        for frame in range(len(video.order))
        for index in range(len(objects.owners))
        if shown[frame, index].any()
    ]
