"""What people make of predictions teaches the scores: the whole backend, a peer on a real socket, a wrong model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
from label_studio_sdk.converter.brush import mask2rle

from backend.version import base_of, taught_version
from cavsam.scoring.experience import LEAST
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import FakeLabelStudio
from tests.support.taught import columns, picture_of, truth

StartBackend = Callable[..., RunningBackend]
Running = tuple[RunningBackend, int, list[int]]
WRONG = "tests.support.taught:open_wrong"


def drawn(mask: np.ndarray) -> dict[str, Any]:
    """A brush region of a mask, as the editor stores it."""
    return {
        "id": "by-hand",
        "from_name": "tag",
        "to_name": "image",
        "type": "brushlabels",
        "origin": "manual",
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": mask2rle(mask.astype(np.uint8) * 255), "brushlabels": ["cat"]},
    }


def project_of(label_studio: FakeLabelStudio, worths: list[tuple[int, int]]) -> int:
    """A project whose first task is annotated, and whose others are worth so many columns to either candidate."""
    project = label_studio.add_project()
    first = label_studio.add_task(project, picture_of(40, 40))
    for cheap, costly in worths:
        label_studio.add_task(project, picture_of(cheap, costly))
    label_studio.annotate(first, [drawn(truth())])
    return project


def predicted(label_studio: FakeLabelStudio, tasks: list[int]) -> bool:
    return all(len(label_studio.versions_of(task)) == 1 for task in tasks)


def state_of(backend: RunningBackend, project: int) -> dict[str, Any]:
    return requests.get(f"{backend.url}/api/projects/{project}", timeout=5).json()


def tasks_of(backend: RunningBackend, project: int, show: str = "all") -> dict[int, dict[str, Any]]:
    query = {"show": show, "per_page": "500"}
    page = requests.get(f"{backend.url}/api/projects/{project}/tasks", params=query, timeout=5)
    return {task["task"]: task for task in page.json()["tasks"]}


def wait_for_reviews(backend: RunningBackend, project: int, count: int) -> dict[str, Any]:
    wait_for(lambda: state_of(backend, project)["reviews"]["count"] == count, f"{count} reviews")
    return state_of(backend, project)["reviews"]


WORTHS = [(20 + n % 20, 5 + 2 * n % 30) for n in range(16)]
"""The cheap candidate is better here, and the models believe the other."""


@pytest.fixture
def running(label_studio: FakeLabelStudio, start_backend: StartBackend) -> Running:
    """A backend that has predicted a project, the project, and its tasks but the reference's."""
    project = project_of(label_studio, WORTHS)
    backend = start_backend(segmenter=WRONG)
    label_studio.connect(project, backend.url)
    _, *tasks = label_studio.tasks_of(project)
    wait_for(lambda: predicted(label_studio, tasks), "predictions")
    return backend, project, tasks


def test_a_reviewed_task_is_told_from_others(label_studio: FakeLabelStudio, running: Running):
    backend, project, (first, second, third, *_) = running
    given = label_studio.regions_of(first)
    label_studio.annotate(first, given)
    label_studio.annotate(second, [drawn(truth())])
    label_studio.annotate(third, [])
    reviews = wait_for_reviews(backend, project, 3)
    costly = WORTHS[1][1]
    ious = {first: 1.0, second: costly / 40, third: 0.0}
    assert reviews["evaluation"]["iou"]["value"] == pytest.approx(np.mean(list(ious.values())), abs=1e-4)
    listed = tasks_of(backend, project, "reviewed")
    assert {task: found["iou"] for task, found in listed.items()} == pytest.approx(ious)
    assert [listed[task]["verdict"] for task in (first, second, third)] == ["unchanged", "rejected", "rejected"]
    assert {task["state"] for task in listed.values()} == {"reviewed"}
    assert reviews["summary"].startswith("3 reviewed: mean IoU")
    assert "33% accepted unchanged" in reviews["summary"]
    assert [task for task, _ in reviews["evaluation"]["worst"]] == [third, second, first]
    # the cheap candidate was measured as well, though nobody saw it
    (concat, full) = reviews["evaluation"]["kinds"]
    assert (concat["name"], full["name"]) == ("concat", "full")
    (cheap, shown), (other, _), _ = WORTHS[:3]
    assert concat["iou"]["value"] == pytest.approx((shown / cheap + other / 40 + 0) / 3, abs=1e-3)
    assert full["iou"]["value"] == pytest.approx((1 + costly / 40 + 0) / 3, abs=1e-3)


def test_a_reviewed_task_leaves_the_list_of_low_scores_until_its_annotation_goes(
    label_studio: FakeLabelStudio, start_backend: StartBackend
):
    project = project_of(label_studio, [(40, 40), (38, 38)])  # as good as can be, and scored as bad as can be
    backend = start_backend(segmenter=WRONG)
    label_studio.connect(project, backend.url)
    _, first, second = label_studio.tasks_of(project)
    wait_for(lambda: predicted(label_studio, [first, second]), "predictions")
    assert set(tasks_of(backend, project, "low")) == {first, second}
    annotation = label_studio.annotate(first, label_studio.regions_of(first))
    wait_for_reviews(backend, project, 1)
    assert set(tasks_of(backend, project, "low")) == {second}
    assert state_of(backend, project)["jobs"]["low"] == 1
    label_studio.update_annotation(annotation, [drawn(columns(20))])
    wait_for(lambda: tasks_of(backend, project)[first]["iou"] == pytest.approx(0.5), "the new measure")
    label_studio.delete_annotation(annotation)
    wait_for(lambda: set(tasks_of(backend, project, "low")) == {first, second}, "the review to go")


def test_corrections_teach_scores_and_the_ladder_and_nothing_is_predicted_anew(
    label_studio: FakeLabelStudio, running: Running
):
    backend, project, tasks = running
    store = backend.service.store
    stem = label_studio.versions_of(tasks[0])[0]
    before = {task: found["score"] for task, found in tasks_of(backend, project).items()}
    for task in tasks[:LEAST]:
        label_studio.annotate(task, [drawn(truth())])
    wait_for_reviews(backend, project, LEAST)
    wait_for(lambda: backend.service.version_of(project) != stem, "a lesson")
    lesson = store.learning(project).lesson(base_of(stem))
    assert lesson is not None
    assert lesson.experience.last == "concat"
    assert backend.service.version_of(project) == taught_version(stem, lesson.name)
    assert any("Mode auto stops at concat" in sentence for sentence in state_of(backend, project)["reviews"]["learned"])

    # what was predicted stays as it was; what the page says of the tasks that nobody corrected is nearly right now
    rest = tasks[LEAST:]
    true_iou = {task: WORTHS[tasks.index(task)][1] / 40 for task in rest}
    after = {task: found["score"] for task, found in tasks_of(backend, project).items() if task in rest}
    was = np.mean([abs(before[task] - true_iou[task]) for task in rest])
    assert np.mean([abs(after[task] - true_iou[task]) for task in rest]) < was / 2
    backend.service.coordinator.sync_all()
    fresh = [label_studio.add_task(project, picture_of(30, 10)) for _ in range(3)]
    backend.service.coordinator.sync_all()
    wait_for(lambda: predicted(label_studio, fresh), "the new tasks")
    assert all(label_studio.versions_of(task) == [stem] for task in tasks)
    present = backend.service.version_of(project)
    assert all(label_studio.versions_of(task) == [present] for task in fresh)
    kept = [store.learning(project).kept(task) for task in fresh if task % 10]
    assert kept
    assert all(one is not None and [c.kind for c in one.candidates] == ["concat"] for one in kept)

    # Label Studio asks again for what carries another version than /setup names; nothing may come twice
    label_studio.retrieve(project)
    assert all(len(label_studio.versions_of(task)) == 1 for task in [*tasks, *fresh])


def test_the_page_shows_what_the_reviews_say(label_studio: FakeLabelStudio, running: Running):
    backend, project, tasks = running
    for task in tasks[:LEAST]:
        label_studio.annotate(task, [drawn(truth())])
    wait_for_reviews(backend, project, LEAST)
    wait_for(lambda: state_of(backend, project)["reviews"]["learned"], "a lesson")
    page = requests.get(backend.url, headers={"Accept": "text/html"}, timeout=30).text
    state = state_of(backend, project)["reviews"]
    for words in (state["summary"], *state["learned"], *state["evaluation"]["advice"], "0 unchanged"):
        assert words in page
    assert page.count("<circle") == len(state["evaluation"]["points"]) == LEAST
    assert len(state["worst"]) == 10
    for task in state["worst"][:2]:
        assert requests.get(f"{backend.url}/{task['masks']}", timeout=30).headers["Content-Type"] == "image/jpeg"


def test_learning_can_be_turned_off_and_undone(label_studio: FakeLabelStudio, running: Running):
    backend, project, tasks = running
    stem = label_studio.versions_of(tasks[0])[0]
    before = {task: found["score"] for task, found in tasks_of(backend, project).items()}
    for task in tasks[:LEAST]:
        label_studio.annotate(task, [drawn(truth())])
    wait_for(lambda: backend.service.version_of(project) != stem, "a lesson")
    label_studio.extra_params[project] = {"learn": "off"}
    label_studio.setup(project)
    backend.service.coordinator.sync_all()
    wait_for(lambda: backend.service.version_of(project) == stem, "the lesson to go")
    after = {task: found["score"] for task, found in tasks_of(backend, project).items()}
    assert after == pytest.approx(before)
    assert state_of(backend, project)["reviews"]["learned"] == []
    assert state_of(backend, project)["reviews"]["count"] == LEAST  # measured all the same


def test_a_task_that_was_annotated_before_it_was_predicted_is_measured_too(
    label_studio: FakeLabelStudio, start_backend: StartBackend
):
    project = project_of(label_studio, [(30, 10), (30, 10)])
    _, first, _ = label_studio.tasks_of(project)
    label_studio.annotate(first, [drawn(truth())])
    backend = start_backend(segmenter=WRONG)
    label_studio.connect(project, backend.url)
    wait_for(lambda: predicted(label_studio, [first]), "the annotated task")
    backend.service.coordinator.sync_all()
    wait_for_reviews(backend, project, 1)
    assert tasks_of(backend, project)[first]["iou"] == pytest.approx(0.25)


def test_a_project_predicted_again_loses_no_lesson_and_leaves_no_prediction_behind(
    label_studio: FakeLabelStudio, running: Running
):
    backend, project, tasks = running
    stem = label_studio.versions_of(tasks[0])[0]
    for task in tasks[:LEAST]:
        label_studio.annotate(task, [drawn(truth())])
    wait_for(lambda: backend.service.version_of(project) != stem, "a lesson")
    taught = backend.service.version_of(project)
    requests.post(f"{backend.url}/api/projects/{project}/predict-again", timeout=5)
    wait_for(lambda: all(label_studio.versions_of(task) == [taught] for task in tasks), "all tasks under the lesson")
    requests.post(f"{backend.url}/api/projects/{project}/predict-again", timeout=5)
    wait_for(lambda: not any(label_studio.versions_of(task) for task in tasks), "the removal", 10)


def test_an_annotation_that_cannot_be_measured_holds_up_nothing(label_studio: FakeLabelStudio, running: Running):
    backend, project, (first, second, third, fourth, *_) = running
    damaged = drawn(truth())
    damaged["value"] = damaged["value"] | {"rle": [255, 3, 1]}
    label_studio.annotate(first, [damaged])
    label_studio.annotate(second, [{"value": None}, drawn(truth()) | {"original_width": 1 << 40}])
    larger = drawn(np.kron(truth(), np.ones((2, 2), bool)))
    label_studio.annotate(third, [larger])
    label_studio.annotate(fourth, [drawn(truth())])
    wait_for(lambda: fourth in tasks_of(backend, project, "reviewed"), "the last review")
    found = tasks_of(backend, project, "reviewed")
    assert found[first]["iou"] == found[second]["iou"] == 0  # nothing that can be read is there: it was removed
    costly = WORTHS[2][1]
    assert found[third]["iou"] == pytest.approx(costly / 40, abs=0.01)  # drawn on the picture in another size
    assert found[fourth]["iou"] == pytest.approx(WORTHS[3][1] / 40)
    assert state_of(backend, project)["error"] is None
