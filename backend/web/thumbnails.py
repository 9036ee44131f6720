"""Small pictures of tasks for the status page: the image alone, and the image with its masks drawn over it.

They are made when they are looked at, one at a time, by the drawing process (`worker/drawing.py`), and the latest are
kept. That process starts with the first picture, and ends if one has left it large: a backend that nobody looks at
stays small.
"""

from __future__ import annotations

import base64
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend.entities import ReferenceAnnotation, Task
from backend.errors import ImageUnavailable, ModelProcessDied, NotKnown, TooBusy
from backend.image_folder import ImageFolder, name_tasks
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.label_config import LabelConfig, image_url, label_backgrounds
from backend.labelstudio.regions import Region, read_regions
from backend.store.store import Store
from backend.worker.messages import DrawThumbnail, Failed
from backend.worker.model_process import ModelProcess

KEPT = 600
"""Thumbnails kept in memory; some 6 MB."""
LARGE = 400_000_000
"""Bytes of memory above which the drawing process is ended after a picture; the next one starts another."""


class Thumbnails:
    """Makes and keeps the thumbnails of all projects; may be used by several threads.

    At most `waiting` threads are taken up by it at a time; further callers are turned away with `TooBusy`.
    """

    def __init__(
        self,
        store: Store,
        client: Callable[[int], LabelStudio],
        process: ModelProcess,
        folder: Path,
        *,
        image_limit: int,
        waiting: int,
    ):
        self._store, self._client, self._process = store, client, process
        self._images = ImageFolder(folder, image_limit)
        self._seats = threading.BoundedSemaphore(waiting)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()

    def image(self, project: int, task: int) -> bytes:
        """A task's image as a JPEG whose longer side has at most `SIDE` pixels.

        Raises `NotKnown`, `TooBusy`, `ImageUnavailable`, or as `images.fetch_image`.
        """
        config, known, tag, address = self._place(project, task)
        return self._kept_or((project, task, address), lambda: self._image(project, config, known, tag, address))

    def masks(self, project: int, task: int) -> bytes:
        """The same with the masks drawn over it: a reference's as a person drew them, else the predicted ones.

        Raises as `image`; `NotKnown` where there are no masks yet.
        """
        config, known, tag, address = self._place(project, task)
        reference = next((r for r in references(self._store, project) if r.task == task), None)
        if reference is not None:
            key, regions = reference.key, reference.regions
        else:
            key, regions = self._predicted(project, task, config)

        def make() -> bytes:
            small = base64.b64encode(self._image(project, config, known, tag, address)).decode()
            return self._drawn(DrawThumbnail("", small, tuple(regions), tag, self._backgrounds(project)))

        return self._kept_or((project, task, address, key), make)

    def _place(self, project: int, task: int) -> tuple[LabelConfig, Task, str, str]:
        """A project's configuration, the task, and the image tag that is shown with the image's address."""
        config, known = self._store.projects.config(project), self._store.tasks(project).find(task)
        if config is None or known is None:
            raise NotKnown(f"The backend does not know a task {task} in project {project}.")
        drawn_on = sorted({region.to_name for r in references(self._store, project) for region in r.regions})
        for tag in (*drawn_on, *config.images):
            address = image_url(config.images.get(tag, ""), known.data)
            if address is not None:
                return config, known, tag, address
        raise NotKnown(f"Task {task} has no image for the image tags of project {project}.")

    def _predicted(self, project: int, task: int, config: LabelConfig) -> tuple[str, tuple[Region, ...]]:
        """What tells this prediction from others, and its regions."""
        found = self._store.projects.find(project)
        job = self._store.jobs(project, found.version).find(task) if found else None
        if job is None or job.result is None:
            raise NotKnown(f"Task {task} of project {project} has no masks that the backend could show.")
        return f"{job.version} {job.updated_at}", tuple(read_regions(json.loads(job.result), config)[0])

    def _backgrounds(self, project: int) -> dict[str, str]:
        known = self._store.projects.find(project)
        return label_backgrounds(known.label_config) if known else {}

    def _drawn(self, job: DrawThumbnail) -> bytes:
        """Have a thumbnail drawn; called with the lock held."""
        try:
            answer = self._process.draw(job)
        except ModelProcessDied as error:
            raise ImageUnavailable("The picture is too large for a small one to be made of it.") from error
        finally:
            if (self._process.resident_bytes or 0) > LARGE:
                self._process.interrupt()
        if isinstance(answer, Failed):
            raise ImageUnavailable(answer.message, permanent=True)
        return base64.b64decode(answer.jpeg)

    def _kept_or(self, key: tuple[Any, ...], make: Callable[[], bytes]) -> bytes:
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        if not self._seats.acquire(blocking=False):
            raise TooBusy("Too many pictures are being made; try again in a second.")
        try:
            with self._lock:
                if key not in self._kept:
                    self._keep(key, make())
                return self._kept[key]
        finally:
            self._seats.release()

    def _keep(self, key: tuple[Any, ...], picture: bytes) -> None:
        self._kept[key] = picture
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _image(self, project: int, config: LabelConfig, task: Task, tag: str, address: str) -> bytes:
        """The image's thumbnail, which is kept; called with the lock held."""
        key = (project, task.id, address)
        if key not in self._kept:
            paths = self._images.fetch(self._client(project), config, task, [tag])
            try:
                self._keep(key, self._drawn(DrawThumbnail(paths[tag])))
            except ImageUnavailable as error:
                raise ImageUnavailable(name_tasks(str(error), {paths[tag]: task.id}), permanent=True) from error
            finally:
                self._images.discard(paths.values())
        return self._kept[key]


def references(store: Store, project: int) -> list[ReferenceAnnotation]:
    """The annotations that the project's predictions are learned from now."""
    found = store.annotations(project).references()
    return [] if found is None else list(found.annotations)
