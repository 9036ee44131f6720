"""Look at a task in Label Studio's real editor, and tell from the pixels where a mask lies."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from playwright.sync_api import Browser, Page, sync_playwright

from tools.label_studio_server import LabelStudio

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
)
OPACITY = 0.6  # with which the editor draws a brush mask


@dataclass(frozen=True)
class EditorView:
    """What the editor showed: the window uint8 (h, w, 3) and the part of it that shows the task's image."""

    window: NDArray[np.uint8]
    image: NDArray[np.uint8]

    def tinted(self, picture: NDArray[np.uint8], colour: str) -> NDArray[np.bool_]:
        """Where a mask of `colour` lies over `picture`, bool, at the size on the screen.

        A pixel counts when it looks more like the picture under the mask's colour than like the picture itself.

        Args:
            picture: the task's image, uint8 (H, W, 3), as it was uploaded.
            colour: the label's colour, such as "#ff0000".
        """
        height, width = self.image.shape[:2]
        resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
        plain = np.asarray(resized, dtype=np.float64)
        covered = (1 - OPACITY) * plain + OPACITY * np.array(ImageColor.getrgb(colour), dtype=np.float64)
        to_plain = np.linalg.norm(self.image - plain, axis=-1)
        to_covered = np.linalg.norm(self.image - covered, axis=-1)
        return (to_covered < to_plain) & (to_covered < 60.0)


def browser_path() -> str:
    """The installed Chromium.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError("No Chromium was found; on Debian install the package `chromium`.")


def open_task(
    server: LabelStudio,
    project: int,
    task: int,
    *,
    picture: NDArray[np.uint8],
    colours: Sequence[str],
    screenshot: Path,
) -> EditorView:
    """Log in, open a task in the editor and save a screenshot of the window as PNG.

    Args:
        server: where to.
        project: id of the project.
        task: id of the task.
        picture: the task's image, uint8 (H, W, 3).
        colours: colours of the labels whose masks are to be seen; drawing them takes the editor a moment.
        screenshot: file to write.

    Returns:
        What was shown, once masks of all `colours` are there or after 30 s.
    """
    with signed_in(server) as page:
        view = show_task(page, server, project, task, picture=picture, colours=colours)
    Image.fromarray(view.window).save(screenshot)
    return view


@contextmanager
def chromium() -> Iterator[Browser]:
    """A real browser, closed at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def signed_in(server: LabelStudio, *, width: int = 1400, height: int = 900) -> Iterator[Page]:
    """A page of a browser in which the server's user is logged in."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(f"{server.url}/user/login/")
        page.fill("input[name=email]", server.email)
        page.fill("input[name=password]", server.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/login" not in url, timeout=60_000)
        yield page


def show_task(
    page: Page, server: LabelStudio, project: int, task: int, *, picture: NDArray[np.uint8], colours: Sequence[str]
) -> EditorView:
    """Open a task in the editor of a page; arguments and result as in `open_task`."""
    page.goto(f"{server.url}/projects/{project}/data?task={task}")
    page.wait_for_selector(".konvajs-content canvas", timeout=60_000)
    page.wait_for_load_state("networkidle", timeout=60_000)
    return settled(page, picture, colours)


def settled(page: Page, picture: NDArray[np.uint8], colours: Sequence[str] = ()) -> EditorView:
    """What the open task looks like once nothing moves and masks of all `colours` are there, or after 30 s."""
    deadline = time.monotonic() + 30
    view, before = _view(page, picture), None
    while time.monotonic() < deadline and not (
        before is not None
        and np.array_equal(view.window, before.window)
        and all(view.tinted(picture, colour).sum() > 30 for colour in colours)
    ):
        time.sleep(0.5)
        view, before = _view(page, picture), view
    return view


def resized(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """A mask at the size at which the editor shows its image."""
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST), dtype=bool)


def _view(page: Page, picture: NDArray[np.uint8]) -> EditorView:
    window = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    stage = page.locator(".konvajs-content").first.bounding_box()
    assert stage is not None
    # The image fills the stage's width or its height and lies in the upper left corner.
    scale = min(stage["width"] / picture.shape[1], stage["height"] / picture.shape[0])
    left, top = round(stage["x"]), round(stage["y"])
    right, bottom = left + round(picture.shape[1] * scale), top + round(picture.shape[0] * scale)
    return EditorView(window, window[top:bottom, left:right])
