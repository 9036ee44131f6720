"""The backend beside a real Label Studio with strict validation of predictions.

The segmenter is the tests' own, whose masks anyone can compute, so that every pixel that arrives can be checked.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from scipy import ndimage

from backend.commands.export import export
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.masks import prediction_regions, reference_masks
from backend.labelstudio.regions import Slot
from backend.settings import Settings
from backend.sync.references import examine
from tests.support.backend import wait_for
from tests.support.backend_process import ROOT, SLOW, BackendProcess, backends
from tests.support.fake_label_studio import CONFIG, brush, picture
from tools import brush as sdk_brush
from tools.editor import open_task, resized
from tools.label_studio_server import LabelStudio

pytestmark = pytest.mark.integration

CAT_BOX = (8, 30, 20, 50)


def cat_box(index: int) -> tuple[int, int, int, int]:
    return (5, 20 + index, 10, 40 + index)


def boxed(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((64, 96), bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    return mask


def ellipse_in(box: tuple[int, int, int, int], label: str) -> dict:
    """The ellipse that fits into a box, as the editor stores it."""
    top, bottom, left, right = box
    value = {"x": 100 * (left + right) / 2 / 96, "y": 100 * (top + bottom) / 2 / 64, "rotation": 0}
    value |= {"radiusX": 100 * (right - left) / 2 / 96, "radiusY": 100 * (bottom - top) / 2 / 64}
    return {
        "id": "ellipse1",
        "from_name": "ellipse",
        "to_name": "image",
        "type": "ellipselabels",
        "original_width": 96,
        "original_height": 64,
        "image_rotation": 0,
        "value": value | {"ellipselabels": [label]},
    }


@pytest.fixture
def real(server: LabelStudio) -> LabelStudio:
    return server


@pytest.fixture
def serve(tmp_path: Path, real: LabelStudio) -> Iterator[Callable[..., BackendProcess]]:
    with backends(tmp_path, real.url, real.token) as start:
        yield start


class Scene:
    """A project of `count` pictures with a cat each; the first is the one to annotate."""

    def __init__(self, real: LabelStudio, count: int = 6):
        self.real = real
        self.project = real.create_project("cats", CONFIG)
        boxes = [CAT_BOX] + [cat_box(index) for index in range(1, count)]
        self.boxes = dict(
            zip(
                real.upload(self.project, {f"{i}.png": picture(b) for i, b in enumerate(boxes)}).values(),
                boxes,
                strict=True,
            )
        )
        self.first, *self.others = self.boxes

    def connect(self, backend: BackendProcess) -> dict:
        return self.real.connect_backend(self.project, backend.url)

    def annotate(self) -> dict:
        return self.real.annotate(self.first, [brush(CAT_BOX, "cat")])

    def predictions(self) -> list[dict]:
        return self.real.predictions(self.project)

    def wait_until_predicted(self) -> None:
        wait_for(lambda: {p["task"] for p in self.predictions()} >= set(self.others), "predictions", 120)

    def assert_one_exact_prediction_each(self) -> None:
        found = self.predictions()
        assert Counter(p["task"] for p in found) == Counter(self.others)
        assert len({p["model_version"] for p in found}) == 1
        for prediction in found:
            masks = sdk_brush.masks(prediction["result"])
            assert set(masks) == {"cat"}
            assert (masks["cat"] == boxed(self.boxes[prediction["task"]])).all()
            assert prediction["score"] == 0.75


def test_one_annotation_fills_the_project(real: LabelStudio, serve: Callable[..., BackendProcess]):
    scene = Scene(real)
    connected = scene.connect(serve())
    assert connected["state"] == "CO"
    scene.annotate()
    scene.wait_until_predicted()
    scene.assert_one_exact_prediction_each()
    (listed,) = real.call("GET", "/api/ml/", params={"project": scene.project})
    assert {p["model_version"] for p in scene.predictions()} == {listed["model_version"]}
    real.retrieve_predictions(scene.project)
    scene.assert_one_exact_prediction_each()


def test_works_with_a_personal_token_and_finds_an_older_annotation(real: LabelStudio, tmp_path: Path):
    scene = Scene(real)
    scene.annotate()
    with backends(tmp_path, real.url, real.personal_access_token()) as serve:
        scene.connect(serve())
        scene.wait_until_predicted()
    scene.assert_one_exact_prediction_each()


def test_works_with_what_setup_hands_over(real: LabelStudio, tmp_path: Path):
    """As in the demo: the user gives Label Studio the backend's address, and nothing else to anyone."""
    scene = Scene(real)
    with backends(tmp_path, "", "") as serve:
        scene.connect(serve())
        scene.annotate()
        scene.wait_until_predicted()
    scene.assert_one_exact_prediction_each()


def test_works_without_webhooks(real: LabelStudio, serve: Callable[..., BackendProcess]):
    scene = Scene(real)
    scene.connect(serve(CAVSAM_SYNC_INTERVAL="1"))
    for webhook in real.call("GET", "/api/webhooks/", params={"project": scene.project}):
        real.call("DELETE", f"/api/webhooks/{webhook['id']}/")
    scene.annotate()
    scene.wait_until_predicted()
    scene.assert_one_exact_prediction_each()
    # the backend saw that it had none and registered one
    (webhook,) = real.call("GET", "/api/webhooks/", params={"project": scene.project})
    assert webhook["url"].endswith("/webhook")
    assert webhook["is_active"]


def test_skipped_and_accepted_do_not_become_the_reference(real: LabelStudio, serve: Callable[..., BackendProcess]):
    scene = Scene(real)
    scene.connect(serve(CAVSAM_SYNC_INTERVAL="1"))
    second, third, *_ = scene.others
    skip = {"result": [], "was_cancelled": True}
    real.call("POST", f"/api/tasks/{second}/annotations/", json=skip)
    made = real.call(
        "POST",
        "/api/predictions/",
        json={"task": third, "result": [brush((0, 9, 0, 9), "cat")], "score": 0.5, "model_version": "another model"},
    )
    accepted = {"result": [brush((0, 9, 0, 9), "cat", origin="prediction")], "parent_prediction": made["id"]}
    real.call("POST", f"/api/tasks/{third}/annotations/", json=accepted)
    scene.annotate()
    wait_for(
        lambda: {p["task"] for p in scene.predictions() if p["model_version"] != "another model"} == set(scene.others),
        "predictions learned from the first task",
        120,
    )


def test_an_edited_reference_predicts_the_rest_anew(real: LabelStudio, serve: Callable[..., BackendProcess]):
    scene = Scene(real, 3)
    scene.connect(serve(CAVSAM_QUIET_PERIOD="0.5"))
    annotation = scene.annotate()
    scene.wait_until_predicted()
    old = {p["model_version"] for p in scene.predictions()}
    real.call("PATCH", f"/api/annotations/{annotation['id']}/", json={"result": [brush(CAT_BOX, "dog")]})
    wait_for(lambda: len(scene.predictions()) == 4, "two versions of each prediction", 120)
    new = [p for p in scene.predictions() if p["model_version"] not in old]
    assert Counter(p["task"] for p in new) == Counter(scene.others)
    assert {label for p in new for label in sdk_brush.masks(p["result"])} == {"dog"}


def test_earlier_versions_are_removed_where_that_is_set(real: LabelStudio, serve: Callable[..., BackendProcess]):
    scene = Scene(real, 3)
    scene.connect(serve(CAVSAM_QUIET_PERIOD="0.5", CAVSAM_OLD_PREDICTIONS="remove"))
    annotation = scene.annotate()
    scene.wait_until_predicted()
    old = {p["model_version"] for p in scene.predictions()}
    real.call("PATCH", f"/api/annotations/{annotation['id']}/", json={"result": [brush((8, 29, 20, 50), "cat")]})
    wait_for(
        lambda: len(found := scene.predictions()) == 2 and not old & {p["model_version"] for p in found},
        "only the new version",
        120,
    )


def test_predictions_that_were_deleted_come_back_on_request(real: LabelStudio, serve: Callable[..., BackendProcess]):
    scene = Scene(real)
    scene.connect(serve())
    scene.annotate()
    scene.wait_until_predicted()
    for prediction in scene.predictions()[:3]:
        real.call("DELETE", f"/api/predictions/{prediction['id']}/")
    real.retrieve_predictions(scene.project)
    scene.assert_one_exact_prediction_each()


def test_duplicates_are_removed(real: LabelStudio, serve: Callable[..., BackendProcess]):
    scene = Scene(real, 3)
    scene.connect(serve(CAVSAM_SYNC_INTERVAL="1"))
    scene.annotate()
    scene.wait_until_predicted()
    one = scene.predictions()[0]
    copy = {name: one[name] for name in ("task", "result", "score", "model_version")}
    real.call("POST", f"/api/projects/{scene.project}/import/predictions", json=[copy])
    assert len(scene.predictions()) == 3
    wait_for(lambda: len(scene.predictions()) == 2, "the copy to be removed", 60)
    scene.assert_one_exact_prediction_each()
    assert one["id"] in {p["id"] for p in scene.predictions()}


def test_a_target_without_the_object_is_predicted_empty(real: LabelStudio, serve: Callable[..., BackendProcess]):
    scene = Scene(real, 2)
    (absent,) = real.upload(scene.project, {"absent.png": picture(None)}).values()
    scene.connect(serve())
    scene.annotate()
    wait_for(lambda: {p["task"] for p in scene.predictions()} == {*scene.others, absent}, "predictions", 120)
    (prediction,) = [p for p in scene.predictions() if p["task"] == absent]
    assert prediction["result"] == []
    assert prediction["score"] == 0.0
    real.retrieve_predictions(scene.project)
    assert len(scene.predictions()) == 2


@pytest.mark.parametrize("name", ["brush", "bitmask", "polygon", "rectangle", "brush_and_labels", "ellipse"])
def test_every_mask_tag_is_learned_from_and_predicted(
    real: LabelStudio, serve: Callable[..., BackendProcess], name: str, tmp_path: Path
):
    """The reference is drawn with the tag; what comes back is accepted, says the same mask in it, and is seen.

    An ellipse is a reference only; what comes back is the brush's.
    """
    xml = (ROOT / "label_config" / f"{name}.xml").read_text()
    (control,) = parse_label_config(xml).controls
    project = real.create_project(name, xml)
    box = (10, 40, 20, 60)
    reference, target = real.upload(project, {"1.png": picture(CAT_BOX), "2.png": picture(box)}).values()
    real.connect_backend(project, serve().url)
    slot = Slot(control.name, control.to_name, "Object", control.kind, control.labels_name)
    drawn, _ = prediction_regions(slot, boxed(CAT_BOX), 1.0)
    if name == "ellipse":
        drawn = [ellipse_in(CAT_BOX, "Object")]
    real.annotate(reference, [{k: v for k, v in r.items() if k != "score"} | {"origin": "manual"} for r in drawn])
    wait_for(lambda: real.predictions(project), "a prediction", 60)
    (prediction,) = real.predictions(project)
    assert prediction["task"] == target
    stored = {"id": 1, "task": target, "result": [r | {"origin": "manual"} for r in prediction["result"]]}
    regions = examine(stored, parse_label_config(xml)).regions
    ((found, mask),) = reference_masks(regions, "image", (64, 96)).items()
    assert found == slot
    wrong = mask ^ boxed(box)
    if name == "polygon":
        assert not (wrong & ndimage.binary_erosion(boxed(box))).any()
        assert not (wrong & ~ndimage.binary_dilation(boxed(box), np.ones((3, 3)))).any()
    else:
        assert not wrong.any()

    shown = np.asarray(Image.open(io.BytesIO(picture(box))))
    view = open_task(real, project, target, picture=shown, colours=[], screenshot=tmp_path / f"{name}.png")
    height, width = view.image.shape[:2]
    plain = np.asarray(Image.fromarray(shown).resize((width, height), Image.Resampling.BILINEAR), float)
    towards = np.array(ImageColor.getrgb("#e6194b")) - plain  # the label's colour
    share = ((view.image - plain) * towards).sum(-1) / (towards**2).sum(-1)  # how much of it was laid over
    inside = ndimage.binary_erosion(resized(boxed(box), height, width), iterations=20)
    outside = ~ndimage.binary_dilation(resized(boxed(box), height, width), iterations=20)
    assert np.median(share[inside]) > 0.1
    assert abs(np.median(share[outside])) < 0.02


SEVERAL = """<View><Image name="left" value="$scan.left"/><Image name="right" value="$right"/>
<BrushLabels name="a" toName="left"><Label value="Cat" alias="c"/></BrushLabels>
<BrushLabels name="b" toName="left,right" value="$labels"/>
<PolygonLabels name="p" toName="right"><Label value="Cat" predicted_values="feline"/></PolygonLabels></View>"""


def test_several_images_and_tags_aliases_and_dynamic_labels(real: LabelStudio, serve: Callable[..., BackendProcess]):
    """Each mask is predicted on its own image, with its own tag and label, and accepted under strict validation."""

    def as_text(box: tuple[int, int, int, int]) -> str:
        return "data:image/png;base64," + base64.b64encode(picture(box)).decode()

    def on(name: str, to_name: str, label: str, box: tuple[int, int, int, int], kind: str = "brushlabels") -> list:
        (drawn, *_), _ = prediction_regions(Slot(name, to_name, label, kind), boxed(box), 1.0)
        return [{k: v for k, v in drawn.items() if k != "score"} | {"origin": "manual"}]

    project = real.create_project("several", SEVERAL)
    labels = [{"value": "Tabby"}]
    left, right = (10, 40, 20, 60), (20, 50, 30, 80)
    tasks = [
        {"scan": {"left": as_text(CAT_BOX)}, "right": as_text(CAT_BOX), "labels": labels},
        {"scan": {"left": as_text(left)}, "right": as_text(right), "labels": labels},
    ]
    real.call("POST", f"/api/projects/{project}/import", json=[{"data": task} for task in tasks])
    reference, target = sorted(task["id"] for task in real.call("GET", f"/api/projects/{project}/tasks/"))
    real.connect_backend(project, serve().url)
    real.annotate(
        reference,
        on("a", "left", "c", CAT_BOX)
        + on("b", "right", "Tabby", CAT_BOX)
        + on("p", "right", "Cat", CAT_BOX, "polygonlabels"),
    )
    wait_for(lambda: real.predictions(project), "a prediction", 60)
    (prediction,) = real.predictions(project)
    assert prediction["task"] == target
    found = {(r["from_name"], r["to_name"], *r["value"][r["type"]]): r for r in prediction["result"]}
    assert set(found) <= {("a", "left", "c"), ("b", "right", "Tabby"), ("p", "right", "Cat")}
    assert (sdk_brush.masks([found["a", "left", "c"]])["c"] == boxed(left)).all()
    # both masks on the right have the cat's colour, and a pixel belongs to one of them
    on_the_right = [key for key in found if key[1] == "right"]
    assert on_the_right
    for key in on_the_right:
        stored = {"id": 1, "task": target, "result": [found[key] | {"origin": "manual"}]}
        regions = examine(stored, parse_label_config(SEVERAL)).regions
        (mask,) = reference_masks(regions, "right", (64, 96)).values()
        assert not (mask & ~ndimage.binary_dilation(boxed(right), np.ones((3, 3)))).any()


@pytest.mark.parametrize("automatic", [False, True])
def test_no_task_gets_two_however_much_is_asked(
    real: LabelStudio, serve: Callable[..., BackendProcess], automatic: bool
):
    """Data manager, label stream and opened tasks ask at once while the model works and the results are pushed."""
    scene = Scene(real, 13)
    real.call("PATCH", f"/api/projects/{scene.project}/", json={"evaluate_predictions_automatically": automatic})
    backend = serve(SLOW, CAVSAM_PREDICT_DEADLINE="1.5", CAVSAM_SYNC_INTERVAL="3")
    scene.connect(backend)
    scene.annotate()
    done = threading.Event()
    troubles: list[Exception] = []

    def ask(what: Callable[[], object]) -> None:
        try:
            while not done.is_set():
                what()
        except Exception as error:
            troubles.append(error)

    opened = iter(scene.others * 100)
    asking = [
        threading.Thread(target=ask, args=(lambda: real.retrieve_predictions(scene.project),)),
        threading.Thread(target=ask, args=(lambda: real.call("GET", f"/api/tasks/{next(opened)}/"),)),
        threading.Thread(target=ask, args=(lambda: real.call("GET", "/api/tasks", params={"project": scene.project}),)),
    ]
    for thread in asking:
        thread.start()
    try:
        scene.wait_until_predicted()
    finally:
        done.set()
        for thread in asking:
            thread.join(120)
    assert troubles == []
    assert "duplicate" not in backend.log.read_text()  # none had to be removed
    scene.assert_one_exact_prediction_each()


def test_an_export_is_imported_again(real: LabelStudio, serve: Callable[..., BackendProcess], tmp_path: Path):
    scene = Scene(real, count=3)
    scene.connect(serve())
    scene.annotate()
    scene.wait_until_predicted()
    settings = Settings(label_studio_url=real.url, label_studio_api_key=real.token, data_dir=tmp_path / "data")
    out = tmp_path / "out"
    assert [task.error for task in export(settings, scene.project, out, "label-studio", "best")] == [None] * 3
    other = real.create_project("cats again", CONFIG)
    tasks = json.loads((out / "tasks.json").read_text())
    answer = real.call("POST", f"/api/projects/{other}/import", params={"return_task_ids": "true"}, json=tasks)
    assert (answer["annotation_count"], answer["prediction_count"]) == (1, 2)
    first, *others = answer["task_ids"]
    (annotation,) = real.call("GET", f"/api/tasks/{first}/annotations/")
    assert (sdk_brush.masks(annotation["result"])["cat"] == boxed(CAT_BOX)).all()
    found = {prediction["task"]: prediction for prediction in real.predictions(other)}
    assert set(found) == set(others)
    for task, old in zip(others, scene.others, strict=True):
        assert (sdk_brush.masks(found[task]["result"])["cat"] == boxed(scene.boxes[old])).all()
        assert found[task]["score"] == 0.75
