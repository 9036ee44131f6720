from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.cli import main
from backend.commands.backfill import backfill
from backend.entities import ALL_PROJECTS
from backend.errors import BackendError, DataFolderBusy
from backend.settings import Settings
from backend.store.store import Store
from backend.version import base_version
from tests.support.backend import THRESHOLD
from tests.support.fake_label_studio import LEGACY_KEY, FakeLabelStudio, brush, picture

MakeSettings = Callable[..., Settings]
BOX = (8, 30, 20, 50)


@pytest.fixture
def project(label_studio: FakeLabelStudio) -> int:
    """Five tasks, the first annotated; no backend is connected."""
    number = label_studio.add_project()
    first, *_ = (label_studio.add_task(number, picture(BOX)) for _ in range(5))
    label_studio.annotate(first, [brush(BOX, "cat")])
    return number


def predicted(label_studio: FakeLabelStudio, project: int) -> list[int]:
    return [len(label_studio.versions_of(task)) for task in label_studio.tasks_of(project)]


def test_fills_the_project_and_ends(make_settings: MakeSettings, label_studio: FakeLabelStudio, project: int):
    *_, last = backfill(make_settings(), project, segmenter=THRESHOLD)
    assert [task["state"] for task in last] == ["delivered"] * 4
    assert predicted(label_studio, project) == [0, 1, 1, 1, 1]


def test_what_was_paused_is_done_when_it_is_asked_for_by_name(
    make_settings: MakeSettings, label_studio: FakeLabelStudio, project: int
):
    settings = make_settings()
    store = Store(settings.data_dir / "ledger.sqlite3")
    store.projects.add(project, label_studio.projects[project]["created_at"])
    for paused in (ALL_PROJECTS, project):
        store.projects.set_paused(paused, True)
    store.close()
    *_, last = backfill(settings, project, limit=1, segmenter=THRESHOLD)
    assert [task["state"] for task in last] == ["done"]


def test_a_dry_run_pushes_nothing_and_its_results_are_used_later(
    make_settings: MakeSettings, label_studio: FakeLabelStudio, project: int
):
    *_, last = backfill(make_settings(), project, limit=2, segmenter=THRESHOLD)
    assert [task["state"] for task in last] == ["done", "done"]
    assert predicted(label_studio, project) == [0, 0, 0, 0, 0]
    *_, last = backfill(make_settings(), project, segmenter=THRESHOLD)
    assert predicted(label_studio, project) == [0, 1, 1, 1, 1]


def test_a_broken_image_does_not_keep_it_from_ending(
    make_settings: MakeSettings, label_studio: FakeLabelStudio, project: int
):
    broken = label_studio.tasks_of(project)[2]
    label_studio.files[f"/data/upload/{broken}.png"] = b"no picture"
    *_, last = backfill(make_settings(), project, segmenter=THRESHOLD)
    assert {task["task"] for task in last if task["state"] == "failed"} == {broken}


def test_what_keeps_it_from_beginning_is_said(make_settings: MakeSettings, label_studio: FakeLabelStudio, project: int):
    empty = label_studio.add_project()
    label_studio.add_task(empty, picture(BOX))
    with pytest.raises(BackendError, match="No task is annotated yet"):
        list(backfill(make_settings(), empty, segmenter=THRESHOLD))
    with pytest.raises(BackendError, match="no project 99"):
        list(backfill(make_settings(), 99, segmenter=THRESHOLD))
    with pytest.raises(BackendError, match="set CAVSAM_MODEL"):
        list(backfill(make_settings(), project, segmenter="tests.support.threshold:open_missing"))
    running = backfill(make_settings(), project, segmenter=THRESHOLD)
    next(running)
    with pytest.raises(DataFolderBusy):
        list(backfill(make_settings(), project, segmenter=THRESHOLD))
    del running  # closes it


def test_the_command_prints_a_line_per_task_and_draws_no_bar_into_a_pipe(
    make_settings: MakeSettings,
    label_studio: FakeLabelStudio,
    project: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """With the bundled SAM2, as the command has no other model."""
    environment = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": LEGACY_KEY,
        "CAVSAM_MODEL": "nano",
        "CAVSAM_MODE": "concat",
        "CAVSAM_DATA_DIR": str(make_settings().data_dir),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _, second, third, *_ = label_studio.tasks_of(project)
    assert main(["backfill", str(project), "--dry-run", "2"]) == 0
    said = capsys.readouterr()
    assert re.findall(r"^task (\d+): done score [01]\.\d\d$", said.out, flags=re.MULTILINE) == [str(second), str(third)]
    assert "Nothing was pushed" in said.out
    assert "2/2" not in said.err
    assert predicted(label_studio, project) == [0, 0, 0, 0, 0]
    assert main(["backfill", str(project)]) == 0
    said = capsys.readouterr()
    assert said.out.count(": delivered score") == 4
    assert predicted(label_studio, project) == [0, 1, 1, 1, 1]
    broken = label_studio.add_task(project, b"no picture")
    assert main(["backfill", str(project)]) == 1
    assert f": failed The image of task {broken} is not a picture" in capsys.readouterr().out
    assert main(["backfill", str(project), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["project"], told["pushed"]) == (project, True)
    assert {task["task"]: task["state"] for task in told["tasks"]}[broken] == "failed"


def test_weights_are_fetched_before_their_version_is_named(
    make_settings: MakeSettings, label_studio: FakeLabelStudio, project: int, tmp_path: Path
):
    weights = {"sam2": str(tmp_path / "sam2.pt"), "diffusion": str(tmp_path / "sd.safetensors")}
    settings = make_settings(**weights)
    for _ in backfill(settings, project, segmenter="tests.support.threshold:open_fetching"):
        pass
    (version,) = label_studio.versions_of(label_studio.tasks_of(project)[1])
    assert version.startswith(f"{base_version(settings)}-r")
