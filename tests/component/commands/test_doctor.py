from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.cli import main
from backend.commands.doctor import Finding, examine
from backend.settings import Settings
from backend.webhook_secret import HEADER
from cavsam.scoring.calibration import Calibration
from cavsam.weights.sources import NANO
from tests.support.backend import THRESHOLD
from tests.support.fake_label_studio import LEGACY_KEY, PERSONAL_TOKEN, FakeLabelStudio

MakeSettings = Callable[..., Settings]


def findings(settings: Settings, project: int | None = None, *, segmenter: str = "") -> list[Finding]:
    return list(examine(settings, project, with_model=bool(segmenter), segmenter=segmenter))


def texts(found: list[Finding], verdict: str) -> str:
    return " | ".join(f"{f.subject}: {f.message}" for f in found if f.verdict == verdict)


def test_all_is_well(make_settings: MakeSettings, label_studio: FakeLabelStudio):
    project = label_studio.add_project()
    label_studio.connected[project] = "http://127.0.0.1:9090"
    label_studio.webhooks = [{"url": "http://127.0.0.1:9090/webhook", "is_active": True}]
    found = findings(make_settings(preset="quick"), project, segmenter=THRESHOLD)
    assert texts(found, "fail") == ""
    good = texts(found, "ok")
    for words in ("release 1.23.2", "legacy token of admin@example.com", "labels cat, dog", "is connected", "loads in"):
        assert words in good
    assert "every step runs" in good
    assert texts(found, "note") == ""


def test_a_webhook_without_our_secret_is_noted(make_settings: MakeSettings, label_studio: FakeLabelStudio):
    project = label_studio.add_project()
    label_studio.connected[project] = "http://127.0.0.1:9090"
    hook: dict[str, Any] = {"url": "http://127.0.0.1:9090/webhook", "is_active": True, "headers": None}
    label_studio.webhooks = [hook]
    settings = make_settings(preset="quick", webhook_secret="0123456789abcdef")
    assert "does not carry this backend's secret" in texts(findings(settings, project, segmenter=THRESHOLD), "note")
    hook["headers"] = {HEADER: "0123456789abcdef"}
    assert texts(findings(settings, project, segmenter=THRESHOLD), "note") == ""


def test_the_switches_are_named_where_they_may_be_in_the_way(
    make_settings: MakeSettings, label_studio: FakeLabelStudio
):
    project = label_studio.add_project()
    switch = "LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false"
    for settings in (make_settings(), make_settings(host="0.0.0.0")):  # loopback, and this machine's own addresses
        assert switch in texts(findings(settings), "note")
        assert switch in texts(findings(settings, project), "note")  # none is connected
    label_studio.connected[project] = "http://127.0.0.1:9090"
    label_studio.backend_state = "DI"
    assert switch in texts(findings(make_settings(), project), "fail")
    label_studio.backend_state = "CO"  # so Label Studio does call private addresses
    assert not any(switch in finding.message for finding in findings(make_settings(), project))


def test_names_the_kind_of_key(make_settings: MakeSettings):
    assert "personal access token" in texts(findings(make_settings(label_studio_api_key=PERSONAL_TOKEN)), "ok")


def test_a_bad_key_and_an_absent_server(make_settings: MakeSettings):
    assert "does not accept the API key" in texts(findings(make_settings(label_studio_api_key="f" * 40)), "fail")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    found = findings(make_settings(label_studio_url=url, api_timeout=1.0))
    assert "Check LABEL_STUDIO_URL" in texts(found, "fail")


def test_a_misspelt_variable_is_noted(make_settings: MakeSettings):
    found = list(examine(make_settings(), None, environ={"CAVSAM_MODLE": "nano"}, with_model=False))
    assert "CAVSAM_MODLE means nothing" in texts(found, "note")


def test_says_what_will_be_fetched_and_whether_there_is_room(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    settings = make_settings(model="default")
    notes = texts(findings(settings), "note")
    assert settings.sources().sam2 in notes
    assert "`cavsam download`" in notes
    (tmp_path / f"models--{settings.sources().sam2.replace('/', '--')}").mkdir()
    assert settings.sources().sam2 not in texts(findings(settings), "note")
    monkeypatch.setattr("backend.commands.doctor.WEIGHTS_GB", 1e9)
    assert "make room or set HF_HOME" in texts(findings(settings), "fail")
    (tmp_path / f"models--{settings.sources().diffusion.replace('/', '--')}").mkdir()
    assert "are in" in texts(findings(settings), "ok")


def test_missing_address_and_key_are_noted(make_settings: MakeSettings):
    notes = texts(findings(make_settings(label_studio_url="", label_studio_api_key="")), "note")
    assert "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY are not set" in notes
    assert "set it to a personal access token" in texts(findings(make_settings(label_studio_api_key="")), "note")


def test_a_project_that_cannot_work(make_settings: MakeSettings, label_studio: FakeLabelStudio):
    text_only = label_studio.add_project('<View><Text name="t" value="$t"/></View>')
    failed = texts(findings(make_settings(), text_only), "fail")
    assert "no <Image> tag" in failed
    assert "No backend is connected" in failed
    assert "No Project matches" in texts(findings(make_settings(), 999), "fail")


def test_a_backend_that_label_studio_cannot_reach(make_settings: MakeSettings, label_studio: FakeLabelStudio):
    project = label_studio.add_project()
    label_studio.connected[project] = "http://ml-backend:9090"
    label_studio.backend_state = "DI"
    found = findings(make_settings(), project)
    assert "http://ml-backend:9090 is not in order" in texts(found, "fail")
    assert "host name without a dot, such as 'ml-backend'" in texts(found, "note")


@pytest.mark.parametrize(
    ("path", "words"), [("/api/ml", "a backend is connected"), ("/api/webhooks/", "its webhook is registered")]
)
def test_what_the_key_may_not_see_ends_nothing(
    make_settings: MakeSettings, label_studio: FakeLabelStudio, path: str, words: str
):
    project = label_studio.add_project()
    label_studio.connected[project] = "http://127.0.0.1:9090"
    label_studio.forbidden_paths.add(path)
    found = findings(make_settings(), project, segmenter=THRESHOLD)
    note = texts(found, "note")
    assert f"Whether {words} cannot be seen" in note
    assert f"may not call {path} (403)" in note
    assert texts(found, "fail") == ""
    assert "every step runs" in texts(found, "ok")


def test_a_folder_that_cannot_be_written(make_settings: MakeSettings):
    assert "set CAVSAM_DATA_DIR" in texts(findings(make_settings(data_dir=Path("/proc/nothing"))), "fail")


def test_a_model_that_does_not_load(make_settings: MakeSettings):
    found = findings(make_settings(), segmenter="tests.support.threshold:open_missing")
    assert "set CAVSAM_MODEL to a pair" in texts(found, "fail")


def test_the_command_prints_a_line_each_and_ends_with_a_status(
    make_settings: MakeSettings,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("LABEL_STUDIO_URL", label_studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY_KEY)
    folder = str(make_settings().data_dir)
    assert main(["doctor", "--skip-model", "--data-dir", folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "note", "fail") for line in lines)
    assert main(["doctor", "--skip-model", "--data-dir", folder, "--project", "99"]) == 1
    assert LEGACY_KEY not in "".join(lines)


def test_says_what_the_scores_are_worth(make_settings: MakeSettings, tmp_path: Path):
    known = Calibration.load(NANO / "sam2" / "calibration.json")
    file = tmp_path / "mine.json"
    replace(known, recipe=make_settings().method().to_dict()).save(file)
    settings = make_settings(calibration=str(file), mode="concat")
    assert f"calibration: {file}" in texts(findings(settings), "ok")
    replace(known, recipe=make_settings(recipe='{"reference_prompt": "box"}').method().to_dict()).save(file)
    assert "reference_prompt=box, not mask" in texts(findings(settings), "note")
    file.write_text("{}")
    assert "not a calibration" in texts(findings(settings), "fail")
