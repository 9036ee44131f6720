"""Smart tools: the clicks of the editor, with the bundled SAM2 in a process of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from werkzeug.serving import make_server

from backend.errors import InvalidRequest
from backend.labelstudio.brush import decode_mask
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.masks import prediction_regions
from backend.labelstudio.regions import Brush, Slot, region_id
from backend.service import Service
from backend.settings import Settings
from backend.web.app import create_app
from backend.worker.interactive import read_context, slot_of, stored_regions
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import LEGACY_KEY, FakeLabelStudio, brush, picture

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="tag" toName="image"><Label value="cat"/><Label value="dog"/></BrushLabels>'
    '<KeyPointLabels name="point" toName="image" smart="true"><Label value="cat"/><Label value="bird"/>'
    "</KeyPointLabels>"
    '<RectangleLabels name="box" toName="image" smart="true"><Label value="cat"/></RectangleLabels></View>'
)
LABELS = parse_label_config(CONFIG)
SLOT = Slot("tag", "image", "cat")
CAT = (8, 40, 20, 60)
SIZE = (64, 96)


def click(x: float, y: float, *, positive: bool = True, label: str = "cat", name: str = "c1", **changes: Any) -> dict:
    """A smart point at a pixel, as the editor of 1.23.2 serializes it."""
    value: dict[str, Any] = {
        "x": 100 * x / SIZE[1],
        "y": 100 * y / SIZE[0],
        "width": 0.5,
        "keypointlabels": [label],
        "labels": [label],
    }
    region = {
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
        "value": value,
        "is_positive": positive,
        "id": name,
        "from_name": "point",
        "to_name": "image",
        "type": "keypointlabels",
        "origin": "manual",
    }
    return region | changes


def drawn_box(top: int, bottom: int, left: int, right: int) -> dict:
    value: dict[str, Any] = {
        "x": 100 * left / 96,
        "y": 100 * top / 64,
        "width": 100 * (right - left) / 96,
        "rotation": 0,
    }
    value |= {"height": 100 * (bottom - top) / 64, "rectanglelabels": ["cat"]}
    return {"id": "r1", "from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value}


def mask_of(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    return mask


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_points_and_boxes_of_one_label_are_read_together():
    context = {"result": [click(5, 6, label="dog"), drawn_box(8, 40, 20, 60), click(48, 32, positive=False, name="c2")]}
    pointing = read_context(context, LABELS)
    assert pointing is not None
    assert (pointing.to_name, pointing.label) == ("image", "cat")
    assert pointing.clicks == ((50.0, 50.0, False),)
    (box,) = pointing.boxes
    assert (box.x * 0.96, box.y * 0.64, box.width * 0.96, box.height * 0.64) == pytest.approx((20, 8, 40, 32))
    assert box.rotation == 0
    assert pointing.ids == {"r1", "c2"}
    assert slot_of(pointing, LABELS) == SLOT


@pytest.mark.parametrize("context", [{}, {"result": []}, {"result": None}, {"login": "x"}])
def test_nothing_clicked_is_nothing(context: dict):
    assert read_context(context, LABELS) is None


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"result": "text"}, "a list of regions"),
        ({"result": [brush(CAT, "cat")]}, "choose the smart point or rectangle"),
        ({"result": [click(1, 1, to_name="other")]}, "no <Image> tag 'other'"),
        ({"result": [click(1, 1, value={"x": 1, "y": 2})]}, "Choose a label"),
        ({"result": [click(1, 1, value={"x": None, "keypointlabels": ["cat"]})]}, "does not say where"),
        ({"result": [click(1, 1, image_rotation=90)]}, "rotated"),
    ],
)
def test_clicks_that_mean_nothing_are_refused_in_plain_words(result: dict, words: str):
    with pytest.raises(InvalidRequest, match=words):
        read_context(result, LABELS)


def test_the_start_is_the_draft_then_the_only_annotation_then_the_prediction():
    def stored(number: int, box: tuple[int, int, int, int], **fields: Any) -> dict:
        return {"id": number, "result": [brush(box, "cat")], "updated_at": f"2026-01-0{number}T00:00:00Z"} | fields

    def start(**task: Any) -> Any:
        found = stored_regions(task, SLOT, LABELS)
        return found and [region.shape for region in found]

    def drawn(box: tuple[int, int, int, int]) -> list:
        return [Brush(bytes(brush(box, "cat")["value"]["rle"]))]

    one, two, three = (1, 5, 1, 5), (2, 6, 2, 6), (3, 7, 3, 7)
    assert start() is None
    assert start(predictions=[stored(2, two), stored(1, one)]) == drawn(two)
    assert start(predictions=[stored(2, two)], annotations=[stored(1, one)]) == drawn(one)
    assert start(predictions=[stored(2, two)], annotations=[stored(1, one), stored(3, three)]) == drawn(two)
    assert start(predictions=[stored(2, two)], annotations=[stored(1, one, was_cancelled=True)]) == drawn(two)
    assert start(drafts=[stored(3, three)], predictions=[stored(2, two)], annotations=[stored(1, one)]) == drawn(three)
    assert start(drafts=[stored(3, three) | {"result": []}], predictions=[stored(2, two)]) == []


def test_of_several_regions_ours_is_the_mask_that_is_corrected():
    (ours,), _ = prediction_regions(SLOT, mask_of(CAT), 0.5)
    assert ours["id"] == region_id(SLOT, 0)
    other = brush((50, 60, 70, 90), "cat")
    (region,) = stored_regions({"drafts": [{"id": 1, "result": [other, ours]}]}, SLOT, LABELS) or []
    assert region.shape == Brush(bytes(ours["value"]["rle"]))


class Editor:
    """Clicks as Label Studio passes them on."""

    def __init__(self, label_studio: FakeLabelStudio, backend: RunningBackend, project: int):
        self.label_studio, self.backend, self.project = label_studio, backend, project

    def ask(self, task: int, *regions: dict, config: str = CONFIG, **fields: Any) -> requests.Response:
        known = self.label_studio.tasks[task]
        body: dict[str, Any] = {
            "tasks": [{"id": task, "data": known["data"]} | fields],
            "project": self.label_studio.uid(self.project),
            "label_config": config,
            "params": {"login": None, "password": None, "context": {"result": list(regions)}},
        }
        return requests.post(f"{self.backend.url}/predict", json=body, timeout=120)

    def mask(self, task: int, *regions: dict, **fields: Any) -> np.ndarray:
        """The mask of the only region that is answered."""
        (region,) = self.regions(task, *regions, **fields)
        return decode_mask(region["value"]["rle"], *SIZE)

    def regions(self, task: int, *regions: dict, **fields: Any) -> list[dict]:
        answer = self.ask(task, *regions, **fields)
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        assert 0 <= result["score"] <= 1
        return result["result"]


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    """One backend for all tests of this file; its model process never finishes the target that it works on."""
    fake = FakeLabelStudio()
    settings = Settings(
        label_studio_url=fake.url,
        label_studio_api_key=LEGACY_KEY,
        model="nano",
        data_dir=tmp_path_factory.mktemp("clicks") / "data",
        quiet_period=0.2,
        sync_interval=3600.0,
    )
    service = Service(settings, segmenter="tests.support.threshold:open_endless")
    server = make_server("127.0.0.1", 0, create_app(settings, service), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service.start()
    project = fake.add_project(CONFIG)
    first, _ = (fake.add_task(project, picture(CAT)) for _ in range(2))
    backend = RunningBackend(service, f"http://127.0.0.1:{server.server_port}")
    fake.connect(project, backend.url)
    wait_for(lambda: service.interactive.process.pid, "SAM2 to be started ahead of the first click")
    fake.annotate(first, [brush(CAT, "cat")])
    wait_for(lambda: service.worker.activity.state == "working", "the model process to be busy")
    yield Editor(fake, backend, project)
    assert service.worker.activity.state == "working"  # nobody has waited for it
    service.stop()
    server.shutdown()
    server.server_close()
    fake.close()


def test_a_click_without_any_mask_finds_the_object(editor: Editor):
    task = editor.label_studio.add_task(editor.project, picture(CAT))
    (region,) = editor.regions(task, click(40, 24, label="dog"))  # which the reference lacks
    assert iou(decode_mask(region["value"]["rle"], *SIZE), mask_of(CAT)) > 0.8
    assert (region["from_name"], region["to_name"], region["type"]) == ("tag", "image", "brushlabels")
    assert region["value"]["brushlabels"] == ["dog"]
    assert region["id"] == region_id(SLOT._replace(label="dog"), 0)  # it takes the place of the prediction's
    assert region["origin"] == "prediction-changed"
    assert iou(editor.mask(task, drawn_box(6, 42, 18, 62)), mask_of(CAT)) > 0.8


def test_clicks_correct_the_prediction_and_leave_the_rest(editor: Editor):
    task = editor.label_studio.add_task(editor.project, picture(CAT))
    half, stray, far = mask_of((8, 40, 20, 40)), mask_of((50, 60, 5, 20)), mask_of((50, 62, 70, 90))
    drawn, _ = prediction_regions(SLOT, half | stray | far, 0.5)
    predictions = [{"id": 1, "result": drawn, "model_version": "v"}]
    added = editor.mask(task, click(50, 24), predictions=predictions)
    assert iou(added & ~stray & ~far, mask_of(CAT)) > 0.8
    assert added[stray | far].all()
    clicks = [click(50, 24), click(10, 55, positive=False, name="c2")]
    both = editor.mask(task, *clicks, predictions=predictions)
    assert not both[stray].any()
    assert both[far].all()


def test_a_second_click_goes_on_from_what_was_just_accepted(editor: Editor):
    """The editor saves its draft seconds later, so the request still shows the old mask."""
    task = editor.label_studio.add_task(editor.project, picture(CAT))
    half, stray = mask_of((8, 40, 20, 40)), mask_of((50, 60, 5, 20))
    drawn, _ = prediction_regions(SLOT, half | stray, 0.5)
    predictions = [{"id": 1, "result": drawn, "model_version": "v"}]
    first = editor.mask(task, click(50, 24), predictions=predictions)
    second = editor.mask(task, click(10, 55, positive=False, name="other"), predictions=predictions)
    assert not second[stray].any()
    assert (second == (first & ~stray)).all()
    # a draft that was saved meanwhile is the truth
    (rubbed,), _ = prediction_regions(SLOT, far := mask_of((50, 62, 70, 90)), 0.5)
    drafts = [{"id": 9, "result": [rubbed]}]
    third = editor.mask(task, click(50, 24, name="third"), predictions=predictions, drafts=drafts)
    assert third[far].all()
    assert not third[stray].any()


def test_clicks_that_were_taken_back_leave_nothing_behind(editor: Editor):
    """Undo in the editor: one of two clicks, and all of them."""
    task = editor.label_studio.add_task(editor.project, picture(CAT))
    half, stray = mask_of((8, 40, 20, 40)), mask_of((50, 60, 5, 20))
    drawn, _ = prediction_regions(SLOT, half | stray, 0.5)
    predictions = [{"id": 1, "result": drawn, "model_version": "v"}]
    first, second = click(50, 24), click(10, 55, positive=False, name="c2")
    once = editor.mask(task, first, predictions=predictions)
    assert (editor.mask(task, first, second, predictions=predictions) != once).any()
    assert (editor.mask(task, first, predictions=predictions) == once).all()
    assert editor.regions(task, predictions=predictions) == []
    after = editor.mask(task, click(10, 55, positive=False, name="c3"), predictions=predictions)
    assert (after == half).all()


def test_without_a_prediction_the_reference_gives_the_start(editor: Editor):
    """A click on the ground changes nothing, so what is answered is the start."""
    box = (10, 42, 30, 70)
    task = editor.label_studio.add_task(editor.project, picture(box))
    start = editor.mask(task, click(4, 60, positive=False))
    assert iou(start, mask_of(box)) > 0.6


@pytest.mark.parametrize(
    ("regions", "config", "status", "words"),
    [
        (
            [click(5, 5, label="bird")],
            CONFIG,
            400,
            "has the label 'bird'; add it to <BrushLabels>",
        ),
        ([click(5, 5, to_name="scan")], CONFIG, 400, "no <Image> tag 'scan'"),
        ([brush(CAT, "cat")], CONFIG, 400, "choose the smart point or rectangle"),
        ([click(5, 5)], "<View>", 400, "not valid XML"),
    ],
)
def test_what_cannot_be_answered_is_said(editor: Editor, regions: list, config: str, status: int, words: str):
    task = editor.label_studio.add_task(editor.project, picture(CAT))
    answer = editor.ask(task, *regions, config=config)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_a_task_without_the_image_is_told(editor: Editor):
    task = editor.label_studio.add_task(editor.project, image=None, text="no picture here")
    answer = editor.ask(task, click(5, 5))
    assert answer.status_code == 404
    assert "no image for the configuration's image tags" in answer.json()["error"]


@pytest.mark.parametrize("address", ["http://10.0.0.1/secret.png", "//10.0.0.1/secret.png", "file:///etc/passwd"])
def test_an_address_that_only_the_request_names_is_not_fetched(editor: Editor, address: str):
    """Anyone who reaches the backend could otherwise make it call any address."""
    fake = editor.label_studio
    task = fake.add_task(editor.project, picture(CAT))
    fake.tasks[task]["data"] = {"image": address}
    answers = [editor.ask(task, click(40, 24))]
    # nor where the project itself is unknown, and the request brings its own configuration
    stranger = Editor(fake, editor.backend, fake.add_project(CONFIG))
    answers.append(stranger.ask(fake.add_task(stranger.project), click(4, 2), config=CONFIG.replace("$image", address)))
    for answer in answers:
        assert answer.status_code == 404
        assert "has not seen task" in answer.json()["error"]


def test_a_known_task_s_own_image_is_taken_whatever_the_request_says(editor: Editor):
    known = next(task for task in editor.label_studio.tasks_of(editor.project))
    assert editor.backend.service.store.tasks(editor.project).find(known) is not None
    answer = editor.ask(known, click(40, 24), config=CONFIG.replace("$image", "http://10.0.0.1/secret.png"))
    assert answer.status_code == 200


def test_a_mask_of_another_size_is_refused(editor: Editor):
    task = editor.label_studio.add_task(editor.project, picture(CAT))
    predictions = [{"id": 1, "result": [brush((1, 5, 1, 5), "cat", (30, 40))]}]
    answer = editor.ask(task, click(40, 24), predictions=predictions)
    assert answer.status_code == 422
    assert "40x30 pixels" in answer.json()["error"]


def test_an_image_that_is_no_picture_is_named_by_its_task(editor: Editor):
    task = editor.label_studio.add_task(editor.project, b"no picture")
    answer = editor.ask(task, drawn_box(6, 42, 18, 62))
    assert answer.status_code == 422
    assert answer.json()["error"] == f"The image of task {task} is not a picture that can be read."


def test_a_click_that_was_taken_back_is_answered_with_nothing(editor: Editor):
    task = editor.label_studio.add_task(editor.project, picture(CAT))
    assert editor.regions(task) == []


def test_files_of_images_are_kept_for_the_last_tasks_only(editor: Editor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backend.worker.interactive.IMAGES_KEPT", 2)
    for index in range(4):
        task = editor.label_studio.add_task(editor.project, picture((8, 40, 20, 50 + index)))
        editor.regions(task, click(40, 24))
    folder = editor.backend.service.settings.data_dir / "clicked"
    assert len(list(folder.iterdir())) == 2


def test_clicks_at_the_same_time_are_all_answered(editor: Editor):
    tasks = [editor.label_studio.add_task(editor.project, picture((8, 40, 20, 50 + 5 * i))) for i in range(4)]
    found: dict[int, np.ndarray] = {}

    def ask(task: int) -> None:
        found[task] = editor.mask(task, click(40, 24))

    threads = [threading.Thread(target=ask, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join(60)
    for index, task in enumerate(tasks):
        assert iou(found[task], mask_of((8, 40, 20, 50 + 5 * index))) > 0.7
