"""The linear classifier: against scipy's least squares, and on pictures that a line of features can part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from cavsam.candidates.linear import linear_logits, ridge
from cavsam.tracking import Tracker


def test_it_is_the_minimum_of_the_balanced_penalised_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    known, target = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(3, 6, 7, generator=generator)
    truth = torch.rand(2, 4, 5, generator=generator) > 0.7
    cells, sides = known.movedim(1, -1).reshape(-1, 3).double().numpy(), np.where(truth.flatten(), 1.0, -1.0)
    weights = np.where(sides > 0, 0.5 / (sides > 0).sum(), 0.5 / (sides < 0).sum())
    variance = np.mean([np.average((c - np.average(c, weights=weights)) ** 2, weights=weights) for c in cells.T])

    def loss(p: np.ndarray) -> float:
        return float(weights @ (cells @ p[:3] + p[3] - sides) ** 2 + 0.5 * variance * p[:3] @ p[:3])

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-10}).x
    expected = np.einsum("chw,c->hw", target.numpy(), best[:3]) + best[3]
    np.testing.assert_allclose(ridge(known, truth, target, penalty=0.5).numpy(), expected, atol=1e-4)


def test_everything_marked_or_constant_features_stay_finite() -> None:
    known = torch.ones(1, 3, 4, 4)
    for truth in (torch.ones(1, 4, 4, dtype=torch.bool), torch.eye(4)[None] > 0):
        assert ridge(known, truth, torch.rand(3, 4, 4)).isfinite().all()


@pytest.mark.parametrize("shots", [1, 3])
def test_it_finds_the_marked_half_again(tracker: Tracker, shots: int) -> None:
    """Two textures on each image; the second label is on the last reference alone."""
    size = tracker.image_size
    generator = torch.Generator().manual_seed(1)
    stripes = (torch.arange(size) // 4 % 2).float()

    def image(split: int) -> torch.Tensor:
        picture = torch.rand(3, size, size, generator=generator) * 0.1
        picture[:, :, split:] += stripes[:, None] * 0.8
        return picture

    splits = [96, 128, 160][:shots]
    masks = torch.zeros(shots, 2, size, size, dtype=torch.bool)
    for mask, split in zip(masks, splits, strict=True):
        mask[0, :, split:] = True
    masks[-1, 1, :, : splits[-1]] = True
    trunk = tracker.trunk(torch.stack([*map(image, splits), image(140)]))
    logits = linear_logits(tracker, tracker.neck(trunk)[1], masks)
    truth = torch.zeros(size, size, dtype=torch.bool)
    truth[:, 140:] = True
    assert ((logits[0] > 0) == truth).float().mean() > 0.9
    assert ((logits[1] > 0) == ~truth).float().mean() > 0.9
