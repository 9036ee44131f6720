"""The whole backend, with a model process of its own, against a peer on a real socket."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from flask import Flask, request
from werkzeug.serving import make_server

from backend.entities import Job
from backend.errors import DataFolderBusy
from backend.labelstudio.brush import decode_mask
from backend.service import Service
from backend.settings import Settings
from backend.sync.delivery import Delivery
from backend.version import base_version
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import CONFIG, FakeLabelStudio, brush, picture, png
from tests.support.store import damage
from tests.support.threshold import DEADLY, DEADLY_ONCE

StartBackend = Callable[..., RunningBackend]
CAT_BOX = (8, 30, 20, 50)
SLOW = "tests.support.threshold:open_slow"


def target_box(number: int) -> tuple[int, int, int, int]:
    return (5, 20 + number, 10, 40 + number)


@pytest.fixture
def project(label_studio: FakeLabelStudio) -> int:
    """A project of five tasks with a cat each, none annotated."""
    number = label_studio.add_project()
    label_studio.add_task(number, picture(CAT_BOX))
    for index in range(1, 5):
        label_studio.add_task(number, picture(target_box(index)))
    return number


def annotate_first(label_studio: FakeLabelStudio, project: int) -> int:
    return label_studio.annotate(label_studio.tasks_of(project)[0], [brush(CAT_BOX, "cat")])


def predicted(label_studio: FakeLabelStudio, project: int) -> list[int]:
    return [t for t in label_studio.tasks_of(project) if label_studio.versions_of(t)]


def is_exact(label_studio: FakeLabelStudio, task: int, box: tuple[int, int, int, int]) -> bool:
    (region,) = label_studio.regions_of(task)
    expected = np.zeros((64, 96), bool)
    expected[box[0] : box[1], box[2] : box[3]] = True
    mask = decode_mask(region["value"]["rle"], region["original_height"], region["original_width"])
    return bool((mask == expected).all())


def once_each(label_studio: FakeLabelStudio, project: int) -> bool:
    """Whether every task but the first holds exactly one prediction of the present version."""
    version = label_studio.setup(project)["model_version"]
    first, *others = label_studio.tasks_of(project)
    return label_studio.versions_of(first) == [] and all(
        label_studio.versions_of(task).count(version) == 1 for task in others
    )


def wait_until_all_predicted(label_studio: FakeLabelStudio, project: int) -> None:
    _, *others = label_studio.tasks_of(project)
    wait_for(lambda: predicted(label_studio, project) == others, "predictions on all tasks")


def test_one_annotation_fills_the_project(label_studio: FakeLabelStudio, project: int, start_backend: StartBackend):
    backend = start_backend()
    answer = label_studio.connect(project, backend.url)
    base = answer["model_version"]
    assert base.startswith("cavsam-")
    assert "-nano-auto-" in base
    annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)
    version = label_studio.setup(project)["model_version"]
    assert version.startswith(base + "-r")
    first, *others = label_studio.tasks_of(project)
    assert label_studio.versions_of(first) == []  # the reference is not predicted from itself
    for index, task in enumerate(others, 1):
        assert label_studio.versions_of(task) == [version]
        assert is_exact(label_studio, task, target_box(index))
    assert requests.get(f"{backend.url}/versions", timeout=5).json() == {"versions": [version]}


def test_finds_the_annotation_that_was_there_before(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    annotate_first(label_studio, project)
    backend = start_backend()
    label_studio.connect(project, backend.url)
    wait_until_all_predicted(label_studio, project)


def test_finds_an_annotation_whose_event_was_lost(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    backend = start_backend(sync_interval=1.0)
    label_studio.connect(project, backend.url)
    url = label_studio.connected.pop(project)  # no webhook
    annotate_first(label_studio, project)
    label_studio.connected[project] = url
    wait_until_all_predicted(label_studio, project)


def test_a_missing_webhook_is_registered_once_and_one_that_cannot_be_is_told(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend, caplog: pytest.LogCaptureFixture
):
    backend = start_backend()
    label_studio.connect(project, backend.url)
    annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)
    assert [hook["url"] for hook in label_studio.webhooks] == [f"{backend.url}/webhook"]
    label_studio.add_task(project, picture(CAT_BOX))
    backend.service.coordinator.sync_all()
    wait_until_all_predicted(label_studio, project)
    assert len(label_studio.webhooks) == 1

    other = label_studio.add_project()
    for _ in range(2):
        label_studio.add_task(other, picture(CAT_BOX))
    label_studio.setup(other, backend.url)
    label_studio.annotate(label_studio.tasks_of(other)[0], [brush(CAT_BOX, "cat")])
    label_studio.connected[other] = "http://ml-backend:9090"  # as Label Studio knows it
    backend.service.coordinator.sync_all()
    wait_until_all_predicted(label_studio, other)
    assert len(label_studio.webhooks) == 1
    assert "Enter a valid URL" in caplog.text


def test_new_tasks_follow(label_studio: FakeLabelStudio, project: int, start_backend: StartBackend):
    backend = start_backend()
    label_studio.connect(project, backend.url)
    annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)
    task = label_studio.add_task(project, picture((1, 9, 1, 9)))
    event: dict[str, Any] = {
        "action": "TASKS_CREATED",
        "project": label_studio.projects[project],
        "tasks": [{"id": task}],
    }
    requests.post(f"{backend.url}/webhook", json=event, timeout=5)
    wait_until_all_predicted(label_studio, project)
    assert is_exact(label_studio, task, (1, 9, 1, 9))
    assert once_each(label_studio, project)


def test_skipped_and_accepted_annotations_are_passed_over(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    backend = start_backend()
    label_studio.connect(project, backend.url)
    first, second, third, *_ = label_studio.tasks_of(project)
    label_studio.annotate(first, [], was_cancelled=True)
    label_studio.annotate(second, [brush((1, 5, 1, 5), "cat")], parent_prediction=1)
    label_studio.annotate(third, [brush((0, 0, 0, 0), "cat")])  # nothing drawn, which only the model process can see
    wanted = label_studio.annotate(second, [brush(target_box(1), "cat")])
    wait_for(lambda: len(predicted(label_studio, project)) == 4, "predictions on all other tasks")
    references = backend.service.store.annotations(project).references()
    assert references is not None
    assert references.annotations[0].annotation == wanted
    assert predicted(label_studio, project) == [t for t in label_studio.tasks_of(project) if t != second]


def test_an_edited_reference_makes_a_new_version_and_a_deleted_one_falls_back(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    backend = start_backend()
    label_studio.connect(project, backend.url)
    annotation = annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)
    old = label_studio.setup(project)["model_version"]
    label_studio.update_annotation(annotation, [brush(CAT_BOX, "dog")])
    wait_for(lambda: label_studio.setup(project)["model_version"] != old, "a new version")
    wait_for(lambda: once_each(label_studio, project), "predictions of the new version")
    new = label_studio.setup(project)["model_version"]
    others = label_studio.tasks_of(project)[1:]
    assert all(sorted(label_studio.versions_of(t)) == sorted([old, new]) for t in others)

    second = label_studio.annotate(others[0], [brush(target_box(1), "dog")])
    label_studio.delete_annotation(annotation)
    wait_for(lambda: label_studio.setup(project)["model_version"] not in (old, new), "the next reference")
    references = backend.service.store.annotations(project).references()
    assert references is not None
    assert references.annotations[0].annotation == second
    label_studio.delete_annotation(second)
    base = backend.service.base_version
    wait_for(lambda: label_studio.setup(project)["model_version"] == base, "no reference any more")


def test_earlier_predictions_are_removed_only_when_all_tasks_have_new_ones(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    backend = start_backend(old_predictions="remove")
    label_studio.connect(project, backend.url)
    annotation = annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)
    foreign = label_studio.store(label_studio.tasks_of(project)[1], [], 0.5, "someone else's")
    held = {number: p["task"] for number, p in label_studio.predictions.items()}
    label_studio.update_annotation(annotation, [brush(CAT_BOX, "dog")])
    wait_for(lambda: not (set(held) - {foreign}) & set(label_studio.predictions), "the old ones to be gone")
    assert once_each(label_studio, project)
    assert foreign in label_studio.predictions
    assert len(label_studio.predictions) == 5


def test_a_restart_goes_on_where_it_stopped(
    label_studio: FakeLabelStudio,
    project: int,
    make_settings: Callable[..., Settings],
    start_backend: StartBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("ADAPTED_LOG", str(tmp_path / "adapted"))
    annotate_first(label_studio, project)
    # before: it hardly pushes and cannot be asked, so finished work waits in the ledger
    label_studio.connected[project] = "http://127.0.0.1:9"
    before = Service(make_settings(push_interval=60.0), segmenter="tests.support.threshold:open_logged")
    before.start()
    before.setup(project, label_studio.url, "")
    wait_for(lambda: before.store.jobs(project, before.version_of(project)).counts()["done"] >= 2, "two finished tasks")
    version = before.version_of(project)
    before.stop()

    backend = start_backend()
    assert backend.service.version_of(project) == version
    label_studio.connected[project] = backend.url
    wait_until_all_predicted(label_studio, project)
    assert once_each(label_studio, project)
    finished = backend.service.store.jobs(project, version).all()
    assert sum(job.attempts for job in finished.values()) == 4  # each was computed once


def test_predictions_that_label_studio_has_are_not_computed_again(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend, tmp_path: Path
):
    first = start_backend(data_dir=tmp_path / "one")
    label_studio.connect(project, first.url)
    annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)
    first.service.stop()
    second = start_backend(data_dir=tmp_path / "two")  # the ledger was lost
    label_studio.connect(project, second.url)
    store, version_of = second.service.store, second.service.version_of
    wait_for(lambda: len(store.jobs(project, version_of(project)).all()) == 4, "the tasks to be known")
    assert sum(job.attempts for job in store.jobs(project, version_of(project)).all().values()) == 0
    assert once_each(label_studio, project)


@contextmanager
def storage_host(image: bytes, statuses: list[int]) -> Iterator[str]:
    """Another host that serves one picture; first it answers each of `statuses`, taking them from the list."""
    app = Flask("storage")

    @app.get("/<name>")
    def serve(name: str):
        return ("busy", statuses.pop()) if statuses else image

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"  # another name than Label Studio's
    server.shutdown()
    server.server_close()


class TestPredict:
    def test_waits_for_what_is_asked_and_answers_in_order(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        annotate_first(label_studio, project)
        backend = start_backend(push_interval=60.0)  # only /predict hands over
        label_studio.connect(project, backend.url)
        tasks = label_studio.tasks_of(project)
        wanted = [tasks[3], tasks[0], tasks[1]]
        results = label_studio.retrieve(project, wanted)
        assert [bool(r) for r in results] == [False, True, True]  # asked by number: the reference comes first
        assert is_exact(label_studio, tasks[3], target_box(3))
        assert is_exact(label_studio, tasks[1], target_box(1))

    def test_at_the_deadline_the_rest_is_empty_and_pushed_later(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        annotate_first(label_studio, project)
        backend = start_backend(segmenter=SLOW, predict_deadline=0.0)
        label_studio.connect(project, backend.url)
        results = label_studio.retrieve(project)
        assert len(results) == 5
        assert [] in results
        wait_until_all_predicted(label_studio, project)
        wait_for(lambda: once_each(label_studio, project), "one prediction each")

    def test_without_a_reference_every_entry_is_empty(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        backend = start_backend()
        label_studio.connect(project, backend.url)
        assert label_studio.retrieve(project) == [[]] * 5

    def test_a_broken_image_is_empty_with_its_reason_in_the_ledger(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        tasks = label_studio.tasks_of(project)
        label_studio.files[f"/data/upload/{tasks[1]}.png"] = b"no picture"
        del label_studio.files[f"/data/upload/{tasks[2]}.png"]
        annotate_first(label_studio, project)
        backend = start_backend(push_interval=60.0)
        label_studio.connect(project, backend.url)
        results = label_studio.retrieve(project)
        assert [bool(r) for r in results] == [False, False, False, True, True]
        jobs = backend.service.store.jobs(project, backend.service.version_of(project)).all()
        assert jobs[tasks[1]].state == jobs[tasks[2]].state == "failed"
        assert "404" in (jobs[tasks[2]].error or "")
        assert jobs[tasks[1]].error

    def test_a_prediction_that_a_person_deleted_is_given_again(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        backend = start_backend()
        label_studio.connect(project, backend.url)
        annotate_first(label_studio, project)
        wait_until_all_predicted(label_studio, project)
        wait_for(lambda: once_each(label_studio, project), "one prediction each")
        label_studio.predictions.clear()
        assert [bool(r) for r in label_studio.retrieve(project)] == [False, True, True, True, True]
        assert once_each(label_studio, project)

    def test_projects_that_predict_while_being_listed_do_not_hang(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        """With evaluate_predictions_automatically Label Studio asks us before it answers our own listing."""
        backend = start_backend(segmenter=SLOW)
        label_studio.connect(project, backend.url)
        label_studio.projects[project]["evaluate_predictions_automatically"] = True
        nested: list[list] = []
        listing = label_studio._list_tasks

        def list_and_ask(number: int):
            if not nested and "query" not in request.args:
                nested.append([])
                nested[0] = label_studio.retrieve(project)
            return listing(number)

        label_studio._list_tasks = list_and_ask  # type: ignore[method-assign, assignment]
        annotate_first(label_studio, project)
        backend.service.coordinator.sync_all()
        wait_until_all_predicted(label_studio, project)
        assert len(nested[0]) == 5


class TestNoTaskGetsTwo:
    """The push and Label Studio's own storing of an answer, in every order that can be brought about."""

    @pytest.fixture
    def held_back(
        self,
        label_studio: FakeLabelStudio,
        project: int,
        start_backend: StartBackend,
        monkeypatch: pytest.MonkeyPatch,
    ) -> RunningBackend:
        """All is computed, and nothing pushed until the test says so."""
        monkeypatch.setattr("backend.sync.delivery.RETRY_PUSH", 3600.0)  # what was refused once is not tried in between
        backend = start_backend()
        label_studio.failures.refuse_imports = 10**9
        label_studio.connect(project, backend.url)
        annotate_first(label_studio, project)
        service = backend.service
        wait_for(lambda: service.store.jobs(project, service.version_of(project)).counts()["done"] == 4, "four results")
        wait_for(lambda: self._refused(service) == 4, "the push to be refused")
        return backend

    def _refused(self, service: Service) -> int:
        """How many results may not be pushed yet."""
        with closing(sqlite3.connect(service.settings.data_dir / "ledger.sqlite3")) as ledger:
            query = "SELECT count(*) FROM jobs WHERE state = 'done' AND delivery = 'open' AND not_before > ?"
            return int(ledger.execute(query, (time.time(),)).fetchone()[0])

    def _push_now(self, label_studio: FakeLabelStudio, service: Service, project: int) -> None:
        """Push everything that may be pushed, to the end."""
        label_studio.failures.refuse_imports = 0
        version = service.version_of(project)
        waiting = [t for t, j in service.store.jobs(project, version).all().items() if j.delivery == "open"]
        service.store.deliveries(project, version).mark_open(waiting)  # whatever pause the refused push left is over
        known = service.store.projects.find(project)
        assert known is not None
        Delivery(service.store, service.clients.of(project), known, service.settings).push()

    def test_pushed_before_label_studio_asks(
        self, label_studio: FakeLabelStudio, project: int, held_back: RunningBackend
    ):
        self._push_now(label_studio, held_back.service, project)
        assert label_studio.retrieve(project) == [[]]  # only the reference's task has none
        assert once_each(label_studio, project)

    def test_pushed_after_label_studio_looked_and_before_it_asks(
        self, label_studio: FakeLabelStudio, project: int, held_back: RunningBackend
    ):
        label_studio.retrieve(project, before_predict=lambda: self._push_now(label_studio, held_back.service, project))
        assert once_each(label_studio, project)

    def test_pushed_after_the_answer_and_before_it_is_stored(
        self, label_studio: FakeLabelStudio, project: int, held_back: RunningBackend
    ):
        label_studio.retrieve(project, before_store=lambda: self._push_now(label_studio, held_back.service, project))
        assert once_each(label_studio, project)

    def test_pushed_after_the_answer_was_stored(
        self, label_studio: FakeLabelStudio, project: int, held_back: RunningBackend
    ):
        label_studio.retrieve(project)
        self._push_now(label_studio, held_back.service, project)
        assert once_each(label_studio, project)

    def test_two_requests_at_once(self, label_studio: FakeLabelStudio, project: int, held_back: RunningBackend):
        label_studio.retrieve(project, before_store=lambda: label_studio.retrieve(project))
        assert once_each(label_studio, project)

    def test_the_answer_was_lost(self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend):
        backend = start_backend(answer_lease=0.5)
        label_studio.failures.refuse_imports = 1
        label_studio.connect(project, backend.url)
        annotate_first(label_studio, project)
        service = backend.service
        wait_for(lambda: service.store.jobs(project, service.version_of(project)).counts()["done"] == 4, "four results")
        label_studio.retrieve(project, lose_answer=True)
        wait_until_all_predicted(label_studio, project)
        assert once_each(label_studio, project)

    def test_stored_long_after_the_lease(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        """Nothing prevents this duplicate, so it is removed."""
        backend = start_backend(answer_lease=0.1, sync_interval=1.0)
        label_studio.connect(project, backend.url)
        annotate_first(label_studio, project)
        label_studio.retrieve(project, before_store=lambda: wait_until_all_predicted(label_studio, project))
        wait_for(lambda: once_each(label_studio, project), "duplicates to be gone")

    def test_many_requests_while_the_work_goes_on(self, label_studio: FakeLabelStudio, start_backend: StartBackend):
        project = label_studio.add_project()
        for index in range(25):
            label_studio.add_task(project, picture(target_box(index)))
        annotate_first(label_studio, project)
        backend = start_backend(predict_deadline=0.3, push_batch=3, push_interval=0.0)
        label_studio.connect(project, backend.url)

        def ask(seed: int) -> None:
            random = np.random.default_rng(seed)
            for _ in range(8):
                tasks = random.choice(label_studio.tasks_of(project), 10, replace=False)
                label_studio.retrieve(project, [int(t) for t in tasks])

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until_all_predicted(label_studio, project)
        assert once_each(label_studio, project)


class TestTheModelProcessDies:
    def test_once_on_a_task_that_is_done_the_second_time(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        label_studio.add_task(project, png(np.full((64, 96, 3), DEADLY_ONCE, np.uint8)))
        backend = start_backend()
        label_studio.connect(project, backend.url)
        annotate_first(label_studio, project)
        wait_until_all_predicted(label_studio, project)
        assert once_each(label_studio, project)

    def test_twice_on_one_task_and_the_others_go_on(self, label_studio: FakeLabelStudio, start_backend: StartBackend):
        project = label_studio.add_project()
        first = label_studio.add_task(project, picture(CAT_BOX))
        deadly = label_studio.add_task(project, png(np.full((64, 96, 3), DEADLY, np.uint8)))
        last = label_studio.add_task(project, picture(target_box(1)))
        backend = start_backend()
        label_studio.connect(project, backend.url)
        label_studio.annotate(first, [brush(CAT_BOX, "cat")])
        wait_for(lambda: predicted(label_studio, project) == [last], "the last task")
        job = backend.service.store.jobs(project, backend.service.version_of(project)).find(deadly)
        assert job is not None
        assert (job.state, job.attempts) == ("failed", 2)
        assert "SIGKILL" in (job.error or "")

    def test_images_that_came_late_cost_no_try(
        self,
        label_studio: FakeLabelStudio,
        project: int,
        start_backend: StartBackend,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr("backend.worker.decisions.IMAGE_DELAYS", (0.05, 0.05, 0.05))
        task = label_studio.add_task(project, png(np.full((64, 96, 3), DEADLY_ONCE, np.uint8)))
        busy = [503, 503, 503]
        with storage_host(label_studio.files[f"/data/upload/{task}.png"], busy) as url:
            label_studio.tasks[task]["data"] = {"image": f"{url}/a.png"}
            backend = start_backend(private_image_hosts="localhost")
            label_studio.connect(project, backend.url)
            annotate_first(label_studio, project)
            wait_until_all_predicted(label_studio, project)
        assert busy == []
        job = backend.service.store.jobs(project, backend.service.version_of(project)).find(task)
        assert job is not None
        assert job.attempts == 2  # the model process died once

    def test_killed_while_idle(self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend):
        backend = start_backend()
        label_studio.connect(project, backend.url)
        wait_for(lambda: backend.service.worker.activity.state == "idle", "the model")
        pid = backend.service.model_process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        annotate_first(label_studio, project)
        wait_until_all_predicted(label_studio, project)


def test_a_full_disk_fails_no_task(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backend.worker.decisions.AWAY_DELAY", 0.05)
    backend = start_backend()
    images = backend.service.settings.data_dir / "images"
    images.rename(images.with_name("away"))
    images.touch()  # nothing can be written into it, even by root
    label_studio.connect(project, backend.url)
    annotate_first(label_studio, project)

    def jobs() -> list[Job]:
        return list(backend.service.store.jobs(project, backend.service.version_of(project)).all().values())

    wait_for(lambda: all("cannot be written" in (job.error or "") for job in jobs()) and jobs(), "no image to be kept")
    assert {job.state for job in jobs()} <= {"queued", "running"}
    assert all(job.attempts <= 1 for job in jobs())
    images.unlink()
    images.with_name("away").rename(images)
    wait_until_all_predicted(label_studio, project)
    assert once_each(label_studio, project)


def test_label_studio_away_is_waited_for(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backend.sync.introductions.AWAY_PAUSE", 0.2)
    backend = start_backend()
    wait_for(lambda: backend.service.reachability.release, "the key to be taken; else /setup is refused at once")
    label_studio.failures.deny = True
    label_studio.connect(project, backend.url)
    annotate_first(label_studio, project)
    wait_for(lambda: len(label_studio.authorizations(f"/api/projects/{project}/")) >= 3, "three tries")
    assert predicted(label_studio, project) == []
    label_studio.failures.deny = False
    wait_until_all_predicted(label_studio, project)


def test_a_deleted_project_is_forgotten_and_another_thing_not_found_is_not_taken_for_it(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backend.sync.schedule.AWAY_PAUSES", (0.2,))
    monkeypatch.setattr("backend.sync.schedule.GONE_AFTER", 0.5)
    backend = start_backend()
    label_studio.connect(project, backend.url)
    annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)
    store = backend.service.store
    url = label_studio.connected[project]
    label_studio.missing_paths = {"/api/ml"}  # as where an address of the API is another one
    label_studio.add_task(project, picture(CAT_BOX))
    backend.service.coordinator.sync_all()
    wait_for(lambda: [p.error for p in store.projects.all() if p.error], "the trouble to be noted")
    assert len(store.jobs(project, backend.service.version_of(project)).all()) == 4
    label_studio.missing_paths = set()
    label_studio.connected[project] = url
    wait_until_all_predicted(label_studio, project)
    del label_studio.projects[project]
    backend.service.coordinator.sync_all()
    wait_for(lambda: store.projects.all() == [], "the project to be forgotten")


def test_a_project_that_disconnected_gets_no_more_work(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    backend = start_backend()
    label_studio.connect(project, backend.url)
    annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)
    del label_studio.connected[project]
    before = len(label_studio.authorizations("/api/ml"))
    label_studio.add_task(project, picture(CAT_BOX))
    backend.service.coordinator.sync_all()
    wait_for(lambda: len(label_studio.authorizations("/api/ml")) >= before + 2, "two looks")
    assert len(predicted(label_studio, project)) == 4


def test_a_missing_model_is_told_and_predict_does_not_wait(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    annotate_first(label_studio, project)
    backend = start_backend(segmenter="tests.support.threshold:open_missing")
    label_studio.connect(project, backend.url)
    wait_for(lambda: "error" in requests.get(f"{backend.url}/health", timeout=5).json(), "the model's error")
    health = requests.get(f"{backend.url}/health", timeout=5).json()
    assert health["status"] == "UP"
    assert "set CAVSAM_MODEL to a pair" in health["error"]
    assert label_studio.retrieve(project) == [[]] * 5


def test_the_key_of_setup_serves_where_none_is_configured(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    backend = start_backend(label_studio_url="", label_studio_api_key="")
    label_studio.connect(project, backend.url)
    annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)


def test_a_second_process_stays_out_of_the_data_folder(
    make_settings: Callable[..., Settings], start_backend: StartBackend
):
    start_backend()
    with pytest.raises(DataFolderBusy, match="only one worker process"):
        Service(make_settings())


def test_several_labels_and_regions(label_studio: FakeLabelStudio, start_backend: StartBackend):
    project = label_studio.add_project(CONFIG)
    first = label_studio.add_task(project, picture((8, 30, 20, 50), (40, 60, 60, 80)))
    second = label_studio.add_task(project, picture((1, 10, 1, 10), (30, 50, 5, 25)))
    backend = start_backend()
    label_studio.connect(project, backend.url)
    halves = [brush((8, 20, 20, 50), "cat"), brush((20, 30, 20, 50), "cat"), brush((40, 60, 60, 80), "dog")]
    label_studio.annotate(first, halves)
    wait_for(lambda: predicted(label_studio, project) == [second], "a prediction")
    regions = {r["value"]["brushlabels"][0]: r for r in label_studio.regions_of(second)}
    areas = {
        label: int(decode_mask(r["value"]["rle"], r["original_height"], r["original_width"]).sum())
        for label, r in regions.items()
    }
    assert areas == {"cat": 81, "dog": 400}


def test_what_label_studio_handed_over_lasts_beyond_a_restart(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    """Connected by its address alone: the second process knows where Label Studio is before anyone calls it."""
    first = start_backend(label_studio_url="", label_studio_api_key="")
    label_studio.connect(project, first.url)
    wait_for(lambda: first.service.store.projects.grants(), "the address and the token in the ledger")
    first.service.stop()
    ledger = first.service.settings.data_dir / "ledger.sqlite3"
    assert ledger.stat().st_mode & 0o077 == 0
    annotate_first(label_studio, project)  # while the backend is down
    second = start_backend(label_studio_url="", label_studio_api_key="")
    label_studio.connected[project] = second.url
    wait_until_all_predicted(label_studio, project)
    assert once_each(label_studio, project)


def test_a_ledger_that_somebody_holds_stops_nothing_for_good(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backend.store.database.LOCK_PATIENCE", 0.2)
    backend = start_backend()
    backend.service.worker.ledger_pause = backend.service.coordinator.ledger_pause = 0.2
    label_studio.connect(project, backend.url)
    wait_for(lambda: backend.service.store.projects.find(project), "the project in the ledger")
    path = backend.service.settings.data_dir / "ledger.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        annotate_first(label_studio, project)
        wait_for(lambda: backend.service.worker.activity.state == "no ledger", "the worker to meet the lock")
        status = requests.get(f"{backend.url}/health", timeout=5)
        assert "locked" in status.json()["error"]
        other.execute("ROLLBACK")
    wait_until_all_predicted(label_studio, project)
    assert once_each(label_studio, project)


@pytest.mark.parametrize("configured", [True, False])
def test_a_ledger_that_is_damaged_in_the_middle_of_the_work_is_filled_again(
    label_studio: FakeLabelStudio, start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch, configured: bool
):
    """Nobody presses anything, and no prediction is made twice."""
    monkeypatch.setattr("backend.sync.reachability.PAUSE", 0.2)
    project = label_studio.add_project()
    for number in range(20):
        label_studio.add_task(project, picture(target_box(number % 5)))
    key = {} if configured else {"label_studio_url": "", "label_studio_api_key": ""}
    backend = start_backend(segmenter="tests.support.threshold:open_unhurried", **key)
    service = backend.service
    service.worker.ledger_pause = service.coordinator.ledger_pause = 0.1
    label_studio.sets_up_when_listed = True
    label_studio.connect(project, backend.url)
    annotate_first(label_studio, project)
    wait_for(lambda: len(predicted(label_studio, project)) >= 5, "the first predictions")
    damage(service.settings.data_dir / "ledger.sqlite3")
    wait_for(lambda: service.store.generation, "the damage to be found")
    wait_for(lambda: len(predicted(label_studio, project)) == 19, "all predictions")
    wait_for(lambda: service.store.damaged_file is None, "the projects to have been looked for")
    assert [len(label_studio.versions_of(task)) for task in label_studio.tasks_of(project)[1:]] == [1] * 19
    jobs = service.store.jobs(project, service.version_of(project)).all()
    assert {job.state for job in jobs.values()} == {"done"}
    (warning,) = requests.get(f"{backend.url}/api/status", timeout=5).json()["warnings"]
    assert "ledger-damaged" in warning


def test_a_ledger_that_was_damaged_before_the_start_is_filled_again(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
):
    """Label Studio says which projects it has connected; another one stays alone."""
    monkeypatch.setattr("backend.sync.reachability.PAUSE", 0.2)
    other = label_studio.add_project()
    first = start_backend()
    label_studio.connect(project, first.url)
    annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)
    first.service.stop()
    ledger = first.service.settings.data_dir / "ledger.sqlite3"
    ledger.write_bytes(bytes(range(256)) * 32)
    label_studio.sets_up_when_listed = True
    label_studio.failures.deny = True
    second = start_backend()
    label_studio.connected[project] = second.url
    told = requests.get(f"{second.url}/ready", timeout=5).json()["problems"]
    assert any("ledger was damaged" in problem["message"] for problem in told)
    label_studio.failures.deny = False
    wait_for(lambda: second.service.store.projects.find(project), "the project to be known again")
    label_studio.add_task(project, picture(CAT_BOX))
    second.service.coordinator.sync_all()
    wait_until_all_predicted(label_studio, project)
    assert once_each(label_studio, project)
    assert second.service.store.projects.find(other) is None


def test_the_version_follows_weights_that_are_fetched_while_the_model_is_loaded(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend, tmp_path: Path
):
    weights = {"sam2": str(tmp_path / "sam2.pt"), "diffusion": str(tmp_path / "sd.safetensors")}
    backend = start_backend(segmenter="tests.support.threshold:open_fetching", **weights)
    label_studio.connect(project, backend.url)
    annotate_first(label_studio, project)
    wait_until_all_predicted(label_studio, project)
    base = base_version(backend.service.settings)
    assert backend.service.base_version == base
    versions = {version for task in label_studio.tasks_of(project) for version in label_studio.versions_of(task)}
    assert len(versions) == 1
    assert versions.pop().startswith(f"{base}-r")


def test_a_small_project_is_not_kept_waiting_by_a_large_one(label_studio: FakeLabelStudio, start_backend: StartBackend):
    large, small = label_studio.add_project(), label_studio.add_project()
    for number, count in ((large, 60), (small, 5)):
        for _ in range(count):
            label_studio.add_task(number, picture(CAT_BOX))
    backend = start_backend(segmenter="tests.support.threshold:open_unhurried")
    for number in (large, small):
        label_studio.connect(number, backend.url)
        annotate_first(label_studio, number)
        wait_for(partial(predicted, label_studio, number), "the project to be at work")
    wait_until_all_predicted(label_studio, small)
    assert len(predicted(label_studio, large)) < 30
