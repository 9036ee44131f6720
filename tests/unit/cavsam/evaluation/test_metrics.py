"""The metrics against computations of their own, written out in loops."""

import itertools

import numpy as np
import pytest

from cavsam.evaluation.metrics import (
    Counts,
    boundary_f,
    calibration_error,
    count,
    foreground_background_iou,
    interval,
    mean_iou,
    paired_difference,
    score_quality,
)


def random_masks(rng: np.random.Generator, episodes: int):
    for index in range(episodes):
        truth = rng.random((12, 17)) < rng.uniform(0.1, 0.7)
        predicted = truth ^ (rng.random(truth.shape) < rng.uniform(0.0, 0.5))
        yield f"class {index % 3}", predicted, truth


def test_counts_by_looking_at_every_pixel():
    rng = np.random.default_rng(0)
    for name, predicted, truth in random_masks(rng, 5):
        tally = {(p, t): 0 for p in (False, True) for t in (False, True)}
        for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
            tally[p, t] += 1
        wrong = tally[True, False] + tally[False, True]
        assert count(name, predicted, truth) == Counts(
            name, tally[True, True], tally[True, True] + wrong, tally[False, False], tally[False, False] + wrong
        )


def test_counts_refuse_masks_of_different_size():
    with pytest.raises(ValueError, match="differ in size"):
        count("a", np.zeros((4, 4), dtype=bool), np.zeros((4, 5), dtype=bool))


def test_mean_iou_adds_up_per_class_before_dividing():
    masks = list(random_masks(np.random.default_rng(1), 11))
    per_class = []
    for name in ("class 0", "class 1", "class 2"):
        both = np.concatenate([(p & t).ravel() for n, p, t in masks if n == name]).sum()
        either = np.concatenate([(p | t).ravel() for n, p, t in masks if n == name]).sum()
        per_class.append(both / either)
    episodes = [count(*entry) for entry in masks]
    assert mean_iou(episodes) == pytest.approx(np.mean(per_class), abs=1e-12)
    mean_of_ratios = np.mean([episode.iou for episode in episodes])
    assert abs(mean_iou(episodes) - mean_of_ratios) > 1e-4, "the mean of the episodes' IoU is another figure"


def test_with_background_pools_all_classes():
    masks = list(random_masks(np.random.default_rng(2), 8))
    predicted = np.concatenate([p.ravel() for _, p, _ in masks])
    truth = np.concatenate([t.ravel() for _, _, t in masks])
    foreground = (predicted & truth).sum() / (predicted | truth).sum()
    background = (~predicted & ~truth).sum() / (~predicted | ~truth).sum()
    episodes = [count(*entry) for entry in masks]
    assert foreground_background_iou(episodes) == pytest.approx((foreground + background) / 2, abs=1e-12)


def test_both_empty_is_a_match():
    nothing = np.zeros((3, 3), dtype=bool)
    episode = count("a", nothing, nothing)
    assert episode.iou == 1.0
    assert (episode.background_intersection, episode.background_union) == (9, 9)
    assert np.isnan(mean_iou([]))


def slow_bootstrap(domains, resamples, seed):
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        means = []
        for episodes in domains:
            drawn = [episodes[i] for i in rng.integers(len(episodes), size=len(episodes))]
            ratios = []
            for name in {e.class_name for e in drawn}:
                both = sum(e.intersection for e in drawn if e.class_name == name)
                either = sum(e.union for e in drawn if e.class_name == name)
                ratios.append(both / either)
            means.append(np.mean(ratios))
        values.append(np.mean(means))
    return np.percentile(values, [2.5, 97.5])


def test_the_interval_is_that_of_a_bootstrap_in_plain_loops():
    rng = np.random.default_rng(3)
    domains = [[count(*entry) for entry in random_masks(rng, 20)] for _ in range(2)]
    fast = interval(domains)
    low, high = slow_bootstrap(domains, 2000, seed=99)
    assert fast.low < fast.value < fast.high
    spread = high - low
    assert fast.low == pytest.approx(low, abs=0.12 * spread)
    assert fast.high == pytest.approx(high, abs=0.12 * spread)


def shifted(counts: Counts, pixels: int) -> Counts:
    """The same episode with `pixels` more found rightly (what they missed before)."""
    return Counts(
        counts.class_name,
        counts.intersection + pixels,
        counts.union,
        counts.background_intersection,
        counts.background_union - pixels,
    )


def test_a_paired_difference_sees_what_unpaired_intervals_cannot():
    rng = np.random.default_rng(4)
    first = [[count(*entry) for entry in random_masks(rng, 30)]]
    second = [[shifted(counts, 2) for counts in first[0]]]
    difference = paired_difference(first, second)
    assert difference.value == pytest.approx(mean_iou(second[0]) - mean_iou(first[0]), abs=1e-12)
    assert 0 < difference.low <= difference.value <= difference.high
    assert interval(first).high > interval(second).low, "the separate intervals overlap"
    same = paired_difference(first, first)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_paired_difference_refuses_other_episodes():
    first = [[Counts("a", 1, 2, 3, 4)]]
    with pytest.raises(ValueError, match="same episodes"):
        paired_difference(first, [[Counts("b", 1, 2, 3, 4)]])
    with pytest.raises(ValueError):
        paired_difference(first, [])


def test_score_quality_against_all_pairs():
    rng = np.random.default_rng(8)
    ious, absent = rng.random(60), rng.random(60) < 0.2
    ious[absent] = 0
    scores = np.round(ious + rng.normal(0, 0.3, 60), 1)
    quality = score_quality(scores, ious, absent)

    def chance(positive, values):
        pairs = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
        return np.mean(pairs)

    ranks = [
        np.array([(v > values).sum() + ((v == values).sum() + 1) / 2 for v in values]) for values in (scores, ious)
    ]
    assert quality.spearman == pytest.approx(np.corrcoef(ranks[0], ranks[1])[0, 1])
    assert quality.good == pytest.approx(chance(ious > 0.5, scores))
    assert quality.absent == pytest.approx(chance(absent, -scores))
    nothing = score_quality(scores, ious, np.zeros(60, dtype=bool))
    assert np.isnan(nothing.absent)
    assert np.isnan(score_quality(np.ones(60), ious, absent).spearman)


def davis_f(predicted, truth):
    """The F-measure of the DAVIS benchmark, pixel by pixel."""
    height, width = truth.shape

    def boundary(mask):
        return {
            (y, x)
            for y in range(height)
            for x in range(width)
            if any(
                mask[min(y + down, height - 1), min(x + right, width - 1)] != mask[y, x]
                for down, right in ((0, 1), (1, 0), (1, 1))
            )
        }

    def share_near(own, other):
        reach = int(np.ceil(0.008 * (height**2 + width**2) ** 0.5))
        near = [any((y - v) ** 2 + (x - u) ** 2 <= reach**2 for v, u in other) for y, x in own]
        return sum(near) / len(near)

    first, second = boundary(predicted), boundary(truth)
    if not first or not second:
        return float(not first and not second)
    precision, recall = share_near(first, second), share_near(second, first)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("size", [(30, 40), (100, 110)])
def test_the_boundary_measure_is_that_of_davis(size):
    rng = np.random.default_rng(6)
    y, x = np.mgrid[: size[0], : size[1]]
    values = []
    for _ in range(6):
        centres = rng.uniform(0.2, 0.9, (2, 2)) * size  # some reach over the edge of the image
        masks = [np.hypot(y - centre[0], x - centre[1]) < size[0] * 0.3 for centre in centres]
        near = np.roll(masks[0], rng.integers(-3, 4, 2), axis=(0, 1))
        for predicted, truth in ((masks[0], masks[1]), (near, masks[0])):
            values.append(boundary_f(predicted, truth))
            assert values[-1] == pytest.approx(davis_f(predicted, truth), abs=1e-12)
    assert min(values) < 0.5 < max(values)


def test_the_boundary_measure_of_masks_without_a_boundary():
    nothing, everything = np.zeros((9, 9), dtype=bool), np.ones((9, 9), dtype=bool)
    something = nothing.copy()
    something[3:5, 3:5] = True
    for predicted, truth in itertools.product((nothing, everything, something), repeat=2):
        assert boundary_f(predicted, truth) == davis_f(predicted, truth)
    with pytest.raises(ValueError, match="differ in size"):
        boundary_f(nothing, np.zeros((9, 8), dtype=bool))


def test_the_calibration_error_by_hand():
    scores = np.array([0.05, 0.0, 0.55, 0.57, 1.0])
    ious = np.array([0.25, 0.0, 0.35, 0.65, 0.8])
    gaps = [abs(0.05 - 0.25 + 0.0), abs((0.55 - 0.35) + (0.57 - 0.65)), 0.2]
    assert calibration_error(scores, ious) == pytest.approx(sum(gaps) / 5)
    assert np.isnan(calibration_error(np.array([]), np.array([])))
