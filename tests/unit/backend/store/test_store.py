from __future__ import annotations

import random
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.entities import (
    ALL_PROJECTS,
    ANNOTATED,
    REQUESTED,
    Job,
    JobTimes,
    JudgedAnnotation,
    ReferenceAnnotation,
    References,
    Refusal,
    Task,
)
from backend.errors import BackendError, LedgerDamaged, LedgerError
from backend.labelstudio.project_keys import SPAN
from backend.labelstudio.regions import Brush, Region
from backend.store.database import DAMAGED_KEPT, ledger_error
from backend.store.jobs import MAX_BEGUN
from backend.store.store import Store
from tests.support.backend import learned_from
from tests.support.store import damage

VERSION = "cavsam-r1"
REGIONS = (Region("tag", "image", ("cat",), (64, 96), Brush(bytes([1, 2, 3]))),)


def fill(store: Store, tasks: int = 4) -> None:
    """Project 1 with tasks 1..n; the annotation 9 of task 1 is its reference; the others are queued."""
    store.projects.add(1, "made on Monday")
    store.tasks(1).replace([Task(1, n, {"image": f"/{n}.png"}, n == 1, "") for n in range(1, tasks + 1)])
    store.annotations(1).set_references(VERSION, learned_from(ReferenceAnnotation(1, "r1", 9, 1, REGIONS)))
    store.jobs(1, VERSION).queue(range(2, tasks + 1))


def finish_next(store: Store, result: str = "[]", score: float = 0.5) -> Job:
    job = store.queue.take_next()
    assert job is not None
    store.queue.finish(job, result, score, 1.5)
    return job


def test_everything_survives_a_restart(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    first = Store(path)
    fill(first)
    done = finish_next(first, '[{"id": "ü"}]', 0.25)
    running = first.queue.take_next()
    assert running is not None
    first.deliveries(1, VERSION).reserve([4], "somebody")
    first.close()

    second = Store(path)
    assert second.recover(lease=60) == 1
    (project,) = second.projects.all()
    assert (project.uid, project.version, project.reference_key) == ("made on Monday", VERSION, "r1")
    assert second.annotations(1).references() == learned_from(ReferenceAnnotation(1, "r1", 9, 1, REGIONS))
    job = second.jobs(1, VERSION).find(done.task)
    assert job is not None
    assert (job.state, job.result, job.score, job.seconds) == ("done", '[{"id": "ü"}]', 0.25, 1.5)
    assert second.jobs(1, VERSION).counts() == {"queued": 2, "running": 0, "done": 1, "failed": 0, "delivered": 0}
    again = second.queue.take_next()
    assert again is not None
    assert (again.task, again.attempts) == (running.task, 2)
    assert second.deliveries(1, VERSION).reserve([4], "another") == {4}  # its promise ended with the process
    second.close()


def test_a_task_that_ends_the_process_each_time_is_given_up(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    first = Store(path)
    fill(first, 3)
    first.close()
    begun: list[int] = []
    while not begun or begun[-1] == begun[0]:
        store = Store(path)
        store.recover(lease=60)
        job = store.queue.take_next()  # and there the process is killed
        assert job is not None
        begun.append(job.task)
        store.close()
    assert len(begun) == MAX_BEGUN + 1
    store = Store(path)
    given_up = store.jobs(1, VERSION).find(begun[0])
    assert given_up is not None
    assert given_up.state == "failed"
    assert "in the middle of this task" in (given_up.error or "")
    store.close()


def test_nothing_is_queued_or_computed_twice(store: Store):
    fill(store)
    taken = [finish_next(store).task for _ in range(3)]
    assert taken == [2, 3, 4]
    assert store.jobs(1, VERSION).queue([2, 3, 4]) == 0
    assert store.queue.take_next() is None


def test_urgent_tasks_come_first_and_annotated_last(store: Store):
    fill(store, 6)
    store.jobs(1, VERSION).raise_priority([5], 10)
    store.jobs(1, VERSION).queue([7], priority=-10)
    store.jobs(1, VERSION).queue([1], priority=0)
    assert [finish_next(store).task for _ in range(7)] == [5, 1, 2, 3, 4, 6, 7]


def test_a_changed_reference_drops_what_is_not_done_and_keeps_what_is(store: Store):
    fill(store)
    finish_next(store)
    store.annotations(1).set_references("cavsam-r2", learned_from(ReferenceAnnotation(1, "r2", 10, 2, REGIONS)))
    assert store.queue.take_next() is None
    assert store.queue.versions() == [VERSION, "cavsam-r2"]
    store.annotations(1).set_references(VERSION, learned_from(ReferenceAnnotation(1, "r1", 9, 1, REGIONS)))
    store.jobs(1, VERSION).queue([2, 3, 4])
    assert [finish_next(store).task for _ in range(2)] == [3, 4]


def test_deleted_tasks_take_their_jobs_along(store: Store):
    fill(store)
    assert store.tasks(1).replace([Task(1, 1, {}, True, ""), Task(1, 3, {}, False, "")]) == 2
    assert set(store.jobs(1, VERSION).all()) == {3}
    assert [task.id for task in store.tasks(1).all()] == [1, 3]


def test_another_project_of_the_same_number_starts_empty(store: Store):
    fill(store)
    assert not store.projects.add(1, "made on Monday")
    assert store.projects.add(1, "made on Tuesday")
    assert store.tasks(1).all() == []
    assert store.annotations(1).references() is None
    assert store.queue.take_next() is None


def test_refusals_hold_until_the_annotation_changes(store: Store):
    fill(store)
    store.annotations(1).replace(1, [JudgedAnnotation(9, 1, "t", "r1")], "")
    store.annotations(1).refuse(Refusal(1, 9, "r1", "its mask is empty"), "base")
    assert [c.reason for c in store.annotations(1).judged()] == ["its mask is empty"]
    store.annotations(1).replace(1, [JudgedAnnotation(9, 1, "t", "r1")], "read again")
    assert not store.annotations(1).judged()[0].usable
    store.annotations(1).replace(1, [JudgedAnnotation(9, 1, "t", "other")], "edited")
    assert store.annotations(1).judged()[0].usable


def test_a_result_has_one_taker(store: Store):
    fill(store)
    for _ in range(3):
        finish_next(store)
    assert store.deliveries(1, VERSION).reserve([2, 3], "request") == {2, 3}
    assert [job.task for job in store.deliveries(1, VERSION).claim(10)] == [4]
    assert store.deliveries(1, VERSION).reserve([2, 4], "other request") == set()
    assert store.deliveries(1, VERSION).claim(10) == []
    assert set(store.deliveries(1, VERSION).answer([2, 3, 4], "request", lease=60)) == {2, 3}
    assert store.deliveries(1, VERSION).answer([2], "request", lease=60) == {}
    assert set(store.deliveries(1, VERSION).answered()) == {2, 3}
    assert store.deliveries(1, VERSION).claim(10) == []


def test_large_results_are_pushed_in_smaller_batches(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backend.store.deliveries.PUSH_BYTES", 5000)
    fill(store)
    for seed in range(3):
        finish_next(store, random.Random(seed).randbytes(3000).hex())  # hardly compressible
    assert [len(store.deliveries(1, VERSION).claim(50)) for _ in range(4)] == [1, 1, 1, 0]


def test_unfinished_reservations_are_given_back(store: Store):
    fill(store)
    finish_next(store)
    store.deliveries(1, VERSION).reserve([2, 3], "request")
    assert set(store.deliveries(1, VERSION).answer([2, 3], "request", lease=60)) == {2}  # 3 is not finished
    assert store.release("request") == 1
    finish_next(store)
    assert [job.task for job in store.deliveries(1, VERSION).claim(10)] == [3]


def test_a_push_cut_short_is_in_doubt_after_a_restart(store: Store):
    fill(store)
    finish_next(store)
    store.deliveries(1, VERSION).claim(10)
    store.recover(lease=60)
    assert set(store.deliveries(1, VERSION).answered()) == {2}
    assert store.deliveries(1, VERSION).claim(10) == []


def test_only_one_of_many_takers_gets_each_result(store: Store):
    fill(store, 41)
    for _ in range(40):
        finish_next(store)
    got: list[int] = []
    barrier = threading.Barrier(6)

    def take(number: int) -> None:
        barrier.wait()
        for _ in range(20):
            if number % 2:
                got.extend(job.task for job in store.deliveries(1, VERSION).claim(3))
            else:
                got.extend(store.deliveries(1, VERSION).reserve(range(2, 42, 5), f"request {number}"))

    threads = [threading.Thread(target=take, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(set(got))
    assert len(got) == 40


def test_what_label_studio_already_has_is_not_computed(store: Store):
    fill(store)
    store.deliveries(1, VERSION).mark_delivered([2, 3, 4])
    assert store.queue.take_next() is None
    store.deliveries(1, VERSION).mark_open([3])  # deleted there, and we never had the result
    job = store.queue.take_next()
    assert job is not None
    assert job.task == 3


def test_failed_jobs_are_tried_again_on_request_only_when_old(store: Store):
    fill(store, 2)
    job = store.queue.take_next()
    assert job is not None
    store.queue.fail(job, "no image")
    store.jobs(1, VERSION).retry_failed([2], older_than=60)
    assert store.queue.take_next() is None
    store.jobs(1, VERSION).retry_failed([2], older_than=0)
    again = store.queue.take_next()
    assert again is not None
    assert again.attempts == 1


def test_a_job_put_back_waits_its_delay(store: Store):
    fill(store, 2)
    job = store.queue.take_next()
    assert job is not None
    store.queue.put_back(job, error="later", delay=100)
    assert store.queue.take_next() is None
    wait = store.queue.seconds_to_next()
    assert wait is not None
    assert 90 < wait <= 100


def test_versions_are_superseded_when_the_present_one_is_complete(store: Store):
    fill(store)
    store.deliveries(1, VERSION).mark_delivered([2, 3, 4])
    assert store.deliveries(1, VERSION).superseded() == []
    store.annotations(1).set_references("cavsam-r2", learned_from(ReferenceAnnotation(1, "r2", 10, 1, REGIONS)))
    assert store.deliveries(1, "cavsam-r2").superseded() == []  # nothing is queued yet
    store.jobs(1, "cavsam-r2").queue([2, 3, 4])
    store.deliveries(1, "cavsam-r2").mark_delivered([2, 3])
    assert store.deliveries(1, "cavsam-r2").superseded() == []
    store.deliveries(1, "cavsam-r2").mark_delivered([4])
    assert store.deliveries(1, "cavsam-r2").superseded() == [VERSION]
    store.jobs(1, VERSION).forget()
    assert store.deliveries(1, "cavsam-r2").superseded() == []


def test_a_ledger_of_another_release_is_refused(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    with pytest.raises(BackendError, match="another release"):
        Store(path)


def test_readers_do_not_wait_behind_a_writer_that_waits_for_another_process(store: Store, tmp_path: Path):
    fill(store)
    order: list[str] = []
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE projects SET version = 'half written'")

        def write() -> None:
            store.projects.set_error(1, "written")
            order.append("written")

        writer = threading.Thread(target=write)
        writer.start()
        project = store.projects.find(1)
        assert project is not None
        assert (project.version, project.error) == (VERSION, None)
        assert len(store.jobs(1, VERSION).all()) == 3  # the writer cannot have had its turn
        order.append("read")
        other.execute("ROLLBACK")
        writer.join()
    assert order == ["read", "written"]
    project = store.projects.find(1)
    assert project is not None
    assert project.error == "written"  # what is committed is read at once


def test_a_ledger_of_the_first_schema_is_taken_over(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    first = Store(path)
    fill(first)
    first.close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            """
            CREATE TABLE reference_annotations (project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
                key TEXT NOT NULL, annotation INTEGER NOT NULL, task INTEGER NOT NULL, regions BLOB NOT NULL,
                PRIMARY KEY (project, key));
            INSERT INTO reference_annotations SELECT project, key, annotation, task, regions FROM learned_from;
            INSERT INTO reference_annotations SELECT project, 'former', 8, 2, regions FROM learned_from;
            DROP TABLE learned_from;
            ALTER TABLE annotations DROP COLUMN labels;
            ALTER TABLE annotations DROP COLUMN ground_truth;
            ALTER TABLE projects DROP COLUMN reference_shots;
            ALTER TABLE projects DROP COLUMN extra_params;
            ALTER TABLE projects DROP COLUMN shown_version;
            ALTER TABLE projects DROP COLUMN paused;
            DROP TABLE notices;
            DROP INDEX jobs_overview;
            ALTER TABLE jobs DROP COLUMN remarks;
            ALTER TABLE jobs DROP COLUMN calibrated;
            ALTER TABLE jobs DROP COLUMN lesson;
            DROP TABLE candidates;
            DROP TABLE reviews;
            DROP TABLE lessons;
            DROP TABLE evaluations;
            UPDATE meta SET value = '1' WHERE name = 'schema';
            """
        )
    for _ in range(2):  # the second time there is nothing to upgrade
        store = Store(path)
        assert [job.remarks for job in store.jobs(1, VERSION).all().values()] == [()] * 3
        assert store.annotations(1).references() == learned_from(ReferenceAnnotation(1, "r1", 9, 1, REGIONS))
        assert [task.annotations_read for task in store.tasks(1).all()] == [""] * 4  # to be judged anew
        store.projects.set_paused(1, True)
        store.projects.set_warnings(1, "tags", ["one"])
        assert store.projects.is_paused(1)
        store.close()


V6 = """
    CREATE TABLE old (id INTEGER PRIMARY KEY, project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE,
        task INTEGER NOT NULL, created_at TEXT NOT NULL, key TEXT NOT NULL, reason TEXT NOT NULL,
        labels TEXT NOT NULL DEFAULT '[]', ground_truth INTEGER NOT NULL DEFAULT 0);
    INSERT INTO old SELECT * FROM annotations; DROP TABLE annotations; ALTER TABLE old RENAME TO annotations;
    CREATE INDEX annotations_of_task ON annotations (project, task);
    CREATE TABLE old (annotation INTEGER NOT NULL, key TEXT NOT NULL, reason TEXT NOT NULL,
        project INTEGER NOT NULL REFERENCES projects ON DELETE CASCADE, PRIMARY KEY (annotation, key));
    INSERT INTO old SELECT * FROM refusals; DROP TABLE refusals; ALTER TABLE old RENAME TO refusals;
    UPDATE meta SET value = '6' WHERE name = 'schema';
"""


def test_a_ledger_of_the_sixth_schema_is_taken_over_in_the_middle_of_its_jobs(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    sixth = Store(path)
    fill(sixth, 6)
    judged = JudgedAnnotation(9, 1, "2026-01-01", "r1", labels=frozenset({("tag", "image", "cat")}), ground_truth=True)
    sixth.annotations(1).replace(1, [judged], "read")
    sixth.annotations(1).replace(2, [JudgedAnnotation(10, 2, "2026-01-02", "r2")], "read")
    sixth.annotations(1).refuse(Refusal(1, 10, "r2", "its mask is empty"), VERSION)
    sixth.projects.set_grant(1, "http://first.example", "a token")
    for _ in range(2):
        finish_next(sixth)
    assert [job.task for job in sixth.deliveries(1, VERSION).claim(1)] == [2]
    running = sixth.queue.take_next()
    assert running is not None
    before = sixth.annotations(1).judged(), sixth.annotations(1).references(), sixth.jobs(1, VERSION).all()
    sixth.close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(V6)
    store = Store(path)
    assert (store.annotations(1).judged(), store.annotations(1).references(), store.jobs(1, VERSION).all()) == before
    assert store.projects.grants() == {1: ("http://first.example", "a token")}
    store.recover(lease=60.0)
    states = {task: (job.state, job.delivery) for task, job in store.jobs(1, VERSION).all().items()}
    assert states[2] == ("done", "answered")
    assert states[3] == ("done", "open")
    assert states[running.task] == ("queued", "open")
    store.annotations(1).replace(1, [judged], "read again")
    store.projects.forget(1)  # what belongs to it goes with it, as before
    assert store.annotations(1).judged() == []
    store.close()


def test_two_label_studios_may_have_annotations_of_one_number(store: Store):
    first, second = 1, 1 + SPAN
    for project, reason in ((first, ""), (second, "a skip")):
        store.projects.add(project, f"made {project}")
        store.annotations(project).replace(4, [JudgedAnnotation(9, 4, "2026-01-01", "r1", reason)], "")
    store.annotations(second).refuse(Refusal(second, 9, "r1", "empty"), VERSION)
    assert [one.reason for one in store.annotations(first).judged()] == [""]
    assert [one.reason for one in store.annotations(second).judged()] == ["a skip"]
    assert store.projects.of_number(1) == {first: f"made {first}", second: f"made {second}"}
    store.projects.forget(second)
    assert len(store.annotations(first).judged()) == 1


def test_a_pause_keeps_jobs_in_the_queue_and_survives_a_restart(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    store = Store(path)
    fill(store)
    store.projects.add(2, "made on Tuesday")
    store.annotations(2).set_references(VERSION, None)
    store.jobs(2, VERSION).queue([11])
    running = store.queue.take_next()
    assert running is not None
    store.projects.set_paused(1, True)
    store.close()

    store = Store(path)
    store.queue.finish(running, "[]", 0.5, 1.0)  # what is in work ends as usual
    assert store.jobs(1, VERSION).find(running.task).state == "done"
    assert (store.projects.is_paused(1), store.projects.is_paused(2), store.projects.is_paused()) == (
        True,
        False,
        False,
    )
    assert store.queue.length() == 1
    peeked = store.queue.peek_next()
    assert peeked is not None
    assert peeked.project == 2
    store.projects.set_paused(ALL_PROJECTS, True)
    store.close()

    store = Store(path)
    assert (store.projects.is_paused(1), store.projects.is_paused(2), store.projects.is_paused()) == (True, True, True)
    assert store.queue.take_next() is None
    assert store.queue.seconds_to_next() is None
    assert store.queue.length() == 0
    store.projects.set_paused(ALL_PROJECTS, False)
    assert (store.projects.is_paused(1), store.projects.is_paused(2)) == (True, False)
    assert finish_next(store).task == 11
    assert store.queue.take_next() is None
    store.projects.set_paused(1, False)
    assert [finish_next(store).task for _ in range(2)] == [3, 4]
    store.close()


def test_failed_tasks_are_queued_again_all_or_some(store: Store):
    fill(store, 5)
    for _ in range(4):
        store.queue.fail(store.queue.take_next(), "no picture")
    assert store.jobs(1, VERSION).retry_failed([3, 77]) == 1
    assert store.jobs(1, VERSION).retry_failed(older_than=3600) == 0
    assert store.jobs(1, VERSION).counts()["queued"] == 1
    assert store.jobs(1, VERSION).retry_failed() == 3
    assert {job.state for job in store.jobs(1, VERSION).all().values()} == {"queued"}
    assert {job.attempts for job in store.jobs(1, VERSION).all().values()} == {0}


def test_predicting_again_forgets_one_version_and_is_wanted_until_then(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    store = Store(path)
    fill(store)
    finish_next(store)
    store.jobs(1, "another").queue([2])
    store.projects.want_again(1)
    store.close()
    store = Store(path)
    assert store.projects.wanted_again() == {1}
    store.jobs(1, VERSION).begin_again()
    assert store.jobs(1, VERSION).all() == {}
    assert set(store.jobs(1, "another").all()) == {2}
    assert store.projects.wanted_again() == set()
    store.projects.want_again(1)
    store.projects.forget(1)
    assert store.projects.wanted_again() == set()
    store.close()


def test_notices_are_replaced_by_topic_and_the_new_ones_are_told(store: Store):
    assert store.projects.set_warnings(1, "params", ["unknown policy", "unknown policy"]) == ["unknown policy"]
    store.projects.add(1, "made on Monday")  # found out before the project was known
    assert store.projects.set_warnings(1, "tags", ["b", "a"]) == ["b", "a"]
    assert store.projects.set_warnings(1, "tags", ["a", "c"]) == ["c"]
    assert store.projects.set_warnings(1, "tags", ["a", "c"]) == []
    store.projects.set_warnings(2, "tags", ["of another project"])
    assert store.projects.warnings(1) == {"params": ["unknown policy"], "tags": ["a", "c"]}
    assert store.projects.set_warnings(1, "params", []) == []
    assert store.projects.warnings(1) == {"tags": ["a", "c"]}
    store.projects.add(1, "made on Friday")  # another project under that number
    assert store.projects.warnings(1) == {}
    assert store.projects.warnings(2) == {"tags": ["of another project"]}


class TestTaskStates:
    @pytest.fixture
    def filled(self, store: Store) -> Store:
        """Task 1 is the reference's; 2 to 6 have scores 0.9, 0.1, failed, 0.5 and running; 7 to 9 are queued."""
        fill(store, 9)
        for score in (0.9, 0.1, None, 0.5):
            job = store.queue.take_next()
            if score is None:
                store.queue.fail(job, "no picture")
            else:
                store.queue.finish(job, "[]", score, 1.5)
        store.queue.take_next()
        store.deliveries(1, VERSION).mark_delivered([3])
        return store

    def shown(self, store: Store, **choice: Any) -> list[int]:
        return [task.task for task in store.jobs(1, VERSION).task_states(**choice)[0]]

    def test_orders_and_filters(self, filled: Store):
        assert self.shown(filled) == list(range(1, 10))
        assert self.shown(filled, order="score")[:3] == [3, 5, 2]
        assert self.shown(filled, order="latest")[-1] == 1
        assert self.shown(filled, show="failed") == [4]
        assert self.shown(filled, show="predicted") == [2, 3, 5]
        assert self.shown(filled, show="low", low=0.5) == [3]
        assert self.shown(filled, show="waiting") == [1, 6, 7, 8, 9]
        assert filled.jobs(1, VERSION).to_check(0.6) == 2

    def test_a_remark_sends_a_good_score_to_review_and_leaves_with_a_new_result(self, filled: Store):
        jobs = filled.jobs(1, VERSION)
        good, remarks = jobs.find(2), ("'dog' was not found.", "'ä' too.")
        filled.queue.finish(good, "[]", 0.9, 1.5, remarks)
        assert jobs.find(2).remarks == remarks
        assert self.shown(filled, show="low", low=0.5) == [2, 3]
        assert jobs.to_check(0.5) == 2
        (shown,) = [task for task in jobs.task_states()[0] if task.task == 2]
        assert shown.remarks == remarks
        filled.queue.finish(good, "[]", 0.9, 1.5)
        assert jobs.find(2).remarks == ()
        assert self.shown(filled, show="low", low=0.5) == [3]

    def test_of_bare_orders_the_lowest_tenth_is_low_however_high(self, store: Store):
        fill(store, 22)
        for number in range(20):
            store.queue.finish(store.queue.take_next(), "[]", 0.9 + number / 1000, 1.5, calibrated=False)
        store.queue.finish(store.queue.take_next(), "[]", 0.6, 1.5, calibrated=True)
        jobs = store.jobs(1, VERSION)
        assert self.shown(store, show="low", low=0.5) == [2, 3]
        assert self.shown(store, show="low", low=0.7) == [2, 3, 22]
        assert (jobs.to_check(0.5), jobs.to_check(0.0)) == (2, 0)
        low = jobs.low_scores(0.5)
        assert [t.task for t in jobs.task_states()[0] if low.hold(t.score, calibrated=t.calibrated)] == [2, 3]
        assert jobs.is_in_lowest_tenth(0.9005)
        assert not jobs.is_in_lowest_tenth(0.9015)

    def test_equal_or_few_bare_orders_are_not_low(self, store: Store):
        fill(store, 32)
        jobs = store.jobs(1, VERSION)
        for count in range(30):
            job = store.queue.take_next()
            assert jobs.is_in_lowest_tenth(0.1) == (count >= 9)
            assert not jobs.is_in_lowest_tenth(0.2)
            store.queue.finish(job, "[]", 0.2, 1.5, calibrated=False)
        assert jobs.to_check(0.5) == 0

    def test_each_state_says_what_the_job_says(self, filled: Store):
        states = {task.task: task for task in filled.jobs(1, VERSION).task_states()[0]}
        jobs = filled.jobs(1, VERSION).all()
        assert states[1].state is None
        assert set(states) - {1} == set(jobs)
        for number, job in jobs.items():
            state = states[number]
            assert (state.state, state.delivery, state.score) == (job.state, job.delivery, job.score)
            assert (state.seconds, state.error, state.attempts) == (job.seconds, job.error, job.attempts)
            assert state.has_result == (filled.jobs(1, VERSION).find(number).result is not None)

    def test_pages_make_up_the_whole(self, filled: Store):
        pages = [filled.jobs(1, VERSION).task_states(limit=4, offset=offset) for offset in (0, 4, 8, 12)]
        assert [task.task for page, _ in pages for task in page] == self.shown(filled)
        assert {total for _, total in pages} == {9}
        assert pages[-1][0] == []


def test_the_whole_reference_is_kept_and_only_the_present_one(store: Store):
    fill(store)
    both = tuple(
        ReferenceAnnotation(1, f"r{n}", n, n - 7, (replace(REGIONS[0], labels=(f"label {n}",)),)) for n in (9, 10)
    )
    store.annotations(1).set_references("cavsam-r3", References("r3", both, 1))
    assert store.annotations(1).references() == References("r3", both, 1)
    assert References("r3", both).tasks == {2, 3}
    assert store.annotations(1).references() == References("r3", both, 1)
    store.annotations(1).set_references("cavsam", None)
    assert store.annotations(1).references() is None


def test_a_version_is_complete_when_all_but_the_references_are_there_or_failed(store: Store):
    fill(store)
    both = tuple(ReferenceAnnotation(1, f"r{n}", n, n, REGIONS) for n in (1, 2))
    store.annotations(1).set_references("cavsam-r3", References("r3", both))
    assert not store.deliveries(1, "cavsam-r3").are_complete()
    store.jobs(1, "cavsam-r3").queue([3, 4])
    finish_next(store)
    failed = store.queue.take_next()
    assert failed is not None
    store.queue.fail(failed, "no picture")
    assert not store.deliveries(1, "cavsam-r3").are_complete()  # one is done and not there yet
    store.deliveries(1, "cavsam-r3").mark_delivered([3])
    assert store.deliveries(1, "cavsam-r3").are_complete()
    store.tasks(1).replace([*store.tasks(1).all(), Task(1, 5, {}, False, "")])
    assert not store.deliveries(1, "cavsam-r3").are_complete()


def test_what_is_gone_is_reopened_unless_a_request_has_taken_it_up(store: Store):
    fill(store)
    for _ in range(2):
        finish_next(store)
    store.deliveries(1, VERSION).mark_delivered([2, 3, 4])  # 4 was computed by a ledger that is lost
    store.deliveries(1, VERSION).mark_open([3])
    store.deliveries(1, VERSION).reserve([3], "request")
    assert set(store.deliveries(1, VERSION).answer([3], "request", 60)) == {3}
    store.deliveries(1, VERSION).reopen([2, 3, 4])
    found = {task: (job.state, job.delivery) for task, job in store.jobs(1, VERSION).all().items()}
    assert found == {2: ("done", "open"), 3: ("done", "answered"), 4: ("queued", "open")}


def test_a_damaged_file_is_kept_and_an_empty_one_takes_its_place(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    content = bytes(range(256)) * 64
    path.write_bytes(content)
    with closing(Store(path)) as store:
        assert store.projects.all() == []
        kept = store.damaged_file
        assert kept is not None
        assert (tmp_path / kept).read_bytes() == content
        assert (path.stat().st_mode & 0o777, (tmp_path / kept).exists()) == (0o600, True)
    with closing(Store(path)) as again:
        assert again.damaged_file == kept  # until its projects were looked for
        again.mark_rebuilt()
        assert again.damaged_file is None
    assert len(list(tmp_path.glob("ledger-damaged-*"))) == 1


@pytest.mark.parametrize("page", [2, 5, 9])
def test_damage_inside_a_file_is_found_when_it_is_opened(tmp_path: Path, page: int):
    path = tmp_path / "ledger.sqlite3"
    with closing(Store(path)) as store:
        fill(store, 200)
    content = bytearray(path.read_bytes())
    content[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    with closing(Store(path)) as store:
        assert store.damaged_file
        assert store.projects.all() == []


def test_a_file_that_does_not_say_which_release_wrote_it_counts_as_damaged(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    Store(path).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("DELETE FROM meta")
        other.commit()
    with closing(Store(path)) as store:
        assert store.damaged_file


def test_a_file_that_is_damaged_while_it_is_used_costs_one_call(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    with closing(Store(path)) as store:
        for number in range(1, 200):
            store.projects.add(number, "x" * 500)
        damage(path)
        with pytest.raises(LedgerDamaged):
            store.projects.all()
        assert store.trouble
        assert store.generation == 1
        assert store.projects.all() == []
        store.projects.add(1, "y")
        assert not store.trouble
        assert [project.id for project in store.projects.all()] == [1]
        assert store.damaged_file


def test_a_locked_file_is_not_taken_for_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backend.store.database.LOCK_PATIENCE", 0.05)
    path = tmp_path / "ledger.sqlite3"
    with closing(Store(path)) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="free the file"):
            store.projects.add(1, "x")
        assert store.generation == 0
        other.execute("ROLLBACK")
        store.projects.add(1, "x")
        assert not store.trouble


@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        (sqlite3.SQLITE_FULL, "make room", LedgerError),
        (sqlite3.SQLITE_IOERR | 1 << 8, "disk of CAVSAM_DATA_DIR", LedgerError),
        (sqlite3.SQLITE_CORRUPT, "moved aside", LedgerDamaged),
        (sqlite3.SQLITE_NOTADB, "moved aside", LedgerDamaged),
    ],
)
def test_what_an_error_of_the_file_means(code: int, words: str, kind: type[LedgerError]):
    error = sqlite3.DatabaseError("of some kind")
    error.sqlite_errorcode = code
    found = ledger_error(error)
    assert type(found) is kind
    assert words in str(found)


def test_only_the_last_damaged_files_are_kept(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    for second in range(DAMAGED_KEPT + 2):
        path.write_bytes(bytes(range(256)) * 64)
        Store(path, now=partial(float, 1e9 + second)).close()
    assert len(list(tmp_path.glob("ledger-damaged-*"))) == DAMAGED_KEPT


def queue_in(store: Store, project: int, tasks: range) -> None:
    store.projects.add(project, f"{project}")
    store.tasks(project).replace([Task(project, n, {}, False, "") for n in tasks])
    store.annotations(project).set_references(VERSION, learned_from(ReferenceAnnotation(project, "r1", 9, 1, REGIONS)))
    store.jobs(project, VERSION).queue(tasks)


def take(store: Store, count: int) -> list[tuple[int, int]]:
    """Project and task of the next jobs; each is announced before it is taken."""
    taken = []
    for _ in range(count):
        peeked, job = store.queue.peek_next(), store.queue.take_next()
        assert (peeked.project, peeked.task) == (job.project, job.task)
        taken.append((job.project, job.task))
    return taken


def test_projects_take_turns_and_what_a_person_opens_comes_before_all(store: Store):
    queue_in(store, 1, range(1, 101))
    assert take(store, 2) == [(1, 1), (1, 2)]
    queue_in(store, 2, range(201, 204))
    queue_in(store, 3, range(301, 303))
    assert take(store, 6) == [(2, 201), (3, 301), (1, 3), (2, 202), (3, 302), (1, 4)]
    store.jobs(1, VERSION).raise_priority([90, 91], REQUESTED)
    store.jobs(2, VERSION).raise_priority([203], REQUESTED)
    assert take(store, 4) == [(2, 203), (1, 90), (1, 91), (1, 5)]


def test_what_is_annotated_waits_for_the_rest_of_its_own_project_only(store: Store):
    queue_in(store, 1, range(1, 4))
    queue_in(store, 2, range(11, 12))
    store.tasks(2).replace([Task(2, n, {}, n == 12, "") for n in (11, 12)])
    store.jobs(2, VERSION).queue([12], priority=ANNOTATED)
    assert take(store, 5) == [(1, 1), (2, 11), (1, 2), (2, 12), (1, 3)]


def test_a_paused_project_has_no_turn(store: Store):
    queue_in(store, 1, range(1, 4))
    queue_in(store, 2, range(11, 14))
    store.projects.set_paused(1, True)
    assert take(store, 2) == [(2, 11), (2, 12)]
    store.projects.set_paused(1, False)
    assert take(store, 2) == [(1, 1), (2, 13)]
    store.projects.set_paused(ALL_PROJECTS, True)
    assert store.queue.take_next() is None


def test_tasks_without_a_job_are_found_under_each_version(store: Store):
    store.projects.add(1, "x")
    store.tasks(1).replace([Task(1, n, {}, n == 3, "") for n in (1, 2, 3)])
    store.jobs(1, VERSION).queue([2])
    assert store.tasks(1).without_job(VERSION) == {1: False, 3: True}
    assert store.tasks(1).without_job("another") == {1: False, 2: False, 3: True}


def test_listing_the_same_tasks_again_changes_no_row(store: Store):
    tasks = [Task(1, n, {"image": f"{n}.png"}, False, "") for n in range(1, 50)]
    store.projects.add(1, "x")
    store.tasks(1).replace(tasks)
    store.annotations(1).clear({7: "read"})
    assert store.tasks(1).replace([*tasks[:-1], replace(tasks[-1], annotated=True)]) == 0
    assert store.tasks(1).annotations_read()[7] == "read"
    assert [task.id for task in store.tasks(1).all() if task.annotated] == [49]


class TestJobTimes:
    def test_none_before_the_first_is_finished(self, store: Store):
        fill(store, 4)
        assert store.jobs(1, VERSION).times() is None

    def test_mean_and_deviation_are_those_of_another_library(self, store: Store):
        fill(store, 6)
        seconds = [0.2, 25.0, 0.3, 0.25, 21.5]
        for one in seconds:
            store.queue.finish(store.queue.take_next(), "[]", 0.5, one)
        times = store.jobs(1, VERSION).times()
        assert (times.count, times.mean) == (5, pytest.approx(np.mean(seconds)))
        assert times.deviation == pytest.approx(np.std(seconds))
        assert times.left(3) == pytest.approx(3 * np.mean(seconds))

    def test_equal_tasks_leave_no_doubt(self):
        assert JobTimes(9, 2.0, 0.0).at_most(10) == JobTimes(9, 2.0, 0.0).left(10) == 20

    @pytest.mark.parametrize("seed", range(3))
    def test_what_is_left_hardly_exceeds_the_bound_where_some_cost_a_hundred_times_others(self, seed: int):
        generator = np.random.default_rng(seed)
        exceeded = 0
        for _ in range(400):
            seconds = np.where(generator.random(120) < 0.3, 25.0, 0.25)
            seen, coming = seconds[:20], seconds[20:]
            times = JobTimes(20, float(seen.mean()), float(seen.std()))
            exceeded += coming.sum() > times.at_most(100)
        assert exceeded < 0.08 * 400
