"""Smart tools: what a person points at in the editor, corrected at once.

The editor asks with every click, and sends all clicks since the last suggestion was accepted or refused. A suggestion
takes the place of the region with the same id; so what we answer carries the id of our prediction's region. What the
editor shows at that moment it does not say: the start is read from the draft, annotation or prediction that came along.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backend.clients import Clients
from backend.entities import ReferenceAnnotation, Task
from backend.errors import (
    BackendError,
    ImageUnavailable,
    InvalidRequest,
    LabelConfigError,
    LabelStudioError,
    NotCorrected,
    NotKnown,
    TooBusy,
)
from backend.image_folder import ImageFolder, name_tasks
from backend.labelstudio.label_config import LabelConfig, image_url, parse_label_config
from backend.labelstudio.regions import FARTHEST, Rectangle, Region, Slot, read_regions, region_id
from backend.store.store import Store
from backend.supervision import EndProcess, LastingThread, end_process
from backend.worker.decisions import MODEL_DELAYS
from backend.worker.messages import CorrectMask, Example, Job, Result, SegmentTask
from backend.worker.model_process import ModelProcess

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that a click waits for those before it."""
DRAFT_DELAY = 10.0
"""Seconds after which a draft surely shows whether a suggestion was accepted; the editor saves one within five."""
WATCH_PAUSE = 5.0
"""Seconds after which it is looked whether the process has ended."""
IMAGES_KEPT = 16
ANSWERS_KEPT = 256
POINTS = ("keypointlabels", "keypoint")
BOXES = ("rectanglelabels", "rectangle")


@dataclass(frozen=True)
class Pointing:
    """What was pointed at, in percent of the image: `clicks` (x, y, positive) and `boxes`.

    `ids` are those of the editor's regions, which stay the same as long as a suggestion is open.
    """

    to_name: str
    label: str
    clicks: tuple[tuple[float, float, bool], ...]
    boxes: tuple[Rectangle, ...]
    ids: frozenset[str]


@dataclass(frozen=True)
class _Answered:
    """The last answer for one mask: the clicks, what Label Studio had, where we started, and what we made of it."""

    ids: frozenset[str]
    stored: list[Region] | None
    start: list[Region]
    regions: list[Region]
    at: float


def read_context(context: Any, config: LabelConfig) -> Pointing | None:
    """What a request's `context` points at; `None` where nothing is (any more).

    The last region's label and image count; others are not touched. Raises `InvalidRequest`.
    """
    results = context.get("result") if isinstance(context, Mapping) else None
    if results is not None and not isinstance(results, list):
        raise InvalidRequest("The field context must be an object whose result is a list of regions.")
    shown = [_pointed(result) for result in results or [] if isinstance(result, Mapping)]
    pointed = [one for one in shown if one is not None]
    if not pointed:
        if shown:
            raise InvalidRequest("Only points and rectangles correct a mask; choose the smart point or rectangle.")
        return None
    to_name, label = pointed[-1].to_name, pointed[-1].label
    if to_name not in config.images:
        raise InvalidRequest(f"The configuration has no <Image> tag {to_name!r} with a value.")
    if not label:
        raise InvalidRequest("Choose a label before you click.")
    same = [one for one in pointed if (one.to_name, one.label) == (to_name, label)]
    return Pointing(
        to_name,
        label,
        tuple(click for one in same for click in one.clicks),
        tuple(box for one in same for box in one.boxes),
        frozenset(name for one in same for name in one.ids),
    )


def slot_of(pointing: Pointing, config: LabelConfig) -> Slot:
    """Where the corrected mask belongs; raises `InvalidRequest` where no mask tag takes the label."""
    control = config.mask_control(pointing.to_name, pointing.label)
    if control is None:
        raise InvalidRequest(
            f"No mask tag on {pointing.to_name!r} has the label {pointing.label!r}; add it to <BrushLabels> or to "
            "another mask tag of the labelling interface."
        )
    return Slot(control.name, control.to_name, pointing.label, control.kind, control.labels_name)


def stored_regions(task: Mapping[str, Any], slot: Slot, config: LabelConfig) -> list[Region] | None:
    """The regions of a mask as they came with the task; `None` where nobody has drawn or predicted anything.

    The person's latest draft counts before the task's only annotation, and that before the latest prediction. Of
    several regions those with our prediction's ids are the mask that is corrected.
    """
    annotations = [a for a in _results(task, "annotations") if not a.get("was_cancelled")]
    predictions = _results(task, "predictions")
    for source in (_results(task, "drafts"), annotations if len(annotations) == 1 else [], predictions):
        if source:
            latest = max(source, key=lambda one: (str(one.get("updated_at") or one.get("created_at") or ""), one["id"]))
            return _of_slot(latest["result"], slot, config)
    return None


class Interactive:
    """Answers clicks with a process of its own, so that nobody waits for the model process. For any thread."""

    def __init__(
        self,
        store: Store,
        clients: Clients,
        images: ImageFolder,
        process: ModelProcess,
        *,
        most_at_once: int = 4,
        give_up: EndProcess = end_process,
    ):
        self._store, self._clients, self._images, self.process = store, clients, images, process
        self._paths: OrderedDict[str, None] = OrderedDict()
        self._answered: OrderedDict[tuple[int, int, Slot], _Answered] = OrderedDict()
        self._lock = threading.Lock()  # guards all of these; one click at a time
        self._seats = threading.BoundedSemaphore(most_at_once)
        self._prepared = threading.Lock()  # held once the thread was started
        self._stopping = threading.Event()
        self.thread = LastingThread("smart tools", self._keep_loaded, self._stopping, give_up=give_up)

    def prepare(self, xml: str) -> None:
        """Start the process ahead of the first click if a labelling configuration has smart tools; from then on it is
        started again whenever it ends.
        """
        if self._prepared.locked():
            return
        try:
            has_tools = bool(parse_label_config(xml).prompts)
        except LabelConfigError:
            return  # told where the project is looked at
        if has_tools and self._prepared.acquire(blocking=False):
            self.thread.start()

    def stop(self) -> None:
        """End the process; a click that is being answered gets an error."""
        self._stopping.set()
        self.process.stop()

    def answer(self, project: int, task: Mapping[str, Any], xml: str, context: Any) -> tuple[list[Any], float]:
        """Regions and score (0..1) for what was clicked on a task that Label Studio sent; no regions where nothing was.

        Raises:
            InvalidRequest: the clicks belong to no label or image of the configuration.
            ImageUnavailable: the task has no such image, or it cannot be fetched.
            NotKnown: the task's image is elsewhere, and the backend has not seen the task in Label Studio yet.
            NotCorrected: SAM2 failed on it.
            TooBusy: too many clicks wait.
            ModelUnavailable, ModelProcessDied, ModelProcessStopped, LabelStudioError: as their names say.
        """
        config = parse_label_config(xml)
        pointing = read_context(context, config)
        if pointing is None:
            self._forget(project, int(task["id"]))
            return [], 0.0
        slot = slot_of(pointing, config)
        images = self._config(project) or config
        known = self._store.tasks(project).find(int(task["id"])) or _sent(project, task, slot.to_name, images)
        if not self._seats.acquire(blocking=False):
            raise TooBusy("Too many clicks are waiting; try again in a moment.")
        try:
            image = self._fetch(known, slot.to_name, images)
            return self._correct(known, task, slot, config, pointing, image)
        finally:
            self._seats.release()

    def _correct(
        self,
        known: Task,
        task: Mapping[str, Any],
        slot: Slot,
        config: LabelConfig,
        pointing: Pointing,
        image: str,
    ) -> tuple[list[Any], float]:
        """What `answer` gives, once it is this click's turn."""
        if not self._lock.acquire(timeout=PATIENCE):
            raise TooBusy("Too many clicks are waiting; try again in a moment.")
        try:
            self._keep(image)
            start, stored = self._start(known, task, slot, config, pointing, image)
            job = CorrectMask(image, slot, tuple(start), pointing.clicks, pointing.boxes)
            result = self._run(job, {image: known.id})
            regions = [region | {"origin": "prediction-changed"} for region in result.regions]
            made, _ = read_regions(regions, config)
            self._answered[known.project, known.id, slot] = _Answered(
                pointing.ids, stored, start, made, time.monotonic()
            )
            while len(self._answered) > ANSWERS_KEPT:
                self._answered.popitem(last=False)
        finally:
            self._lock.release()
        log.info(
            "Project %d, task %d: %r corrected by %d clicks and %d boxes, score %.2f, %.2f s.",
            known.project,
            known.id,
            slot.label,
            len(pointing.clicks),
            len(pointing.boxes),
            result.score,
            result.seconds,
        )
        return regions, result.score

    def _forget(self, project: int, task: int) -> None:
        """All clicks were taken back: what they led to is not what the next ones start from."""
        with self._lock:
            for known in [one for one in self._answered if one[:2] == (project, task)]:
                del self._answered[known]

    def _start(
        self,
        known: Task,
        task: Mapping[str, Any],
        slot: Slot,
        config: LabelConfig,
        pointing: Pointing,
        image: str,
    ) -> tuple[list[Region], list[Region] | None]:
        """The regions to start from, and what Label Studio had of them."""
        found = stored = stored_regions(task, slot, config)
        last = self._answered.get((known.project, known.id, slot))
        if last is not None and last.ids & pointing.ids:
            return last.start, stored  # one more click for the same suggestion
        if last is not None and last.stored == stored and time.monotonic() - last.at < DRAFT_DELAY:
            return last.regions, stored  # accepted, as far as can be known before the draft is saved
        if found is None:
            found = self._predicted(known, slot, config)
        if found is None:
            found = self._quickly_predicted(known, slot, config, image)
        return found, stored

    def _predicted(self, task: Task, slot: Slot, config: LabelConfig) -> list[Region] | None:
        """The mask of a prediction that is finished and not in Label Studio yet."""
        project = self._store.projects.find(task.project)
        job = self._store.jobs(task.project, project.version).find(task.id) if project else None
        return _of_slot(json.loads(job.result), slot, config) if job is not None and job.result else None

    def _quickly_predicted(self, task: Task, slot: Slot, config: LabelConfig, image: str) -> list[Region]:
        """The mask that the reference leads to in the method's quickest mode; nothing where there is no reference."""
        reference, regions = self._reference_of(task, slot)
        reference_task = self._store.tasks(task.project).find(reference.task) if reference else None
        reference_config = self._config(task.project)
        if reference is None or reference_task is None or reference_config is None:
            return []
        try:
            drawn_on = self._fetch(reference_task, slot.to_name, reference_config)
            self._keep(drawn_on)
            example = Example(reference.annotation, tuple(regions), {slot.to_name: drawn_on})
            job = SegmentTask(f"{reference.key}-{slot.label}", 0, (example,), {slot.to_name: image})
            result = self._run(job, {image: task.id, drawn_on: reference.task})
        except (NotCorrected, ImageUnavailable, LabelStudioError) as error:
            log.warning("Project %d, task %d: no mask to start from. %s", task.project, task.id, error)
            return []  # the clicks alone do, too
        return _of_slot(result.regions, slot, config)

    def _reference_of(self, task: Task, slot: Slot) -> tuple[ReferenceAnnotation | None, list[Region]]:
        """The earliest annotation learned from that shows a slot's label on another task, and its regions of it."""
        references = self._store.annotations(task.project).references()
        for one in references.annotations if references else ():
            regions = [r for r in one.regions if r.to_name == slot.to_name and slot.label in r.labels]
            if regions and one.task != task.id:
                return one, regions
        return None, []

    def _run(self, job: Job, copies: Mapping[str, int]) -> Result:
        answer = self.process.run(job, _no_progress)
        if not isinstance(answer, Result):
            raise NotCorrected(name_tasks(answer.message, copies))
        return answer

    def _fetch(self, task: Task, to_name: str, config: LabelConfig) -> str:
        """The path of a task's image."""
        return self._images.fetch(self._clients.of(task.project), config, task, [to_name])[to_name]

    def _config(self, project: int) -> LabelConfig | None:
        known = self._store.projects.find(project)
        return known.config if known is not None else None

    def _keep(self, path: str) -> None:
        """Keep the files that were used last, and no others."""
        self._paths[path] = None
        self._paths.move_to_end(path)
        while len(self._paths) > IMAGES_KEPT:
            self._images.discard([self._paths.popitem(last=False)[0]])

    def _keep_loaded(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            failures = 0 if self._load() else failures + 1
            self._stopping.wait(MODEL_DELAYS[min(failures, len(MODEL_DELAYS)) - 1] if failures else WATCH_PAUSE)

    def _load(self) -> bool:
        """Start the process unless it runs; returns whether it does."""
        if self.process.is_running:
            return True
        with self._lock:
            try:
                self.process.load(_no_progress)
            except BackendError as error:
                log.warning("Smart tools: %s", error)  # said again to whoever clicks
        return self.process.is_running


def _no_progress(step: str, done: int, total: int) -> None:
    """A click is over before anyone would look."""


def _pointed(result: Mapping[str, Any]) -> Pointing | None:
    """One region of the editor's; `None` where it is neither point nor box."""
    kind = str(result.get("type", "")).lower()
    value = result.get("value")
    if kind not in POINTS + BOXES or not isinstance(value, Mapping):
        return None
    if result.get("image_rotation"):
        raise InvalidRequest("The image is rotated in the editor; set the rotation back to 0 and click again.")
    fields = ("x", "y") if kind in POINTS else ("x", "y", "width", "height")
    numbers = [value.get(name) for name in fields] + [value.get("rotation") or 0]
    if not all(map(_is_place, numbers)):
        raise InvalidRequest(f"A {kind} region of the context does not say where it is.")
    listed = value.get(kind) or value.get("labels") or []
    label = str(listed[0]) if isinstance(listed, list) and listed else ""
    x, y, *extent, rotation = (float(number or 0) for number in numbers)
    clicks = ((x, y, result.get("is_positive") is not False),) if kind in POINTS else ()
    boxes = (Rectangle(x, y, extent[0], extent[1], rotation),) if extent else ()
    return Pointing(str(result.get("to_name", "")), label, clicks, boxes, frozenset({str(result.get("id"))}))


def _is_place(number: Any) -> bool:
    """Whether something is a coordinate in percent or an angle in degrees."""
    return isinstance(number, int | float) and not isinstance(number, bool) and -FARTHEST <= number <= FARTHEST


def _of_slot(results: Sequence[Any], slot: Slot, config: LabelConfig) -> list[Region]:
    """The regions of one mask; only those with our ids, where there are any."""
    regions = [result for result in results if isinstance(result, Mapping)]
    ours = {region_id(slot, number) for number in range(len(regions))}
    named = [region for region in regions if str(region.get("id")) in ours]
    found, _ = read_regions(named or regions, config)
    return [replace(region, labels=(slot.label,)) for region in found if slot in region.slots]


def _results(task: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Drafts, annotations or predictions that came with a task."""
    listed = task.get(name)
    return [
        one
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, Mapping) and isinstance(one.get("result"), list) and isinstance(one.get("id"), int)
    ]


def _sent(project: int, task: Mapping[str, Any], to_name: str, config: LabelConfig) -> Task:
    """A task that only the request tells of; what is not Label Studio's own or inside is not fetched for it."""
    data = task.get("data")
    sent = Task(project, int(task["id"]), dict(data) if isinstance(data, Mapping) else {}, False, "")
    address = image_url(config.images.get(to_name, ""), sent.data) or ""
    own = address.startswith(("/", "data:")) and not address.startswith("//")
    if address and not own:
        raise NotKnown(f"The backend has not seen task {sent.id} in Label Studio yet; try again in a moment.")
    return sent
