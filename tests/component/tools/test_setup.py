"""What `tools/setup.sh` says on a machine that lacks something, before it installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "setup.sh"
BASICS = ("bash", "dirname", "cat", "cksum", "df", "awk", "env", "id", "flock")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of programs that is all the script can find."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in BASICS:
        if path := shutil.which(name):
            (programs / name).symlink_to(path)
    return programs


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!{shutil.which('bash')}\n{script}\n")
    path.chmod(0o755)


def setup(machine: Path, part: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = variables | {
        "PATH": str(machine),
        "VENV": str(machine.parent / "venv"),
        "HOME": os.environ.get("HOME", "/"),
    }
    return subprocess.run([str(SCRIPT), part], env=environment, capture_output=True, text=True, timeout=120)


def test_names_python(machine: Path):
    done = setup(machine, "main")
    assert done.returncode == 1
    assert "Python 3.11 was not found" in done.stderr
    assert not (machine.parent / "venv").exists()


def test_names_the_compiler(machine: Path):
    program(machine, "python3.11", f'exec "{sys.executable}" "$@"')
    done = setup(machine, "main")
    assert done.returncode == 1
    assert "Install gcc" in done.stderr


def test_names_the_room_that_is_missing(machine: Path):
    program(machine, "python3.11", f'exec "{sys.executable}" "$@"')
    program(machine, "gcc", "true")
    (machine / "df").unlink()
    program(machine, "df", "printf 'Filesystem 1024-blocks Used Available\\nx 9 9 1048576\\n'")
    done = setup(machine, "main")
    assert done.returncode == 1
    assert "has 1 GiB of disk left; this step needs about 3 GiB" in done.stderr


@pytest.mark.parametrize(("variables", "noted"), [({}, True), ({"TORCH_INDEX_URL": "https://cpu.example"}, False)])
def test_says_when_the_room_is_enough_for_one_build_of_torch_only(
    machine: Path, variables: dict[str, str], noted: bool
):
    program(machine, "python3.11", f'[ "$2" = venv ] && exit 9\nexec "{sys.executable}" "$@"')  # go no further
    program(machine, "gcc", "true")
    program(machine, "rm", "true")
    program(machine, "uname", "echo Linux")
    (machine / "df").unlink()
    program(machine, "df", f"printf 'Filesystem 1024-blocks Used Available\\nx 9 9 {5 * 1048576}\\n'")
    done = setup(machine, "main", **variables)
    assert done.returncode == 9
    assert ("5 GiB of disk are left. That is enough for torch's CPU build" in done.stderr) is noted


def test_names_the_browser_to_a_user(machine: Path):
    (machine / "id").unlink()
    program(machine, "id", "echo 1000")
    done = setup(machine, "browser")
    assert done.returncode == 1
    assert "sudo apt-get install chromium" in done.stderr


def test_refuses_an_unknown_part(machine: Path):
    done = setup(machine, "everything")
    assert done.returncode == 1
    assert "unknown part 'everything'" in done.stderr
