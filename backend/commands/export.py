"""`cavsam-backend export`: a project's masks as files that other programs read."""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from backend.clients import Clients
from backend.commands.export_formats import FORMATS, ExportedObject, ExportedTask, Picture
from backend.entities import Task
from backend.errors import BackendError, LabelStudioNotFound, UnusableRegion
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.label_config import LabelConfig, image_url
from backend.labelstudio.masks import mask_of
from backend.labelstudio.regions import Region, read_regions
from backend.settings import Settings
from backend.store.store import Store

INDEX = "index.json"
LONGEST_NAME = 120
"""Characters of an image's name that are kept: file systems take 255 bytes."""

What = Literal["predictions", "annotations", "best"]
WHAT: tuple[What, ...] = ("predictions", "annotations", "best")


@dataclass(frozen=True)
class _Result:
    """One task with the prediction or annotation that is exported."""

    task: int
    data: Mapping[str, Any]
    given: Mapping[str, Any]
    config: LabelConfig
    names: _Names
    exported: ExportedTask

    def pictures(self) -> list[Picture]:
        """Draw the masks; see `export_formats.Result`."""
        regions = self._regions()
        pictures = []
        for to_name in dict.fromkeys(region.to_name for region, _ in regions):
            here = [(region, score) for region, score in regions if region.to_name == to_name]
            sizes = {region.size for region, _ in here}
            if len(sizes) > 1:
                shown = " and ".join(f"{width}x{height}" for height, width in sorted(sizes))
                raise UnusableRegion(f"Its regions were drawn on images of {shown} pixels; annotate the task again.")
            objects = []
            for region, score in here:
                mask = mask_of(region)
                if mask.any():
                    objects += [ExportedObject(label, mask, score) for label in region.labels]
            address = image_url(self.config.images[to_name], self.data) or ""
            name = self.names.unique(address, self.task, to_name)
            pictures.append(Picture(name, address, sizes.pop(), tuple(objects)))
        return pictures

    def labelled_task(self) -> dict[str, Any]:
        """Put data and regions together as Label Studio imports them."""
        kind = "annotations" if self.exported.source == "annotation" else "predictions"
        return {"data": self.data, kind: [self.given]}

    def _regions(self) -> list[tuple[Region, float | None]]:
        """The regions that give masks, and the score of each that was predicted."""
        results = [result for result in self.given["result"] if isinstance(result, Mapping)]
        labelling = [result for result in results if result.get("type") == "labels"]
        regions: list[tuple[Region, float | None]] = []
        for result in results:
            labels = [other for other in labelling if other.get("id") == result.get("id")]
            read, left_out = read_regions([result, *labels], self.config)
            score = result.get("score", self.exported.score) if self.exported.source == "prediction" else None
            regions += [(region, score) for region in read]
            self.exported.warnings += [f"A region is left out: {reason}." for reason in left_out]
        return regions


@dataclass
class _Names:
    """The names that images have in an export, those of their files where these differ from each other."""

    taken: set[str] = field(default_factory=set)

    def unique(self, address: str, task: int, to_name: str) -> str:
        """Name the image at an address; its task and image tag tell it from others of its name."""
        file = PurePosixPath(_file_part(_file_name(address)) or f"task-{task}.png")
        for stem in (file.stem, f"task-{task}-{file.stem}", f"task-{task}-{_file_part(to_name)}-{file.stem}"):
            stem = stem[:LONGEST_NAME]
            if stem.casefold() not in self.taken:
                break
        self.taken.add(stem.casefold())
        return f"{stem}{file.suffix[:16]}"


def export(settings: Settings, project: int, folder: Path, form: str, what: What) -> Iterator[ExportedTask]:
    """Write a project's results to a new folder, with an index of all tasks.

    The folder comes into being when all is written. A task that cannot be exported says why and does not end the
    export.

    Args:
        settings: where the ledger and Label Studio are; only annotations need the latter.
        project: its number.
        folder: must be empty or not exist.
        form: one of `FORMATS`.
        what: the predictions of the present version, the annotations, or of each task the annotation if it has one.

    Yields:
        What was written of each task.

    Raises:
        BackendError: the project is not known, there is nothing to export, or the folder cannot be written.
    """
    path = settings.data_dir / "ledger.sqlite3"
    if not path.exists():
        raise BackendError(f"There is no ledger in {settings.data_dir}; set CAVSAM_DATA_DIR to the backend's folder.")
    with closing(Store(path)) as store:
        known, config = store.projects.find(project), store.projects.config(project)
        if known is None or config is None:
            numbers = ", ".join(str(other.id) for other in store.projects.all()) or "none"
            raise BackendError(f"The ledger does not know project {project}; it knows {numbers}.")
        labels = list(dict.fromkeys(label for control in config.controls for label in control.labels))
        results = _results(settings, store, project, known.version, config, what)
        with _new_folder(folder) as part:
            exported = []
            for task in FORMATS[form](part, results, labels):
                exported.append(task)
                yield task
            if not exported:
                raise BackendError(f"Project {project} has no {'results' if what == 'best' else what} to export yet.")
            index = json.dumps([asdict(task) for task in exported], indent=1, ensure_ascii=False)
            (part / INDEX).write_text(index + "\n", encoding="utf-8")


def _results(
    settings: Settings, store: Store, project: int, version: str, config: LabelConfig, what: What
) -> Iterator[_Result]:
    """Read the results one by one, by the tasks' numbers."""
    names = _Names()
    client = None if what == "predictions" else Clients(settings, store).of(project)
    for task in store.tasks(project).all() if client is None else _listed(client, project):
        given = _annotation(client, task.id) if client is not None and task.annotated else None
        if given is not None:
            yield _Result(task.id, task.data, given, config, names, ExportedTask(task.id, "annotation"))
            continue
        job = store.jobs(project, version).find(task.id) if what != "annotations" else None
        if job is not None and job.result is not None:
            given = {"model_version": version, "score": job.score, "result": json.loads(job.result)}
            exported = ExportedTask(task.id, "prediction", version, job.score)
            yield _Result(task.id, task.data, given, config, names, exported)


def _listed(client: LabelStudio, project: int) -> Iterator[Task]:
    """List the tasks as Label Studio has them now."""
    for listed in sorted(client.tasks(project), key=lambda listed: int(listed["id"])):
        annotated = bool(listed.get("total_annotations"))
        yield Task(project, int(listed["id"]), listed.get("data") or {}, annotated, "")


def _annotation(client: LabelStudio, task: int) -> dict[str, Any] | None:
    """Fetch a task's ground truth, or else its latest annotation; None if it was deleted meanwhile."""
    try:
        found = [given for given in client.annotations(task) if not given.get("was_cancelled")]
    except LabelStudioNotFound:
        return None
    if not found:
        return None
    best = max(found, key=lambda given: (bool(given.get("ground_truth")), int(given["id"])))
    return {"result": best.get("result") or [], "ground_truth": bool(best.get("ground_truth"))}


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write in, which becomes `folder` at the end and is removed if anything fails."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BackendError(f"{folder} exists and is not an empty folder; name another.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise BackendError(f"The folder {folder} cannot be made ({error.strerror}); name another.") from error
    try:
        yield part
        part.chmod(0o755)
        part.replace(folder)
    except OSError as error:
        raise BackendError(f"The folder {folder} cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _file_name(address: str) -> str:
    """The name of the file behind an image's address; empty if the address has none, as one that holds the image."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    if parts.scheme == "data":
        return ""
    query = parse_qs(parts.query)
    path = query["d"][0] if "d" in query else unquote(parts.path)  # local files
    if "fileuri" in query:  # cloud storages
        with suppress(binascii.Error, UnicodeDecodeError):
            path = base64.b64decode(query["fileuri"][0]).decode()
    return PurePosixPath(path).name


def _file_part(text: str) -> str:
    """A text as part of a file name on any system."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]+', "_", text).strip(". ")
