"""Draw docs/images/explain.jpg: a generated pair, `cavsam explain` with the bundled models, and a part of its page."""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from cavsam import cli
from research.episodes import episode
from tools.editor import chromium

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "explain.jpg"
DOMAIN, INDEX = "lesions", 1
OPTIONS = (
    "--mode",
    "full",
    "--set",
    "frames=5",
    "--set",
    "ddim_steps=6",
    "--set",
    "lora_steps=30",
    "--set",
    "ttga_steps=40",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.explain_picture", description=__doc__)
    parser.add_argument("--page", type=Path, help="a page that is there already, instead of a new one")
    page = parser.parse_args().page
    with tempfile.TemporaryDirectory() as folder:
        picture = photograph(page or explain(Path(folder)))
    picture.save(PICTURE, quality=85)
    print(f"{PICTURE}: {picture.width}x{picture.height}")


def explain(folder: Path) -> Path:
    """The page of one episode of SynthFSS."""
    one = episode(DOMAIN, "dev", 1, INDEX)
    (reference,) = one.references
    pictures = {"reference": reference.image, "mask": reference.masks[one.class_name], "target": one.image}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    inputs = [str(folder / f"{name}.png") for name in pictures]
    out = folder / "report.html"
    command = ["explain", *inputs, "--class-name", one.class_name, "--model", "nano", "--out", str(out), *OPTIONS]
    if cli.main(command) != 0:
        raise SystemExit("cavsam explain failed")
    return out


def photograph(page: Path) -> Image.Image:
    """The film of the last candidate that was tracked, RGB."""
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 1700, "height": 900})
        tab.goto(page.resolve().as_uri())
        tab.add_style_tag(content="body { max-width: none; }")
        tracked = tab.locator(".film table", has=tab.locator("[data-strip$='tracked masks']"))
        shot = tracked.last.screenshot()
    return Image.open(io.BytesIO(shot)).convert("RGB")


if __name__ == "__main__":
    main()
