"""Candidates made by hand."""

from __future__ import annotations

import torch

from cavsam.candidates.base import Candidate
from cavsam.scoring.calibration import OPTIONS, Calibration, Logistic


def candidate(kind: str, scores: list[float], rows: list[int]) -> Candidate:
    """Each label's mask is the first `rows` rows of its own half of a picture of 8 x 8."""
    logits = torch.full((len(rows), 8, 8), -1.0)
    width = 8 // len(rows)
    for label, count in enumerate(rows):
        logits[label, :count, width * label : width * (label + 1)] = 1.0
    return Candidate(kind, logits, [{} for _ in rows], kind, scores=scores, presence=[1.0] * len(rows))


_ORDER = Logistic(-2.0, {"consistency": 3.0, "presence": 1.0}, {"consistency": 1.0, "presence": 1.0})
ALL_KNOWN = Calibration(dict.fromkeys(OPTIONS, _ORDER))
"""Knows every kind of candidate, as the order of consistency and presence, and holds for no recipe."""
