from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.errors import ModelProcessDied, ModelProcessStopped, ModelUnavailable
from backend.labelstudio.brush import decode_mask
from backend.labelstudio.label_config import parse_label_config
from backend.sync.references import examine
from backend.worker.messages import Answer, BadReference, Example, Failed, ModelSpec, Result, SegmentTask
from backend.worker.model_process import ModelProcess
from backend.worker.model_server import ModelServer
from cavsam.types import Progress, Reference, TargetResult
from tests.support.backend import THRESHOLD, wait_for
from tests.support.fake_label_studio import CAT, CONFIG, GROUND, brush, picture, png
from tests.support.threshold import DEADLY, ThresholdSegmenter

CAT_BOX, DOG_BOX = (8, 30, 20, 50), (40, 60, 60, 80)


def silent(step: str, done: int, total: int) -> None:
    pass


def a_job(folder: Path, target: bytes, regions: list[dict] | None = None, config: str = CONFIG) -> SegmentTask:
    (folder / "reference.png").write_bytes(picture(CAT_BOX, DOG_BOX))
    (folder / "target.png").write_bytes(target)
    drawn = regions if regions is not None else [brush(CAT_BOX, "cat"), brush(DOG_BOX, "dog")]
    candidate = examine({"id": 1, "task": 1, "created_at": "", "result": drawn}, parse_label_config(config))
    assert candidate.usable
    example = Example(1, candidate.regions, {"image": str(folder / "reference.png")})
    return SegmentTask(candidate.key, 0, (example,), {"image": str(folder / "target.png")})


def found(answer: Answer) -> Result:
    assert isinstance(answer, Result), answer
    return answer


def mask_of(region: dict) -> np.ndarray:
    return decode_mask(region["value"]["rle"], region["original_height"], region["original_width"])


class AskedSegmenter(ThresholdSegmenter):
    """Keeps the texts it was given for the diffusion model, and says whether its scores are calibrated."""

    def __init__(self, calibrated: bool = False):
        super().__init__()
        self.calibrated = calibrated
        self.class_names: list[str | None] = []

    def adapt(
        self,
        references: Sequence[Reference],
        *,
        class_name: str | None = None,
        shots: int = 0,
        progress: Progress | None = None,
    ) -> dict[str, np.ndarray]:
        self.class_names.append(class_name)
        return super().adapt(references, class_name=class_name, shots=shots, progress=progress)

    def segment(
        self, adapted: Any, targets: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[TargetResult]:
        for result in super().segment(adapted, targets, progress=progress):
            yield replace(result, calibrated=self.calibrated)


class TestModelServer:
    def test_finds_each_label_exactly(self, tmp_path: Path):
        job = a_job(tmp_path, picture((2, 9, 3, 40), (50, 60, 1, 9)))
        answer = found(ModelServer(ThresholdSegmenter()).run(job, silent))
        masks = {region["value"]["brushlabels"][0]: mask_of(region) for region in answer.regions}
        for label, (top, bottom, left, right) in {"cat": (2, 9, 3, 40), "dog": (50, 60, 1, 9)}.items():
            expected = np.zeros((64, 96), bool)
            expected[top:bottom, left:right] = True
            assert (masks[label] == expected).all()
        assert 0 <= answer.score <= 1

    def test_a_label_that_is_not_there_has_no_region(self, tmp_path: Path):
        answer = found(ModelServer(ThresholdSegmenter()).run(a_job(tmp_path, picture((2, 9, 3, 40))), silent))
        assert [region["value"]["brushlabels"] for region in answer.regions] == [["cat"]]

    def test_a_label_that_was_lost_or_swapped_does_not_hide_in_the_mean(self, tmp_path: Path):
        """Of two labels one scores 0.9 and one 0.2, and they claim each other's pixels."""

        class Unsure(ThresholdSegmenter):
            def segment(
                self, adapted: Any, targets: Iterable[str], *, progress: Progress | None = None
            ) -> Iterator[TargetResult]:
                for result in super().segment(adapted, targets, progress=progress):
                    yield replace(result, scores={"cat": 0.9, "dog": 0.2}, contested={("cat", "dog"): 0.5})

        answer = found(ModelServer(Unsure()).run(a_job(tmp_path, picture(CAT_BOX, DOG_BOX)), silent))
        assert answer.score == 0.2
        assert any("'cat'" in remark and "'dog'" in remark for remark in answer.remarks)
        lost = found(ModelServer(Unsure()).run(a_job(tmp_path, picture(CAT_BOX)), silent))
        assert lost.score == 0.9
        assert any("'dog' was not found" in remark for remark in lost.remarks)

    def test_a_mask_in_many_parts_is_remarked_on(self, tmp_path: Path):
        target = np.asarray(Image.open(io.BytesIO(picture(None)))).copy()
        target[::8, ::8] = CAT
        stream = io.BytesIO()
        Image.fromarray(target).save(stream, "PNG")
        answer = found(
            ModelServer(ThresholdSegmenter()).run(a_job(tmp_path, stream.getvalue(), [brush(CAT_BOX, "cat")]), silent)
        )
        assert answer.remarks == (f"The mask of 'cat' has {8 * 12} parts, that of the reference 1.",)

    def test_a_poor_reference_is_named_by_its_annotation(self, tmp_path: Path):
        """The cat's box covers nothing but the ground."""
        job = a_job(tmp_path, picture(CAT_BOX), [brush((40, 60, 60, 80), "cat")])
        (tmp_path / "reference.png").write_bytes(picture(CAT_BOX))
        answer = found(ModelServer(ThresholdSegmenter()).run(job, silent))
        (said,) = answer.oddities
        assert said.startswith("Annotation 1, which is learned from: The mask of 'cat' does not differ")

    def test_the_mask_has_the_size_that_a_browser_shows(self, tmp_path: Path):
        job = a_job(tmp_path, b"")
        image = np.full((40, 70, 3), GROUND, np.uint8)
        image[:10, :20] = CAT
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned by 90 degrees clockwise
        Image.fromarray(image).save(tmp_path / "target.png", exif=exif)
        (region,) = found(ModelServer(ThresholdSegmenter()).run(job, silent)).regions
        assert (region["original_width"], region["original_height"]) == (40, 70)
        expected = np.zeros((70, 40), bool)
        expected[:20, -10:] = True
        assert (mask_of(region) == expected).all()

    def test_adapts_once_per_reference(self, tmp_path: Path):
        log = tmp_path / "adapted"
        server = ModelServer(ThresholdSegmenter(adapted_log=log))
        job = a_job(tmp_path, picture(CAT_BOX))
        for _ in range(3):
            server.run(job, silent)
        assert len(log.read_text().splitlines()) == 1
        server.run(a_job(tmp_path, picture(CAT_BOX), [brush((9, 30, 20, 50), "cat")]), silent)
        assert len(log.read_text().splitlines()) == 2

    def test_a_broken_target_fails_alone(self, tmp_path: Path):
        server = ModelServer(ThresholdSegmenter())
        answer = server.run(a_job(tmp_path, b"no picture"), silent)
        assert isinstance(answer, Failed)
        assert answer.message
        assert found(server.run(a_job(tmp_path, picture(CAT_BOX)), silent)).regions

    @pytest.mark.parametrize(
        ("regions", "words"),
        [([brush((0, 0, 0, 0), "cat")], "empty"), ([brush(CAT_BOX, "cat", (64, 90))], "annotate the task again")],
    )
    def test_a_reference_that_teaches_nothing_is_told_apart(self, tmp_path: Path, regions: list[dict], words: str):
        answer = ModelServer(ThresholdSegmenter()).run(a_job(tmp_path, picture(CAT_BOX), regions), silent)
        assert isinstance(answer, BadReference)
        assert words in answer.message

    def test_examples_teach_together_what_each_shows(self, tmp_path: Path):
        """The cat is marked on one image, the dog on another."""
        job = a_job(tmp_path, picture((2, 9, 3, 40), (50, 60, 1, 9)), [brush(CAT_BOX, "cat")])
        (tmp_path / "dog.png").write_bytes(picture(None, DOG_BOX))
        (other,) = a_job(tmp_path, b"", [brush(DOG_BOX, "dog")]).examples
        (tmp_path / "reference.png").write_bytes(picture(CAT_BOX))
        (tmp_path / "target.png").write_bytes(picture((2, 9, 3, 40), (50, 60, 1, 9)))
        other = replace(other, annotation=2, images={"image": str(tmp_path / "dog.png")})
        answer = found(ModelServer(ThresholdSegmenter()).run(replace(job, examples=(*job.examples, other)), silent))
        areas = {region["value"]["brushlabels"][0]: int(mask_of(region).sum()) for region in answer.regions}
        assert areas == {"cat": 7 * 37, "dog": 10 * 8}

    def test_of_several_examples_the_bad_one_is_named(self, tmp_path: Path):
        job = a_job(tmp_path, picture(CAT_BOX))
        (empty,) = a_job(tmp_path, picture(CAT_BOX), [brush((0, 0, 0, 0), "cat")]).examples
        job = replace(job, examples=(*job.examples, replace(empty, annotation=7)))
        answer = ModelServer(ThresholdSegmenter()).run(job, silent)
        assert isinstance(answer, BadReference)
        assert answer.annotation == 7

    def test_the_text_for_the_diffusion_model_names_each_label_once(self, tmp_path: Path):
        """Two control tags share a label, whose masks are told apart by the tag."""
        config = (
            '<View><Image name="image" value="$image"/>'
            '<BrushLabels name="tag" toName="image"><Label value="cat"/><Label value="dog"/></BrushLabels>'
            '<BrushLabels name="other" toName="image"><Label value="cat"/></BrushLabels></View>'
        )
        drawn = [brush(CAT_BOX, "cat"), brush(DOG_BOX, "dog"), brush((8, 20, 20, 50), "cat") | {"from_name": "other"}]
        segmenter = AskedSegmenter()
        answer = found(ModelServer(segmenter).run(a_job(tmp_path, picture(CAT_BOX), drawn, config), silent))
        assert segmenter.class_names == ["cat, dog"]
        assert {region["from_name"] for region in answer.regions} <= {"tag", "other"}

    @pytest.mark.parametrize("calibrated", [True, False])
    def test_whether_the_score_is_calibrated_comes_along(self, tmp_path: Path, calibrated: bool):
        segmenter = AskedSegmenter(calibrated)
        assert found(ModelServer(segmenter).run(a_job(tmp_path, picture(CAT_BOX)), silent)).calibrated is calibrated

    def test_several_images_of_a_task(self, tmp_path: Path):
        config = (
            '<View><Image name="image" value="$a"/><Image name="second" value="$b"/>'
            '<BrushLabels name="tag" toName="image,second"><Label value="cat"/></BrushLabels></View>'
        )
        regions = [brush(CAT_BOX, "cat"), brush((1, 20, 1, 20), "cat", to_name="second")]
        job = a_job(tmp_path, picture((2, 9, 3, 40)), regions, config)
        (tmp_path / "second-reference.png").write_bytes(picture((1, 20, 1, 20)))
        (tmp_path / "second-target.png").write_bytes(picture((30, 40, 30, 40)))
        shown = {"image": str(tmp_path / "reference.png"), "second": str(tmp_path / "second-reference.png")}
        targets = {"image": str(tmp_path / "target.png"), "second": str(tmp_path / "second-target.png")}
        job = replace(job, examples=(replace(job.examples[0], images=shown),), images=targets)
        answer = found(ModelServer(ThresholdSegmenter()).run(job, silent))
        areas = {region["to_name"]: int(mask_of(region).sum()) for region in answer.regions}
        assert areas == {"image": 7 * 37, "second": 100}


@pytest.fixture
def start_process() -> Iterator[Any]:
    started: list[ModelProcess] = []

    def start(segmenter: str = THRESHOLD) -> ModelProcess:
        started.append(ModelProcess(ModelSpec(segmenter, {})))
        return started[-1]

    yield start
    for process in started:
        process.stop()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class TestModelProcess:
    def test_works_in_a_process_of_its_own_and_survives_its_death(self, start_process: Any, tmp_path: Path):
        process = start_process()
        job = a_job(tmp_path, picture(CAT_BOX))
        assert found(process.run(job, silent)).regions
        first = process.pid
        assert first not in (None, os.getpid())
        with pytest.raises(ModelProcessDied, match="SIGKILL"):
            process.run(a_job(tmp_path, png(np.full((8, 8, 3), DEADLY, np.uint8))), silent)
        assert not is_running(first)
        assert found(process.run(a_job(tmp_path, picture(CAT_BOX)), silent)).regions
        assert process.pid != first

    def test_one_that_was_interrupted_or_ended_while_idle_is_replaced(self, start_process: Any, tmp_path: Path):
        process = start_process()
        job = a_job(tmp_path, picture(CAT_BOX))
        with pytest.raises(ModelProcessDied, match="cancelled"):
            process.run(job, silent, is_cancelled=lambda: True)
        first = process.pid
        assert process.resident_bytes > 1_000_000
        process.interrupt()
        assert not is_running(first)
        assert found(process.run(job, silent)).regions  # no fault of this job, so it is not the one to fail
        assert process.pid != first

    def test_stops_in_the_middle_of_a_job(self, start_process: Any, tmp_path: Path):
        process = start_process("tests.support.threshold:open_endless")
        caught: list[BaseException] = []

        def work() -> None:
            try:
                process.run(a_job(tmp_path, picture(CAT_BOX)), silent)
            except ModelProcessStopped as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_for(lambda: (tmp_path / "working").exists(), "the job to begin")
        pid = process.pid
        assert pid is not None
        process.stop()
        thread.join(10)
        assert len(caught) == 1
        assert not is_running(pid)
        with pytest.raises(ModelProcessStopped):
            process.load(silent)

    def test_a_model_that_cannot_be_loaded_is_told_in_its_own_words(self, start_process: Any):
        process = start_process("tests.support.threshold:open_missing")
        for _ in range(2):
            with pytest.raises(ModelUnavailable, match="set CAVSAM_MODEL to a pair"):
                process.load(silent)

    def test_ends_when_its_parent_is_killed(self, tmp_path: Path):
        program = (
            "import time\n"
            "from backend.worker.messages import ModelSpec\n"
            "from backend.worker.model_process import ModelProcess\n"
            f"process = ModelProcess(ModelSpec({THRESHOLD!r}, {{}}))\n"
            "process.load(lambda *a: None)\n"
            "print(process.pid, flush=True)\n"
            "time.sleep(600)\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            process = int(parent.stdout.readline())
            assert is_running(process)
            parent.send_signal(signal.SIGKILL)
        wait_for(lambda: not is_running(process), "the model process to end with its parent", 20)

    def test_the_key_is_not_in_its_environment(
        self, start_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", "the-key-itself")
        monkeypatch.setenv("CAVSAM_BASIC_AUTH_PASSWORD", "the-password")
        process = start_process()
        process.run(a_job(tmp_path, picture(CAT_BOX)), silent)
        environment = Path(f"/proc/{process.pid}/environ").read_text()
        assert "PATH=" in environment
        assert "the-key-itself" not in environment
        assert "the-password" not in environment
