"""Copies of tasks' images, as files that the model process can open."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from backend.entities import Task
from backend.errors import ImageUnavailable
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.images import fetch_image
from backend.labelstudio.label_config import LabelConfig, image_url


class ImageFolder:
    """A folder of fetched images, emptied at each start; a file is there or is whole."""

    def __init__(self, folder: Path, limit: int):
        self._folder, self._limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # images may be of people
        for leftover in folder.iterdir():
            leftover.unlink()

    def fetch(self, client: LabelStudio, config: LabelConfig, task: Task, to_names: Iterable[str]) -> dict[str, str]:
        """Paths of a task's images by the name of their tag; fetched where they are not there yet.

        An image that the task does not have is left out. Raises as `fetch_image`, and `ImageUnavailable`
        where the task has none of the images.
        """
        paths = {}
        for to_name in sorted(set(to_names)):
            address = image_url(config.images.get(to_name, ""), task.data)
            if address is None:
                continue
            path = self._path(task, address)
            if not path.exists():
                fetch_image(client, address, path, self._limit)
            paths[to_name] = str(path)
        if not paths:
            raise ImageUnavailable("The task's data has no image for the configuration's image tags.", permanent=True)
        return paths

    def discard(self, paths: Iterable[str]) -> None:
        """Remove files that are not needed any more."""
        for path in paths:
            Path(path).unlink(missing_ok=True)

    def _path(self, task: Task, address: str) -> Path:
        digest = hashlib.sha256(address.encode()).hexdigest()[:16]
        return self._folder / f"{task.project}-{task.id}-{digest}"


def name_tasks(message: str, tasks: Mapping[str, int]) -> str:
    """A message with the paths of our copies replaced by the tasks whose images they are: those people know."""
    for path, task in tasks.items():
        message = message.replace(path, f"The image of task {task}")
    return message
