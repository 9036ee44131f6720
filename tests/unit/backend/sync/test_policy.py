from __future__ import annotations

from typing import Any

import pytest

from backend.entities import JudgedAnnotation
from backend.settings import Settings
from backend.sync.policy import Choice, choose, why_no_reference
from backend.sync.references import examine
from tests.unit.backend.sync.test_references import LABELS, annotation


def candidate(number: int, labels: str = "c", *, task: int | None = None, **changes: Any) -> JudgedAnnotation:
    """Annotation `number`, made in the second of that number, on a task of its own unless another is given."""
    shown = frozenset(("tag", "image", label) for label in labels)
    values: dict[str, Any] = {"key": f"k{number}", "labels": shown}
    return JudgedAnnotation(number, task or 10 + number, f"2026-01-01T00:00:{number:02d}", **(values | changes))


def chosen(candidates: list[JudgedAnnotation], **settings: Any) -> list[int]:
    choice = choose(candidates, Settings(**settings))
    return [c.annotation for c in choice.candidates] if choice else []


def test_first_is_by_time_then_number_and_skips_the_unusable():
    made = [
        annotation(5, created_at="2026-01-01T00:00:00.500000Z"),
        annotation(4, created_at="2026-01-01T00:00:00Z"),  # earlier than the fraction, though "Z" sorts after "."
        annotation(3, created_at="2026-01-01T00:00:00Z", was_cancelled=True),
        annotation(2, created_at="2026-01-01T01:00:00+02:00", parent_prediction=1),
        annotation(6, created_at="2026-01-01T00:00:00Z"),
    ]
    assert chosen([examine(a, LABELS) for a in made]) == [4]
    assert chosen([examine(made[2], LABELS)]) == []
    early = annotation(9, created_at="2026-01-01T01:30:00+02:00")
    late = annotation(8, created_at="2026-01-01T00:00:00Z")
    assert chosen([examine(a, LABELS) for a in (late, early)]) == [9]


FIVE = [candidate(n) for n in (3, 1, 5, 2, 4)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1]),
        ({"reference_policy": "latest-k"}, [3, 4, 5]),
        ({"reference_policy": "latest-k", "reference_shots": 1}, [5]),
        ({"reference_policy": "latest-k", "reference_shots": 9}, [1, 2, 3, 4, 5]),
        ({"reference_policy": "nearest-k"}, [1, 2, 3, 4, 5]),
        ({"reference_policy": "nearest-k", "reference_candidates": 4, "reference_shots": 1}, [2, 3, 4, 5]),
        ({"reference_policy": "pinned"}, []),
        ({"reference_policy": "pinned", "reference_task": 14}, [4]),
        ({"reference_policy": "pinned", "reference_task": 99}, []),
    ],
)
def test_each_policy_takes_its_own(settings: dict[str, Any], expected: list[int]):
    assert chosen(FIVE, **settings) == expected


def test_pinned_takes_those_with_the_star():
    starred = [candidate(1), candidate(2, ground_truth=True), candidate(3, ground_truth=True), candidate(4)]
    assert chosen(starred, reference_policy="pinned") == [2, 3]
    assert chosen(starred, reference_policy="pinned", reference_shots=1) == [2]
    two_of_one_task = [candidate(1, task=7), candidate(2, task=7, ground_truth=True)]
    assert chosen(two_of_one_task, reference_policy="pinned", reference_task=7) == [2]


def test_one_annotation_of_a_task_is_enough():
    """Two people annotated task 7: the later one's counts to the policies that go by what is latest."""
    several = [candidate(1, task=7), candidate(2, task=8), candidate(3, task=7)]
    assert chosen(several, reference_policy="latest-k", reference_shots=3) == [2, 3]
    assert chosen(several, reference_policy="nearest-k") == [2, 3]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 3, 4]),
        ({"reference_policy": "latest-k", "reference_shots": 1}, [1, 3, 5]),
        ({"reference_policy": "pinned", "reference_task": 13}, [3, 4]),
        ({"reference_policy": "nearest-k", "reference_candidates": 2, "reference_shots": 1}, [1, 4, 5]),
    ],
)
def test_a_label_that_is_lacking_comes_from_the_earliest_that_has_it(settings: dict[str, Any], expected: list[int]):
    shows = [candidate(1, "a"), candidate(2, "a"), candidate(3, "ab"), candidate(4, "bc"), candidate(5, "c")]
    assert chosen(shows, **settings) == expected
    unusable = [candidate(1, "a"), candidate(2, "b", reason="it was skipped"), candidate(3, "b")]
    assert chosen(unusable) == [1, 3]


def test_only_nearest_k_picks_per_task_and_only_where_there_is_a_choice():
    few = choose(FIVE[:2], Settings(reference_policy="nearest-k", reference_shots=2))
    many = choose(FIVE, Settings(reference_policy="nearest-k", reference_shots=2))
    latest = choose(FIVE, Settings(reference_policy="latest-k", reference_shots=2))
    assert few is not None
    assert many is not None
    assert latest is not None
    assert (few.shots, many.shots, latest.shots) == (0, 2, 0)


def test_the_key_changes_with_what_is_learned_and_with_nothing_else():
    one, two = candidate(1), candidate(2)
    assert Choice((one,)).key == one.key
    keys = [Choice((one, two)).key, Choice((one, two), 1).key, Choice((one, candidate(3))).key, one.key, two.key]
    assert len(set(keys)) == len(keys)
    assert len(keys[0]) == 8
    assert Choice((candidate(1, "ab"), two)).key == keys[0]


@pytest.mark.parametrize(
    ("candidates", "settings", "words"),
    [
        ([], {}, "No task is annotated yet"),
        ([candidate(1, reason="it was skipped")], {}, "annotation 1 on task 11: it was skipped"),
        ([candidate(1)], {"reference_policy": "pinned"}, "mark one with the star"),
        ([candidate(1)], {"reference_policy": "pinned", "reference_task": 5}, "pinned to task 5"),
    ],
)
def test_says_what_is_waited_for(candidates: list[JudgedAnnotation], settings: dict[str, Any], words: str):
    assert words in why_no_reference(candidates, Settings(**settings))
