"""The verdict on a label in words: how its mask was found, and what speaks for it."""

from __future__ import annotations

from collections.abc import Mapping

from cavsam.types import CandidateMask, TargetResult

WAYS = {
    "concat": "tracking from the reference",
    "ttga": "tracking on aligned features",
    "dbst": "tracking through generated frames",
    "full": "tracking through generated frames, on aligned features",
    "activation": "likeness of its features",
    "linear": "a classifier of features",
    "pixels": "a classifier of pixels",
}
"""Kind of a candidate -> how it finds a mask."""
GOOD, FAIR = 0.7, 0.4
"""Values of a cue from which it speaks for a mask, and from which it does in part."""


def verdict(label: str, result: TargetResult, dropped: str | None) -> str:
    """Write one sentence on a label.

    Args:
        label: of the reference.
        result: of the target.
        dropped: why the mask that was chosen is not in the result; None if it is, or if there was none.
    """
    chosen = next(one for one in result.candidates[label] if one.chosen)
    if label in result.masks:
        parts = [f"found by {WAYS.get(chosen.kind, chosen.kind)}", *_evidence(chosen)]
    elif dropped:
        parts = [f"not found: the mask was dropped ({dropped})", *_evidence(chosen)]
    else:
        parts = [f"not found: none of {len(result.candidates[label])} ways gave a mask"]
    score = f"estimated IoU {result.scores[label]:.2f}" if result.calibrated else f"score {result.scores[label]:.2f}"
    return f"{'; '.join(parts)}. {score[0].upper()}{score[1:]}{'' if result.calibrated else ' (an order, no IoU)'}."


def _evidence(chosen: CandidateMask) -> list[str]:
    """Say of the cues that mean something to a person whether they speak for the mask."""
    said = [
        _graded(
            chosen.cues,
            "consistency",
            "backward tracking finds the reference again",
            "backward tracking finds the reference in part",
            "backward tracking misses the reference",
            "IoU {:.0%}",
        ),
        _graded(chosen.cues, "palette", "colours agree", "colours agree in part", "colours differ", "{:.0%} shared"),
    ]
    if chosen.presence < 0.5:
        said.append(f"it is doubtful that the object is there ({chosen.presence:.0%})")
    return [one for one in said if one]


def _graded(cues: Mapping[str, float], name: str, good: str, fair: str, poor: str, figure: str) -> str:
    """Put a cue into words with its figure; nothing if it is not known."""
    value = cues.get(name)
    if value is None or value != value:
        return ""
    words = good if value >= GOOD else fair if value >= FAIR else poor
    return f"{words} ({figure.format(value)})"
