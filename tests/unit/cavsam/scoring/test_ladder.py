"""Rungs measured on targets made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cavsam.scoring.ladder import Rung, TriedMask, first_enough, rungs


def rung(kind: str, ious: list[float]) -> Rung:
    return Rung(kind, np.array(ious), np.ones(len(ious)))


def test_a_rung_chooses_by_score_among_all_candidates_up_to_it():
    concat, linear = TriedMask("concat", 0.6, 0.5, 1.0), TriedMask("linear", 0.4, 0.9, 0.5)
    full = TriedMask("full", 0.8, 0.7, 20.0)
    found = rungs([[[concat, linear, full]], [[concat, linear]]])
    assert [one.kind for one in found] == ["concat", "linear", "full"]
    assert [one.ious.tolist() for one in found] == [[0.5, 0.5], [0.5, 0.5], [0.7, 0.5]]
    assert [one.seconds.tolist() for one in found] == [[1.0, 1.0], [1.5, 1.5], [21.5, 1.5]]


def test_labels_are_chosen_apart_and_count_alike():
    first = [TriedMask("concat", 0.6, 0.2, 1.0), TriedMask("full", 0.9, 1.0, 4.0)]
    second = [TriedMask("concat", 0.6, 0.8, 1.0), TriedMask("full", 0.1, 0.0, 4.0)]
    found = rungs([[first, second]])
    assert [one.ious.tolist() for one in found] == [[pytest.approx(0.5)], [pytest.approx(0.9)]]
    assert [one.seconds.tolist() for one in found] == [[1.0], [5.0]]


def test_nothing_tried_gives_no_rung():
    assert rungs([]) == []


def test_the_ladder_ends_where_nothing_better_comes():
    flat = [0.5, 0.7, 0.9, 0.6]
    better = [iou + 0.1 for iou in flat]
    assert first_enough([rung("a", flat), rung("b", flat), rung("c", flat)]) == 0
    assert first_enough([rung("a", flat), rung("b", better), rung("c", better)]) == 1
    # a rung that is no better than the next may still be worse than a later one
    assert first_enough([rung("a", flat), rung("b", flat), rung("c", better)]) == 2
    assert first_enough([rung("a", better), rung("b", flat)]) == 0


def test_a_gain_within_its_own_uncertainty_does_not_pay():
    flat = [0.5] * 4
    scattered = [0.9, 0.2, 0.9, 0.2]  # mean +0.05, standard error 0.2
    assert first_enough([rung("a", flat), rung("b", scattered)]) == 0
