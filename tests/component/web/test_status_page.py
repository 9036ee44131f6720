"""The status page and /api over a real socket: what they show, what the buttons do, and who may press them."""

from __future__ import annotations

import io
import itertools
import re
import resource
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from backend.entities import ALL_PROJECTS, Task
from backend.errors import ImageUnavailable, NotKnown, TooBusy
from backend.labelstudio.events import Event
from backend.labelstudio.label_config import label_backgrounds
from backend.service import Service
from backend.settings import Settings
from backend.web.status_page import duration, size
from backend.web.thumbnails import Thumbnails
from backend.worker.decisions import CANCELLED
from backend.worker.drawing import OPACITY, SIDE, colours_of, overlaid
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import CAT, FakeLabelStudio, brush, picture

StartBackend = Callable[..., RunningBackend]
ENDLESS = "tests.support.threshold:open_endless"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
EVIL = "<script>alert('x')</script>"
CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    '<Label value="cat" background="#0000ff"/></BrushLabels></View>'
)
BOX = (8, 30, 20, 50)
"""Top, bottom, left, right of the cat on every picture of 96x64."""


@pytest.fixture
def project(label_studio: FakeLabelStudio) -> int:
    """A project of six tasks: the first annotated, the third without a readable image."""
    number = label_studio.add_project(CONFIG)
    first, _, broken, *_ = [label_studio.add_task(number, picture(BOX)) for _ in range(6)]
    label_studio.files[f"/data/upload/{broken}.png"] = b"no picture"
    label_studio.annotate(first, [brush(BOX, "cat")])
    return number


def thumbnails_of(service: Service, label_studio: FakeLabelStudio, project: int, tasks: list[int]) -> Thumbnails:
    """Thumbnails with one seat, of a service that is not started and knows these tasks."""
    service.store.projects.add(project, "x")
    service.store.projects.describe(project, "", str(label_studio.projects[project]["label_config"]))
    service.store.tasks(project).replace([Task(project, n, label_studio.tasks[n]["data"], False, "") for n in tasks])
    folder = service.settings.data_dir / "thumbnails"
    return Thumbnails(service.store, service.clients.of, service.drawing, folder, image_limit=10**6, waiting=1)


def get(backend: RunningBackend, path: str, **query: Any) -> requests.Response:
    return requests.get(f"{backend.url}/{path}", params=query, timeout=30)


def post(backend: RunningBackend, path: str, **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(f"{backend.url}/{path}", headers=named, timeout=30)


def states(backend: RunningBackend, project: int) -> list[str]:
    return [task["state"] for task in get(backend, f"api/projects/{project}/tasks").json().get("tasks", [])]


def wait_until_over(backend: RunningBackend, project: int) -> None:
    over = ["reference", "delivered", "failed", "delivered", "delivered", "delivered"]
    wait_for(lambda: states(backend, project) == over, "all tasks to be over")


def decoded(answer: requests.Response) -> np.ndarray:
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "image/jpeg"
    return np.asarray(Image.open(io.BytesIO(answer.content)), np.int16)


def is_about(pixels: np.ndarray, colour: tuple[float, ...]) -> bool:
    """Whether all pixels have a colour, but for what JPEG does to it."""
    return bool((np.abs(pixels - np.array(colour)) < 25).all())


def test_the_page_and_the_api_say_the_same(label_studio: FakeLabelStudio, project: int, start_backend: StartBackend):
    backend = start_backend(review_below=0.8)
    assert "No project yet" in requests.get(backend.url, headers=BROWSER, timeout=5).text
    label_studio.projects[project]["title"] = EVIL
    config = CONFIG.replace("</View>", f'<VectorLabels name="{EVIL.replace("<", "&lt;")}" toName="image"/></View>')
    label_studio.projects[project]["label_config"] = config
    tasks = label_studio.tasks_of(project)
    evil_file = "/data/upload/<img src=x onerror=alert(1)>.png"
    label_studio.files[evil_file] = picture(BOX)
    label_studio.tasks[tasks[1]]["data"] = {"image": evil_file}
    label_studio.connect(project, backend.url)
    wait_until_over(backend, project)
    backend.service.store.projects.set_warnings(project, "test", ["<b>noted</b>"])

    first, broken = tasks[0], tasks[2]
    described = get(backend, f"api/projects/{project}").json()
    assert described["title"] == EVIL
    assert described["policy"] == "first"
    assert described["version"] == label_studio.setup(project)["model_version"]
    assert [r["task"] for r in described["references"]] == [first]
    assert described["reference"]["task"] == first
    assert (described["total"], described["over"], described["seconds_left"]) == (5, 5, None)
    assert described["jobs"] == {"queued": 0, "running": 0, "done": 4, "failed": 1, "delivered": 4, "low": 4}
    seconds = [
        task["seconds"] for task in get(backend, f"api/projects/{project}/tasks", show="predicted").json()["tasks"]
    ]
    assert described["seconds_per_task"] == pytest.approx(sum(seconds) / 4, abs=0.006)
    assert any("VectorLabels" in warning for warning in described["warnings"])
    assert described["warnings"][-1] == "<b>noted</b>"
    assert get(backend, "api/projects").json()["projects"] == [described]
    whole = get(backend, "api/status").json()
    assert whole["projects"] == [described]
    assert get(backend, "").json()["projects"] == [described]  # not a browser
    assert whole["model"]["models"] == {"name": "nano", "try_out": True}
    assert (whole["model"]["queue"], whole["model"]["paused"]) == (0, False)
    assert whole["model"]["memory_bytes"] > 10_000_000

    listed = {task["task"]: task for task in get(backend, f"api/projects/{project}/tasks").json()["tasks"]}
    assert list(listed) == tasks
    assert listed[broken]["error"]
    assert [task["low"] for task in listed.values()] == [False, True, False, True, True, True]
    assert [task["score"] for task in listed.values()] == [None, 0.75, None, 0.75, 0.75, 0.75]
    assert listed[tasks[1]]["name"] == "<img src=x onerror=alert(1)>.png"
    assert listed[tasks[1]]["link"] == f"{label_studio.url}/projects/{project}/data?task={tasks[1]}"

    answer = requests.get(backend.url, headers=BROWSER, timeout=5)
    assert answer.headers["Content-Type"].startswith("text/html")
    page = answer.text
    words = ("try-out models", "4 of 5 tasks predicted, 4 of them in Label Studio", "1 failed", "4 to check")
    for text in (*words, "0.75", "&lt;script&gt;alert", "&lt;img src=x onerror", "&lt;b&gt;noted&lt;/b&gt;"):
        assert text in page
    assert "<script>" not in page
    assert "<img src=x" not in page
    assert not re.search(r"(src|href|action)=\"(https?:)?//(?!127\.0\.0\.1)", page)  # nothing from elsewhere


def first_line(backend: RunningBackend) -> str:
    """The text that the page's main part begins with."""
    main = requests.get(backend.url, headers=BROWSER, timeout=5).text.partition("<main>")[2]
    return " ".join(re.sub(r"<[^>]+>", "", re.search(r"<(p|h2)\b.*?</\1>", main, re.DOTALL)[0]).split())


def test_the_page_begins_with_what_is_wrong_and_what_to_do(
    label_studio: FakeLabelStudio, start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backend.sync.reachability.PAUSE", 0.05)
    label_studio.failures.deny = True
    backend = start_backend()
    wait_for(
        lambda: "does not accept the API key (401). Copy the token again" in first_line(backend), "the key's fault"
    )
    assert get(backend, "api/status").json()["problems"][0]["subject"] == "Label Studio"
    label_studio.failures.deny = False
    wait_for(lambda: first_line(backend) == "Model", "all to be well")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segmenter": "tests.support.threshold:open_missing"}, "model: There is no checkpoint; set CAVSAM_MODEL"),
        ({"label_studio_url": "http://127.0.0.1:9"}, "Label Studio cannot be reached at http://127.0.0.1:9"),
    ],
)
def test_each_fault_of_the_whole_is_the_first_line(start_backend: StartBackend, changes: dict[str, str], words: str):
    backend = start_backend(**changes)
    wait_for(lambda: words in first_line(backend), "the fault to be told")


@pytest.mark.parametrize(("release", "told"), [("1.23.2", True), ("1.22.0", False)])
def test_without_a_project_the_page_names_the_guard_that_may_keep_it_away(
    start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch, release: str, told: bool
):
    monkeypatch.setattr("backend.labelstudio.client.LabelStudio.version", lambda self: {"release": release})
    backend = start_backend()
    wait_for(lambda: backend.service.reachability.release == release, "the release to be known")
    page = requests.get(backend.url, headers=BROWSER, timeout=5).text
    assert ("LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false" in page) is told


def test_why_there_is_no_reference_yet(label_studio: FakeLabelStudio, start_backend: StartBackend):
    backend = start_backend()
    project = label_studio.add_project()
    task = label_studio.add_task(project, picture(BOX))
    label_studio.connect(project, backend.url)
    wait_for(lambda: "No task is annotated yet" in requests.get(backend.url, headers=BROWSER, timeout=5).text, "it")
    described = get(backend, f"api/projects/{project}").json()
    assert (described["references"], described["reference"]) == ([], None)
    assert "annotate one" in described["why_no_reference"]
    assert states(backend, project) == ["not queued"]
    assert get(backend, f"api/projects/{project}/tasks/{task}/masks").status_code == 404
    refused = post(backend, f"api/projects/{project}/predict-again")
    assert refused.status_code == 409
    assert "annotate a task first" in refused.json()["error"]


def test_pages_filters_and_what_cannot_be_asked(label_studio: FakeLabelStudio, start_backend: StartBackend):
    backend = start_backend()
    project = label_studio.add_project()
    tasks = [label_studio.add_task(project, image=b"no picture") for n in range(45)]
    label_studio.connect(project, backend.url)
    wait_for(lambda: get(backend, f"api/projects/{project}/tasks").status_code == 200, "the project")
    path = f"api/projects/{project}/tasks"
    wait_for(lambda: get(backend, path).json()["total"] == 45, "the tasks")
    pages = [get(backend, path, page=number).json() for number in (1, 2, 3, 4)]
    assert [task["task"] for page in pages for task in page["tasks"]] == tasks
    assert [len(page["tasks"]) for page in pages] == [20, 20, 5, 0]
    assert {page["pages"] for page in pages} == {3}
    assert len(get(backend, path, per_page=7, page=7).json()["tasks"]) == 45 - 6 * 7
    assert get(backend, path, show="failed").json()["total"] == 0
    html = requests.get(backend.url, headers=BROWSER, params={"project": project, "page": 2}, timeout=5).text
    assert "Page 2 of 3" in html
    assert f'id="task-{tasks[20]}"' in html
    assert f'id="task-{tasks[19]}"' not in html
    bad: list[dict[str, Any]] = [
        {"page": 0},
        {"page": "-1"},
        {"page": "two"},
        {"page": "9" * 30},
        {"page": "²"},
        {"per_page": 501},
        {"show": "x"},
        {"order": "score; DROP TABLE jobs"},
    ]
    for query in bad:
        answer = get(backend, path, **query)
        assert answer.status_code == 400
        assert next(iter(query)) in answer.json()["error"]
    for missing in ("api/projects/99", "api/projects/99/tasks", "api/projects/99/tasks/1/image", "?project=99"):
        answer = requests.get(f"{backend.url}/{missing}", headers={"Accept": "text/html"}, timeout=5)
        assert answer.status_code == 404
        assert "does not know" in answer.json()["error"]


class TestThumbnails:
    def test_masks_lie_on_the_object_in_the_labels_colour(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        backend = start_backend()
        label_studio.connect(project, backend.url)
        wait_until_over(backend, project)
        listed = get(backend, f"api/projects/{project}/tasks").json()["tasks"]
        top, bottom, left, right = BOX
        inside = np.zeros((64, 96), bool)
        inside[top + 1 : bottom - 1, left + 1 : right - 1] = True  # the edges are blurred by JPEG
        outside = np.ones((64, 96), bool)
        outside[top - 1 : bottom + 1, left - 1 : right + 1] = False
        covered = tuple((1 - OPACITY) * c + OPACITY * b for c, b in zip(CAT, (0, 0, 255), strict=True))
        for task in (listed[0], listed[1], listed[5]):
            plain = decoded(requests.get(f"{backend.url}/{task['image']}", timeout=30))
            drawn = decoded(requests.get(f"{backend.url}/{task['masks']}", timeout=30))
            assert plain.shape == drawn.shape == (64, 96, 3)
            assert is_about(plain[inside], CAT)
            assert is_about(drawn[inside], covered)
            assert is_about(drawn[outside] - plain[outside], (0, 0, 0))
        broken = listed[2]
        assert broken["masks"] is None
        answer = requests.get(f"{backend.url}/{broken['image']}", timeout=30)
        assert answer.status_code == 404
        assert answer.json()["error"]
        kept = requests.get(f"{backend.url}/{listed[0]['image']}", timeout=30)
        assert "max-age" in kept.headers["Cache-Control"]

    def test_large_turned_and_missing_images(
        self, label_studio: FakeLabelStudio, make_settings: Callable[..., Settings]
    ):
        project = label_studio.add_project()
        stream, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        Image.new("RGB", (1200, 600), (250, 0, 0)).save(stream, "JPEG", exif=exif)
        turned = label_studio.add_task(project, stream.getvalue())
        none = label_studio.add_task(project, text="no image at all")
        service = Service(make_settings())
        try:
            service.store.projects.add(project, "x")
            config = str(label_studio.projects[project]["label_config"])
            service.store.projects.describe(project, "", config)
            known = [Task(project, n, label_studio.tasks[n]["data"], False, "") for n in (turned, none)]
            service.store.tasks(project).replace(known)
            thumbnails = Thumbnails(
                service.store,
                service.clients.of,
                service.drawing,
                service.settings.data_dir / "thumbnails",
                image_limit=10**6,
                waiting=1,
            )
            assert Image.open(io.BytesIO(thumbnails.image(project, turned))).size == (SIDE // 2, SIDE)
            asked = len(label_studio.authorizations(f"/data/upload/{turned}.png"))
            thumbnails.image(project, turned)
            assert len(label_studio.authorizations(f"/data/upload/{turned}.png")) == asked == 1  # kept
            assert list((service.settings.data_dir / "thumbnails").iterdir()) == []
            with pytest.raises(NotKnown, match="no image"):
                thumbnails.image(project, none)
            with pytest.raises(NotKnown, match="no masks"):
                thumbnails.masks(project, turned)
        finally:
            service.stop()

    def test_a_large_picture_takes_no_memory_of_the_process_that_answers(
        self, label_studio: FakeLabelStudio, make_settings: Callable[..., Settings]
    ):
        project = label_studio.add_project()
        stream = io.BytesIO()
        Image.new("1", (10_000, 10_000), 1).save(stream, "PNG")  # 12 KB, and 300 MB once it is decoded
        tasks = [
            label_studio.add_task(project, content) for content in (picture(BOX), stream.getvalue(), b"no picture")
        ]
        service = Service(make_settings())
        try:
            thumbnails = thumbnails_of(service, label_studio, project, tasks)
            thumbnails.image(project, tasks[0])
            assert service.drawing.is_running
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert Image.open(io.BytesIO(thumbnails.image(project, tasks[1]))).size == (SIDE, SIDE)
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
            with pytest.raises(ImageUnavailable, match=f"image of task {tasks[2]}"):
                thumbnails.image(project, tasks[2])
        finally:
            service.stop()
        assert not service.drawing.is_running

    def test_whoever_finds_no_seat_is_sent_away_and_seats_become_free(
        self, label_studio: FakeLabelStudio, make_settings: Callable[..., Settings]
    ):
        project = label_studio.add_project()
        tasks = [label_studio.add_task(project, picture(BOX)) for _ in range(2)]
        service = Service(make_settings())
        asked, answered = threading.Event(), threading.Event()

        def hold() -> None:
            asked.set()
            answered.wait(120)

        try:
            thumbnails = thumbnails_of(service, label_studio, project, tasks)
            label_studio.failures.before_answer = hold
            made: list[bytes] = []
            maker = threading.Thread(target=lambda: made.append(thumbnails.image(project, tasks[0])))
            maker.start()
            assert asked.wait(60)
            with pytest.raises(TooBusy):
                thumbnails.image(project, tasks[1])
            answered.set()
            maker.join(60)
            assert len(made) == 1
            assert thumbnails.image(project, tasks[1])
        finally:
            answered.set()
            service.stop()

    def test_masks_of_several_labels_and_another_size(self):
        ground = np.full((10, 20, 3), 100, np.uint8)
        left, right = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
        left[:, :10], right[:, 30:] = True, True
        drawn = overlaid(ground, {"a": left, "b": right}, {"a": (200, 100, 0)})
        assert (drawn[:, :5] == [160, 100, 40]).all()  # 100 + 0.6 * (colour - 100)
        assert (drawn[:, 5:15] == 100).all()
        assert (drawn[:, 15:] != 100).any()  # a label without a colour gets one

    def test_colours_of_labels(self):
        xml = (
            '<View><Label value="a" background="#010203"/><Label value="b" background="no colour"/>'
            '<Label value="c" alias="d" background="red"/><Label value="e"/></View>'
        )
        colours = colours_of(label_backgrounds(xml))
        assert colours["a"] == (1, 2, 3)
        assert colours["d"] == (255, 0, 0)
        assert set(colours) == {"a", "b", "d", "e"}
        assert len(set(colours.values())) == 4


class TestButtons:
    def test_pause_resume_and_predict_again(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        backend = start_backend()
        store = backend.service.store
        assert post(backend, "api/pause").json()["done"].startswith("All projects are paused")
        label_studio.connect(project, backend.url)
        wait_for(lambda: store.annotations(project).references(), "the reference")
        version = store.projects.find(project).version
        wait_for(lambda: store.jobs(project, version).counts()["queued"] == 5, "the queue")
        assert "wait" in post(backend, f"api/projects/{project}/pause").json()["done"]
        # a /predict would wait for what nobody does: it answers at once, and its deadline is a minute
        assert label_studio.retrieve(project) == [[]] * 6
        assert "whole backend is paused" in post(backend, f"api/projects/{project}/resume").json()["done"]
        assert store.jobs(project, version).counts()["queued"] == 5
        whole = get(backend, "api/status").json()
        assert (whole["model"]["paused"], whole["model"]["queue"], whole["projects"][0]["paused"]) == (True, 0, False)
        page = requests.get(backend.url, headers=BROWSER, timeout=5).text
        assert "Paused: no task of any project is begun" in page
        assert post(backend, "api/resume").ok
        wait_until_over(backend, project)

        before = dict(label_studio.predictions)
        assert post(backend, f"api/projects/{project}/predict-again").ok
        wait_for(lambda: not store.projects.wanted_again() and len(label_studio.predictions) == 4, "new predictions")
        wait_until_over(backend, project)
        assert not set(before) & set(label_studio.predictions)  # the old ones are gone
        assert {p["model_version"] for p in label_studio.predictions.values()} == {version}
        assert sorted(p["task"] for p in label_studio.predictions.values()) == sorted(
            p["task"] for p in before.values()
        )

    def test_predict_again_takes_nothing_from_a_project_that_is_not_connected(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        backend = start_backend()
        store = backend.service.store
        label_studio.connect(project, backend.url)
        wait_until_over(backend, project)
        del label_studio.connected[project]
        before = dict(label_studio.predictions)
        for path in (f"api/projects/{project}/predict-again", "api/predict-again"):
            refused = post(backend, path)
            assert refused.status_code == 409
            assert "Settings, Model" in refused.json()["error"]

        # wanted while Label Studio did not say, found out by the coordinator
        label_studio.missing_paths.add("/api/ml")
        assert post(backend, f"api/projects/{project}/predict-again").ok
        wait_for(lambda: store.projects.find(project).error, "the coordinator to ask in vain")
        assert store.projects.wanted_again() == {project}
        label_studio.missing_paths.clear()
        backend.service.coordinator.send(Event(project, "again"))
        wait_for(lambda: not store.projects.wanted_again(), "the wish to be dropped")
        wait_for(lambda: "Settings, Model" in str(get(backend, "api/projects").json()), "the warning")
        assert label_studio.predictions == before
        assert states(backend, project)[1] == "delivered"

        label_studio.connect(project, backend.url)
        assert post(backend, f"api/projects/{project}/predict-again").ok
        wait_for(lambda: len(label_studio.predictions.keys() - before.keys()) == 4, "new predictions")
        assert not before.keys() & label_studio.predictions.keys()
        assert "Settings, Model" not in str(get(backend, "api/projects").json())

    def test_predict_again_takes_nothing_where_the_reference_is_deleted_meanwhile(
        self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend
    ):
        backend = start_backend()
        store = backend.service.store
        label_studio.connect(project, backend.url)
        wait_until_over(backend, project)
        (annotation,) = label_studio.annotations
        before = dict(label_studio.predictions)
        del label_studio.annotations[annotation]  # and no event tells of it
        assert post(backend, f"api/projects/{project}/predict-again").ok
        wait_for(lambda: not store.projects.wanted_again(), "the wish to be dropped")
        assert label_studio.predictions == before

    def test_retry(self, label_studio: FakeLabelStudio, project: int, start_backend: StartBackend):
        backend = start_backend()
        label_studio.connect(project, backend.url)
        wait_until_over(backend, project)
        _, done, broken, *_ = label_studio.tasks_of(project)
        refused = post(backend, f"api/projects/{project}/tasks/{done}/retry")
        assert refused.status_code == 409
        assert "has not failed" in refused.json()["error"]
        label_studio.files[f"/data/upload/{broken}.png"] = picture(BOX)
        answer = post(backend, f"api/projects/{project}/tasks/{broken}/retry")
        assert answer.json() == {"done": "One failed task is queued again."}
        wait_for(lambda: states(backend, project)[2] == "delivered", "the mended task")
        assert post(backend, "api/retry").json() == {"done": "0 failed tasks are queued again."}

    def test_cancel_stops_the_task_in_work_only(self, label_studio: FakeLabelStudio, start_backend: StartBackend):
        backend = start_backend(segmenter=ENDLESS)
        project = label_studio.add_project(CONFIG)
        first, second, third = [label_studio.add_task(project, picture(BOX)) for _ in range(3)]
        label_studio.annotate(first, [brush(BOX, "cat")])
        nothing = post(backend, "api/cancel")
        assert nothing.status_code == 409
        assert "not in work" in nothing.json()["error"]
        label_studio.connect(project, backend.url)
        worker, store = backend.service.worker, backend.service.store
        wait_for(lambda: (worker.activity.state, worker.activity.task) == ("working", second), "the first task")
        other = post(backend, f"api/projects/{project}/tasks/{third}/cancel")
        assert other.status_code == 409
        answer = post(backend, f"api/projects/{project}/tasks/{second}/cancel")
        assert answer.ok
        assert f"Task {second}" in answer.json()["done"]
        wait_for(lambda: (worker.activity.state, worker.activity.task) == ("working", third), "the next task")
        cancelled = store.jobs(project, store.projects.find(project).version).find(second)
        assert (cancelled.state, cancelled.error) == ("failed", CANCELLED)
        post(backend, f"api/projects/{project}/retry")
        assert post(backend, "api/cancel").ok
        wait_for(lambda: (worker.activity.state, worker.activity.task) == ("working", second), "the first one again")

    def test_what_there_is_not(self, start_backend: StartBackend):
        backend = start_backend()
        for path in ("api/projects/7/pause", "api/projects/7/tasks/1/retry", "api/projects/7/cancel"):
            answer = post(backend, path)
            assert answer.status_code == 404
            assert "does not know project 7" in answer.json()["error"]
        answer = post(backend, "api/explode")
        assert answer.status_code == 404
        assert "predict-again" in answer.json()["error"]
        assert requests.get(f"{backend.url}/api/pause", timeout=5).status_code == 405
        assert not backend.service.store.projects.is_paused(ALL_PROJECTS)

    def test_a_browser_without_javascript_comes_back_to_the_page(self, start_backend: StartBackend):
        backend = start_backend()
        answer = requests.post(
            f"{backend.url}/api/pause",
            headers=BROWSER | {"Origin": backend.url, "Sec-Fetch-Site": "same-origin"},
            timeout=5,
        )
        assert [step.status_code for step in answer.history] == [303]
        assert "Resume all" in answer.text


def test_pages_of_other_sites_press_no_buttons(start_backend: StartBackend):
    backend = start_backend()
    paths = ("api/pause", "setup", "predict", "webhook", "api/projects/1/predict-again")
    foreign = (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": backend.url},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://[bad"},
        {"Origin": backend.url + "1"},  # another port is another site
    )
    for path, headers in itertools.product(paths, foreign):
        answer = requests.post(f"{backend.url}/{path}", json={}, headers=headers, timeout=5)
        assert answer.status_code == 403
        assert "another site" in answer.json()["error"]
    assert not backend.service.store.projects.is_paused(ALL_PROJECTS)
    # the page itself, with and without the first header, and programs
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": backend.url}, {}):
        assert requests.post(f"{backend.url}/api/pause", headers=headers, timeout=5).status_code == 200
    assert backend.service.store.projects.is_paused(ALL_PROJECTS)


def test_a_name_that_may_be_another_sites_opens_nothing(start_backend: StartBackend, label_studio: FakeLabelStudio):
    backend = start_backend(allowed_hosts="cavsam.example.org, other.example.org", host="own.example.org")
    store = backend.service.store
    port = backend.url.rpartition(":")[2]

    def press(action: str, host: str) -> requests.Response:
        # so calls a page whose own name leads here by now
        seen = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        return requests.post(f"{backend.url}/api/{action}", headers=seen, timeout=5)

    for name in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.cavsam.example.org",
        "1.2.3",
    ):
        for host in (name, f"{name}:{port}", f"{name.upper()}:{port}"):
            refused = press("pause", host)
            assert refused.status_code == 403
            assert "CAVSAM_ALLOWED_HOSTS" in refused.json()["error"]
    assert not store.projects.is_paused(ALL_PROJECTS)
    ours = ("127.0.0.1", "192.168.1.7", "[::1]", "[fe80::1]", "localhost", "LOCALHOST", "cavsam", "cavsam.internal")
    for name in (*ours, "box.local", "cavsam.example.org", "other.example.org", "own.example.org", "own.example.org."):
        for host, action in ((name, "pause"), (f"{name}:{port}", "resume")):
            assert press(action, host).status_code == 200
            assert store.projects.is_paused(ALL_PROJECTS) == (action == "pause")

    # reading too, and what Label Studio and health checks call
    evil = {"Host": "evil.example"}
    for path in ("", "api/status", "health", "versions", "static/page.js", "api/projects/1/tasks/1/image"):
        assert requests.get(f"{backend.url}/{path}", headers=evil, timeout=5).status_code == 403, path
    project = label_studio.add_project()
    for path, body, status in (
        ("setup", {"project": str(project)}, 200),
        ("predict", {"project": str(project), "tasks": []}, 200),
        ("webhook", {"action": "PROJECT_UPDATED"}, 201),
    ):
        assert requests.post(f"{backend.url}/{path}", json=body, headers=evil, timeout=5).status_code == 403
        assert requests.post(f"{backend.url}/{path}", json=body, timeout=5).status_code == status


def test_with_a_password_any_name_will_do(start_backend: StartBackend):
    backend = start_backend(basic_auth_user="me", basic_auth_password="pass")
    host = {"Host": "cavsam.example.org"}
    assert requests.post(f"{backend.url}/api/pause", auth=("me", "pass"), headers=host, timeout=5).ok
    assert requests.post(f"{backend.url}/api/resume", headers=host, timeout=5).status_code == 401


def test_basic_auth_guards_page_pictures_and_buttons(start_backend: StartBackend):
    backend = start_backend(basic_auth_user="me", basic_auth_password="pass")
    for path in ("", "api/status", "api/projects/1/tasks/1/image", "static/page.js"):
        assert get(backend, path).status_code == 401
    assert post(backend, "api/pause").status_code == 401
    assert not backend.service.store.projects.is_paused(ALL_PROJECTS)
    assert requests.post(f"{backend.url}/api/pause", auth=("me", "pass"), timeout=5).ok
    crossing = {"Sec-Fetch-Site": "cross-site"}
    answer = requests.post(f"{backend.url}/api/resume", auth=("me", "pass"), headers=crossing, timeout=5)
    assert answer.status_code == 403


def test_answers_forbid_scripts_and_frames_of_others(start_backend: StartBackend):
    backend = start_backend()
    for path in ("", "api/status", "static/page.js", "nowhere"):
        headers = requests.get(f"{backend.url}/{path}", headers=BROWSER, timeout=5).headers
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (200, "3 min"), (5400, "1 h 30 min"), (7800.4, "2 h 10 min")]
)
def test_durations_in_words(seconds: float, words: str):
    assert duration(seconds) == words


@pytest.mark.parametrize(("number", "words"), [(850_400_000, "850 MB"), (3_210_000_000, "3.2 GB"), (0, "0 MB")])
def test_sizes_in_words(number: float, words: str):
    assert size(number) == words
