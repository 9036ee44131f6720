"""`cavsam-backend export`: a project's predicted masks as PNG files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from backend.entities import Job
from backend.errors import BackendError
from backend.labelstudio.label_config import LabelConfig
from backend.labelstudio.regions import mask_names, reference_masks
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.project_sync import known_config
from backend.sync.references import usable_regions
from cavsam.errors import InvalidReference
from cavsam.images import write_mask

INDEX = "masks.json"


@dataclass
class ExportedTask:
    """What was written for one task; `masks` maps a label to the name of its file."""

    task: int
    version: str
    score: float | None
    masks: dict[str, str] = field(default_factory=dict)
    error: str | None = None


def export_masks(settings: Settings, project: int, folder: Path) -> Iterator[ExportedTask]:
    """Write `task-<number>-<label>.png` (0 and 255, the displayed image's size) per mask, and an index at the end.

    Raises `BackendError` where the ledger knows nothing of the project.
    """
    path = settings.data_dir / "ledger.sqlite3"
    if not path.exists():
        raise BackendError(f"There is no ledger in {settings.data_dir}; set CAVSAM_DATA_DIR to the backend's folder.")
    store = Store(path)
    try:
        known, config = store.projects.find(project), known_config(store, project)
        if known is None or config is None:
            numbers = ", ".join(str(other.id) for other in store.projects.all()) or "none"
            raise BackendError(f"The ledger does not know project {project}; it knows {numbers}.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError(f"The folder {folder} cannot be made ({error.strerror}); name another.") from error
        exported = []
        for task in store.jobs(project, known.version).all():
            job = store.jobs(project, known.version).find(task)
            if job is not None and job.result is not None:
                exported.append(_export(job, config, folder))
                yield exported[-1]
        (folder / INDEX).write_text(json.dumps([asdict(task) for task in exported], indent=1) + "\n")
    finally:
        store.close()


def _export(job: Job, config: LabelConfig, folder: Path) -> ExportedTask:
    exported = ExportedTask(job.task, job.version, job.score)
    regions, _ = usable_regions(json.loads(job.result or "[]"), config)
    several = len({region["to_name"] for region in regions}) > 1
    for to_name in sorted({region["to_name"] for region in regions}):
        size = next((r["original_height"], r["original_width"]) for r in regions if r["to_name"] == to_name)
        try:
            masks = reference_masks(regions, to_name, size)
        except InvalidReference as error:
            exported.error = str(error)
            continue
        for slot, name in mask_names(masks).items():
            label = f"{to_name} {name}" if several else name
            stem = f"task-{job.task}-{_file_part(label)}"
            taken = sum(other.startswith((f"{stem}.", f"{stem}~")) for other in exported.masks.values())
            file = f"{stem}~{taken + 1}.png" if taken else f"{stem}.png"  # such as of "a/b" and "a_b"
            write_mask(masks[slot], folder / file)
            exported.masks[label] = file
    return exported


def _file_part(text: str) -> str:
    """A label as part of a file name: letters, digits, dots and dashes."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "label"
