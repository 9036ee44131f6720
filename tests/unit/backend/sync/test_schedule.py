from __future__ import annotations

import pytest

from backend.labelstudio.events import Event
from backend.sync.project_sync import Due
from backend.sync.schedule import AWAY_PAUSES, CHANGE_PAUSE, FOLLOW_UP_PAUSES, SYNC_PAUSE, Schedule, is_due, sooner

NOW = 1000.0


def synced(**changes: float) -> Schedule:
    """The schedule of a project whose sync has just ended, with nothing else to do than the next one."""
    schedule = Schedule()
    schedule.was_synced(NOW, NOW, interval=3600.0)
    schedule.push_at = None
    for name, value in changes.items():
        setattr(schedule, name, value)
    return schedule


def test_what_is_due():
    schedule = Schedule(sync_at=1001.0, push_at=1000.0)
    schedule.take(Event(1, "touched", frozenset({7})), 1002.0, 0.0)
    assert sorted(schedule.due_times()) == [1000.0, 1001.0, 1002.0]
    assert [is_due(moment, 1000.0) for moment in (None, 1000.0, 1000.5)] == [False, True, False]
    assert sooner(None, 3.0) == 3.0
    assert sooner(2.0, 3.0) == 2.0


@pytest.mark.parametrize("kind", ["seen", "changed", "train", "again"])
def test_a_project_that_is_not_known_yet_is_synchronised_at_once(kind: str):
    schedule = Schedule()
    schedule.take(Event(1, kind), NOW, 0.0)  # type: ignore[arg-type]
    assert schedule.sync_at == NOW


def test_changes_that_come_together_bring_about_one_sync():
    schedule = synced()
    for now in (NOW, NOW + 0.4, NOW + 0.8):
        schedule.take(Event(1), now, 0.0)
    assert schedule.sync_at == NOW + CHANGE_PAUSE


def test_calls_without_news_bring_about_a_sync_only_now_and_then():
    schedule = synced()
    schedule.take(Event(1, "seen"), NOW + SYNC_PAUSE - 1, 0.0)
    assert schedule.sync_at == NOW + 3600.0
    schedule.take(Event(1, "seen"), NOW + SYNC_PAUSE, 0.0)
    assert schedule.sync_at == NOW + SYNC_PAUSE
    slow = synced(sync_took=60.0)
    slow.take(Event(1, "seen"), NOW + SYNC_PAUSE, 0.0)
    assert slow.sync_at == NOW + 3600.0


def test_a_large_project_is_synchronised_less_often():
    schedule = Schedule()
    schedule.was_synced(NOW - 100.0, NOW, interval=60.0)
    assert schedule.sync_at is not None
    assert schedule.sync_at > NOW + 60.0


def test_results_gather_for_one_push():
    schedule = synced()
    for now in (NOW, NOW + 1):
        schedule.take(Event(1, "finished"), now, 2.0)
    assert schedule.push_at == NOW + 2.0


def test_an_annotation_that_is_not_there_yet_is_waited_for_a_while():
    schedule = synced()
    schedule.take(Event(1, "touched", frozenset({7}), frozenset({70})), NOW, 0.0)
    schedule.take(Event(1, "touched", frozenset({7}), frozenset({71})), NOW, 0.0)
    assert schedule.touched[7].expected == {70, 71}
    schedule.task_was_read(7, frozenset({71}), NOW)
    assert schedule.touched[7].expected == {71}
    assert schedule.touched[7].at == NOW + FOLLOW_UP_PAUSES[0]
    for _ in FOLLOW_UP_PAUSES:
        schedule.task_was_read(7, frozenset({71}), NOW)
    assert schedule.touched == {}


def test_what_a_sync_leaves_is_done_later():
    schedule = synced(at_once=True)
    schedule.plan(Due(sync_in=2.0, choose_in=5.0, confirm=True), NOW)
    assert (schedule.sync_at, schedule.choose_at, schedule.confirm_at) == (NOW + 2.0, NOW + 5.0, NOW)
    assert not schedule.at_once
    schedule.plan(Due(), NOW)
    assert schedule.choose_at is None
    assert schedule.sync_at == NOW + 2.0


def test_failures_in_a_row_put_everything_off_for_longer():
    schedule = synced()
    pauses = []
    for _ in range(len(AWAY_PAUSES) + 2):
        schedule.take(Event(1, "finished"), NOW, 0.0)
        schedule.take(Event(1, "touched", frozenset({7})), NOW, 0.0)
        schedule.put_off(NOW)
        pauses += [moment - NOW for moment in schedule.due_times()]
    assert pauses == [*AWAY_PAUSES, AWAY_PAUSES[-1], AWAY_PAUSES[-1]]
