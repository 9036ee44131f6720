from __future__ import annotations

import json
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from backend.cli import main
from backend.settings import setting_rows
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import FakeLabelStudio, picture


def test_settings_prints_every_setting(capsys: pytest.CaptureFixture[str]):
    assert main(["settings"]) == 0
    printed = capsys.readouterr().out
    assert all(f"`{row.variable}`" in printed for row in setting_rows())


def test_a_wrong_setting_is_one_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CAVSAM_MODE", "fast")
    assert main(["serve"]) == 2
    assert capsys.readouterr().err.startswith("cavsam-backend: mode must be one of")


def test_status_of_a_running_backend(
    start_backend: Callable[..., RunningBackend],
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    backend = start_backend(basic_auth_user="me", basic_auth_password="secret")
    project = label_studio.add_project()
    label_studio.add_task(project, picture((1, 9, 1, 9)))
    backend.service.setup(project, label_studio.url, "")
    wait_for(lambda: backend.service.coordinator.syncs(project), "a sync")
    port = str(urlsplit(backend.url).port)
    assert main(["status", "--port", port]) == 2  # no password given
    monkeypatch.setenv("CAVSAM_BASIC_AUTH_USER", "me")
    monkeypatch.setenv("CAVSAM_BASIC_AUTH_PASSWORD", "secret")
    assert main(["status", "--port", port]) == 0
    printed = capsys.readouterr().out
    for words in (backend.service.base_version, "try-out models", f"project {project}", "No task is annotated yet"):
        assert words in printed
    assert main(["status", "--port", port, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["id"], one["jobs"]["done"]) for one in told["projects"]] == [(project, 0)]


def test_status_where_nothing_runs(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert main(["status", "--port", str(port)]) == 2
    assert "start it with" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "some"])
def test_backfill_refuses_a_dry_run_of_no_tasks(number: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["backfill", "1", "--dry-run", number])
    assert "--dry-run" in capsys.readouterr().err
