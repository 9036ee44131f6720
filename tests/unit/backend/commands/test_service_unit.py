"""The systemd unit that `cavsam-backend service` prints."""

from __future__ import annotations

import configparser
import getpass
from pathlib import Path

import pytest

from backend.cli import main
from backend.commands.service import unit


def read(text: str) -> configparser.ConfigParser:
    """As an INI file, which a unit is as long as no name comes twice."""
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    return parser  # type: ignore[return-value]


def test_the_unit_runs_serve_in_its_folder_as_this_user(tmp_path: Path):
    found = read(unit(tmp_path, Path("/opt/cavsam/bin/cavsam-backend")))
    service = found["Service"]
    assert service["ExecStart"] == "/opt/cavsam/bin/cavsam-backend serve"
    assert service["WorkingDirectory"] == str(tmp_path)
    assert service["EnvironmentFile"] == str(tmp_path / ".env")
    assert service["User"] == getpass.getuser()
    assert found["Install"]["WantedBy"] == "multi-user.target"


def test_paths_that_systemd_would_read_otherwise_are_written_for_it(tmp_path: Path):
    service = read(unit(tmp_path / "a %d", Path("/bin/x")))["Service"]
    assert service["WorkingDirectory"] == f'"{tmp_path}/a %%d"'


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["service", "--folder", str(tmp_path)]) == 0
    assert str(tmp_path) in capsys.readouterr().out
