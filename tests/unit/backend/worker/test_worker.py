"""The worker's turns, with a model process that answers as told and a clock that is moved by hand."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend.entities import ODD_REFERENCES, Job, ReferenceAnnotation, References, Refusal, Task
from backend.errors import (
    ImageUnavailable,
    LabelStudioUnreachable,
    ModelProcessDied,
    ModelProcessStopped,
    ModelUnavailable,
)
from backend.image_folder import ImageFolder
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.regions import Brush, Region
from backend.store.store import Store
from backend.worker import messages
from backend.worker.decisions import AWAY_DELAY, CANCELLED, IMAGE_DELAYS, MODEL_DELAYS, REFUSAL_DELAY
from backend.worker.messages import BadReference, Failed, ModelSpec, Result, SegmentTask
from backend.worker.model_process import ModelProcess
from backend.worker.worker import Hooks, Worker, flag_low_scores

CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    '<Label value="cat"/></BrushLabels></View>'
)
VERSION = "cavsam-rk1"
REGIONS = (Region("tag", "image", ("cat",), (64, 96), Brush(bytes([1, 2, 3]))),)
REFERENCE = ReferenceAnnotation(1, "k1", 9, 1, REGIONS)
ADDRESS = "data:image/png;base64," + base64.b64encode(b"a picture").decode()
FOUND = Result(({"id": "a", "score": 0.8},), 0.8, 1.5)

Step = messages.Answer | Exception | Callable[[], messages.Answer]


class ScriptedProcess(ModelProcess):
    """Answers one step after the other and keeps what it was asked; starts no process."""

    def __init__(self) -> None:
        super().__init__(ModelSpec("none", {}))
        self.steps: list[Step] = []
        self.loaded, self.unloadable = True, ""
        self.asked: list[SegmentTask] = []

    def load(self, on_progress: Callable[[str, int, int], None]) -> None:
        if self.unloadable:
            raise ModelUnavailable(self.unloadable)
        self.loaded = True

    @property
    def is_running(self) -> bool:
        return self.loaded

    def run(
        self,
        job: messages.Job,
        on_progress: Callable[[str, int, int], None],
        *,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> messages.Answer:
        assert isinstance(job, SegmentTask)
        self.asked.append(job)
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step() if callable(step) else step


class Scene:
    """Project 1, whose annotation 9 of task 1 is the reference, and whose tasks 2 and 3 are queued."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_000_000.0
        self.store = Store(folder / "ledger.sqlite3", now=lambda: self.now)
        self.store.projects.add(1, "made on Monday")
        self.store.projects.describe(1, "Cats", CONFIG)
        self.store.tasks(1).replace([Task(1, n, {"image": ADDRESS}, n == 1, "") for n in (1, 2, 3)])
        self.store.annotations(1).set_references(VERSION, References("k1", (REFERENCE,)))
        self.store.jobs(1, VERSION).queue([2, 3])
        self.process = ScriptedProcess()
        self.finished: list[tuple[int, int]] = []
        self.refused: list[Refusal] = []
        self.clients: list[Exception] = []
        hooks = Hooks(self.client, lambda *job: self.finished.append(job), self.refused.append, lambda project: 0.5)
        self.worker = Worker(self.store, self.process, ImageFolder(folder / "images", 10**6), hooks)

    def client(self, project: int) -> LabelStudio:
        if self.clients:
            raise self.clients.pop(0)
        return LabelStudio("http://label-studio.invalid", "key")

    def turn(self, *steps: Step) -> None:
        """Have one job taken, which the model process answers so."""
        self.process.steps += steps
        self.worker.work_once()
        assert self.process.steps == []

    def job(self, task: int = 2) -> Job:
        found = self.store.jobs(1, VERSION).find(task)
        assert found is not None
        return found

    def next_task(self) -> int | None:
        found = self.store.queue.peek_next()
        return found.task if found else None


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.worker.stop()
    made.store.close()


def test_a_job_is_asked_with_its_images_and_its_result_stored(scene: Scene):
    scene.turn(FOUND)
    (asked,) = scene.process.asked
    (example,) = asked.examples
    assert (asked.reference_key, example.annotation, example.regions) == ("k1", 9, REGIONS)
    assert set(asked.images) == set(example.images) == {"image"}
    assert Path(example.images["image"]).read_bytes() == b"a picture"
    assert not Path(asked.images["image"]).exists()  # it is not needed any more
    job = scene.job()
    assert (job.state, job.score, job.seconds, json.loads(job.result or "")) == ("done", 0.8, 1.5, list(FOUND.regions))
    assert scene.finished == [(1, 2)]


def test_what_a_result_says_of_the_reference_and_of_itself_is_kept(scene: Scene):
    scene.turn(replace(FOUND, remarks=("'dog' was not found.",), oddities=("The mask is tiny.",)))
    assert scene.job().remarks == ("'dog' was not found.",)
    assert scene.store.projects.warnings(1) == {ODD_REFERENCES: ["The mask is tiny."]}
    scene.turn(FOUND)
    assert scene.store.projects.warnings(1) == {}


def test_without_jobs_the_worker_waits_until_the_next_may_be_tried_or_it_is_woken(scene: Scene):
    scene.store.jobs(1, VERSION).hold(7.0)
    pause = scene.worker.work_once()
    assert pause.until_woken
    assert pause.seconds == pytest.approx(7.0, abs=0.1)
    assert scene.process.asked == []
    scene.now += 7.0
    scene.turn(FOUND)
    assert scene.job().state == "done"


def test_a_failed_task_names_the_task_and_the_next_goes_on(scene: Scene):
    scene.turn(lambda: Failed(f"{scene.process.asked[-1].images['image']} is not a picture."))
    assert (scene.job().state, scene.job().error) == ("failed", "The image of task 2 is not a picture.")
    scene.turn(FOUND)
    assert scene.job(3).state == "done"


def test_a_process_that_dies_twice_on_a_task_costs_the_task_and_late_images_do_not_count(scene: Scene):
    scene.store.jobs(1, VERSION).raise_priority([2], 5)
    scene.store.tasks(1).replace([Task(1, n, {"image": ADDRESS}, n == 1, "") for n in (1, 2, 3)])
    scene.turn(ModelProcessDied("It was killed."))
    assert (scene.job().state, scene.job().attempts, scene.job().error) == ("queued", 1, "It was killed.")
    scene.clients = [LabelStudioUnreachable("Label Studio is away.")]
    scene.turn()
    assert (scene.job().state, scene.job().attempts) == ("queued", 1)
    scene.now += AWAY_DELAY
    scene.turn(ModelProcessDied("It was killed."))
    assert (scene.job().state, scene.job().attempts) == ("failed", 2)
    assert "2 times" in (scene.job().error or "")


def test_a_task_that_is_asked_for_again_has_all_its_tries(scene: Scene):
    scene.store.jobs(1, VERSION).raise_priority([2], 5)
    scene.turn(ModelProcessDied("It was killed."))
    scene.turn(ModelProcessDied("It was killed."))
    scene.store.jobs(1, VERSION).retry_failed([2])
    scene.store.jobs(1, VERSION).raise_priority([2], 5)
    scene.turn(ModelProcessDied("It was killed."))
    assert scene.job().state == "queued"
    scene.turn(FOUND)
    assert scene.job().state == "done"


def test_label_studio_away_lets_the_task_wait(scene: Scene):
    scene.clients = [LabelStudioUnreachable("Label Studio is away.")]
    scene.turn()
    assert (scene.job().state, scene.job().attempts, scene.job().error) == ("queued", 0, "Label Studio is away.")
    assert scene.next_task() == 3
    scene.now += AWAY_DELAY
    assert scene.next_task() == 2


def test_an_image_that_never_comes_is_given_up_after_its_tries(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    def fetch(self: ImageFolder, client: LabelStudio, config: object, task: Task, to_names: object) -> dict[str, str]:
        raise ImageUnavailable("The host does not answer.", permanent=False)

    scene.turn(FOUND)
    scene.turn(FOUND)
    scene.store.tasks(1).replace([Task(1, n, {"image": ADDRESS}, n == 1, "") for n in (1, 2, 3, 4)])
    scene.store.jobs(1, VERSION).queue([4])
    monkeypatch.setattr(ImageFolder, "fetch", fetch)
    for delay in IMAGE_DELAYS:
        scene.turn()
        assert (scene.job(4).state, scene.job(4).attempts) == ("queued", 0)
        assert scene.store.queue.seconds_to_next() == pytest.approx(delay)
        scene.now += delay
    scene.turn()
    assert (scene.job(4).state, scene.job(4).error) == ("failed", "The host does not answer.")


def test_a_model_that_cannot_be_loaded_keeps_all_jobs_waiting_longer_each_time(scene: Scene):
    for seconds in MODEL_DELAYS:
        scene.process.steps = [ModelUnavailable("There is no checkpoint.")]
        pause = scene.worker.work_once()
        assert (pause.seconds, pause.until_woken) == (seconds, False)
        assert scene.worker.activity.state == "no model"
        assert (scene.job().state, scene.job().attempts) == ("queued", 0)
    scene.turn(FOUND)
    scene.process.steps = [ModelUnavailable("There is no checkpoint.")]
    assert scene.worker.work_once().seconds == MODEL_DELAYS[0]  # it could be loaded in between


def test_without_jobs_a_model_that_cannot_be_loaded_is_tried_again_after_longer_and_longer_pauses(scene: Scene):
    for task in (2, 3):
        scene.turn(FOUND)
        assert scene.job(task).state == "done"
    scene.process.loaded, scene.process.unloadable = False, "There are no weights."
    for delay in MODEL_DELAYS[:2]:
        assert scene.worker.work_once().seconds == delay
        assert (scene.worker.activity.state, scene.worker.activity.error) == ("no model", "There are no weights.")
        scene.now += delay - 1
        assert scene.worker.work_once().seconds == pytest.approx(1)  # not yet
        scene.now += 1
    scene.process.unloadable = ""
    assert scene.worker.work_once().until_woken
    assert scene.process.loaded
    assert scene.worker.activity.state == "idle"


def test_a_reference_that_teaches_nothing_is_told_and_nothing_the_sync_owns_is_written(scene: Scene):
    scene.turn(BadReference(9, "Every mask of the annotation is empty."))
    assert scene.refused == [Refusal(1, 9, "k1", "Every mask of the annotation is empty.")]
    assert scene.store.annotations(1).references() == References("k1", (REFERENCE,))
    assert {scene.job(task).state for task in (2, 3)} == {"queued"}
    assert scene.next_task() is None  # no other task need meet the same
    scene.now += REFUSAL_DELAY
    assert scene.next_task() == 2


def test_a_reference_that_changed_meanwhile_puts_the_job_back(scene: Scene):
    scene.store.annotations(1).set_references(VERSION, References("k2", (REFERENCE,)))
    scene.turn()
    assert (scene.job().state, scene.job().attempts, scene.job().error) == ("queued", 0, None)


def test_a_backend_that_stops_keeps_the_job(scene: Scene):
    scene.turn(ModelProcessStopped("The backend is stopping."))
    assert (scene.job().state, scene.job().attempts, scene.job().error) == ("queued", 0, None)
    assert scene.next_task() == 2


def test_a_cancelled_task_fails_in_plain_words(scene: Scene):
    def cancelled() -> Result:
        assert not scene.worker.cancel(1, 3)
        assert scene.worker.cancel(1, 2)
        raise ModelProcessDied("It was killed.")

    scene.turn(cancelled)
    assert (scene.job().state, scene.job().error) == ("failed", CANCELLED)
    assert not scene.worker.cancel(1, 2)


def test_a_fault_of_the_backend_lets_the_task_wait_and_fails_it_only_if_it_stays(scene: Scene):
    scene.turn(MemoryError("what nobody foresaw"))
    assert (scene.job().state, scene.job().error) == (
        "queued",
        "The backend failed on this task (MemoryError: what nobody foresaw).",
    )
    scene.turn(FOUND)
    assert scene.job(3).state == "done"
    for delay in IMAGE_DELAYS:
        scene.now += delay
        scene.turn(MemoryError("the same again"))
    assert scene.job().state == "failed"


def test_low_scores_are_flagged_beside_their_regions():
    regions = [{"id": "a", "score": 0.31}, {"id": "b", "score": 0.5}]
    flagged, kept = flag_low_scores(regions, 0.5)
    assert flagged["meta"] == {"text": ["Low score 0.31: check this mask."]}
    assert kept == regions[1]
    assert "meta" not in regions[0]
