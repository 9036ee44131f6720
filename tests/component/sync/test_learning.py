"""What a project learns from as a team annotates: policies, events, and what becomes of predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.component.test_service import CAT_BOX, is_exact, target_box
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import BACKEND_TITLE, FakeLabelStudio, brush, picture

StartBackend = Callable[..., RunningBackend]
LOGGED = "tests.support.threshold:open_logged"


@pytest.fixture
def project(label_studio: FakeLabelStudio) -> int:
    """A project of five tasks with a cat each, none annotated."""
    number = label_studio.add_project()
    for index in range(5):
        label_studio.add_task(number, picture(target_box(index)))
    return number


def learned_from(backend: RunningBackend, project: int) -> set[int]:
    references = backend.service.store.annotations(project).references()
    return set(references.tasks) if references else set()


def wait_until_complete(backend: RunningBackend, label_studio: FakeLabelStudio, project: int, tasks: set[int]) -> str:
    """Wait until the project learns from these tasks and all others have one prediction of it; returns the version."""
    wait_for(lambda: learned_from(backend, project) == tasks, f"tasks {tasks} to be learned from")
    version = backend.service.version_of(project)
    others = set(label_studio.tasks_of(project)) - tasks

    def predicted() -> bool:
        return all(label_studio.versions_of(task).count(version) == 1 for task in others)

    wait_for(predicted, "a prediction of the version on all other tasks")
    assert all(version not in label_studio.versions_of(task) for task in tasks)
    return version


def accept(label_studio: FakeLabelStudio, task: int, **changes: object) -> int:
    """Submit a task's prediction as it is, or with its region changed."""
    number, prediction = next((n, p) for n, p in label_studio.predictions.items() if p["task"] == task)
    regions = [region | changes for region in prediction["result"]]
    return label_studio.annotate(task, regions, parent_prediction=number)


def test_corrected_predictions_teach_and_accepted_ones_do_not(
    label_studio: FakeLabelStudio,
    project: int,
    start_backend: StartBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("ADAPTED_LOG", str(tmp_path / "adapted"))
    first, second, third, *_ = label_studio.tasks_of(project)
    label_studio.extra_params[project] = {"reference_policy": "latest-k", "reference_shots": 2}
    backend = start_backend(segmenter=LOGGED)
    label_studio.connect(project, backend.url)
    label_studio.annotate(first, [brush(target_box(0), "cat")])
    one = wait_until_complete(backend, label_studio, project, {first})
    accept(label_studio, second)
    accept(label_studio, third, origin="prediction-changed")
    two = wait_until_complete(backend, label_studio, project, {first, third})
    assert label_studio.versions_of(third) == [one]
    reasons = {c.task: c.reason for c in backend.service.store.annotations(project).judged()}
    assert "accepted unchanged" in reasons[second]

    # the project's own settings are changed: each task is now given the one reference most like it
    label_studio.extra_params[project] = {"reference_policy": "nearest-k", "reference_shots": 1}
    label_studio.setup(project)
    wait_for(lambda: backend.service.version_of(project) not in (one, two), "a version of the other policy")
    backend.service.setup(project, label_studio.url, "")  # as label-studio-ml does with each call: no word of them
    wait_until_complete(backend, label_studio, project, {first, third})
    assert (tmp_path / "adapted").read_text().splitlines() == [
        "1 references, 0 shots",
        "2 references, 0 shots",
        "2 references, 1 shots",
    ]


def test_extra_params_that_cannot_be_used_are_told_and_the_default_serves(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend, caplog: pytest.LogCaptureFixture
):
    first, *_ = label_studio.tasks_of(project)
    label_studio.extra_params[project] = {"reference_policy": "best", "speed": 3}
    backend = start_backend()
    answer = label_studio.connect(project, backend.url)
    assert answer["model_version"]
    assert "reference_policy must be one of first" in answer["warning"]
    assert "'speed' is not known" in answer["warning"]
    label_studio.annotate(first, [brush(target_box(0), "cat")])
    wait_until_complete(backend, label_studio, project, {first})
    (told,) = backend.service.store.projects.warnings(project).values()
    assert [notice for notice in told if "reference_policy must be one of first" in notice]
    label_studio.setup(project)
    assert caplog.text.count("'speed' is not known") == 1
    label_studio.extra_params[project] = None
    assert "warning" not in label_studio.setup(project)
    wait_for(lambda: not backend.service.store.projects.warnings(project), "the notices to go")


def test_extra_params_typed_into_label_studios_form_come_as_text(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    first, second, *_ = label_studio.tasks_of(project)
    label_studio.extra_params[project] = ' {"reference_policy": "latest-k", "reference_shots": 2}\n'
    backend = start_backend()
    assert "warning" not in label_studio.connect(project, backend.url)
    for index, task in enumerate((first, second)):
        label_studio.annotate(task, [brush(target_box(index), "cat")])
    wait_until_complete(backend, label_studio, project, {first, second})
    assert backend.service.store.projects.warnings(project) == {}


def test_start_training_learns_what_waited_and_tries_failed_tasks_again(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    first, _, third, *_ = label_studio.tasks_of(project)
    image = label_studio.files.pop(f"/data/upload/{third}.png")
    backend = start_backend(quiet_period=3600.0)
    label_studio.connect(project, backend.url)
    annotation = label_studio.annotate(first, [brush(target_box(0), "cat")])
    store, version = backend.service.store, backend.service.version_of
    wait_for(
        lambda: store.jobs(project, version(project)).counts()["failed"] == 1, "the task without a picture to fail"
    )
    wait_for(lambda: store.jobs(project, version(project)).counts()["delivered"] == 3, "the others")
    old = version(project)
    train: dict[str, Any] = {"action": "START_TRAINING", "project": label_studio.projects[project]}
    label_studio.files[f"/data/upload/{third}.png"] = image
    assert requests.post(f"{backend.url}/webhook", json=train, timeout=5).ok
    wait_until_complete(backend, label_studio, project, {first})
    assert version(project) == old

    label_studio.update_annotation(annotation, [brush(CAT_BOX, "dog")])
    wait_for(lambda: store.annotations(project).judged()[0].key not in old, "the edit to be noticed")
    assert version(project) == old  # an hour's quiet is asked for
    requests.post(f"{backend.url}/webhook", json=train, timeout=5)
    wait_for(lambda: version(project) != old, "the edit to be learned")
    wait_until_complete(backend, label_studio, project, {first})


def test_the_project_sorts_by_our_version_unless_somebody_chose_another(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    first, second, third, *_ = label_studio.tasks_of(project)
    backend = start_backend(sync_interval=1.0)
    label_studio.connect(project, backend.url)
    described = label_studio.projects[project]
    assert described["model_version"] == BACKEND_TITLE  # as Label Studio sets it, which matches no prediction
    annotation = label_studio.annotate(first, [brush(target_box(0), "cat")])
    version = wait_until_complete(backend, label_studio, project, {first})
    wait_for(lambda: described["model_version"] == version, "Label Studio to sort by it")
    described["model_version"] = BACKEND_TITLE  # somebody wants it so: it stays for as long as the version does
    syncs = backend.service.coordinator.syncs(project)
    wait_for(lambda: backend.service.coordinator.syncs(project) >= syncs + 2, "two more syncs")
    assert described["model_version"] == BACKEND_TITLE

    # a deleted prediction is given again, a deleted task's is not, and of two annotations the next one teaches
    gone = next(n for n, p in label_studio.predictions.items() if p["task"] == second)
    del label_studio.predictions[gone]
    wait_for(lambda: label_studio.versions_of(second) == [version], "the prediction to come back")
    assert is_exact(label_studio, second, target_box(1))

    described["model_version"] = "another model's"
    label_studio.annotate(third, [brush(target_box(2), "cat")])
    del label_studio.annotations[annotation], label_studio.tasks[first]
    event: dict[str, Any] = {"action": "TASKS_DELETED", "project": described, "tasks": [{"id": first}]}
    requests.post(f"{backend.url}/webhook", json=event, timeout=5)
    wait_until_complete(backend, label_studio, project, {third})
    syncs = backend.service.coordinator.syncs(project)
    wait_for(lambda: backend.service.coordinator.syncs(project) >= syncs + 2, "two more syncs")
    assert described["model_version"] == "another model's"


def test_many_accepted_at_once_change_nothing_and_many_deleted_fall_back(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    first, second, third, *_ = label_studio.tasks_of(project)
    backend = start_backend(reference_policy="latest-k", reference_shots=1)
    label_studio.connect(project, backend.url)
    url = label_studio.connected[project]
    annotation = label_studio.annotate(first, [brush(target_box(0), "cat")])
    version = wait_until_complete(backend, label_studio, project, {first})
    # the data manager's "Create annotations from predictions": one event with lists
    label_studio.connected[project] = ""
    accepted = [accept(label_studio, task) for task in (second, third)]
    label_studio.connected[project] = url
    event: dict[str, Any] = {
        "action": "ANNOTATIONS_CREATED",
        "project": label_studio.projects[project],
        "annotation": [label_studio.annotations[number] for number in accepted],
        "task": [label_studio.tasks[task] for task in (second, third)],
    }
    requests.post(f"{url}/webhook", json=event, timeout=5)
    store = backend.service.store
    wait_for(lambda: len(store.annotations(project).judged()) == 3, "the accepted ones to be judged")
    assert backend.service.version_of(project) == version
    for number in (annotation, accepted[0]):
        del label_studio.annotations[number]
    event = {
        "action": "ANNOTATIONS_DELETED",
        "project": label_studio.projects[project],
        "annotations": [{"id": annotation}, {"id": accepted[0]}],
    }
    requests.post(f"{url}/webhook", json=event, timeout=5)
    wait_for(lambda: learned_from(backend, project) == set(), "nothing to be learned from any more")
    assert backend.service.version_of(project) == backend.service.base_version


def test_low_scores_are_flagged_where_a_person_looks(
    label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
):
    """The stand-in's segmenter is always 0.75 sure."""
    first, second, *_ = label_studio.tasks_of(project)
    label_studio.extra_params[project] = {"review_below": 0.8}
    backend = start_backend()
    label_studio.connect(project, backend.url)
    label_studio.annotate(first, [brush(target_box(0), "cat")])
    wait_until_complete(backend, label_studio, project, {first})
    (region,) = label_studio.regions_of(second)
    assert region["meta"] == {"text": ["Low score 0.75: check this mask."]}
    sure = label_studio.add_project()
    for index in range(2):
        label_studio.add_task(sure, picture(target_box(index)))
    label_studio.connect(sure, backend.url)
    one, other = label_studio.tasks_of(sure)
    label_studio.annotate(one, [brush(target_box(0), "cat")])
    wait_until_complete(backend, label_studio, sure, {one})
    (region,) = label_studio.regions_of(other)
    assert "meta" not in region


def test_a_changed_configuration_is_followed(label_studio: FakeLabelStudio, project: int, start_backend: StartBackend):
    first, *_ = label_studio.tasks_of(project)
    backend = start_backend()
    label_studio.connect(project, backend.url)
    label_studio.annotate(first, [brush(target_box(0), "horse")])
    wait_for(lambda: backend.service.store.annotations(project).judged(), "the annotation to be judged")
    assert "horse is not in the configuration" in backend.service.why_no_reference(project)
    described = label_studio.projects[project]
    described["label_config"] = described["label_config"].replace("dog", "horse")
    event: dict[str, Any] = {"action": "PROJECT_UPDATED", "project": described}
    requests.post(f"{backend.url}/webhook", json=event, timeout=5)
    wait_until_complete(backend, label_studio, project, {first})


def test_of_scores_without_a_calibration_the_lowest_tenth_is_flagged(
    label_studio: FakeLabelStudio, start_backend: StartBackend
):
    project = label_studio.add_project()
    first, *others = [label_studio.add_task(project, picture((0, 30, 0, 60 - index))) for index in range(21)]
    label_studio.annotate(first, [brush((0, 30, 0, 60), "cat")])
    backend = start_backend(segmenter="tests.support.threshold:open_uncalibrated", review_below=0.5)
    label_studio.connect(project, backend.url)
    wait_for(lambda: all(label_studio.versions_of(task) for task in others), "all to be predicted")
    regions = {task: label_studio.regions_of(task)[0] for task in others}
    assert all(region["score"] < 0.5 for region in regions.values())
    flagged = [task for task, region in regions.items() if "meta" in region]
    assert flagged == others[9:]  # each was the lowest of at least ten when it was made
    assert regions[others[-1]]["meta"]["text"][0].endswith("in the project's lowest tenth: check this mask.")
    page = requests.get(f"{backend.url}/api/projects/{project}/tasks?show=low", timeout=10).json()
    assert [task["task"] for task in page["tasks"]] == others[-2:]
    assert [task["calibrated"] for task in page["tasks"]] == [False, False]
