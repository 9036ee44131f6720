"""Annotate one task, get the rest: the real Label Studio, the real backend and models, the real browser."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.integration.conftest import Project
from tests.support.pictures import LABELS, scene, turned_jpeg
from tools import brush
from tools.backend_server import backend
from tools.demo.pictures import COLOURS, Picture
from tools.editor import open_task, resized
from tools.label_studio_server import LabelStudio, label_studio
from tools.servers import ServerError, free_port, running

pytestmark = pytest.mark.integration

CONCAT = {"CAVSAM_MODE": "concat"}
SHORT = {"CAVSAM_RECIPE": json.dumps({"mode": "full", "lora_steps": 4, "ddim_steps": 2, "frames": 2, "ttga_steps": 8})}


def assert_one_good_prediction_each(project: Project, *, least: float) -> None:
    """Every task but the annotated one has one prediction, of one version, with masks of its image's size."""
    found = project.predictions()
    assert Counter(p["task"] for p in found) == Counter(project.others)
    assert len({p["model_version"] for p in found}) == 1
    for prediction in found:
        assert 0.0 <= prediction["score"] <= 1.0
        truth = project.tasks[prediction["task"]].truth
        masks = brush.masks(prediction["result"])
        assert set(masks) <= set(truth)
        for label, mask in masks.items():
            assert mask.shape == truth[label].shape
        for label in truth:
            assert brush.iou(masks.get(label, np.zeros_like(truth[label])), truth[label]) >= least, (prediction, label)


def test_the_server_refuses_bad_predictions(project: Callable[[list[Picture]], Project]):
    """The other tests lean on this: what is accepted here has passed Label Studio's strict validation."""
    made = project([scene(0)])
    result = brush.regions({"no such label": scene(0).truth["disc"]}, from_name="mask", to_name="image")
    bad = {"task": made.first, "result": result, "score": 0.5, "model_version": "bad"}
    with pytest.raises(ServerError, match="Invalid value for control 'mask'"):
        made.server.call("POST", f"/api/projects/{made.id}/import/predictions", json=[bad])
    assert made.predictions() == []


def test_annotate_one_get_the_rest(tmp_path: Path, server: LabelStudio):
    """As a user does it: the backend's address in the project's settings, one annotation, a look into the editor."""
    pictures = [scene(0), scene(1), scene(2, height=240, width=180), scene(3)]
    files = [(picture, picture.name, picture.png()) for picture in pictures]
    files.append((scene(4), "phone.jpg", turned_jpeg(scene(4))))
    project = Project.made(server, files)
    with backend(tmp_path, settings=CONCAT) as cavsam:
        connected = server.connect_backend(project.id, cavsam.url)
        assert connected["state"] == "CO"
        project.annotate_first()
        project.wait_for_predictions(len(project.others), log=cavsam.log)
        assert_one_good_prediction_each(project, least=0.7)
        server.retrieve_predictions(project.id)
        assert_one_good_prediction_each(project, least=0.7)

        for task in (project.others[0], project.others[-1]):
            picture = project.tasks[task]
            view = open_task(
                server,
                project.id,
                task,
                picture=picture.image,
                colours=COLOURS,
                screenshot=tmp_path / f"{task}.png",
            )
            for label, colour in zip(LABELS, COLOURS, strict=True):
                shown = view.tinted(picture.image, colour)
                assert brush.iou(shown, resized(picture.truth[label], *shown.shape)) > 0.7, (task, label)


def test_the_whole_method_survives_a_kill_and_needs_no_legacy_token(tmp_path: Path):
    """The annotation is older than the connection; the backend has a personal token and is killed in the middle."""
    with label_studio(tmp_path / "server") as with_legacy:
        personal = with_legacy.personal_access_token()
        server = with_legacy.without_legacy_tokens(personal)
        with pytest.raises(ServerError, match="401"):
            with_legacy.call("GET", "/api/projects/")
        shown = [scene(index) for index in range(6)]
        project = Project.made(server, [(picture, picture.name, picture.png()) for picture in shown])
        project.annotate_first()
        settings = SHORT | {
            "LABEL_STUDIO_URL": server.url,
            "LABEL_STUDIO_API_KEY": personal,
        }
        with backend(tmp_path, settings=settings) as cavsam:
            server.connect_backend(project.id, cavsam.url)
            before = project.wait_for_predictions(1, log=cavsam.log)
            cavsam.process.kill()
        port = int(cavsam.url.rpartition(":")[2])
        with backend(tmp_path, port=port, settings=settings) as cavsam:
            project.wait_for_predictions(len(project.others), log=cavsam.log)
        assert_one_good_prediction_each(project, least=0.0)
        kept = {p["id"]: p["updated_at"] for p in project.predictions()}
        assert {p["id"]: p["updated_at"] for p in before}.items() <= kept.items()


def test_asking_while_it_works_gives_no_task_two(tmp_path: Path, project: Callable[[list[Picture]], Project]):
    """ "Retrieve predictions" over and over while results are pushed; health and setup answer within their budgets."""
    made = project([scene(index) for index in range(6)])
    troubles: list[Exception] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                made.server.retrieve_predictions(made.id)
        except Exception as error:
            troubles.append(error)

    settings = SHORT | {"CAVSAM_PREDICT_DEADLINE": "2"}
    with backend(tmp_path, settings=settings) as cavsam:
        made.server.connect_backend(made.id, cavsam.url)
        made.annotate_first()
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            while len(made.predictions()) < len(made.others) and cavsam.alive():
                # Label Studio itself gives up after 1 s and 3 s.
                assert requests.get(f"{cavsam.url}/health", timeout=1).status_code == 200
                body = {"project": f"{made.id}.0", "schema": made.config, "hostname": made.server.url}
                body |= {"access_token": made.server.token, "extra_params": None}
                assert requests.post(f"{cavsam.url}/setup", json=body, timeout=3).json()["model_version"]
        finally:
            done.set()
            asking.join(120)
        assert troubles == []
        assert_one_good_prediction_each(made, least=0.0)


def test_a_server_that_fails_to_start_says_where_its_log_is(tmp_path: Path):
    with pytest.raises(ServerError, match=r"backend\.log"), backend(tmp_path, settings={"CAVSAM_MODE": "guess"}):
        pass
    assert "guess" in (tmp_path / "backend.log").read_text()


def test_a_server_is_stopped_with_its_children_when_the_block_fails(tmp_path: Path):
    script = (
        "import http.server, subprocess, sys; subprocess.Popen(['sleep', '600']); "
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()"
    )
    port = free_port()
    started: list[int] = []

    def fail() -> None:
        with running(
            ["python3", "-c", script, str(port)],
            name="A server",
            health=f"http://127.0.0.1:{port}/",
            env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
            log=tmp_path / "log",
            start_seconds=60,
        ) as process:
            started.append(process.pid)
            raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        fail()
    alive = [stat for stat in Path("/proc").glob("[0-9]*/stat") if _group_of(stat) == started[0]]
    assert alive == []


def _group_of(stat: Path) -> int | None:
    try:
        state, _parent, group = stat.read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return None  # it ended meanwhile
    return None if state == "Z" else int(group)
