"""The page of `cavsam explain`, made from a trace."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from torch import Tensor

from cavsam.features import iou
from cavsam.images import Mask
from cavsam.observe.explain import curves, pictures
from cavsam.observe.explain.pictures import COLOURS, GREY, WHITE, Colour, Picture
from cavsam.observe.explain.verdict import verdict
from cavsam.observe.trace import CandidateTrace, Step, Trace
from cavsam.pseudo_labels import PseudoLabel
from cavsam.recipe import Recipe
from cavsam.tracking import Prompt
from cavsam.types import Reference, TargetResult
from cavsam.weights.sources import ModelSources

NO_PROMPT = "no prompt"


@dataclass(frozen=True)
class Context:
    """Inputs, result and settings of a traced run: what the trace itself does not know.

    Attributes:
        reference: the annotated image.
        target: uint8 (H, W, 3).
        reference_name: of its file.
        target_name: of its file.
        result: of the target.
        recipe: the hyperparameters.
        models: where the weights come from.
        device: where they ran.
        reference_steps: how many of the trace's steps belong to the reference.
    """

    reference: Reference
    target: NDArray[np.uint8]
    reference_name: str
    target_name: str
    result: TargetResult
    recipe: Recipe
    models: ModelSources
    device: str
    reference_steps: int


@dataclass(frozen=True)
class Cell:
    """One frame in one strip: a picture (a data URL, or None), what it shows, and lines of text below it."""

    picture: str | None
    alt: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Strip:
    """One row of frames.

    Attributes:
        title: what it shows.
        cells: of all frames of the video.
        backwards: whether it is played from the last frame to the first.
    """

    title: str
    cells: list[Cell]
    backwards: bool = False


@dataclass(frozen=True)
class Film:
    """Strips over the same frames, whose names stand in `heads`."""

    heads: list[str]
    strips: list[Strip]


@dataclass(frozen=True)
class CandidateView:
    """One candidate: its film, and a row per label of the table of scores."""

    name: str
    film: Film
    rows: list[dict[str, Any]]
    notes: list[str]


def render(trace: Trace, context: Context) -> str:
    """Write the page, HTML that needs nothing else.

    Args:
        trace: of one `adapt` with one reference or more, and of one target that was segmented.
        context: the rest.
    """
    video = _Video(trace, context.recipe)
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["megabytes"] = lambda count: f"{count / 1e6:,.0f} MB"
    return environment.get_template("page.html").render(
        context=context,
        labels=[_label(context, index, label) for index, label in enumerate(video.labels)],
        reference=pictures.data_url(_with_masks(context.reference.image, context.reference.masks, video.labels)),
        target=pictures.data_url(_with_masks(context.target, context.result.masks, video.labels)),
        film=Film(video.heads(len(video)), [video.frames(), *video.activations()]),
        candidates=[video.candidate(candidate) for candidate in trace.candidates],
        curves=_curves(trace),
        diagram=curves,
        steps=_steps(trace.steps, context.reference_steps),
        total=sum(step.seconds for step in trace.steps),
        slowest=max((step.seconds for step in trace.steps), default=0.0) or 1.0,
        rss_per_step=trace.rss_per_step,
        cuda=any(step.peak_cuda is not None for step in trace.steps),
        recipe=_recipe(context.recipe, context.models.recipe(mode=context.recipe.mode)),
        versions={
            "cavsam": metadata.version("cavsam"),
            "torch": torch.__version__,
            "Python": platform.python_version(),
        },
        aligned=trace.activations is not None,
    )


class _Video:
    """The longest pseudo video of a trace, as pictures; candidates show all of it or leave the generated frames out."""

    def __init__(self, trace: Trace, recipe: Recipe) -> None:
        if trace.shown is None or trace.references is None or trace.target is None:
            raise ValueError("the trace holds no segmented target; give it to adapt and to segment")
        self.trace = trace
        self.recipe = recipe
        self.labels = trace.labels
        self.shown = trace.shown
        generated = trace.references[:0] if trace.generated is None else trace.generated
        frames = torch.cat([trace.references[trace.order], generated, trace.target[None]])
        self.pictures = [_as_picture(frame) for frame in frames]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def references(self) -> int:
        """How many frames are references."""
        return len(self.shown)

    def at(self, frame: int, frames: int) -> int:
        """Find the position in this video of a frame of a video that has only `frames`."""
        return frame if frame < self.references else frame + len(self) - frames

    def heads(self, frames: int) -> list[str]:
        """Name the frames of a video of so many."""
        generated = frames - self.references - 1
        alphas = torch.linspace(self.recipe.alpha_min, self.recipe.alpha_max, max(1, generated))
        return [
            *(f"reference {i + 1}" if self.references > 1 else "reference" for i in range(self.references)),
            *(f"generated, α {alphas[i]:.2f}" for i in range(generated)),
            "target",
        ]

    def frames(self) -> Strip:
        """Show the frames as they are."""
        return Strip("Pseudo video", [Cell(pictures.data_url(p), "the frame itself") for p in self.pictures])

    def activations(self) -> list[Strip]:
        """Show heat maps, a strip per label; none without TTGA."""
        maps = self.trace.activations
        if maps is None:
            return []
        strips = []
        for index, label in enumerate(self.labels):
            own = maps[:, index].numpy()
            low, high = float(own.min()), float(own.max())
            cells = [
                Cell(
                    pictures.data_url(pictures.with_heat(picture, values, low, high)),
                    f"activation of {label}",
                    [f"{values.min():.2f} to {values.max():.2f}"],
                )
                for picture, values in zip(self.pictures, own, strict=True)
            ]
            strips.append(Strip(f"Activation: {label} (dark {low:.2f}, bright {high:.2f})", cells))
        return strips

    def candidate(self, candidate: CandidateTrace) -> CandidateView:
        """Show prompts, forward and backward tracking of one candidate, and its scores."""
        if candidate.masks is None:
            raise ValueError(f"the trace of the candidate {candidate.name} was not closed")
        frames = range(candidate.frames)
        last = candidate.frames - 1
        strips, notes = [], []
        if candidate.prompts:
            strips.append(Strip(f"{candidate.name}: prompts", [self._prompt(candidate, frame) for frame in frames]))
        if candidate.tracked:
            tracked = [self._tracked(candidate, frame) for frame in frames]
            strips.append(Strip(f"{candidate.name}: tracked masks", tracked))
        else:
            notes.append(f"The mask is not tracked: {candidate.origin}.")
        if candidate.backward:
            backward = [self._back(candidate, frame) for frame in frames]
            strips.append(Strip(f"{candidate.name}: backward tracking", backward, backwards=True))
        else:
            notes.append("It found nothing on the target, so there was nothing to track backward.")
        picture = self.pictures[self.at(last, candidate.frames)]
        rows = []
        for index, label in enumerate(self.labels):
            mask = candidate.masks[index].numpy()
            rows.append(
                {
                    "label": label,
                    "picture": pictures.data_url(pictures.with_mask(picture, mask, _colour(index))),
                    "share": mask.mean(),
                    "cues": candidate.cues[index],
                    "score": candidate.scores[index],
                    "chosen": candidate.chosen[index],
                }
            )
        return CandidateView(candidate.name, Film(self.heads(candidate.frames), strips), rows, notes)

    def _prompt(self, candidate: CandidateTrace, frame: int) -> Cell:
        """Show what SAM2 was told on a frame, or say why it was told nothing."""
        picture = self.pictures[self.at(frame, candidate.frames)]
        size = self.shown.shape[-1]
        notes = []
        prompts = [prompt for prompt in candidate.prompts if prompt.frame == frame]
        for prompt in prompts:
            picture = _with_prompt(picture, prompt, size)
            source = "annotated" if frame < self.references else "from the activation"
            notes.append(f"{self._named(prompt.label)}{_kind(prompt)}, {source}")
        decisions = [decision for decision in candidate.pseudo_labels if decision.frame == frame]
        for decision in decisions:
            if decision.refused:
                picture = pictures.with_outline(picture, decision.mask.numpy(), GREY)
                notes.append(f"{self._named(decision.label)}{NO_PROMPT}: {decision.refused}")
            elif all(prompt.label != decision.label for prompt in prompts):
                notes.append(f"{self._named(decision.label)}{NO_PROMPT}: an activation does not tell its objects apart")
            notes.append(self._named(decision.label) + _numbers(decision))
        if not prompts and not decisions:
            notes.append(f"{NO_PROMPT}: {self._why_unasked(candidate, frame)}")
        return Cell(pictures.data_url(picture), "prompts" if prompts else NO_PROMPT, notes)

    def _why_unasked(self, candidate: CandidateTrace, frame: int) -> str:
        if frame == candidate.frames - 1:
            return "the target is what is segmented"
        if not candidate.tracked:
            return "nothing is tracked from here"
        if frame < self.references:
            if self.shown[frame].any():
                return "the objects are those of the nearest reference"
            return "this reference shows no label"
        if self.trace.activations is None:
            return f"mode {candidate.name} has no activation to prompt with"
        return f"beyond the first {self.recipe.prompted_fraction:.0%} of the generated frames"

    def _tracked(self, candidate: CandidateTrace, frame: int) -> Cell:
        """Show the masks that SAM2 tracked to a frame; on the target those of the candidate."""
        picture = self.pictures[self.at(frame, candidate.frames)]
        if frame == candidate.frames - 1 and candidate.masks is not None:
            return self._masked(picture, candidate.masks, "tracked")
        if frame not in candidate.tracked:
            return Cell(None, "not visited", ["not visited: the first prompt lies on a later frame"])
        return self._masked(picture, candidate.tracked[frame] > 0, "tracked")

    def _back(self, candidate: CandidateTrace, frame: int) -> Cell:
        """Show the masks tracked backward, and on a reference how they fit the true ones, which are outlined."""
        picture = self.pictures[self.at(frame, candidate.frames)]
        if frame not in candidate.backward:
            return Cell(None, "not visited", ["not visited: backward tracking ends at the nearest reference"])
        masks = candidate.backward[frame]
        cell = self._masked(picture, masks, "tracked backward")
        if frame >= self.references:
            return cell
        outlined = _with_all(picture, masks)
        notes = []
        for label, annotated in enumerate(self.shown[frame]):
            if annotated.any():
                outlined = pictures.with_outline(outlined, annotated.numpy(), WHITE)
                notes.append(
                    f"{self._named(label)}IoU {iou(masks[label], annotated):.3f} with the reference mask (white)"
                )
        return Cell(pictures.data_url(outlined), cell.alt, notes)

    def _masked(self, picture: Picture, masks: Tensor, what: str) -> Cell:
        notes = [f"{self._named(label)}{float(mask.float().mean()):.1%}" for label, mask in enumerate(masks)]
        return Cell(pictures.data_url(_with_all(picture, masks)), f"masks {what}", notes)

    def _named(self, label: int) -> str:
        """Begin a note with the label it is about; with nothing if there is only one."""
        return f"{self.labels[label]}: " if len(self.labels) > 1 else ""


def _colour(label: int) -> Colour:
    return COLOURS[label % len(COLOURS)]


def _as_picture(frame: Tensor) -> Picture:
    """Turn float (3, S, S) in 0..1 into uint8, small enough for the page."""
    return pictures.shrunk((frame.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


def _with_masks(image: NDArray[np.uint8], masks: dict[str, Mask], labels: Sequence[str]) -> Picture:
    picture = pictures.shrunk(image)
    for index, label in enumerate(labels):
        if label in masks:
            picture = pictures.with_mask(picture, masks[label], _colour(index))
    return picture


def _with_all(picture: Picture, masks: Tensor) -> Picture:
    for label, mask in enumerate(masks):
        picture = pictures.with_mask(picture, mask.numpy(), _colour(label))
    return picture


def _with_prompt(picture: Picture, prompt: Prompt, size: int) -> Picture:
    if prompt.mask is not None:
        return pictures.with_mask(picture, prompt.mask.numpy(), _colour(prompt.label))
    if prompt.box is not None:
        return pictures.with_box(picture, prompt.box, size, _colour(prompt.label))
    assert prompt.point is not None  # a prompt is one of the three
    return pictures.with_point(picture, prompt.point, size, _colour(prompt.label))


def _kind(prompt: Prompt) -> str:
    if prompt.mask is not None:
        return "mask"
    return "box" if prompt.box is not None else "point"


def _label(context: Context, index: int, label: str) -> dict[str, Any]:
    """Sum up what was found of a label."""
    mask = context.result.masks.get(label)
    dropped = _dropped(context, label)
    return {
        "name": label,
        "colour": "#{:02x}{:02x}{:02x}".format(*_colour(index)),
        "score": context.result.scores[label],
        "share": None if mask is None else mask.mean(),
        "dropped": dropped,
        "verdict": verdict(label, context.result, dropped),
    }


def _dropped(context: Context, label: str) -> str | None:
    """Say why the mask that was chosen for a label is not in the result; None if it is, or if it is empty."""
    chosen = next(one for one in context.result.candidates[label] if one.chosen)
    if label in context.result.masks or not chosen.mask.any():
        return None
    if label in context.result.held_back:
        return context.result.held_back[label]
    if any(label in pair for pair in context.result.contested):
        return "other labels claim its pixels"
    return "no pixel of the target is left to it"


def _numbers(decision: PseudoLabel) -> str:
    text = f"threshold {decision.threshold:.2f}, separation {decision.separation:.2f}"
    return text if decision.cycle_iou is None else f"{text}, IoU found again on the reference {decision.cycle_iou:.2f}"


def _curves(trace: Trace) -> list[curves.Curve]:
    """Draw diagrams of every fit that took a step."""
    fits = {
        "TTGA: cyclic consistency on the reference": trace.alignment_losses,
        "LoRA of the reference": trace.reference_losses,
        "LoRA of the target": trace.target_losses,
    }
    return [curves.curve(title, losses) for title, losses in fits.items() if losses]


def _steps(steps: Sequence[Step], reference_steps: int) -> list[dict[str, Any]]:
    return [
        {"of": "reference" if index < reference_steps else "target", **dataclasses.asdict(step)}
        for index, step in enumerate(steps)
    ]


def _recipe(recipe: Recipe, own: Recipe) -> list[dict[str, Any]]:
    """List every option beside the value that the recipe of the models has for it."""
    usual = own.to_dict()
    return [{"name": name, "value": value, "usual": usual[name]} for name, value in recipe.to_dict().items()]
