"""What happened inside one run of the method, kept for whoever wants to look (`cavsam explain`)."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from cavsam.adapted import AdaptedReference
from cavsam.alignment import PseudoLabel
from cavsam.instances import Objects
from cavsam.tracking import Prompt


@dataclass(frozen=True)
class Step:
    """One timed step.

    Attributes:
        name: as `Progress` is told.
        seconds: it took.
        peak_rss: bytes, the most memory the process held during the step; since its start where the system cannot
            count a step alone (`Trace.rss_per_step`).
        peak_cuda: bytes, the most that torch held on the GPU during the step; None without one.
    """

    name: str
    seconds: float
    peak_rss: int
    peak_cuda: int | None


@dataclass
class CandidateTrace:
    """One way to a mask on the target.

    Frames are counted in the candidate's own video: the references in `Trace.order`, then its generated frames, then
    the target.

    Attributes:
        name: the mode, or what else tells it from other candidates.
        frames: length of its video.
        prompts: what SAM2 was told.
        pseudo_labels: what was decided on each frame that might have been prompted by its activation.
        tracked: frame -> logits, float (labels, S, S), on the way forward.
        backward: frame -> masks, bool (labels, S, S), on the way back from the target.
        masks: bool (labels, S, S) on the target; None until `close`.
        signs: of each label, what speaks for its mask, by name.
        scores: of each label, 0..1.
        chosen: of each label, whether the result is this candidate's.
    """

    name: str
    frames: int
    prompts: list[Prompt] = field(default_factory=list)
    pseudo_labels: list[PseudoLabel] = field(default_factory=list)
    tracked: dict[int, Tensor] = field(default_factory=dict)
    backward: dict[int, Tensor] = field(default_factory=dict)
    masks: Tensor | None = None
    signs: list[dict[str, float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)

    def decision(self, label: PseudoLabel) -> None:
        """Note what was decided about a frame's activation."""
        self.pseudo_labels.append(replace(label, mask=label.mask.cpu()))

    def forward(self, frame: int, logits: Tensor) -> None:
        """Note a frame on the way to the target."""
        self.tracked[frame] = logits.cpu()

    def back(self, frame: int, masks: Tensor) -> None:
        """Note a frame on the way back."""
        self.backward[frame] = masks.cpu()

    def close(
        self,
        prompts: Sequence[Prompt],
        masks: Tensor,
    ) -> None:
        """Note what came out, as in the attributes."""
        self.prompts = [replace(p, mask=None if p.mask is None else p.mask.cpu()) for p in prompts]
        self.masks = masks.cpu()

    def judged(self, signs: Sequence[dict[str, float]], scores: Sequence[float], chosen: Sequence[bool]) -> None:
        """Note what was thought of it beside the other candidates, as in the attributes."""
        self.signs, self.scores, self.chosen = [dict(one) for one in signs], list(scores), list(chosen)


@dataclass
class Trace:
    """Filled by `CavSam.adapt` and `CavSam.segment` when they are given one; all tensors lie on the CPU.

    Attributes:
        references: float (K, 3, S, S) in 0..1, as SAM2 sees them, in the order they were given.
        adapted: what was learned from them, with the losses of TTGA and of their LoRAs.
        order: index of each reference of the video.
        generated: float (F, 3, S, S) in 0..1; None without DBST.
        target: float (3, S, S) in 0..1.
        target_losses: of the target's LoRA; empty without DBST.
        activations: float (K + F + 1, labels, h, w), of every frame of the longest video; None without TTGA.
        candidates: the ways to a mask that were tried.
        steps: in the order they ran.
        rss_per_step: whether `Step.peak_rss` counts each step alone.
    """

    references: Tensor | None = None
    adapted: AdaptedReference | None = None
    order: list[int] = field(default_factory=list)
    generated: Tensor | None = None
    target: Tensor | None = None
    target_losses: list[float] = field(default_factory=list)
    activations: Tensor | None = None
    candidates: list[CandidateTrace] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    rss_per_step: bool = True

    def candidate(self, name: str, frames: int) -> CandidateTrace:
        """A new candidate, to be filled."""
        self.candidates.append(CandidateTrace(name, frames))
        return self.candidates[-1]

    def close(
        self, adapted: AdaptedReference, order: Sequence[int], target: Tensor, activations: Tensor | None
    ) -> None:
        """Note what all candidates share, as in the attributes."""
        self.adapted, self.order, self.target = adapted, list(order), target.cpu()
        self.activations = None if activations is None else activations.cpu()

    def step_begins(self) -> None:
        """Start counting the peaks of a step."""
        self.rss_per_step &= _reset_peak_rss()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def step_ends(self, name: str, seconds: float) -> None:
        """Note a step that `step_begins` began."""
        cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        self.steps.append(Step(name, seconds, peak_rss(), cuda))


@dataclass(frozen=True)
class ObjectsTrace:
    """Tells a candidate's trace, which knows labels, about objects."""

    seen: CandidateTrace
    objects: Objects

    @classmethod
    def of(cls, trace: Trace | None, kind: str, video: Sequence[Tensor], objects: Objects) -> ObjectsTrace | None:
        """A new candidate of `trace`; None when there is none."""
        return cls(trace.candidate(kind, len(video[0])), objects) if trace else None

    def decision(self, label: PseudoLabel) -> None:
        """See `CandidateTrace`."""
        self.seen.decision(label)

    def forward(self, frame: int, logits: Tensor) -> None:
        """See `CandidateTrace`; logits of objects."""
        self.seen.forward(frame, self.objects.per_label(logits))

    def back(self, frame: int, masks: Tensor) -> None:
        """See `CandidateTrace`; masks of objects."""
        self.seen.back(frame, self.objects.per_label(masks))

    def close(self, prompts: Sequence[Prompt], masks: Tensor) -> None:
        """See `CandidateTrace`; prompts of objects, masks of labels."""
        self.seen.close(self.objects.to_labels(prompts), masks)


def peak_rss() -> int:
    """Bytes, the most memory this process held since its start or since the last reset."""
    try:
        (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reset_peak_rss() -> bool:
    """Let the peak start anew from what is held now; False where the system cannot (only Linux can)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
