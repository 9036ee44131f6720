from __future__ import annotations

import json
from typing import Any

import pytest
from flask import request

from backend.entities import References
from backend.labelstudio.client import LabelStudio
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.policy import why_no_reference
from backend.sync.project_sync import ProjectSync
from tests.support.fake_label_studio import CONFIG, LEGACY_KEY, FakeLabelStudio, brush, picture

BASE = "cavsam-0"
BOX = (8, 30, 20, 50)


@pytest.fixture
def project(label_studio: FakeLabelStudio) -> int:
    """A project of four tasks."""
    number = label_studio.add_project()
    for _ in range(4):
        label_studio.add_task(number, picture(BOX))
    return number


@pytest.fixture
def sync(label_studio: FakeLabelStudio, store: Store, project: int) -> ProjectSync:
    """The sync of that project, which was read."""
    return sync_with(label_studio, store, project)


def sync_with(label_studio: FakeLabelStudio, store: Store, project: int, **settings: Any) -> ProjectSync:
    client = LabelStudio(label_studio.url, LEGACY_KEY, timeout=5)
    made = ProjectSync(store, client, project, Settings(**settings), BASE)
    made.read_project()
    return made


def read(sync: ProjectSync) -> References | None:
    """Read the tasks and choose what to learn from."""
    sync.read_tasks()
    return sync.choose_references()


def test_only_new_and_changed_annotations_are_read(
    label_studio: FakeLabelStudio, store: Store, sync: ProjectSync, project: int
):
    first, second, *_ = label_studio.tasks_of(project)
    annotation = label_studio.annotate(first, [brush(BOX, "cat")])
    sync.read_tasks()
    for _ in range(3):
        sync.read_tasks()
    assert len(label_studio.authorizations(f"/api/tasks/{first}/annotations/")) == 1
    label_studio.update_annotation(annotation, [brush(BOX, "dog")])
    label_studio.annotate(second, [brush(BOX, "cat")])
    sync.read_tasks()
    assert len(label_studio.authorizations(f"/api/tasks/{first}/annotations/")) == 2
    assert len(label_studio.authorizations(f"/api/tasks/{second}/annotations/")) == 1
    del label_studio.annotations[annotation]  # nothing but the count tells of it
    sync.read_tasks()
    assert [c.task for c in store.annotations(project).judged()] == [second]


def test_a_task_missing_from_one_listing_is_kept(
    label_studio: FakeLabelStudio, store: Store, sync: ProjectSync, project: int
):
    sync.read_tasks()
    listing = label_studio._list_tasks
    left_out: list[bool] = []

    def shifted(number: int):
        answer = listing(number)
        if "query" in request.args or left_out:
            return answer
        left_out.append(True)
        body = answer.get_json()
        body["tasks"] = body["tasks"][:-1]
        body["total"] -= 1
        answer.set_data(json.dumps(body))
        return answer

    label_studio._list_tasks = shifted  # type: ignore[method-assign, assignment]
    sync.read_tasks()
    assert left_out
    assert [task.id for task in store.tasks(project).all()] == label_studio.tasks_of(project)
    gone = label_studio.tasks_of(project)[-1]
    del label_studio.tasks[gone]
    sync.read_tasks()
    assert gone not in [task.id for task in store.tasks(project).all()]


def test_the_reference_is_fetched_once_and_followed_when_it_changes(
    label_studio: FakeLabelStudio, store: Store, sync: ProjectSync, project: int
):
    first, second, *_ = label_studio.tasks_of(project)
    label_studio.annotate(second, [brush(BOX, "horse")])
    annotation = label_studio.annotate(first, [brush(BOX, "cat")])
    chosen = read(sync)
    assert chosen is not None
    assert [(one.annotation, one.task) for one in chosen.annotations] == [(annotation, first)]
    sync.adopt(chosen)
    assert read(sync) == chosen
    assert len(label_studio.authorizations(f"/api/annotations/{annotation}/")) == 1
    label_studio.update_annotation(annotation, [brush(BOX, "dog")])
    changed = read(sync)
    assert changed is not None
    assert changed.key != chosen.key
    assert changed.annotations[0].regions[0].labels == ("dog",)


def test_an_unknown_label_that_comes_and_goes_beside_good_ones_is_told_at_once(
    label_studio: FakeLabelStudio, store: Store, sync: ProjectSync, project: int
):
    first, second, *_ = label_studio.tasks_of(project)
    annotation = label_studio.annotate(first, [brush(BOX, "cat")])
    chosen = read(sync)
    sync.adopt(chosen)
    assert store.projects.warnings(project) == {}
    for regions, told in (([brush(BOX, "cat"), brush(BOX, "horse")], True), ([brush(BOX, "cat")], False)):
        label_studio.update_annotation(annotation, regions)
        label_studio.annotate(second, [brush(BOX, "cat"), brush(BOX, "cow")])  # nothing is learned from it
        assert read(sync) == chosen
        noted = [text for texts in store.projects.warnings(project).values() for text in texts]
        assert [f"task {first}" in text and "horse" in text for text in noted] == [True] * told


def test_an_annotation_edited_between_two_calls_is_judged_again(
    label_studio: FakeLabelStudio, store: Store, sync: ProjectSync, project: int
):
    first, second, *_ = label_studio.tasks_of(project)
    one = label_studio.annotate(first, [brush(BOX, "cat")])
    two = label_studio.annotate(second, [brush(BOX, "cat")])
    sync.read_tasks()
    label_studio.annotations[one]["result"] = []  # after it was judged, before it is fetched
    chosen = sync.choose_references()
    assert chosen is not None
    assert [one.annotation for one in chosen.annotations] == [two]


def test_a_changed_configuration_has_annotations_judged_again(
    label_studio: FakeLabelStudio, store: Store, sync: ProjectSync, project: int
):
    first, *_ = label_studio.tasks_of(project)
    label_studio.annotate(first, [brush(BOX, "horse")])
    assert read(sync) is None
    assert "horse is not in the configuration" in why_no_reference(store.annotations(project).judged(), Settings())
    xml = CONFIG.replace("dog", "horse")
    label_studio.projects[project]["label_config"] = xml
    sync.read_project()
    sync.read_tasks()
    assert [c.usable for c in store.annotations(project).judged()] == [True]


def test_people_come_first_and_the_reference_never(
    label_studio: FakeLabelStudio, store: Store, sync: ProjectSync, project: int
):
    first, second, third, fourth = label_studio.tasks_of(project)
    label_studio.annotate(first, [brush(BOX, "cat")])
    label_studio.annotate(second, [brush(BOX, "cat")])
    chosen = read(sync)
    assert chosen is not None
    sync.adopt(chosen)
    assert sync.queue_missing(chosen) == 3
    order = []
    while job := store.queue.take_next():
        order.append(job.task)
    assert order == [third, fourth, second]  # the annotated one last


def test_several_references_are_fetched_once_each(
    label_studio: FakeLabelStudio, store: Store, sync: ProjectSync, project: int
):
    sync = sync_with(label_studio, store, project, reference_policy="latest-k", reference_shots=2)
    first, second, third, fourth = label_studio.tasks_of(project)
    made = [label_studio.annotate(task, [brush(BOX, "cat")]) for task in (first, second, third)]
    chosen = read(sync)
    assert chosen is not None
    assert [one.annotation for one in chosen.annotations] == made[1:]
    assert chosen.tasks == {second, third}
    sync.adopt(chosen)
    assert sync.queue_missing(chosen) == 2
    assert set(store.jobs(project, sync.version).all()) == {first, fourth}
    label_studio.annotate(fourth, [brush(BOX, "cat")])
    changed = read(sync)
    assert changed is not None
    assert changed.key != chosen.key
    assert changed.tasks == {third, fourth}
    assert len(label_studio.authorizations(f"/api/annotations/{made[2]}/")) == 1  # the ledger had its regions


def test_predictions_that_are_gone_are_found_without_listing_them_each_time(
    label_studio: FakeLabelStudio, store: Store, sync: ProjectSync, project: int
):
    first, second, third, _ = label_studio.tasks_of(project)
    label_studio.annotate(first, [brush(BOX, "cat")])
    chosen = read(sync)
    assert chosen is not None
    sync.adopt(chosen)
    sync.queue_missing(chosen)
    while job := store.queue.take_next():
        store.queue.finish(job, "[]", 0.5, 1.0)
        label_studio.store(job.task, [], 0.5, "v0")
        label_studio.store(job.task, [], 0.5, sync.version)
    store.deliveries(project, sync.version).mark_delivered(store.jobs(project, sync.version).all())

    def missing() -> list[int]:
        counts = sync.read_tasks()
        found = sync.delivery().reopen_deleted(counts)
        store.tasks(project).set_predictions_read(counts)
        return found

    assert missing() == []
    before = len(label_studio.authorizations("/api/tasks"))
    assert missing() == []
    assert len(label_studio.authorizations("/api/tasks")) == before + 1  # the tasks, and nothing else
    of_third = [n for n, p in label_studio.predictions.items() if p["task"] == third]
    for number in of_third[1:]:  # an earlier version is still there
        del label_studio.predictions[number]
    assert missing() == [third]
    assert {t: j.delivery for t, j in store.jobs(project, sync.version).all().items()}[third] == "open"
    gone = [n for n, p in label_studio.predictions.items() if p["task"] == second]
    for number in gone:
        del label_studio.predictions[number]
    assert missing() == [second]


def test_what_a_reference_holds_beside_its_usable_masks_is_told_once(
    label_studio: FakeLabelStudio,
    store: Store,
    sync: ProjectSync,
    project: int,
    caplog: pytest.LogCaptureFixture,
):
    first, second, *_ = label_studio.tasks_of(project)
    both = brush(BOX, "cat")
    both["value"]["brushlabels"] = ["cat", "zebra"]
    annotation = label_studio.annotate(first, [both, brush(BOX, "horse")])
    chosen = read(sync)
    assert chosen is not None
    assert [region.labels for region in chosen.annotations[0].regions] == [("cat",)]
    (told,) = store.projects.warnings(project).values()
    assert len(told) == 2
    assert all(f"Annotation {annotation} on task {first}" in text for text in told)
    assert "zebra is not in the configuration" in told[0]
    assert "horse is not in the configuration" in told[1]
    read(sync)
    assert caplog.text.count("horse is not") == 1

    label_studio.update_annotation(annotation, [brush(BOX, "dog")])
    read(sync)
    assert store.projects.warnings(project) == {}
    label_studio.update_annotation(annotation, [brush(BOX, "cat"), brush(BOX, "horse")])
    read(sync)
    assert store.projects.warnings(project)
    del label_studio.annotations[annotation]
    label_studio.annotate(second, [brush(BOX, "cat")])
    read(sync)
    assert store.projects.warnings(project) == {}
