"""Every way a prediction may reach Label Studio, and that it does so once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backend.entities import ReferenceAnnotation, Task
from backend.errors import LabelStudioDenied, LabelStudioUnreachable
from backend.labelstudio.client import LabelStudio
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.delivery import Delivery, prediction_text
from tests.support.backend import learned_from
from tests.support.fake_label_studio import LEGACY_KEY, FakeLabelStudio, brush

VERSION = "cavsam-r1"
LEASE = 3600.0


class Scene:
    """A project of six tasks; the first is the reference, the others are finished and nobody has them."""

    def __init__(self, label_studio: FakeLabelStudio, store: Store):
        self.label_studio, self.store = label_studio, store
        self.client = LabelStudio(label_studio.url, LEGACY_KEY, timeout=5)
        self.project = label_studio.add_project()
        reference, *self.tasks = (label_studio.add_task(self.project, image=b"x") for _ in range(6))
        store.projects.add(self.project, "uid")
        store.tasks(self.project).replace([Task(self.project, n, {}, False, "") for n in (reference, *self.tasks)])
        references = learned_from(ReferenceAnnotation(self.project, "r1", 1, reference, ()))
        store.annotations(self.project).set_references(VERSION, references)
        store.jobs(self.project, VERSION).queue(self.tasks)
        for task in self.tasks:
            job = store.queue.take_next()
            assert job is not None
            region = brush((0, 5, 0, 5), "dog" if task == self.tasks[2] else "cat")
            store.queue.finish(job, json.dumps([region]), 0.5, 1.0)

    def delivery(self, **settings: Any) -> Delivery:
        known = self.store.projects.find(self.project)
        assert known is not None
        return Delivery(self.store, self.client, known, Settings(answer_lease=LEASE, **settings))

    def push(self, batch: int = 50) -> int:
        return self.delivery(push_batch=batch).push()

    def deliveries(self) -> list[str]:
        jobs = self.store.jobs(self.project, VERSION).all()
        return [jobs[task].delivery for task in self.tasks]

    def held(self) -> list[int]:
        """How many predictions of the version each task has."""
        return [self.label_studio.versions_of(task).count(VERSION) for task in self.tasks]

    def free_retries(self) -> None:
        """Let the pause after a failed push be over."""
        self.store.deliveries(self.project, VERSION).mark_open(
            [t for t, d in zip(self.tasks, self.deliveries(), strict=True) if d == "open"]
        )


@pytest.fixture
def scene(label_studio: FakeLabelStudio, store: Store) -> Scene:
    return Scene(label_studio, store)


def test_a_prediction_is_written_as_label_studio_reads_it(scene: Scene):
    job = scene.store.jobs(scene.project, VERSION).find(scene.tasks[0])
    assert job is not None
    written = json.loads(prediction_text(job, with_task=True))
    assert written == {
        "task": scene.tasks[0],
        "score": 0.5,
        "model_version": VERSION,
        "result": [brush((0, 5, 0, 5), "cat")],
    }
    assert "task" not in json.loads(prediction_text(job, with_task=False))


def test_pushes_all_in_batches_once(scene: Scene):
    assert [scene.push(batch=2) for _ in range(4)] == [2, 2, 1, 0]
    assert scene.held() == [1, 1, 1, 1, 1]
    assert set(scene.deliveries()) == {"delivered"}


def test_what_is_there_already_is_not_pushed(scene: Scene):
    scene.label_studio.store(scene.tasks[1], [], 0.1, VERSION)
    assert scene.push() == 4
    assert scene.held() == [1, 1, 1, 1, 1]
    assert set(scene.deliveries()) == {"delivered"}


@pytest.mark.parametrize("strict", [True, False])
def test_an_invalid_prediction_is_found_and_the_others_arrive(scene: Scene, strict: bool):
    scene.label_studio.failures.strict = strict
    scene.label_studio.failures.invalid_labels = {"dog"}
    assert scene.push() == 4
    assert scene.held() == [1, 1, 0, 1, 1]
    job = scene.store.jobs(scene.project, VERSION).find(scene.tasks[2])
    assert job is not None
    assert job.state == "failed"
    assert job.error
    assert len(job.error) < 600  # Label Studio's answer repeats the whole region
    assert scene.push() == 0


def test_a_task_deleted_meanwhile_does_not_spoil_the_batch(scene: Scene):
    del scene.label_studio.tasks[scene.tasks[4]]
    assert scene.push() == 4
    assert scene.held()[:4] == [1, 1, 1, 1]


def test_a_count_that_is_too_low_is_noticed(scene: Scene):
    scene.label_studio.failures.drop_silently = {scene.tasks[0], scene.tasks[3]}
    assert scene.push() == 3
    jobs = scene.store.jobs(scene.project, VERSION).all()
    failed = {task for task, job in jobs.items() if job.state == "failed"}
    assert failed == {scene.tasks[0], scene.tasks[3]}


def test_a_push_that_never_arrived_is_repeated(scene: Scene):
    scene.label_studio.failures.refuse_imports = 1
    with pytest.raises(LabelStudioUnreachable):
        scene.push()
    assert set(scene.deliveries()) == {"open"}
    scene.free_retries()
    assert scene.push() == 5
    assert scene.held() == [1, 1, 1, 1, 1]


def test_a_push_whose_answer_was_lost_is_not_repeated(scene: Scene):
    scene.label_studio.failures.drop_import_answers = 1
    with pytest.raises(LabelStudioUnreachable):
        scene.push()
    assert set(scene.deliveries()) == {"answered"}
    assert scene.push() == 0
    assert scene.delivery().confirm() == 5
    assert set(scene.deliveries()) == {"delivered"}
    assert scene.held() == [1, 1, 1, 1, 1]


def test_a_refused_key_loses_nothing(scene: Scene):
    scene.label_studio.failures.deny = True
    with pytest.raises(LabelStudioDenied):
        scene.push()
    scene.label_studio.failures.deny = False
    scene.free_retries()
    assert scene.push() == 5


def test_an_answer_is_confirmed_when_label_studio_has_it(scene: Scene):
    store, first = scene.store, scene.tasks[0]
    store.deliveries(scene.project, VERSION).reserve(scene.tasks[:2], "request")
    store.deliveries(scene.project, VERSION).answer(scene.tasks[:2], "request", LEASE)
    scene.label_studio.store(first, [], 0.5, VERSION)
    assert scene.delivery().confirm() == 1
    assert scene.deliveries()[:2] == ["delivered", "answered"]
    assert scene.push() == 3  # the second may still be on its way
    assert scene.held() == [1, 0, 1, 1, 1]


def test_an_answer_that_label_studio_dropped_is_pushed_after_its_lease(scene: Scene):
    store = scene.store
    store.deliveries(scene.project, VERSION).reserve(scene.tasks[:2], "request")
    store.deliveries(scene.project, VERSION).answer(scene.tasks[:2], "request", lease=0.0)
    scene.label_studio.store(scene.tasks[0], [], 0.5, VERSION)
    assert scene.delivery().confirm() == 1
    assert scene.push() == 4
    assert scene.held() == [1, 1, 1, 1, 1]


def test_duplicates_of_our_versions_are_removed_and_others_left(scene: Scene):
    task, other = scene.tasks[:2]
    first = scene.label_studio.store(task, [], 0.5, VERSION)
    for version in (VERSION, "someone else's", "someone else's"):
        scene.label_studio.store(task, [], 0.5, version)
    scene.label_studio.store(other, [], 0.5, VERSION)
    counts = {t: len(scene.label_studio.versions_of(t)) for t in scene.tasks}
    assert scene.delivery().remove_duplicates(counts) == 1
    assert sorted(scene.label_studio.versions_of(task)) == [VERSION, "someone else's", "someone else's"]
    assert first in scene.label_studio.predictions
    assert scene.held()[1] == 1


def test_a_task_is_searched_again_only_when_its_count_changed(scene: Scene):
    task = scene.tasks[0]
    for version in ("a", "b"):
        scene.label_studio.store(task, [], 0.5, version)
    for _ in range(3):
        scene.delivery().remove_duplicates({task: 2})
    assert len(scene.label_studio.authorizations("/api/predictions/")) == 1
