from __future__ import annotations

import pytest

from backend.sync.schedule import Agenda, is_due, sooner


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, which stands still until the test moves it."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_changed_reference_is_settled_after_a_time_without_changes(clock: list[float]):
    agenda = Agenda()
    assert not agenda.is_quiet("one", 5.0)
    clock[0] += 4
    assert not agenda.is_quiet("one", 5.0)
    assert not agenda.is_quiet("two", 5.0)  # changed again: the time starts anew
    clock[0] += 4
    assert not agenda.is_quiet("two", 5.0)
    assert agenda.due_times() == [1009.0]
    clock[0] += 1
    assert agenda.is_quiet("two", 5.0)
    assert agenda.is_quiet("three", 0.0)


def test_what_is_due(clock: list[float]):
    agenda = Agenda(look_at=1001.0, push_at=1000.0, touched={7: (frozenset(), 0, 1002.0)})
    assert sorted(agenda.due_times()) == [1000.0, 1001.0, 1002.0]
    assert [is_due(moment) for moment in (None, 1000.0, 1000.5)] == [False, True, False]
    assert sooner(None, 3.0) == 3.0
    assert sooner(2.0, 3.0) == 2.0
