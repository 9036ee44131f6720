"""`make demo`: annotate one task of a real Label Studio project and watch the backend pre-annotate the rest."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from cavsam.recipe import Recipe
from tools import brush
from tools.backend_server import Backend, backend
from tools.demo import report
from tools.demo.pictures import COLOURS, Picture, label_config, names_in, pictures
from tools.editor import open_task, resized
from tools.label_studio_server import ROOT, LabelStudio, label_studio
from tools.servers import ServerError, unwinding_on_signals

DOMAIN = "lungs"
LABELS = ("lung",)
COUNT = 12
COLOUR_OF = dict(zip(LABELS, COLOURS, strict=False))
FIRST_SEED = 0
SIZE = 256
# Few steps, and frames only where a cheaper mask is not trusted: the demo ends in minutes on two busy cores.
RECIPE = Recipe.preset("quick").replace(mode="auto").to_dict()
PATIENCE = 180.0  # seconds in which nothing at all happens after which the demo gives up


class DemoError(RuntimeError):
    """The demo cannot go on; the message is one sentence."""


@dataclass(frozen=True)
class Project:
    """The demo's project; `tasks` is task id -> picture, the annotated one first."""

    id: int
    tasks: dict[int, Picture]
    from_name: str
    to_name: str


def main() -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", default=os.environ.get("KEEP", "") not in ("", "0"))
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out")
    parser.add_argument("--tasks", type=int, default=COUNT, help="how many pictures, the annotated one included")
    parser.add_argument("--recipe", type=json.loads, default=RECIPE, help="hyperparameters, a JSON object")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="cavsam-demo-"))
    try:
        with unwinding_on_signals():
            run(scratch, options.out, count=options.tasks, recipe=options.recipe, keep=options.keep)
    except (ServerError, DemoError, requests.RequestException) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        if any(scratch.iterdir()):
            print(f"demo: the logs of both servers stay in {scratch}", file=sys.stderr)
        else:
            scratch.rmdir()
        return 1
    except (KeyboardInterrupt, SystemExit):
        print("\ndemo: stopped.", file=sys.stderr)
        shutil.rmtree(scratch)
        return 130
    shutil.rmtree(scratch)
    return 0


def run(scratch: Path, out: Path, *, count: int, recipe: dict[str, Any], keep: bool) -> None:
    """The demo from start to end, its servers' data in `scratch`, what it shows in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    shown = pictures(DOMAIN, LABELS, count, first_seed=FIRST_SEED, size=SIZE)
    with ExitStack() as servers:
        print("Starting Label Studio and the backend ...")
        server = servers.enter_context(label_studio(scratch))
        cavsam = servers.enter_context(backend(scratch, model="nano", settings={"CAVSAM_RECIPE": json.dumps(recipe)}))
        project = make_project(server, shown)
        server.connect_backend(project.id, cavsam.url)
        print(
            f"Label Studio: {server.url}/projects/{project.id}/data\n"
            f"    e-mail {server.email}   password {server.password}\n"
            f"Backend: {cavsam.url} (model nano: small try-out weights)"
        )
        reference, *rest = project.tasks
        annotate(server, project, reference)
        print(
            f"Task {reference} of {len(project.tasks)} is annotated ({', '.join(LABELS)}). The backend works alone now."
        )
        started = time.monotonic()
        predictions = watch(server, cavsam, project, rest)
        elapsed = time.monotonic() - started
        made = save(out, project, predictions, cavsam.seconds_by_task(project.id))
        print(f"\n{report.table(made)}\n\n{len(rest)} tasks pre-annotated in {elapsed:.0f} s.")
        look(server, project, predictions, made, out)
        print(f"Table: {out / 'results.json'}\nContact sheet: {out / 'contact-sheet.png'}")
        if keep:
            print(
                f"\nBoth servers keep running until Ctrl-C. Look at {server.url}/projects/{project.id}/data\n"
                f"and log in as\n    e-mail {server.email}   password {server.password}\nData and logs: {scratch}"
            )
            wait_for_ctrl_c(cavsam)
        else:
            print("`make demo KEEP=1` leaves Label Studio running, to look around in it.")


def make_project(server: LabelStudio, shown: list[Picture]) -> Project:
    """A project with brush labels and one task for each picture."""
    config = label_config(ROOT / "label_config" / "brush.xml", LABELS)
    project = server.create_project("CAV-SAM demo", config)
    tasks = server.upload(project, {picture.name: picture.png() for picture in shown})
    return Project(project, {tasks[picture.name]: picture for picture in shown}, *names_in(config))


def annotate(server: LabelStudio, project: Project, task: int) -> None:
    """Submit the truth of a task as the user's annotation."""
    truth = project.tasks[task].truth
    server.annotate(task, brush.regions(truth, from_name=project.from_name, to_name=project.to_name))


def watch(server: LabelStudio, cavsam: Backend, project: Project, tasks: list[int]) -> dict[int, dict[str, Any]]:
    """Look, and only look, until each of `tasks` has its prediction; task -> prediction.

    Raises:
        DemoError: a server died, nothing happened for a long time, or a task has two predictions.
    """
    last, seen, before = time.monotonic(), 0, ""
    with tqdm(total=len(tasks), desc="Pre-annotated", unit="task", disable=None) as bar:
        while True:
            predictions = server.predictions(project.id)
            done = {prediction["task"]: prediction for prediction in predictions}
            if len(done) < len(predictions):
                raise DemoError(f"a task has more than one prediction; see {cavsam.log}.")
            bar.update(len(done) - seen)
            if bar.disable and len(done) > seen:
                print(f"Pre-annotated: {len(done)}/{len(tasks)}", flush=True)
            doing = cavsam.activity()
            bar.set_postfix_str(doing)
            if len(done) > seen or doing != before:
                last, seen, before = time.monotonic(), len(done), doing
            if set(done) == set(tasks):
                return done
            if not cavsam.alive():
                raise DemoError(f"the backend stopped; its log is {cavsam.log}.")
            if time.monotonic() - last > PATIENCE:
                raise DemoError(
                    f"only {seen} of {len(tasks)} tasks were pre-annotated and nothing happened for {PATIENCE:.0f} s; "
                    f"the backend's log is {cavsam.log}."
                )
            time.sleep(1.0)


def save(
    out: Path, project: Project, predictions: dict[int, dict[str, Any]], seconds: dict[int, float]
) -> list[report.Row]:
    """Write results.json and contact-sheet.png; the rows of the table."""
    reference, *rest = project.tasks
    made, sheet = [], []
    for task in rest:
        rows = report.rows(project.tasks[task], predictions[task], seconds.get(task, float("nan")))
        caption = f"task {task}:  " + "   ".join(f"{row.label} IoU {row.iou:.2f}" for row in rows)
        made += rows
        sheet.append((project.tasks[task], brush.masks(predictions[task]["result"]), caption))
    (out / "results.json").write_text(json.dumps([row.as_json() for row in made], indent=1) + "\n", encoding="utf-8")
    report.contact_sheet(project.tasks[reference], sheet, COLOUR_OF).save(out / "contact-sheet.png", optimize=True)
    return made


def look(
    server: LabelStudio, project: Project, predictions: dict[int, dict[str, Any]], made: list[report.Row], out: Path
) -> None:
    """Open the task with the best masks in the editor, save the screenshot, check that the masks are drawn there.

    Raises:
        DemoError: the editor does not show the predicted masks where they should be.
    """
    task = max(predictions, key=lambda task: sum(row.iou for row in made if row.task == task))
    picture, masks = project.tasks[task], brush.masks(predictions[task]["result"])
    if not masks:
        raise DemoError("no mask was found in any task; the models or the pictures are at fault.")
    screenshot = out / "screenshot.png"
    colours = [COLOUR_OF[label] for label in masks]
    view = open_task(server, project.id, task, picture=picture.image, colours=colours, screenshot=screenshot)
    for label, mask in masks.items():
        shown = view.tinted(picture.image, COLOUR_OF[label])
        height, width = shown.shape
        expected = resized(mask, height, width)
        drawn = brush.iou(shown, expected)
        if drawn < 0.8:
            raise DemoError(
                f"the editor does not draw the mask of {label} of task {task} where it was predicted "
                f"(overlap {drawn:.2f}); look at {screenshot}."
            )
        on_object = (shown & resized(picture.truth[label], height, width)).sum() / max(shown.sum(), 1)
        print(f"In the editor, {100 * on_object:.0f}% of the {label} mask's pixels lie on the object.")
    print(f"Screenshot of task {task}, the best one: {screenshot}")


def wait_for_ctrl_c(cavsam: Backend) -> None:
    """Sleep until the user has seen enough."""
    try:
        while cavsam.alive():
            time.sleep(1.0)
    except KeyboardInterrupt:
        print("\nStopping both servers.")
        return
    raise DemoError(f"the backend stopped; its log is {cavsam.log}.")


if __name__ == "__main__":
    sys.exit(main())
