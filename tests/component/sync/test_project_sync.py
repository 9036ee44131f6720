from __future__ import annotations

import json
from typing import Any

import pytest
from flask import request

from backend.entities import References
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.label_config import parse_label_config
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.policy import why_no_reference
from backend.sync.project_sync import queue_tasks, read_tasks, reopen_missing, resolve_references, store_project
from tests.support.fake_label_studio import CONFIG, LEGACY_KEY, FakeLabelStudio, brush, picture

BOX = (8, 30, 20, 50)
LABELS = parse_label_config(CONFIG)


@pytest.fixture
def client(label_studio: FakeLabelStudio) -> LabelStudio:
    return LabelStudio(label_studio.url, LEGACY_KEY, timeout=5)


@pytest.fixture
def project(label_studio: FakeLabelStudio, store: Store) -> int:
    number = label_studio.add_project()
    for _ in range(4):
        label_studio.add_task(number, picture(BOX))
    store_project(store, number, label_studio.projects[number], "base")
    return number


def look(store: Store, client: LabelStudio, project: int, **settings: Any) -> References | None:
    read_tasks(store, client, project, LABELS)
    return resolve_references(store, client, project, LABELS, Settings(**settings))


def test_only_new_and_changed_annotations_are_read(
    label_studio: FakeLabelStudio, store: Store, client: LabelStudio, project: int
):
    first, second, *_ = label_studio.tasks_of(project)
    annotation = label_studio.annotate(first, [brush(BOX, "cat")])
    read_tasks(store, client, project, LABELS)
    for _ in range(3):
        read_tasks(store, client, project, LABELS)
    assert len(label_studio.authorizations(f"/api/tasks/{first}/annotations/")) == 1
    label_studio.update_annotation(annotation, [brush(BOX, "dog")])
    label_studio.annotate(second, [brush(BOX, "cat")])
    read_tasks(store, client, project, LABELS)
    assert len(label_studio.authorizations(f"/api/tasks/{first}/annotations/")) == 2
    assert len(label_studio.authorizations(f"/api/tasks/{second}/annotations/")) == 1
    del label_studio.annotations[annotation]  # nothing but the count tells of it
    read_tasks(store, client, project, LABELS)
    assert [c.task for c in store.annotations(project).judged()] == [second]


def test_a_task_missing_from_one_listing_is_kept(
    label_studio: FakeLabelStudio, store: Store, client: LabelStudio, project: int
):
    read_tasks(store, client, project, LABELS)
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
    read_tasks(store, client, project, LABELS)
    assert left_out
    assert [task.id for task in store.tasks(project).all()] == label_studio.tasks_of(project)
    gone = label_studio.tasks_of(project)[-1]
    del label_studio.tasks[gone]
    read_tasks(store, client, project, LABELS)
    assert gone not in [task.id for task in store.tasks(project).all()]


def test_the_reference_is_fetched_once_and_followed_when_it_changes(
    label_studio: FakeLabelStudio, store: Store, client: LabelStudio, project: int
):
    first, second, *_ = label_studio.tasks_of(project)
    label_studio.annotate(second, [brush(BOX, "horse")])
    annotation = label_studio.annotate(first, [brush(BOX, "cat")])
    chosen = look(store, client, project)
    assert chosen is not None
    assert [(one.annotation, one.task) for one in chosen.annotations] == [(annotation, first)]
    store.annotations(project).set_references("v1", chosen)
    assert look(store, client, project) == chosen
    assert len(label_studio.authorizations(f"/api/annotations/{annotation}/")) == 1
    label_studio.update_annotation(annotation, [brush(BOX, "dog")])
    changed = look(store, client, project)
    assert changed is not None
    assert changed.key != chosen.key
    assert changed.annotations[0].regions[0].labels == ("dog",)


def test_an_unknown_label_that_comes_and_goes_beside_good_ones_is_told_at_once(
    label_studio: FakeLabelStudio, store: Store, client: LabelStudio, project: int
):
    first, second, *_ = label_studio.tasks_of(project)
    annotation = label_studio.annotate(first, [brush(BOX, "cat")])
    chosen = look(store, client, project)
    store.annotations(project).set_references("v1", chosen)
    assert store.projects.warnings(project) == {}
    for regions, told in (([brush(BOX, "cat"), brush(BOX, "horse")], True), ([brush(BOX, "cat")], False)):
        label_studio.update_annotation(annotation, regions)
        label_studio.annotate(second, [brush(BOX, "cat"), brush(BOX, "cow")])  # nothing is learned from it
        assert look(store, client, project) == chosen
        noted = [text for texts in store.projects.warnings(project).values() for text in texts]
        assert [f"task {first}" in text and "horse" in text for text in noted] == [True] * told


def test_an_annotation_edited_between_two_calls_is_judged_again(
    label_studio: FakeLabelStudio, store: Store, client: LabelStudio, project: int
):
    first, second, *_ = label_studio.tasks_of(project)
    one = label_studio.annotate(first, [brush(BOX, "cat")])
    two = label_studio.annotate(second, [brush(BOX, "cat")])
    read_tasks(store, client, project, LABELS)
    label_studio.annotations[one]["result"] = []  # after it was judged, before it is fetched
    chosen = resolve_references(store, client, project, LABELS, Settings())
    assert chosen is not None
    assert [one.annotation for one in chosen.annotations] == [two]


def test_a_changed_configuration_has_annotations_judged_again(
    label_studio: FakeLabelStudio, store: Store, client: LabelStudio, project: int
):
    first, *_ = label_studio.tasks_of(project)
    label_studio.annotate(first, [brush(BOX, "horse")])
    assert look(store, client, project) is None
    assert "horse is not in the configuration" in why_no_reference(store.annotations(project).judged(), Settings())
    xml = CONFIG.replace("dog", "horse")
    label_studio.projects[project]["label_config"] = xml
    store_project(store, project, label_studio.projects[project], "base")
    read_tasks(store, client, project, parse_label_config(xml))
    assert [c.usable for c in store.annotations(project).judged()] == [True]


def test_people_come_first_and_the_reference_never(
    label_studio: FakeLabelStudio, store: Store, client: LabelStudio, project: int
):
    first, second, third, fourth = label_studio.tasks_of(project)
    label_studio.annotate(first, [brush(BOX, "cat")])
    label_studio.annotate(second, [brush(BOX, "cat")])
    chosen = look(store, client, project)
    assert chosen is not None
    store.annotations(project).set_references("v1", chosen)
    assert queue_tasks(store, project, "v1", chosen) == 3
    order = []
    while job := store.queue.take_next():
        order.append(job.task)
    assert order == [third, fourth, second]  # the annotated one last


def test_several_references_are_fetched_once_each(
    label_studio: FakeLabelStudio, store: Store, client: LabelStudio, project: int
):
    policy = {"reference_policy": "latest-k", "reference_shots": 2}
    first, second, third, fourth = label_studio.tasks_of(project)
    made = [label_studio.annotate(task, [brush(BOX, "cat")]) for task in (first, second, third)]
    chosen = look(store, client, project, **policy)
    assert chosen is not None
    assert [one.annotation for one in chosen.annotations] == made[1:]
    assert chosen.tasks == {second, third}
    store.annotations(project).set_references("v1", chosen)
    assert queue_tasks(store, project, "v1", chosen) == 2
    assert set(store.jobs(project, "v1").all()) == {first, fourth}
    label_studio.annotate(fourth, [brush(BOX, "cat")])
    changed = look(store, client, project, **policy)
    assert changed is not None
    assert changed.key != chosen.key
    assert changed.tasks == {third, fourth}
    assert len(label_studio.authorizations(f"/api/annotations/{made[2]}/")) == 1  # the ledger had its regions


def test_predictions_that_are_gone_are_found_without_listing_them_each_time(
    label_studio: FakeLabelStudio, store: Store, client: LabelStudio, project: int
):
    first, second, third, _ = label_studio.tasks_of(project)
    label_studio.annotate(first, [brush(BOX, "cat")])
    chosen = look(store, client, project)
    assert chosen is not None
    store.annotations(project).set_references("v1", chosen)
    queue_tasks(store, project, "v1", chosen)
    while job := store.queue.take_next():
        store.queue.finish(job, "[]", 0.5, 1.0)
        label_studio.store(job.task, [], 0.5, "v0")
        label_studio.store(job.task, [], 0.5, "v1")
    store.deliveries(project, "v1").mark_delivered(store.jobs(project, "v1").all())

    def missing() -> list[int]:
        counts = read_tasks(store, client, project, LABELS)
        found = reopen_missing(store, client, project, "v1", counts)
        for task, count in counts.items():
            store.tasks(project).set_predictions_read(task, count)
        return found

    assert missing() == []
    before = len(label_studio.authorizations("/api/tasks"))
    assert missing() == []
    assert len(label_studio.authorizations("/api/tasks")) == before + 1  # the tasks, and nothing else
    of_third = [n for n, p in label_studio.predictions.items() if p["task"] == third]
    for number in of_third[1:]:  # an earlier version is still there
        del label_studio.predictions[number]
    assert missing() == [third]
    assert {t: j.delivery for t, j in store.jobs(project, "v1").all().items()}[third] == "open"
    gone = [n for n, p in label_studio.predictions.items() if p["task"] == second]
    for number in gone:
        del label_studio.predictions[number]
    assert missing() == [second]


def test_what_a_reference_holds_beside_its_usable_masks_is_told_once(
    label_studio: FakeLabelStudio,
    store: Store,
    client: LabelStudio,
    project: int,
    caplog: pytest.LogCaptureFixture,
):
    first, second, *_ = label_studio.tasks_of(project)
    both = brush(BOX, "cat")
    both["value"]["brushlabels"] = ["cat", "zebra"]
    annotation = label_studio.annotate(first, [both, brush(BOX, "horse")])
    chosen = look(store, client, project)
    assert chosen is not None
    assert [region.labels for region in chosen.annotations[0].regions] == [("cat",)]
    (told,) = store.projects.warnings(project).values()
    assert len(told) == 2
    assert all(f"Annotation {annotation} on task {first}" in text for text in told)
    assert "zebra is not in the configuration" in told[0]
    assert "horse is not in the configuration" in told[1]
    look(store, client, project)
    assert caplog.text.count("horse is not") == 1

    label_studio.update_annotation(annotation, [brush(BOX, "dog")])
    look(store, client, project)
    assert store.projects.warnings(project) == {}
    label_studio.update_annotation(annotation, [brush(BOX, "cat"), brush(BOX, "horse")])
    look(store, client, project)
    assert store.projects.warnings(project)
    del label_studio.annotations[annotation]
    label_studio.annotate(second, [brush(BOX, "cat")])
    look(store, client, project)
    assert store.projects.warnings(project) == {}
