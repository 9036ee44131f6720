"""Figures of few-shot segmentation from what each episode counted; numpy only.

The protocol of PATNet and HSNet on the CD-FSS benchmark: intersection and union of the foreground are added up per
class over all episodes, then the mean over the classes is taken. FB-IoU, the mean of foreground and background IoU
with all classes pooled, is a different figure and never mixed with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
BOUNDARY_TOLERANCE = 0.008
"""Share of an image's diagonal by which a boundary may be off in `boundary_f`; the DAVIS benchmark's."""


@dataclass(frozen=True)
class Counts:
    """Pixels of one episode: of the foreground and of the background, in both masks and in either."""

    class_name: str
    intersection: int
    union: int
    background_intersection: int
    background_union: int

    @property
    def iou(self) -> float:
        """Foreground IoU of this episode alone; 1 where both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


def count(class_name: str, predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Counts:
    """Compare two bool (H, W) masks; raises ValueError if their sizes differ."""
    if predicted.shape != truth.shape:
        raise ValueError(f"The masks differ in size: {predicted.shape} and {truth.shape}.")
    both, either = int((predicted & truth).sum()), int((predicted | truth).sum())
    return Counts(class_name, both, either, int(truth.size) - either, int(truth.size) - both)


def boundary_f(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Compute the F-measure of the boundaries of two bool (H, W) masks, 0..1, as the DAVIS benchmark does.

    A boundary pixel is right if the other mask has one within 0.8% of the image's diagonal, rounded up to whole pixels.
    F is the harmonic mean of the shares that are right in either mask. It is 1 if neither mask has a boundary, as an
    empty one has none, and 0 if one of them has none.

    Raises:
        ValueError: the masks differ in size.
    """
    from scipy.ndimage import distance_transform_edt

    if predicted.shape != truth.shape:
        raise ValueError(f"The masks differ in size: {predicted.shape} and {truth.shape}.")
    first, second = _boundary(predicted), _boundary(truth)
    if not first.any() or not second.any():
        return float(first.any() == second.any())
    reach = np.ceil(BOUNDARY_TOLERANCE * np.hypot(truth.shape[0], truth.shape[1]))
    precision = float((distance_transform_edt(~second)[first] <= reach).mean())
    recall = float((distance_transform_edt(~first)[second] <= reach).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find the pixels, bool (H, W), that differ from the one below, to the right, or below to the right."""
    beyond = np.pad(mask, (0, 1), mode="edge")
    return (mask != beyond[1:, :-1]) | (mask != beyond[:-1, 1:]) | (mask != beyond[1:, 1:])


def auroc(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Estimate how probably a positive has the higher value (N,), ties counted half; NaN if one side is empty."""
    from scipy.stats import rankdata

    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    ranks = rankdata(values)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(positive) - count)))


@dataclass(frozen=True)
class ScoreQuality:
    """How well scores order masks; NaN where there is nothing to order.

    Attributes:
        spearman: rank correlation with the true IoU, which is 0 where the object is absent.
        good: AUROC for an IoU above 0.5.
        absent: AUROC of a low score for the object's absence.
        calibration_error: how far scores are from the true IoU, see `calibration_error`.
    """

    spearman: float
    good: float
    absent: float
    calibration_error: float


def score_quality(scores: NDArray[np.float64], ious: NDArray[np.float64], absent: NDArray[np.bool_]) -> ScoreQuality:
    """Judge the scores (N,) of masks whose true IoU (N,) is known."""
    from scipy.stats import spearmanr

    constant = len(scores) < 2 or not np.ptp(scores) or not np.ptp(ious)
    spearman = float("nan") if constant else float(spearmanr(scores, ious).statistic)
    return ScoreQuality(spearman, auroc(scores, ious > 0.5), auroc(-scores, absent), calibration_error(scores, ious))


def calibration_error(scores: NDArray[np.float64], ious: NDArray[np.float64], bins: int = 10) -> float:
    """Expected calibration error (ECE) of scores in 0..1, both (N,): the mean gap between score and true IoU in bins of
    equal width, weighted by how many scores each holds; NaN without scores.
    """
    if not len(scores):
        return float("nan")
    number = np.clip((scores * bins).astype(int), 0, bins - 1)
    return float(np.abs(np.bincount(number, weights=scores - ious, minlength=bins)).sum() / len(scores))


def mean_iou(episodes: Sequence[Counts]) -> float:
    """Average summed intersection over summed union over the classes, 0..1; NaN without episodes."""
    return float(_mean_iou(_Table.of(episodes), np.ones((1, len(episodes))))[0])


def foreground_background_iou(episodes: Sequence[Counts]) -> float:
    """Average the pooled foreground and the pooled background IoU, 0..1; NaN without episodes."""
    if not episodes:
        return float("nan")
    foreground = sum(e.intersection for e in episodes) / max(1, sum(e.union for e in episodes))
    background = sum(e.background_intersection for e in episodes) / max(1, sum(e.background_union for e in episodes))
    return (foreground + background) / 2


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def interval(domains: Sequence[Sequence[Counts]], seed: int = 0) -> Interval:
    """Average the mean IoU over `domains`, with episodes resampled within each domain."""
    draws = _resampled(domains, seed)
    value = float(np.mean([mean_iou(episodes) for episodes in domains])) if domains else float("nan")
    return _interval(value, draws)


def paired_difference(first: Sequence[Sequence[Counts]], second: Sequence[Sequence[Counts]], seed: int = 0) -> Interval:
    """Compare the same episodes in the same order, `second` minus `first`, drawn together in each resample.

    Raises ValueError when the episodes do not match.
    """
    for one, other in zip(first, second, strict=True):
        if [e.class_name for e in one] != [e.class_name for e in other]:
            raise ValueError("A paired difference needs the same episodes in the same order.")
    draws = _resampled(second, seed) - _resampled(first, seed)
    value = np.mean([mean_iou(episodes) for episodes in second]) - np.mean([mean_iou(episodes) for episodes in first])
    return _interval(float(value), draws)


@dataclass(frozen=True)
class _Table:
    """Pixels by episode and class, each float (N, classes), zero outside the episode's class."""

    intersection: NDArray[np.float64]
    union: NDArray[np.float64]

    @classmethod
    def of(cls, episodes: Sequence[Counts]) -> _Table:
        names = sorted({episode.class_name for episode in episodes})
        member = np.array([[e.class_name == name for name in names] for e in episodes], dtype=float)
        member = member.reshape(len(episodes), len(names))
        intersection = np.array([e.intersection for e in episodes], dtype=float)[:, None]
        union = np.array([e.union for e in episodes], dtype=float)[:, None]
        return cls(member * intersection, member * union)


def _mean_iou(table: _Table, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average the IoU for each row of `weights` (R, N): how often each episode counts. Leave out classes not drawn."""
    intersection, union = weights @ table.intersection, weights @ table.union
    drawn = union > 0
    ratio = np.divide(intersection, union, out=np.zeros_like(union), where=drawn)
    classes = drawn.sum(axis=1)
    return np.divide(ratio.sum(axis=1), classes, out=np.full(len(weights), np.nan), where=classes > 0)


def _resampled(domains: Sequence[Sequence[Counts]], seed: int) -> NDArray[np.float64]:
    """Draw (RESAMPLES,) means over domains; the draws depend on the seed and the numbers of episodes alone."""
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for episodes in domains:
        size = len(episodes)
        weights = rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(float)
        total += _mean_iou(_Table.of(episodes), weights) / len(domains)
    return total


def _interval(value: float, draws: NDArray[np.float64]) -> Interval:
    usable = draws[~np.isnan(draws)]
    if not len(usable):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(usable, [2.5, 97.5])
    return Interval(value, float(low), float(high))
