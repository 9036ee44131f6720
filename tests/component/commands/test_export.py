from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.cli import main
from backend.commands.export import export_masks
from backend.entities import ReferenceAnnotation, Task
from backend.errors import BackendError
from backend.settings import Settings
from backend.store.store import Store
from tests.support.backend import learned_from
from tests.support.fake_label_studio import CONFIG, brush

VERSION = "cavsam-r1"


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Over a ledger of three tasks: two masks on the first target, none on the second, and one not done."""
    made = make_settings()
    store = Store(made.data_dir / "ledger.sqlite3")
    store.projects.add(1, "uid")
    store.projects.describe(1, "cats", CONFIG)
    store.tasks(1).replace([Task(1, n, {}, False, "") for n in range(1, 5)])
    store.annotations(1).set_references(VERSION, learned_from(ReferenceAnnotation(1, "r1", 9, 1, [])))
    store.jobs(1, VERSION).queue([2, 3, 4])
    regions = [brush((0, 5, 0, 7), "cat", origin="prediction"), brush((10, 12, 0, 96), "dog", origin="prediction")]
    for result in (regions, []):
        job = store.queue.take_next()
        assert job is not None
        store.queue.finish(job, json.dumps(result), 0.5, 1.0)
    store.close()
    return made


def test_writes_each_mask_and_an_index(settings: Settings, tmp_path: Path):
    out = tmp_path / "out"
    exported = list(export_masks(settings, 1, out))
    assert [(task.task, sorted(task.masks)) for task in exported] == [(2, ["cat", "dog"]), (3, [])]
    cat = np.asarray(Image.open(out / "task-2-cat.png"))
    expected = np.zeros((64, 96), np.uint8)
    expected[:5, :7] = 255
    assert (cat == expected).all()
    assert np.asarray(Image.open(out / "task-2-dog.png")).sum() == 2 * 96 * 255
    index = json.loads((out / "masks.json").read_text())
    assert index[0]["masks"] == {"cat": "task-2-cat.png", "dog": "task-2-dog.png"}
    assert {path.name for path in out.iterdir()} == {"task-2-cat.png", "task-2-dog.png", "masks.json"}


def test_the_command(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = ["--data-dir", str(settings.data_dir)]
    assert main(["export", "1", "--out", str(tmp_path / "out"), *folder]) == 0
    assert "2 masks are in" in capsys.readouterr().out
    assert main(["export", "7", "--out", str(tmp_path / "out"), *folder]) == 2
    assert "does not know project 7; it knows 1" in capsys.readouterr().err
    assert main(["export", "1", "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path)]) == 2
    assert "There is no ledger" in capsys.readouterr().err


def test_labels_whose_file_names_would_be_the_same_get_a_file_each(settings: Settings, tmp_path: Path):
    store = Store(settings.data_dir / "ledger.sqlite3")
    store.projects.describe(1, "cats", CONFIG.replace("cat", "a/b").replace("dog", "a_b"))
    store.queue.finish(
        store.jobs(1, VERSION).find(2),
        json.dumps([brush((0, 5, 0, 7), "a/b"), brush((10, 12, 0, 96), "a_b")]),
        0.5,
        1.0,
    )
    store.close()
    (task, _) = export_masks(settings, 1, tmp_path)
    areas = {label: np.asarray(Image.open(tmp_path / file)).sum() // 255 for label, file in task.masks.items()}
    assert areas == {"a/b": 5 * 7, "a_b": 2 * 96}


def test_a_folder_that_cannot_be_made_is_one_sentence(settings: Settings, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match="cannot be made"):
        list(export_masks(settings, 1, tmp_path / "file"))
