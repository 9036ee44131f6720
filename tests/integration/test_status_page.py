"""The status page in a real Chromium, served by the real processes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from backend.worker.drawing import OPACITY
from tests.support.backend import wait_for
from tests.support.backend_process import ENDLESS, BackendProcess
from tests.support.fake_label_studio import CAT, FakeLabelStudio, brush, picture

pytestmark = pytest.mark.integration

BOX = (8, 30, 20, 50)
EVIL = "<img src=x onerror=\"window.hacked='{}'\">"
BLUE = (0, 0, 255)
CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    '<Label value="cat" background="#0000ff"/></BrushLabels><Vector name="{}" toName="image"/></View>'
)
PATIENCE = 120_000
"""Milliseconds after which a test that will never pass ends."""


@pytest.fixture
def project(label_studio: FakeLabelStudio) -> int:
    """Six tasks, one of them with an image that cannot be read; what people may name is named as an attacker would."""
    markup = EVIL.format("config").replace("<", "&lt;").replace('"', "&quot;")
    number = label_studio.add_project(CONFIG.format(markup))
    label_studio.projects[number]["title"] = EVIL.format("title")
    tasks = [label_studio.add_task(number, picture(BOX)) for _ in range(6)]
    name = f"/data/upload/{EVIL.format('file')}.png"
    label_studio.files[name] = label_studio.files[f"/data/upload/{tasks[1]}.png"]
    label_studio.tasks[tasks[1]]["data"] = {"image": name}
    label_studio.files[f"/data/upload/{tasks[2]}.png"] = b"no picture"
    return number


def annotate(label_studio: FakeLabelStudio, project: int) -> None:
    label_studio.annotate(label_studio.tasks_of(project)[0], [brush(BOX, "cat")])


@dataclass
class Watched:
    """A page, what it asked for, and what went wrong in it."""

    page: Page
    asked: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, url: str, **context: Any) -> Iterator[Watched]:
    window = browser.new_context(**context)
    watched = Watched(window.new_page())
    watched.page.set_default_timeout(PATIENCE)
    watched.page.on("request", lambda request: watched.asked.append(request.url))
    watched.page.on("pageerror", lambda error: watched.troubles.append(str(error)))
    watched.page.goto(url)
    yield watched
    window.close()


def pixels(image: Locator) -> np.ndarray:
    """What the screen shows of a thumbnail, float (64, 96, 3), at the size of the image itself."""
    expect(image).to_be_visible(timeout=PATIENCE)
    image.scroll_into_view_if_needed()
    image.page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    shown = Image.open(io.BytesIO(image.screenshot())).convert("RGB")
    return np.asarray(shown.resize((96, 64), Image.Resampling.BOX), float)


def press(page: Page, name: str, *, sure: bool | None = None) -> None:
    """Press a button; `sure` is the answer to the question that it asks, where it asks one."""
    if sure is not None:
        page.once("dialog", lambda dialog: dialog.accept() if sure else dialog.dismiss())
    page.get_by_role("button", name=name, exact=True).click()


def status(backend: BackendProcess) -> dict[str, Any]:
    return requests.get(f"{backend.url}/api/status", timeout=30).json()


def test_it_follows_the_work_and_shows_masks_on_the_objects(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int, browser: Browser
):
    backend = serve()
    label_studio.connect(project, backend.url)
    tasks = label_studio.tasks_of(project)
    with opened(browser, backend.url, viewport={"width": 1300, "height": 2000}) as watched:
        page = watched.page
        expect(page.get_by_text("No task is annotated yet")).to_be_visible(timeout=PATIENCE)
        heading = page.locator(f"#project-{project}-title").element_handle()
        page.evaluate("window.opened = 1")
        annotate(label_studio, project)
        progress = page.get_by_text("4 of 5 tasks predicted, 4 of them in Label Studio")
        expect(progress).to_be_visible(timeout=PATIENCE)
        assert page.locator("progress").evaluate("bar => bar.value / bar.max") == 1
        # renewed in place: the same document, and what did not change is the same element
        assert page.evaluate("window.opened") == 1
        assert heading.evaluate("element => element.isConnected")

        top, bottom, left, right = BOX
        inside, outside = np.zeros((64, 96), bool), np.ones((64, 96), bool)
        inside[top + 2 : bottom - 2, left + 2 : right - 2] = True
        outside[top - 2 : bottom + 2, left - 2 : right + 2] = False
        outside[:4], outside[-4:], outside[:, :4], outside[:, -4:] = False, False, False, False  # rounded corners
        covered = (1 - OPACITY) * np.array(CAT) + OPACITY * np.array(BLUE)
        places = [page.locator(f"#project-{project} .pictures li"), page.locator(f"#task-{tasks[4]}")]
        for place in places:
            plain, drawn = pixels(place.locator("img").nth(0)), pixels(place.locator("img").nth(1))
            assert np.abs(plain[inside] - CAT).max() < 30
            assert np.abs(drawn[inside] - covered).max() < 30
            assert np.abs(drawn[outside] - plain[outside]).max() < 30

        row = page.locator(f"#task-{tasks[2]}")
        expect(row).to_contain_text("failed")
        assert row.locator("img").count() == 1  # there are no masks to show
        expect(page.locator(f"#task-{tasks[4]}")).to_contain_text("0.75")
        page.get_by_role("link", name="1 failed").click()
        expect(page.locator("tbody tr")).to_have_count(1)
        expect(page.get_by_text("Vector").first).to_be_visible()
        # what people name is text, not markup
        page.goto(backend.url)
        for words in ("title", "file", "config"):
            assert re.search(rf"window.hacked=\\?'{words}", page.locator("main").inner_text())
        page.wait_for_load_state("networkidle")
        assert page.evaluate("window.hacked") is None
        assert watched.troubles == []
    assert all(url.startswith(backend.url) for url in watched.asked)


def test_the_buttons(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int, browser: Browser
):
    backend = serve()
    label_studio.connect(project, backend.url)
    of = f"of project {project}"
    with opened(browser, backend.url) as watched:
        page = watched.page
        press(page, "Pause all")
        expect(page.get_by_role("status")).to_contain_text("All projects are paused")
        annotate(label_studio, project)
        expect(page.locator(f"#progress-{project}")).to_contain_text("0 of 5 tasks predicted", timeout=PATIENCE)
        assert status(backend)["model"]["paused"]
        press(page, f"Pause {of}")
        expect(page.locator(f"#paused-{project}")).to_be_visible(timeout=PATIENCE)
        press(page, "Resume all")
        expect(page.locator("#all-paused")).to_have_count(0, timeout=PATIENCE)
        after = status(backend)
        assert (after["model"]["paused"], after["projects"][0]["paused"]) == (False, True)
        assert after["projects"][0]["jobs"]["queued"] == 5
        press(page, f"Resume {of}")
        expect(page.locator(f"#progress-{project}")).to_contain_text("4 of 5 tasks predicted, 4 of", timeout=PATIENCE)

        broken = label_studio.tasks_of(project)[2]
        label_studio.files[f"/data/upload/{broken}.png"] = picture(BOX)
        press(page, f"Retry failed {of}")
        expect(page.get_by_role("status")).to_contain_text("One failed task is queued again.")
        expect(page.locator(f"#progress-{project}")).to_contain_text("5 of 5 tasks predicted, 5 of", timeout=PATIENCE)
        assert label_studio.versions_of(broken)

        before = set(label_studio.predictions)
        press(page, f"Predict again {of}", sure=False)
        page.wait_for_load_state("networkidle")
        assert set(label_studio.predictions) == before
        press(page, f"Predict again {of}", sure=True)
        expect(page.get_by_role("status")).to_contain_text("predicted again")
        wait_for(lambda: len(label_studio.predictions) == 5 and not before & set(label_studio.predictions), "new ones")
        assert watched.troubles == []


def test_cancel_and_pages_of_other_sites(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int, browser: Browser
):
    backend = serve(ENDLESS)
    label_studio.connect(project, backend.url)
    annotate(label_studio, project)
    tasks = label_studio.tasks_of(project)
    with opened(browser, backend.url) as watched:
        page = watched.page
        row = page.locator(f"#task-{tasks[1]}")
        expect(row).to_contain_text("running", timeout=PATIENCE)
        wait_for(lambda: backend.health()["work"] == "working", "work")
        press(page, f"Cancel task {tasks[1]}", sure=True)
        expect(row).to_contain_text("The task was cancelled", timeout=PATIENCE)
        expect(page.locator("#now")).to_contain_text(f"task {tasks[2]}", timeout=PATIENCE)

        # a page on another port of this host, and one on another host, have the browser press a button
        port = label_studio.url.rpartition(":")[2]
        form = f'<form id="f" method="post" action="{backend.url}/api/pause"></form><script>f.submit()</script>'
        for site in (f"http://127.0.0.1:{port}/evil", f"http://localhost:{port}/evil"):
            page.route(re.compile("/evil$"), lambda route: route.fulfill(body=form, content_type="text/html"))
            with page.expect_response(lambda answer: answer.url.endswith("/api/pause")) as pressed:
                page.goto(site)
            assert pressed.value.status == 403
        assert not status(backend)["model"]["paused"]


def test_on_a_phone_in_the_dark_and_without_javascript(
    serve: Callable[..., BackendProcess], label_studio: FakeLabelStudio, project: int, browser: Browser
):
    backend = serve()
    label_studio.connect(project, backend.url)
    annotate(label_studio, project)
    wait_for(lambda: len(label_studio.predictions) == 4, "the predictions")
    phone = {"viewport": {"width": 360, "height": 740}}
    for scheme in ("light", "dark"):
        with opened(browser, backend.url, color_scheme=scheme, **phone) as watched:
            page = watched.page
            expect(page.locator(f"#task-{label_studio.tasks_of(project)[2]}")).to_be_visible()
            assert page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
            for place in ("body", ".warning", ".failed", ".error, .low"):
                element = page.locator(place).first
                if element.count():
                    assert contrast(element) >= 4.5, (scheme, place)
            ground = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert ground > 0.8 if scheme == "light" else ground < 0.1
            assert page.locator("img:not([alt])").count() == 0
            boxes = [button.bounding_box() for button in page.get_by_role("button").all()]
            small = [box for box in boxes if not box or box["height"] < 40]
            assert small == []  # a finger hits them
    with opened(browser, backend.url, java_script_enabled=False) as watched:
        page = watched.page
        expect(page.get_by_text("4 of 5 tasks predicted")).to_be_visible(timeout=PATIENCE)
        page.get_by_role("button", name="Pause all").click()
        expect(page.get_by_role("button", name="Resume all")).to_be_visible(timeout=PATIENCE)
    assert status(backend)["model"]["paused"]


def contrast(element: Locator) -> float:
    """The contrast of an element's text to what lies behind it, as WCAG counts it."""
    text, ground = element.evaluate(
        """element => {
            const clear = "rgba(0, 0, 0, 0)";
            let behind = element;
            const ground = () => getComputedStyle(behind).backgroundColor;
            while (behind.parentElement && ground() === clear) behind = behind.parentElement;
            return [getComputedStyle(element).color, ground()];
        }"""
    )
    lights = sorted([luminance(text), luminance(ground)])
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance, 0 to 1, of a colour such as `rgb(1, 2, 3)`."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))
