"""Small pictures of tasks for the status page: the image alone, and the image with its masks drawn over it.

They are made when they are looked at, one at a time so that large images do not add up in memory, and the latest are
kept. What draws masks is imported with the first picture: a backend that nobody looks at stays small.
"""

from __future__ import annotations

import io
import json
import threading
import xml.etree.ElementTree as ET
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from backend.entities import ReferenceAnnotation, Task
from backend.errors import ImageUnavailable, NotKnown, TooBusy
from backend.image_folder import ImageFolder, name_tasks
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.label_config import LabelConfig, image_url
from backend.labelstudio.regions import Region, read_regions
from backend.store.store import Store
from cavsam.errors import ImageError, InvalidReference
from cavsam.images import read_image

SIDE = 240
"""Pixels of a thumbnail's longer side."""
KEPT = 600
"""Thumbnails kept in memory; some 6 MB."""
OPACITY = 0.6
QUALITY = 90
PALETTE = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#bfef45", "#f032e6")
"""Colours of labels that have none in the configuration."""

RGB = tuple[int, int, int]


class Thumbnails:
    """Makes and keeps the thumbnails of all projects; may be used by several threads.

    At most `waiting` threads are taken up by it at a time; further callers are turned away with `TooBusy`.
    """

    def __init__(
        self, store: Store, client: Callable[[int], LabelStudio], folder: Path, *, image_limit: int, waiting: int
    ):
        self._store, self._client = store, client
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
            picture = np.asarray(Image.open(io.BytesIO(self._image(project, config, known, tag, address))))
            return _jpeg(overlaid(picture, masks_of(regions, tag), self._colours(project)))

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

    def _colours(self, project: int) -> dict[str, RGB]:
        known = self._store.projects.find(project)
        return label_colours(known.label_config if known else "")

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
                self._keep(key, _jpeg(_shrunk(read_image(paths[tag]))))
            except ImageError as error:
                raise ImageUnavailable(name_tasks(str(error), {paths[tag]: task.id}), permanent=True) from error
            finally:
                self._images.discard(paths.values())
        return self._kept[key]


def references(store: Store, project: int) -> list[ReferenceAnnotation]:
    """The annotations that the project's predictions are learned from now."""
    found = store.annotations(project).references()
    return [] if found is None else list(found.annotations)


def masks_of(regions: Iterable[Region], to_name: str) -> dict[str, NDArray[np.bool_]]:
    """The masks of regions on one image by label, each bool (H, W); empty where they draw nothing."""
    from backend.labelstudio.masks import reference_masks

    drawn = [region for region in regions if region.to_name == to_name]
    if not drawn:
        return {}
    try:
        masks = reference_masks(drawn, to_name, drawn[0].size)
    except InvalidReference:
        return {}
    united: dict[str, NDArray[np.bool_]] = {}
    for slot, mask in masks.items():
        united[slot.label] = united[slot.label] | mask if slot.label in united else mask
    return united


def overlaid(
    picture: NDArray[np.uint8], masks: Mapping[str, NDArray[np.bool_]], colours: Mapping[str, RGB]
) -> NDArray[np.uint8]:
    """A picture uint8 (h, w, 3) under masks of any size, each in its label's colour; later ones lie on top."""
    height, width = picture.shape[:2]
    result: NDArray[np.float32] = picture.astype(np.float32)
    for number, (label, mask) in enumerate(masks.items()):
        area = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        cover = np.asarray(area, np.float32)[..., None] / 255 * OPACITY
        colour = np.array(colours.get(label, _colour(number)), np.float32)
        result = (result * (1 - cover) + colour * cover).astype(np.float32)
    return result.round().astype(np.uint8)


def label_colours(xml: str) -> dict[str, RGB]:
    """The colour of each label of a labelling configuration, by the name that stands in results."""
    try:
        labels: Iterable[ET.Element] = ET.fromstring(xml).iter("Label") if xml else ()
    except ET.ParseError:
        labels = ()
    colours: dict[str, RGB] = {}
    for label in labels:
        name = label.get("alias") or label.get("value") or ""
        if name and name not in colours:
            colours[name] = _colour(len(colours), label.get("background", ""))
    return colours


def _colour(number: int, wanted: str = "") -> RGB:
    try:
        red, green, blue, *_ = ImageColor.getrgb(wanted or PALETTE[number % len(PALETTE)])
    except ValueError:  # a browser may know it, PIL does not
        return _colour(number)
    return red, green, blue


def _shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    small = Image.fromarray(picture)
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return stream.getvalue()
