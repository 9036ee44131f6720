"""A person corrects a pre-annotation with the smart point in Label Studio's real editor."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from tests.support.backend import wait_for
from tests.support.backend_process import ROOT, BackendProcess, backends
from tests.support.fake_label_studio import brush, picture
from tools import brush as sdk_brush
from tools.editor import settled, show_task, signed_in
from tools.label_studio_server import LabelStudio

pytestmark = pytest.mark.integration

CAT, DOG = (6, 30, 10, 40), (26, 58, 52, 90)


@pytest.fixture
def serve(tmp_path: Path, server: LabelStudio) -> Iterator[Callable[..., BackendProcess]]:
    with backends(tmp_path, server.url, server.token) as start:
        yield start


def boxed(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((64, 96), bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    return mask


def click(page: Page, x: float, y: float) -> None:
    """Choose the label of the smart point, then click at a pixel of the image."""
    page.keyboard.press("3")  # the third label of the interface: the points' first
    page.locator(".lsf-tool_smart:not([aria-label])").hover()
    page.locator(".lsf-tool_smart[aria-label=key-point-tool]").click()
    stage = page.locator(".konvajs-content").first.bounding_box()
    assert stage is not None
    scale = min(stage["width"] / 96, stage["height"] / 64)
    with page.expect_response(lambda answer: "interactive-annotating" in answer.url, timeout=120_000) as waited:
        page.mouse.move(stage["x"] + x * scale - 5, stage["y"] + y * scale - 5)
        page.mouse.click(stage["x"] + x * scale, stage["y"] + y * scale)
    assert "data" in waited.value.json(), waited.value.text()


def test_a_click_adds_what_the_pre_annotation_lacks(
    server: LabelStudio, serve: Callable[..., BackendProcess], tmp_path: Path
):
    """The reference shows the red object only; the green one is clicked, and the region is corrected in its place."""
    project = server.create_project("smart", (ROOT / "label_config" / "smart.xml").read_text())
    shown = picture(CAT, DOG)
    reference, task = server.upload(project, {"1.png": picture(CAT), "2.png": shown}).values()
    backend = serve()
    server.call("POST", "/api/ml/", json={"project": project, "url": backend.url, "is_interactive": True})
    server.annotate(reference, [brush(CAT, "Object", from_name="mask")])
    wait_for(lambda: server.predictions(project), "a prediction", 120)
    (prediction,) = server.predictions(project)
    assert (sdk_brush.masks(prediction["result"])["Object"] == boxed(CAT)).all()

    remembered = {"autoAnnotation": "true", "autoAcceptSuggestions": "true"}
    image = np.asarray(Image.open(io.BytesIO(shown)))
    with signed_in(server) as page:
        for name, value in remembered.items():
            page.evaluate("([name, value]) => localStorage.setItem(name, value)", [name, value])
        before = show_task(page, server, project, task, picture=image, colours=[])
        click(page, 70, 42)
        after = settled(page, image)
        Image.fromarray(after.window).save(tmp_path / "corrected.png")
        page.get_by_role("button", name="Submit").click()
        wait_for(lambda: server.call("GET", f"/api/tasks/{task}/annotations/"), "the annotation", 30)

    (annotation,) = server.call("GET", f"/api/tasks/{task}/annotations/")
    (region,) = annotation["result"]  # the click itself is gone
    assert region["id"] == prediction["result"][0]["id"]
    assert region["origin"] == "prediction-changed"
    mask = sdk_brush.masks([region])["Object"]
    assert mask[boxed(CAT)].all()
    assert sdk_brush.iou(mask, boxed(CAT) | boxed(DOG)) > 0.8

    # on the screen the colour came to the clicked object, and stayed on the other
    height, width = after.image.shape[:2]
    rows, columns = int(42 / 64 * height), int(70 / 96 * width)
    patch = np.s_[rows - 20 : rows + 20, columns - 20 : columns + 20]
    assert np.abs(before.image[patch].mean((0, 1)) - (30, 200, 30)).max() < 10
    assert after.image[patch][..., 0].mean() > before.image[patch][..., 0].mean() + 50
    assert after.image[patch][..., 1].mean() < before.image[patch][..., 1].mean() - 50


def test_what_cannot_be_answered_is_passed_on(server: LabelStudio, serve: Callable[..., BackendProcess]):
    xml = (ROOT / "label_config" / "smart.xml").read_text()
    project = server.create_project("smart errors", xml)
    (task,) = server.upload(project, {"1.png": picture(CAT)}).values()
    made = server.call("POST", "/api/ml/", json={"project": project, "url": serve().url, "is_interactive": True})
    point = {"id": "p", "type": "keypointlabels", "from_name": "point", "to_name": "image", "is_positive": True}
    point |= {"value": {"x": 20, "y": 20, "width": 1, "keypointlabels": ["Nobody"]}}
    body = {"task": task, "context": {"result": [point]}}
    answer = server.call("POST", f"/api/ml/{made['id']}/interactive-annotating", json=body)
    assert "400" in answer["errors"][0]
    body["context"] = {"result": []}
    answer = server.call("POST", f"/api/ml/{made['id']}/interactive-annotating", json=body)
    assert answer["data"]["result"] == []
