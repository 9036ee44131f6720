"""`cavsam-backend evaluate` over what a backend has left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from backend.cli import main
from backend.commands.evaluate import evaluate
from backend.errors import BackendError
from backend.settings import Settings
from backend.store.store import ledger_path
from cavsam.scoring.experience import LEAST
from tests.component.sync.test_reviews import WORTHS, WRONG, drawn, predicted, project_of
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import LEGACY_KEY, FakeLabelStudio
from tests.support.taught import truth

MakeSettings = Callable[..., Settings]


@pytest.fixture
def project(label_studio: FakeLabelStudio, start_backend: Callable[..., RunningBackend]) -> int:
    """A project that was predicted, and annotated after its backend had stopped."""
    number = project_of(label_studio, WORTHS[: LEAST + 1])
    backend = start_backend(segmenter=WRONG)
    label_studio.connect(number, backend.url)
    _, *tasks = label_studio.tasks_of(number)
    wait_for(lambda: predicted(label_studio, tasks), "predictions")
    backend.service.stop()
    label_studio.connected.clear()
    for task in tasks[:LEAST]:
        label_studio.annotate(task, [drawn(truth())])
    # a backend that synchronises knows which tasks are annotated; this one has stopped
    backend = start_backend(segmenter=WRONG)
    label_studio.connected[number] = backend.url
    backend.service.coordinator.sync_all()
    learning = backend.service.store.learning(number)
    wait_for(lambda: learning.evaluation() is not None, "an evaluation")
    backend.service.stop()
    return number


def test_every_way_is_measured_and_settings_are_recommended(
    label_studio: FakeLabelStudio,
    project: int,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    settings = make_settings()
    found = evaluate(settings, project)
    assert found.reviews == LEAST
    ious = {way.name: way.iou.value for way in found.kinds}
    columns = WORTHS[:LEAST]
    assert ious["concat"] == pytest.approx(sum(cheap for cheap, _ in columns) / 40 / LEAST, abs=1e-3)
    assert ious["full"] == pytest.approx(sum(costly for _, costly in columns) / 40 / LEAST, abs=1e-3)
    assert all(way.iou.low <= way.iou.value <= way.iou.high for way in (*found.kinds, *found.ladder))
    assert any("CAVSAM_MODE=concat would have had" in sentence for sentence in found.advice)

    monkeypatch.setenv("LABEL_STUDIO_URL", label_studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY_KEY)
    monkeypatch.setenv("CAVSAM_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("CAVSAM_MODEL", "nano")
    assert main(["evaluate", str(project), "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed == {"project": project} | json.loads(json.dumps(found.to_json()))
    assert main(["evaluate", str(project), "--offline"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{LEAST} reviewed: mean IoU")
    assert any(line.strip().startswith("concat ") for line in lines)


def test_what_cannot_be_evaluated_is_said(label_studio: FakeLabelStudio, make_settings: MakeSettings, project: int):
    settings = make_settings()
    with pytest.raises(BackendError, match=f"does not know project 999; it knows {project}"):
        evaluate(settings, 999)
    with pytest.raises(BackendError, match="no ledger"):
        evaluate(make_settings(data_dir=ledger_path(settings).parent / "elsewhere"), project)
