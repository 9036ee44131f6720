"""The trace: everything that happened inside one run of the method, for `cavsam explain`."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from cavsam.pseudo_labels import PseudoLabel
from cavsam.tracking import Prompt


@dataclass(frozen=True)
class Step:
    """One timed step.

    Attributes:
        name: as `Progress` is told.
        seconds: it took.
        peak_rss: bytes, the most memory the process held during the step; since its start if the system cannot
            count a step alone (`Trace.rss_per_step`).
        peak_cuda: bytes, the most that torch held on the GPU during the step; None without one.
    """

    name: str
    seconds: float
    peak_rss: int
    peak_cuda: int | None


@dataclass
class CandidateTrace:
    """What happened to one candidate.

    Frames are counted in the candidate's own video: the references in `Trace.order`, then its generated frames, then
    the target.

    Attributes:
        name: the mode, or what else tells it from other candidates.
        frames: length of its video.
        origin: in words, where its masks come from if they are not tracked.
        prompts: of SAM2, of labels.
        pseudo_labels: what was decided on each frame that might have been prompted by its activation.
        tracked: frame -> logits, float (labels, S, S), tracked forward.
        backward: frame -> masks, bool (labels, S, S), tracked backward from the target.
        masks: bool (labels, S, S) on the target; None until `close`.
        cues: of each label, what speaks for its mask, by name.
        scores: of each label, 0..1.
        chosen: of each label, whether the result is this candidate's.
    """

    name: str
    frames: int
    origin: str = ""
    prompts: list[Prompt] = field(default_factory=list)
    pseudo_labels: list[PseudoLabel] = field(default_factory=list)
    tracked: dict[int, Tensor] = field(default_factory=dict)
    backward: dict[int, Tensor] = field(default_factory=dict)
    masks: Tensor | None = None
    cues: list[dict[str, float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)

    def decided(self, labels: Sequence[PseudoLabel]) -> None:
        """Note which activations may prompt."""
        self.pseudo_labels += [replace(label, mask=label.mask.cpu()) for label in labels]

    def forward(self, frame: int, logits: Tensor) -> None:
        """Note a frame tracked forward."""
        self.tracked[frame] = logits.cpu()

    def back(self, frame: int, masks: Tensor) -> None:
        """Note a frame tracked backward."""
        self.backward[frame] = masks.cpu()

    def close(self, prompts: Sequence[Prompt], masks: Tensor) -> None:
        """Note prompts and masks, as in the attributes."""
        self.prompts = [replace(p, mask=None if p.mask is None else p.mask.cpu()) for p in prompts]
        self.masks = masks.cpu()

    def judged(self, cues: Sequence[dict[str, float]], scores: Sequence[float], chosen: Sequence[bool]) -> None:
        """Note how it compares with the other candidates, as in the attributes."""
        self.cues, self.scores, self.chosen = [dict(one) for one in cues], list(scores), list(chosen)


@dataclass
class Trace:
    """Filled by `CavSam.adapt` and `CavSam.segment` when they are given one; all tensors lie on the CPU.

    Attributes:
        references: float (K, 3, S, S) in 0..1, as SAM2 sees them, in the order they were given.
        labels: names of the objects, in the order of the label axis below.
        order: index of each reference of the video.
        shown: bool (K, labels, S, S), the references' masks in the order of the video.
        generated: float (F, 3, S, S) in 0..1; None without DBST.
        target: float (3, S, S) in 0..1.
        alignment_losses: of TTGA; empty without it.
        reference_losses: of the LoRA of the reference next to the transition; empty without DBST.
        target_losses: of the target's LoRA; empty without DBST.
        activations: float (K + F + 1, labels, h, w), of every frame of the longest video; None without TTGA.
        candidates: the ways to a mask that were tried.
        steps: in the order they ran.
        rss_per_step: whether `Step.peak_rss` counts each step alone.
    """

    references: Tensor | None = None
    labels: tuple[str, ...] = ()
    order: list[int] = field(default_factory=list)
    shown: Tensor | None = None
    generated: Tensor | None = None
    target: Tensor | None = None
    alignment_losses: list[float] = field(default_factory=list)
    reference_losses: list[float] = field(default_factory=list)
    target_losses: list[float] = field(default_factory=list)
    activations: Tensor | None = None
    candidates: list[CandidateTrace] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    rss_per_step: bool = True

    def candidate(self, name: str, frames: int, origin: str = "") -> CandidateTrace:
        """Add a candidate, to be filled."""
        self.candidates.append(CandidateTrace(name, frames, origin))
        return self.candidates[-1]

    def adapted(self, labels: tuple[str, ...], references: Tensor, losses: list[float]) -> None:
        """Note what was learned from the references; `losses` are those of TTGA."""
        self.labels, self.references, self.alignment_losses = labels, references.cpu(), losses

    def close(
        self, order: Sequence[int], masks: Tensor, losses: list[float], target: Tensor, activations: Tensor | None
    ) -> None:
        """Note what all candidates share, as in the attributes; `masks` are those of all references."""
        self.order, self.reference_losses, self.target = list(order), losses, target.cpu()
        self.shown = masks.cpu()[self.order]
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


def peak_rss() -> int:
    """Read the most memory, in bytes, that this process held since its start or since the last reset."""
    try:
        (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reset_peak_rss() -> bool:
    """Let the peak start anew from what is held now; False if the system cannot (only Linux can)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
