"""Habits of the shell, of both commands as processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cavsam
from backend.ports import holder
from cavsam.errors import ModelError
from cavsam.shell import READER_GONE
from cavsam.weights.loading import find_diffusion, find_sam2
from cavsam.weights.sources import ModelSources

COMMANDS = {"cavsam": "cavsam.cli", "cavsam-backend": "backend.cli"}


def run(module: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environ, check=False)


@pytest.mark.parametrize(("name", "module"), COMMANDS.items())
def test_version(name: str, module: str):
    assert run(module, "--version").stdout == f"{name} {cavsam.__version__}\n"


@pytest.mark.parametrize(("name", "module"), COMMANDS.items())
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_name_the_subcommands_and_are_no_syntax_errors(name: str, module: str, shell: str):
    script = run(module, "completion", shell).stdout
    assert {"cavsam": "segment", "cavsam-backend": "backfill"}[name] in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=20)


def test_bash_completes_a_subcommand():
    script = run("backend.cli", "completion", "bash").stdout
    ask = script + '\nCOMP_WORDS=(cavsam-backend back); COMP_CWORD=1; _shtab_cavsam_backend; echo "${COMPREPLY[@]}"'
    found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=20, check=False)
    assert "backfill" in found.stdout


@pytest.mark.parametrize(
    ("module", "arguments"), [("backend.cli", ("settings",)), ("cavsam.cli", ("completion", "bash"))]
)
def test_a_reader_who_went_away_is_no_error(module: str, arguments: tuple[str, ...]):
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", module, *arguments], stdout=writing, stderr=subprocess.PIPE, timeout=120, check=False
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (READER_GONE, b"")


def test_a_busy_port_is_one_sentence_with_who_holds_it(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = run("backend.cli", "serve", "--port", str(port), "--model", "nano", "--data-dir", str(tmp_path))
        assert holder(port) == os.getpid()
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert f"Port {port} of 127.0.0.1 is in use by process {os.getpid()}" in found.stderr
    assert holder(port) is None


def test_doctor_prints_one_json_object(tmp_path: Path):
    found = run(
        "backend.cli",
        "doctor",
        "--skip-model",
        "--json",
        "--data-dir",
        str(tmp_path),
        CAVSAM_MODEL="nano",
        CAVSAM_X="1",
    )
    report = json.loads(found.stdout)
    assert report["ok"] is True
    assert found.returncode == 0
    assert {"verdict", "subject", "message"} == set(report["findings"][0])
    assert any("CAVSAM_X" in finding["message"] for finding in report["findings"])


def test_a_hub_that_never_answers_is_given_up_in_five_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that takes the connection and says nothing; the hub's own client would try for minutes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for find in (find_sam2, find_diffusion):
            with pytest.raises(ModelError, match="the hub cannot be reached"):
                find(ModelSources.named("default"))  # the first call also imports the client, which takes seconds
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        for find in (find_sam2, find_diffusion):
            started = time.monotonic()
            with pytest.raises(ModelError, match="the hub cannot be reached"):
                find(ModelSources.named("default"))
            assert time.monotonic() - started < 5
