"""`make screenshots`: the demo once more, and every picture that the documents show of it, into docs/images.

A real Label Studio and the real backend with the bundled models, looked at by a real Chromium; nothing is retouched.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image
from playwright.sync_api import Page

from tools import brush
from tools.backend_server import Backend, backend
from tools.demo import __main__ as demo
from tools.demo import report
from tools.demo.pictures import Picture, pictures
from tools.editor import show_task, signed_in
from tools.label_studio_server import ROOT, LabelStudio, label_studio
from tools.servers import ServerError, unwinding_on_signals

WIDTH = 1200  # of a picture in the documents, pixels
SHOWN_COLUMNS = {"tasks:id", "tasks:total_annotations", "tasks:total_predictions", "tasks:predictions_score"}
COLUMNS_PATH = "/api/dm/columns/"


def main() -> int:
    """Make the pictures; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--tasks", type=int, default=demo.COUNT, help="how many pictures, the annotated one included")
    parser.add_argument("--recipe", type=json.loads, default=demo.RECIPE, help="hyperparameters, a JSON object")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="cavsam-screenshots-"))
    try:
        with unwinding_on_signals():
            run(scratch, options.out, count=options.tasks, recipe=options.recipe)
    except (ServerError, demo.DemoError, requests.RequestException) as error:
        print(f"\nscreenshots: {error}\nscreenshots: the logs of both servers stay in {scratch}", file=sys.stderr)
        return 1
    shutil.rmtree(scratch)
    return 0


def run(scratch: Path, out: Path, *, count: int, recipe: dict[str, Any]) -> None:
    """Annotate one task, wait for the others, and look at it all."""
    out.mkdir(parents=True, exist_ok=True)
    shown = pictures(demo.DOMAIN, demo.LABELS, count, first_seed=demo.FIRST_SEED, size=demo.SIZE)
    with ExitStack() as servers:
        server = servers.enter_context(label_studio(scratch))
        settings = {"CAVSAM_RECIPE": json.dumps(recipe)}
        cavsam = servers.enter_context(backend(scratch, model="nano", settings=settings))
        project = demo.make_project(server, shown)
        server.connect_backend(project.id, cavsam.url)
        reference, *rest = project.tasks
        demo.annotate(server, project, reference)
        predictions = demo.watch(server, cavsam, project, rest)
        seconds = cavsam.seconds_by_task(project.id)
        made = [
            row for t in rest for row in report.rows(project.tasks[t], predictions[t], seconds.get(t, float("nan")))
        ]
        ranked = sorted(rest, key=lambda task: -sum(row.iou for row in made if row.task == task))
        print(f"\n{report.table(made)}\nbest first: {ranked}\n")
        contact_sheet(project, predictions, made, ranked, out)
        with signed_in(server, width=WIDTH, height=800) as page:
            editor(page, server, project, reference, out / "reference.webp", project.tasks[reference].truth)
            masks = brush.masks(predictions[ranked[0]]["result"])
            editor(page, server, project, ranked[0], out / "prediction.webp", masks)
            save(page, out / "editor.jpg")
            model_settings(page, server, project, cavsam, out)
            review(page, server, project, out)
            status(page, cavsam, out)


def contact_sheet(
    project: demo.Project,
    predictions: dict[int, dict[str, Any]],
    made: list[report.Row],
    ranked: list[int],
    out: Path,
) -> None:
    """demo.jpg: the best task, two from the middle, and the worst."""
    middle = len(ranked) // 2
    chosen = list(dict.fromkeys([ranked[0], *ranked[max(middle - 1, 0) : middle + 1], ranked[-1]]))
    rows: list[tuple[Picture, dict[str, np.ndarray[Any, Any]], str]] = []
    for task in chosen:
        caption = "   ".join(f"{row.label} IoU {row.iou:.2f}" for row in made if row.task == task)
        rows.append((project.tasks[task], brush.masks(predictions[task]["result"]), f"task {task}:  {caption}"))
    first = next(iter(project.tasks.values()))
    report.contact_sheet(first, rows, demo.COLOUR_OF).save(out / "demo.jpg", quality=85, optimize=True)
    print(f"{out / 'demo.jpg'}: tasks {chosen}")


def editor(
    page: Page, server: LabelStudio, project: demo.Project, task: int, file: Path, masks: dict[str, Any]
) -> None:
    """A task as the editor shows it."""
    colours = [demo.COLOUR_OF[label] for label, mask in masks.items() if mask.any()]
    show_task(page, server, project.id, task, picture=project.tasks[task].image, colours=colours)
    save(page, file)


def model_settings(page: Page, server: LabelStudio, project: demo.Project, cavsam: Backend, out: Path) -> None:
    """The project's settings with the connected backend."""
    page.goto(f"{server.url}/projects/{project.id}/settings/ml")
    page.get_by_text(cavsam.url).first.wait_for(timeout=60_000)
    save(page, out / "connected.webp")


def review(page: Page, server: LabelStudio, project: demo.Project, out: Path) -> None:
    """The data manager, the predictions with the lowest score first."""
    columns = server.call("GET", COLUMNS_PATH, params={"project": project.id})["columns"]
    names = {f"tasks:{column['id']}" for column in columns if column.get("parent") is None}
    hidden = sorted(names - SHOWN_COLUMNS)
    data = {
        "title": "Review",
        "ordering": ["tasks:predictions_score"],
        "hiddenColumns": {"explore": hidden, "labeling": hidden},
    }
    view = server.call("POST", "/api/dm/views/", json={"project": project.id, "data": data})
    page.goto(f"{server.url}/projects/{project.id}/data?tab={view['id']}")
    page.get_by_text("Review", exact=True).first.wait_for(timeout=60_000)
    page.wait_for_load_state("networkidle", timeout=60_000)
    save(page, out / "review.webp")


def status(page: Page, cavsam: Backend, out: Path) -> None:
    """The backend's own page, all of it."""
    page.goto(cavsam.url)
    page.wait_for_load_state("networkidle", timeout=60_000)
    save(page, out / "status.webp", whole=True)


def save(page: Page, file: Path, *, whole: bool = False) -> None:
    """Write what the window shows, or the `whole` page, in the format that the file's name tells."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    picture.save(file, quality=85)
    print(f"{file}: {picture.width}x{picture.height}, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
