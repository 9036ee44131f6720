"""`cavsam explain` as a process, and its page in a real browser."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.integration

TINT = np.array([255, 0, 200])  # of the first label
FRAMES = 5
QUICK = ("lora_steps=2", "ttga_steps=2", f"frames={FRAMES - 2}", "ddim_steps=2")


@dataclass(frozen=True)
class Report:
    """The page, and where the object is on its target, bool (H, W)."""

    path: Path
    truth: np.ndarray


def scene(seed: int, height: int, width: int, centre: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on grey noise, and its mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    disc = np.hypot(rows - centre[0] * height, columns - centre[1] * width) < 0.22 * height
    image = np.repeat(rng.integers(90, 130, (height, width, 1), dtype=np.uint8), 3, axis=2)
    image[disc] = (210, 40, 40)
    return image, disc


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of the whole method on an easy pair, in few steps."""
    folder = tmp_path_factory.mktemp("explain")
    image, mask = scene(0, 160, 200, (0.4, 0.35))
    target, truth = scene(1, 180, 180, (0.55, 0.6))
    for name, pixels in (("reference", image), ("mask", mask), ("target", target)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    command = [sys.executable, "-m", "cavsam.cli", "explain", "reference.png", "mask.png", "target.png"]
    command += ["--model", "nano", "--mode", "full", "--class-name", "disc", "--seed", "3", "--out", "out/report.html"]
    command += [text for option in QUICK for text in ("--set", option)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "try-out models" in done.stderr
    assert [path.name for path in (folder / "out").iterdir()] == ["report.html"]
    return Report(folder / "out" / "report.html", truth)


@pytest.fixture
def page(browser: Browser, report: Report) -> Iterator[Page]:
    """The page, opened; at the end nothing was asked for from outside and nothing went wrong."""
    asked: list[str] = []
    troubles: list[str] = []
    context = browser.new_context(viewport={"width": 1300, "height": 900}, device_scale_factor=2)
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
    page.goto(report.path.as_uri())
    yield page
    context.close()
    assert {url for url in asked if not url.startswith("data:")} == {report.path.as_uri()}
    assert troubles == []


def seen(picture: Locator, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture as it is on the screen, float (h, w, 3), or scaled to a size (w, h)."""
    picture.scroll_into_view_if_needed()
    shown = Image.open(io.BytesIO(picture.screenshot())).convert("RGB")
    return np.asarray(shown.resize(size, Image.Resampling.BOX) if size else shown, dtype=float)


def strip(page: Page, title: str) -> Locator:
    return page.locator(f'tr[data-strip="{title}"] img')


def test_every_picture_is_there(page: Page) -> None:
    sizes = page.eval_on_selector_all("img", "pictures => pictures.map(p => p.complete && p.naturalWidth)")
    assert len(sizes) > 4 * FRAMES
    assert all(size > 0 for size in sizes)
    for title in ("Pseudo video", "full: prompts", "full: tracked masks", "full: backward tracking"):
        assert strip(page, title).count() == FRAMES, title
    # three fits, each drawn where the numbers are unfolded
    assert page.locator("svg.curve").count() == 3
    assert not page.locator("svg.curve").first.is_visible()
    for folded in page.locator("details > summary").all():
        folded.click()
    for box in (line.bounding_box() for line in page.locator("svg.curve polyline").all()):
        assert box is not None
        assert box["width"] > 100
    steps = page.locator("#steps tr").all_inner_texts()
    assert any("align" in step and "MB" in step for step in steps)
    recipe = page.locator("#recipe tr.changed").all_inner_texts()
    changed = {line.split()[0]: line.split()[1] for line in recipe}
    assert changed == {"seed": "3", **dict(option.split("=") for option in QUICK)}


def check_mask(page: Page, truth: np.ndarray) -> None:
    """The tracked mask of the last frame has its colour, and lies on the object."""
    tracked = seen(strip(page, "full: tracked masks").last)
    height, width = tracked.shape[:2]
    assert height > 200  # shown large enough to tell
    plain = seen(strip(page, "Pseudo video").last, (width, height))
    tinted = np.linalg.norm(tracked - plain, axis=-1) > 40
    truth = np.asarray(Image.fromarray(truth).resize((width, height), Image.Resampling.NEAREST))
    assert (tinted & truth).sum() / (tinted | truth).sum() > 0.6
    inside = tinted & truth
    off = np.abs(tracked[inside] - (plain[inside] + TINT) / 2).mean(axis=0)
    assert (off < 20).all(), off


def test_the_tracked_mask_lies_on_the_object(page: Page, report: Report) -> None:
    check_mask(page, report.truth)


def test_the_animation_plays_pauses_and_is_led_by_the_slider(page: Page) -> None:
    player = page.locator("#player")
    slider, screen, caption = player.locator("input"), player.locator("img"), player.locator("output")
    assert player.is_visible()
    assert caption.inner_text() == "1: reference"
    first = seen(screen)
    player.get_by_text("Play").click()
    page.wait_for_function("() => Number(document.querySelector('#player input').value) >= 2")
    player.get_by_text("Pause").click()
    player.get_by_text("Play").wait_for()
    assert np.abs(seen(screen) - first).mean() > 1
    slider.focus()
    page.keyboard.press("Home")
    assert caption.inner_text() == "1: reference"
    assert np.abs(seen(screen) - first).max() == 0
    page.keyboard.press("ArrowRight")
    assert caption.inner_text().startswith("2: generated")
    page.keyboard.press("End")
    assert caption.inner_text() == f"{FRAMES}: target"
    # backward tracking begins at the target
    player.locator("select").select_option("full: backward tracking")
    assert caption.inner_text() == f"{FRAMES}: target"
    slider.focus()
    page.keyboard.press("End")
    assert caption.inner_text() == "1: reference"
    shown = screen.get_attribute("src")
    assert shown == strip(page, "full: backward tracking").first.get_attribute("src")


def test_without_scripts_the_pictures_are_there_all_the_same(browser: Browser, report: Report) -> None:
    context = browser.new_context(
        viewport={"width": 1300, "height": 900}, device_scale_factor=2, java_script_enabled=False
    )
    page = context.new_page()
    page.goto(report.path.as_uri())
    assert not page.locator("#player").is_visible()
    check_mask(page, report.truth)
    context.close()
