from __future__ import annotations

import random
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.errors import BackendError
from backend.labelstudio.regions import Brush, Region
from backend.store.ledger import ALL_PROJECTS, MAX_BEGUN, Job, Ledger, ReferenceAnnotation, References, Task
from backend.sync.references import Candidate
from tests.support.backend import learned_from, wait_for

VERSION = "cavsam-r1"
REGIONS = (Region("tag", "image", ("cat",), (64, 96), Brush(bytes([1, 2, 3]))),)


def fill(ledger: Ledger, tasks: int = 4) -> None:
    """Project 1 with tasks 1..n; the annotation 9 of task 1 is its reference; the others are queued."""
    ledger.note_project(1, "made on Monday")
    ledger.replace_tasks(1, [Task(1, n, {"image": f"/{n}.png"}, n == 1, "") for n in range(1, tasks + 1)])
    ledger.set_references(1, VERSION, learned_from(ReferenceAnnotation(1, "r1", 9, 1, REGIONS)))
    ledger.queue(1, VERSION, range(2, tasks + 1))


def finish_next(ledger: Ledger, result: str = "[]", score: float = 0.5) -> Job:
    job = ledger.take_next()
    assert job is not None
    ledger.finish(job, result, score, 1.5)
    return job


def test_everything_survives_a_restart(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    first = Ledger(path)
    fill(first)
    done = finish_next(first, '[{"id": "ü"}]', 0.25)
    running = first.take_next()
    assert running is not None
    first.reserve(1, VERSION, [4], "somebody")
    first.close()

    second = Ledger(path)
    assert second.recover(lease=60) == 1
    (project,) = second.projects()
    assert (project.uid, project.version, project.reference_key) == ("made on Monday", VERSION, "r1")
    reference = second.reference(1)
    assert reference is not None
    assert (reference.annotation, reference.task, reference.regions) == (9, 1, REGIONS)
    job = second.job(1, done.task, VERSION)
    assert job is not None
    assert (job.state, job.result, job.score, job.seconds) == ("done", '[{"id": "ü"}]', 0.25, 1.5)
    assert second.counts(1, VERSION) == {"queued": 2, "running": 0, "done": 1, "failed": 0, "delivered": 0}
    again = second.take_next()
    assert again is not None
    assert (again.task, again.attempts) == (running.task, 2)
    assert second.reserve(1, VERSION, [4], "another") == {4}  # the promise ended with the process that made it
    second.close()


def test_a_task_that_ends_the_process_each_time_is_given_up(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    first = Ledger(path)
    fill(first, 3)
    first.close()
    begun: list[int] = []
    while not begun or begun[-1] == begun[0]:
        ledger = Ledger(path)
        ledger.recover(lease=60)
        job = ledger.take_next()  # and there the process is killed
        assert job is not None
        begun.append(job.task)
        ledger.close()
    assert len(begun) == MAX_BEGUN + 1
    ledger = Ledger(path)
    given_up = ledger.job(1, begun[0], VERSION)
    assert given_up is not None
    assert given_up.state == "failed"
    assert "in the middle of this task" in (given_up.error or "")
    ledger.close()


def test_nothing_is_queued_or_computed_twice(ledger: Ledger):
    fill(ledger)
    taken = [finish_next(ledger).task for _ in range(3)]
    assert taken == [2, 3, 4]
    assert ledger.queue(1, VERSION, [2, 3, 4]) == 0
    assert ledger.take_next() is None


def test_urgent_tasks_come_first_and_annotated_last(ledger: Ledger):
    fill(ledger, 6)
    ledger.raise_priority(1, VERSION, [5], 10)
    ledger.queue(1, VERSION, [7], priority=-10)
    ledger.queue(1, VERSION, [1], priority=0)
    assert [finish_next(ledger).task for _ in range(7)] == [5, 1, 2, 3, 4, 6, 7]


def test_a_changed_reference_drops_what_is_not_done_and_keeps_what_is(ledger: Ledger):
    fill(ledger)
    finish_next(ledger)
    ledger.set_references(1, "cavsam-r2", learned_from(ReferenceAnnotation(1, "r2", 10, 2, REGIONS)))
    assert ledger.take_next() is None
    assert ledger.versions() == [VERSION, "cavsam-r2"]
    ledger.set_references(1, VERSION, learned_from(ReferenceAnnotation(1, "r1", 9, 1, REGIONS)))
    ledger.queue(1, VERSION, [2, 3, 4])
    assert [finish_next(ledger).task for _ in range(2)] == [3, 4]


def test_deleted_tasks_take_their_jobs_along(ledger: Ledger):
    fill(ledger)
    assert ledger.replace_tasks(1, [Task(1, 1, {}, True, ""), Task(1, 3, {}, False, "")]) == 2
    assert set(ledger.jobs(1, VERSION)) == {3}
    assert [task.id for task in ledger.tasks(1)] == [1, 3]


def test_another_project_of_the_same_number_starts_empty(ledger: Ledger):
    fill(ledger)
    assert not ledger.note_project(1, "made on Monday")
    assert ledger.note_project(1, "made on Tuesday")
    assert ledger.tasks(1) == []
    assert ledger.reference(1) is None
    assert ledger.take_next() is None


def test_refusals_hold_until_the_annotation_changes(ledger: Ledger):
    fill(ledger)
    ledger.replace_annotations(1, 1, [Candidate(9, 1, "t", "r1")], "")
    ledger.refuse_reference(1, 9, "r1", "its mask is empty")
    assert [c.reason for c in ledger.candidates(1)] == ["its mask is empty"]
    ledger.replace_annotations(1, 1, [Candidate(9, 1, "t", "r1")], "read again")
    assert not ledger.candidates(1)[0].usable
    ledger.replace_annotations(1, 1, [Candidate(9, 1, "t", "other")], "edited")
    assert ledger.candidates(1)[0].usable


def test_a_result_has_one_taker(ledger: Ledger):
    fill(ledger)
    for _ in range(3):
        finish_next(ledger)
    assert ledger.reserve(1, VERSION, [2, 3], "request") == {2, 3}
    assert [job.task for job in ledger.claim_push(1, VERSION, 10)] == [4]
    assert ledger.reserve(1, VERSION, [2, 4], "other request") == set()
    assert ledger.claim_push(1, VERSION, 10) == []
    assert set(ledger.answer(1, VERSION, [2, 3, 4], "request", lease=60)) == {2, 3}
    assert ledger.answer(1, VERSION, [2], "request", lease=60) == {}
    assert set(ledger.answered(1, VERSION)) == {2, 3}
    assert ledger.claim_push(1, VERSION, 10) == []


def test_large_results_are_pushed_in_smaller_batches(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backend.store.ledger.PUSH_BYTES", 5000)
    fill(ledger)
    for seed in range(3):
        finish_next(ledger, random.Random(seed).randbytes(3000).hex())  # hardly compressible
    assert [len(ledger.claim_push(1, VERSION, 50)) for _ in range(4)] == [1, 1, 1, 0]


def test_unfinished_reservations_are_given_back(ledger: Ledger):
    fill(ledger)
    finish_next(ledger)
    ledger.reserve(1, VERSION, [2, 3], "request")
    assert set(ledger.answer(1, VERSION, [2, 3], "request", lease=60)) == {2}  # 3 is not finished
    assert ledger.release("request") == 1
    finish_next(ledger)
    assert [job.task for job in ledger.claim_push(1, VERSION, 10)] == [3]


def test_a_push_cut_short_is_in_doubt_after_a_restart(ledger: Ledger):
    fill(ledger)
    finish_next(ledger)
    ledger.claim_push(1, VERSION, 10)
    ledger.recover(lease=60)
    assert set(ledger.answered(1, VERSION)) == {2}
    assert ledger.claim_push(1, VERSION, 10) == []


def test_only_one_of_many_takers_gets_each_result(ledger: Ledger):
    fill(ledger, 41)
    for _ in range(40):
        finish_next(ledger)
    got: list[int] = []
    barrier = threading.Barrier(6)

    def take(number: int) -> None:
        barrier.wait()
        for _ in range(20):
            if number % 2:
                got.extend(job.task for job in ledger.claim_push(1, VERSION, 3))
            else:
                got.extend(ledger.reserve(1, VERSION, range(2, 42, 5), f"request {number}"))

    threads = [threading.Thread(target=take, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(set(got))
    assert len(got) == 40


def test_what_label_studio_already_has_is_not_computed(ledger: Ledger):
    fill(ledger)
    ledger.mark_delivered(1, VERSION, [2, 3, 4])
    assert ledger.take_next() is None
    ledger.mark_open(1, VERSION, [3])  # deleted there, and we never had the result
    job = ledger.take_next()
    assert job is not None
    assert job.task == 3


def test_failed_jobs_are_tried_again_on_request_only_when_old(ledger: Ledger):
    fill(ledger, 2)
    job = ledger.take_next()
    assert job is not None
    ledger.fail(job, "no image")
    ledger.retry_failed(1, VERSION, [2], older_than=60)
    assert ledger.take_next() is None
    ledger.retry_failed(1, VERSION, [2], older_than=0)
    again = ledger.take_next()
    assert again is not None
    assert again.attempts == 1


def test_a_job_put_back_waits_its_delay(ledger: Ledger):
    fill(ledger, 2)
    job = ledger.take_next()
    assert job is not None
    ledger.put_back(job, error="later", delay=100)
    assert ledger.take_next() is None
    wait = ledger.seconds_to_next()
    assert wait is not None
    assert 90 < wait <= 100


def test_versions_are_superseded_when_the_present_one_is_complete(ledger: Ledger):
    fill(ledger)
    ledger.mark_delivered(1, VERSION, [2, 3, 4])
    assert ledger.superseded(1) == []
    ledger.set_references(1, "cavsam-r2", learned_from(ReferenceAnnotation(1, "r2", 10, 1, REGIONS)))
    assert ledger.superseded(1) == []  # nothing is queued yet
    ledger.queue(1, "cavsam-r2", [2, 3, 4])
    ledger.mark_delivered(1, "cavsam-r2", [2, 3])
    assert ledger.superseded(1) == []
    ledger.mark_delivered(1, "cavsam-r2", [4])
    assert ledger.superseded(1) == [VERSION]
    ledger.forget_version(1, VERSION)
    assert ledger.superseded(1) == []


def test_a_ledger_of_another_release_is_refused(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    with pytest.raises(BackendError, match="another release"):
        Ledger(path)


def test_readers_do_not_wait_behind_a_writer_that_waits_for_another_process(ledger: Ledger, tmp_path: Path):
    fill(ledger)
    order: list[str] = []
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE projects SET version = 'half written'")

        def write() -> None:
            ledger.set_project_error(1, "written")
            order.append("written")

        writer = threading.Thread(target=write)
        writer.start()
        wait_for(lambda: is_held(ledger._lock), "the writer to have its turn, and so to wait for the other process")
        project = ledger.project(1)
        assert project is not None
        assert (project.version, project.error) == (VERSION, None)
        assert len(ledger.jobs(1, VERSION)) == 3
        order.append("read")
        other.execute("ROLLBACK")
        writer.join()
    assert order == ["read", "written"]
    project = ledger.project(1)
    assert project is not None
    assert project.error == "written"  # what is committed is read at once


def is_held(lock: threading.RLock) -> bool:
    """Whether another thread has the lock."""
    free = lock.acquire(blocking=False)
    if free:
        lock.release()
    return not free


def test_a_ledger_of_the_first_schema_is_taken_over(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    first = Ledger(path)
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
            UPDATE meta SET value = '1' WHERE name = 'schema';
            """
        )
    for _ in range(2):  # the second time there is nothing to upgrade
        ledger = Ledger(path)
        assert len(ledger.jobs(1, VERSION)) == 3
        assert ledger.references(1) == learned_from(ReferenceAnnotation(1, "r1", 9, 1, REGIONS))
        assert [task.annotations_read for task in ledger.tasks(1)] == [""] * 4  # they are judged for more than before
        ledger.set_paused(1, True)
        ledger.set_notices(1, "tags", ["one"])
        assert ledger.is_paused(1)
        ledger.close()


def test_a_pause_keeps_jobs_in_the_queue_and_survives_a_restart(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger(path)
    fill(ledger)
    ledger.note_project(2, "made on Tuesday")
    ledger.set_references(2, VERSION, None)
    ledger.queue(2, VERSION, [11])
    running = ledger.take_next()
    assert running is not None
    ledger.set_paused(1, True)
    ledger.close()

    ledger = Ledger(path)
    ledger.finish(running, "[]", 0.5, 1.0)  # what is in work ends as usual
    assert ledger.job(1, running.task, VERSION).state == "done"
    assert (ledger.is_paused(1), ledger.is_paused(2), ledger.is_paused()) == (True, False, False)
    assert ledger.queue_length() == 1
    peeked = ledger.peek_next()
    assert peeked is not None
    assert peeked.project == 2
    ledger.set_paused(ALL_PROJECTS, True)
    ledger.close()

    ledger = Ledger(path)
    assert (ledger.is_paused(1), ledger.is_paused(2), ledger.is_paused()) == (True, True, True)
    assert ledger.take_next() is None
    assert ledger.seconds_to_next() is None
    assert ledger.queue_length() == 0
    ledger.set_paused(ALL_PROJECTS, False)
    assert (ledger.is_paused(1), ledger.is_paused(2)) == (True, False)
    assert finish_next(ledger).task == 11
    assert ledger.take_next() is None
    ledger.set_paused(1, False)
    assert [finish_next(ledger).task for _ in range(2)] == [3, 4]
    ledger.close()


def test_failed_tasks_are_queued_again_all_or_some(ledger: Ledger):
    fill(ledger, 5)
    for _ in range(4):
        ledger.fail(ledger.take_next(), "no picture")
    assert ledger.retry_failed(1, VERSION, [3, 77]) == 1
    assert ledger.retry_failed(1, VERSION, older_than=3600) == 0
    assert ledger.counts(1, VERSION)["queued"] == 1
    assert ledger.retry_failed(1, VERSION) == 3
    assert {job.state for job in ledger.jobs(1, VERSION).values()} == {"queued"}
    assert {job.attempts for job in ledger.jobs(1, VERSION).values()} == {0}


def test_predicting_again_forgets_one_version_and_is_wanted_until_then(tmp_path: Path):
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger(path)
    fill(ledger)
    finish_next(ledger)
    ledger.queue(1, "another", [2])
    ledger.want_again(1)
    ledger.close()
    ledger = Ledger(path)
    assert ledger.wanted_again() == {1}
    ledger.begin_again(1, VERSION)
    assert ledger.jobs(1, VERSION) == {}
    assert set(ledger.jobs(1, "another")) == {2}
    assert ledger.wanted_again() == set()
    ledger.want_again(1)
    ledger.forget_project(1)
    assert ledger.wanted_again() == set()
    ledger.close()


def test_notices_are_replaced_by_topic_and_the_new_ones_are_told(ledger: Ledger):
    assert ledger.set_notices(1, "params", ["unknown policy", "unknown policy"]) == ["unknown policy"]
    ledger.note_project(1, "made on Monday")  # found out before the project was known
    assert ledger.set_notices(1, "tags", ["b", "a"]) == ["b", "a"]
    assert ledger.set_notices(1, "tags", ["a", "c"]) == ["c"]
    assert ledger.set_notices(1, "tags", ["a", "c"]) == []
    ledger.set_notices(2, "tags", ["of another project"])
    assert ledger.notices(1) == {"params": ["unknown policy"], "tags": ["a", "c"]}
    assert ledger.set_notices(1, "params", []) == []
    assert ledger.notices(1) == {"tags": ["a", "c"]}
    ledger.note_project(1, "made on Friday")  # another project under that number
    assert ledger.notices(1) == {}
    assert ledger.notices(2) == {"tags": ["of another project"]}


class TestTaskStates:
    @pytest.fixture
    def filled(self, ledger: Ledger) -> Ledger:
        """Task 1 is the reference's; 2 to 6 have scores 0.9, 0.1, failed, 0.5 and running; 7 to 9 are queued."""
        fill(ledger, 9)
        for score in (0.9, 0.1, None, 0.5):
            job = ledger.take_next()
            if score is None:
                ledger.fail(job, "no picture")
            else:
                ledger.finish(job, "[]", score, 1.5)
        ledger.take_next()
        ledger.mark_delivered(1, VERSION, [3])
        return ledger

    def shown(self, ledger: Ledger, **choice: Any) -> list[int]:
        return [task.task for task in ledger.task_states(1, VERSION, **choice)[0]]

    def test_orders_and_filters(self, filled: Ledger):
        assert self.shown(filled) == list(range(1, 10))
        assert self.shown(filled, order="score")[:3] == [3, 5, 2]
        assert self.shown(filled, order="latest")[-1] == 1
        assert self.shown(filled, show="failed") == [4]
        assert self.shown(filled, show="predicted") == [2, 3, 5]
        assert self.shown(filled, show="low", low=0.5) == [3]
        assert self.shown(filled, show="waiting") == [1, 6, 7, 8, 9]
        assert filled.low_scores(1, VERSION, 0.6) == 2

    def test_each_state_says_what_the_job_says(self, filled: Ledger):
        states = {task.task: task for task in filled.task_states(1, VERSION)[0]}
        jobs = filled.jobs(1, VERSION)
        assert states[1].state is None
        assert set(states) - {1} == set(jobs)
        for number, job in jobs.items():
            state = states[number]
            assert (state.state, state.delivery, state.score) == (job.state, job.delivery, job.score)
            assert (state.seconds, state.error, state.attempts) == (job.seconds, job.error, job.attempts)
            assert state.has_result == (filled.job(1, number, VERSION).result is not None)

    def test_pages_make_up_the_whole(self, filled: Ledger):
        pages = [filled.task_states(1, VERSION, limit=4, offset=offset) for offset in (0, 4, 8, 12)]
        assert [task.task for page, _ in pages for task in page] == self.shown(filled)
        assert {total for _, total in pages} == {9}
        assert pages[-1][0] == []


def test_the_whole_reference_is_kept_and_only_the_present_one(ledger: Ledger):
    fill(ledger)
    both = tuple(
        ReferenceAnnotation(1, f"r{n}", n, n - 7, (replace(REGIONS[0], labels=(f"label {n}",)),)) for n in (9, 10)
    )
    ledger.set_references(1, "cavsam-r3", References("r3", both, 1))
    assert ledger.references(1) == References("r3", both, 1)
    assert References("r3", both).tasks == {2, 3}
    assert ledger.reference(1) == both[0]
    ledger.set_references(1, "cavsam", None)
    assert ledger.references(1) is None


def test_a_version_is_complete_when_all_but_the_references_are_there_or_failed(ledger: Ledger):
    fill(ledger)
    both = tuple(ReferenceAnnotation(1, f"r{n}", n, n, REGIONS) for n in (1, 2))
    ledger.set_references(1, "cavsam-r3", References("r3", both))
    assert not ledger.is_complete(1)
    ledger.queue(1, "cavsam-r3", [3, 4])
    finish_next(ledger)
    failed = ledger.take_next()
    assert failed is not None
    ledger.fail(failed, "no picture")
    assert not ledger.is_complete(1)  # one is done and not there yet
    ledger.mark_delivered(1, "cavsam-r3", [3])
    assert ledger.is_complete(1)
    ledger.replace_tasks(1, [*ledger.tasks(1), Task(1, 5, {}, False, "")])
    assert not ledger.is_complete(1)


def test_what_is_gone_is_reopened_unless_a_request_has_taken_it_up(ledger: Ledger):
    fill(ledger)
    for _ in range(2):
        finish_next(ledger)
    ledger.mark_delivered(1, VERSION, [2, 3, 4])  # 4 was computed by a ledger that is lost
    ledger.mark_open(1, VERSION, [3])
    ledger.reserve(1, VERSION, [3], "request")
    assert set(ledger.answer(1, VERSION, [3], "request", 60)) == {3}
    ledger.reopen(1, VERSION, [2, 3, 4])
    found = {task: (job.state, job.delivery) for task, job in ledger.jobs(1, VERSION).items()}
    assert found == {2: ("done", "open"), 3: ("done", "answered"), 4: ("queued", "open")}
