from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from pycocotools.coco import COCO

from backend.cli import main
from backend.commands.export import export
from backend.entities import ReferenceAnnotation, Task
from backend.errors import BackendError, LabelStudioDenied
from backend.settings import Settings
from backend.store.store import Store
from tests.support.backend import learned_from
from tests.support.fake_label_studio import CONFIG, LEGACY_KEY, FakeLabelStudio, brush

VERSION = "cavsam-r1"
MakeSettings = Callable[..., Settings]


def add_task(label_studio: FakeLabelStudio, project: int, address: str) -> int:
    task = label_studio.add_task(project)
    label_studio.tasks[task]["data"] = {"image": address}
    return task


@pytest.fixture
def project(label_studio: FakeLabelStudio) -> int:
    """Five tasks, the first annotated; the second also, but by mistake."""
    number = label_studio.add_project()
    tasks = [add_task(label_studio, number, f"/data/upload/{number}/cat {n % 4}.jpg") for n in range(5)]
    label_studio.annotate(tasks[0], [brush((1, 9, 1, 9), "cat")])
    label_studio.annotate(tasks[1], [brush((0, 64, 0, 96), "cat")], was_cancelled=True)
    return number


@pytest.fixture
def settings(make_settings: MakeSettings, label_studio: FakeLabelStudio, project: int) -> Settings:
    """Over a ledger that learned from the first task: two masks on the second, a damaged one on the third, none on the
    fourth, and the fifth not done."""
    made = make_settings()
    store = Store(made.data_dir / "ledger.sqlite3")
    store.projects.add(project, "uid")
    store.projects.describe(project, "cats", CONFIG)
    first, *others = tasks = label_studio.tasks_of(project)
    listed = [Task(project, number, label_studio.tasks[number]["data"], number == first, "") for number in tasks]
    store.tasks(project).replace(listed)
    store.annotations(project).set_references(VERSION, learned_from(ReferenceAnnotation(project, "r1", 9, first, ())))
    store.jobs(project, VERSION).queue(others)
    good = [brush((0, 5, 0, 7), "cat", score=0.8), brush((10, 12, 0, 96), "dog", score=0.6)]
    damaged = brush((0, 5, 0, 7), "cat")
    damaged["value"]["rle"] = damaged["value"]["rle"][:-10]
    for result in (good, [damaged], []):
        job = store.queue.take_next()
        assert job is not None
        store.queue.finish(job, json.dumps(result), 0.7, 1.0)
    store.close()
    return made


def areas(file: Path) -> dict[str, int]:
    """Image and label -> area of each of a COCO file's annotations."""
    coco = COCO(str(file))
    images, names = coco.imgs, {number: category["name"] for number, category in coco.cats.items()}
    return {
        f"{images[a['image_id']]['file_name']} {names[a['category_id']]}": int(coco.annToMask(a).sum())
        for a in coco.anns.values()
    }


def test_the_predictions(settings: Settings, project: int, tmp_path: Path):
    out = tmp_path / "deep" / "out"
    exported = list(export(settings, project, out, "coco", "predictions"))
    assert [(one.source, one.version, one.score, one.objects) for one in exported] == [
        ("prediction", VERSION, 0.7, 2),
        ("prediction", VERSION, 0.7, 0),
        ("prediction", VERSION, 0.7, 0),
    ]
    assert "damaged" in (exported[1].error or "")
    assert areas(out / "annotations.json") == {"cat 1.jpg cat": 5 * 7, "cat 1.jpg dog": 2 * 96}
    assert sorted(one["score"] for one in json.loads((out / "results.json").read_text())) == [0.6, 0.8]
    assert [one["error"] is None for one in json.loads((out / "index.json").read_text())] == [True, False, True]


def test_the_annotations(settings: Settings, project: int, tmp_path: Path):
    list(export(settings, project, tmp_path / "out", "coco", "annotations"))
    assert areas(tmp_path / "out" / "annotations.json") == {"cat 0.jpg cat": 64}
    assert not (tmp_path / "out" / "results.json").exists()


def test_the_best_of_each_task(settings: Settings, label_studio: FakeLabelStudio, project: int, tmp_path: Path):
    _, _, third, _, fifth = label_studio.tasks_of(project)
    label_studio.annotate(third, [brush((0, 1, 0, 50), "cat")], ground_truth=True)
    label_studio.annotate(third, [brush((0, 1, 0, 60), "cat")])
    label_studio.annotate(fifth, [brush((0, 1, 0, 5), "dog")])
    list(export(settings, project, tmp_path / "out", "coco", "best"))
    assert areas(tmp_path / "out" / "annotations.json") == {
        "cat 0.jpg cat": 64,
        "cat 1.jpg cat": 35,
        "cat 1.jpg dog": 192,
        "cat 2.jpg cat": 50,  # the ground truth, not the later one
        f"task-{fifth}-cat 0.jpg dog": 5,  # another image of this name is there
    }


def test_label_studio_imports_its_own(settings: Settings, label_studio: FakeLabelStudio, project: int, tmp_path: Path):
    list(export(settings, project, tmp_path / "out", "label-studio", "best"))
    other = label_studio.add_project()
    answer = requests.post(
        f"{label_studio.url}/api/projects/{other}/import",
        data=(tmp_path / "out" / "tasks.json").read_bytes(),
        headers={"Authorization": f"Token {LEGACY_KEY}", "Content-Type": "application/json"},
        timeout=10,
    )
    assert answer.json() == {"task_count": 4, "annotation_count": 1, "prediction_count": 3}
    old, new = label_studio.tasks_of(project), label_studio.tasks_of(other)
    assert [label_studio.tasks[task]["data"] for task in new] == [label_studio.tasks[task]["data"] for task in old[:4]]
    assert label_studio.regions_of(new[1]) == [
        brush((0, 5, 0, 7), "cat", score=0.8),
        brush((10, 12, 0, 96), "dog", score=0.6),
    ]


@pytest.mark.parametrize(
    ("form", "files"),
    [
        ("coco", {"annotations.json", "results.json"}),
        ("yolo-seg", {"data.yaml", "labels", "labels/cat 1.txt"}),
        ("png", {"labels.json", "masks", "masks/cat 1.png"}),
        ("label-studio", {"tasks.json"}),
    ],
)
def test_the_command(
    settings: Settings, project: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, files: set[str]
):
    out = tmp_path / "out"
    arguments = ["export", str(project), "--out", str(out), "--format", form, "--data-dir", str(settings.data_dir)]
    status = main([*arguments, "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert status == (1 if summary["failed"] else 0)
    assert summary["written"] + summary["failed"] == len(summary["tasks"]) == 3
    assert summary["failed"] == (0 if form == "label-studio" else 1)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*")} == files | {"index.json"}
    assert main(arguments) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert {path.relative_to(out).as_posix() for path in out.rglob("*")} == files | {"index.json"}


def test_what_cannot_be_exported_is_one_sentence(
    settings: Settings, project: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def fails(number: int, data_dir: Path) -> str:
        arguments = ["export", str(number), "--out", str(tmp_path / "out"), "--format", "png"]
        assert main([*arguments, "--data-dir", str(data_dir)]) == 2
        return capsys.readouterr().err

    assert f"does not know project 7000; it knows {project}" in fails(7000, settings.data_dir)
    assert "There is no ledger" in fails(project, tmp_path)
    with closing(Store(settings.data_dir / "ledger.sqlite3")) as store:
        store.annotations(project).set_references(
            "cavsam-r2", learned_from(ReferenceAnnotation(project, "r2", 9, 1, ()))
        )
    assert "has no predictions to export yet" in fails(project, settings.data_dir)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]  # nothing half-written is left


def test_a_folder_that_cannot_be_made_is_one_sentence(settings: Settings, project: int, tmp_path: Path):
    (tmp_path / "file").touch()
    for folder, words in ((tmp_path / "file", "is not an empty folder"), (tmp_path / "file" / "in", "cannot be made")):
        with pytest.raises(BackendError, match=words):
            list(export(settings, project, folder, "png", "predictions"))


def test_annotations_need_label_studio(settings: Settings, label_studio: FakeLabelStudio, project: int, tmp_path: Path):
    label_studio.failures.deny = True
    assert len(list(export(settings, project, tmp_path / "first", "coco", "predictions"))) == 3
    with pytest.raises(LabelStudioDenied):
        list(export(settings, project, tmp_path / "second", "coco", "best"))
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/local-files/?d=scans%2Fleft%2Fa.png", "a.png"),
        ("/tasks/3/resolve/?fileuri=czM6Ly9idWNrZXQveC9iLmpwZw==", "b.jpg"),
        ("https://bucket.s3.example/x/c.webp?X-Amz-Signature=abc", "c.webp"),
        ("/data/upload/1/..%2F..%2Fd.png", "d.png"),
        ("/data/upload/1/e%3Cx%3E.png", "e_x_.png"),
        ("data:image/png;base64,AAAA", "task-{}.png"),
        ("/data/upload/1/" + 500 * "f" + ".png", 120 * "f" + ".png"),
    ],
)
def test_images_are_called_as_their_files(
    settings: Settings, label_studio: FakeLabelStudio, project: int, tmp_path: Path, address: str, name: str
):
    task = add_task(label_studio, project, address)
    label_studio.annotate(task, [brush((0, 5, 0, 7), "cat")])
    list(export(settings, project, tmp_path / "out", "coco", "annotations"))
    images: list[dict[str, Any]] = json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["cat 0.jpg", name.format(task)]


def test_labels_of_the_png_are_those_of_the_configuration(settings: Settings, project: int, tmp_path: Path):
    list(export(settings, project, tmp_path / "out", "png", "predictions"))
    with Image.open(tmp_path / "out" / "masks" / "cat 1.png") as image:
        index = np.asarray(image)
    assert {int(value): int((index == value).sum()) for value in np.unique(index)} == {
        0: 64 * 96 - 35 - 192,
        1: 35,
        2: 192,
    }
