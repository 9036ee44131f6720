"""Where no container engine is at hand: the Dockerfile's own steps, run as scripts in a folder that plays the image.

What is real: the copied files and nothing else, both runs of `tools/setup.sh`, the environment variables, the command
and the health check. What is not: the first RUN (apt-get and useradd need root on Ubuntu; its shell is only parsed),
the download of the packages (those of this environment are seen instead, which pip compares with the lock files), and
torchvision with the CUDA build of torch (WITH_CUDA=0).
"""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.support.backend import wait_for
from tools.servers import free_port, stop

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("/app", "/data", "/weights")


@dataclass(frozen=True)
class Step:
    """One instruction: its name in capitals, its text with continued lines joined and comments dropped."""

    name: str
    text: str


def steps_of(dockerfile: str) -> list[Step]:
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines()]


STEPS = steps_of((ROOT / "Dockerfile").read_text(encoding="utf-8"))


class Image:
    """A folder in which /app, /data and /weights lie, and the variables that the steps set."""

    def __init__(self, root: Path, programs: Path):
        self.root = root
        self.env = {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "HOME": str(root), "WITH_CUDA": "0"}
        for folder in FOLDERS:
            (root / folder[1:]).mkdir(parents=True)

    def here(self, text: str) -> str:
        """The image's paths as they are on this machine."""
        return re.sub(rf"(?<![\w/.])({'|'.join(FOLDERS)})(?=[/:\s]|$)", lambda found: str(self.root) + found[1], text)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        shell = ["bash", "-o", "pipefail", "-c", command]
        return subprocess.run(shell, cwd=self.root / "app", env=self.env, capture_output=True, text=True, timeout=300)

    def copy(self, text: str) -> None:
        *sources, target = [part for part in shlex.split(text) if not part.startswith("--")]
        allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]
        for source in sources:
            assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), f"{source} is not in the build context"
            place = self.root / "app" / target / ("" if (ROOT / source).is_dir() or target != "./" else source)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)

    def set(self, text: str) -> None:
        for assignment in shlex.split(text):
            name, _, value = assignment.partition("=")
            if name not in self.env or name == "PATH":
                self.env[name] = self.here(value).replace("$PATH", self.env["PATH"])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Every step but the first RUN has been run."""
    programs = tmp_path_factory.mktemp("programs")
    # An environment that it makes sees the packages that are installed in ours; those that it lacks pip would fetch.
    ours = sysconfig.get_paths()["purelib"]
    python = programs / "python3.11"
    python.write_text(
        f'#!/bin/bash\n"{sys.executable}" "$@" || exit\n'
        f'[ "$1 $2" != "-m venv" ] || echo "{ours}" >"$3/lib/python3.11/site-packages/ours.pth"\n'
    )
    python.chmod(0o755)
    made = Image(tmp_path_factory.mktemp("image"), programs)
    _, *others = [step for step in STEPS if step.name == "RUN"]
    for step in STEPS:
        if step.name == "COPY":
            made.copy(step.text)
        elif step.name == "ENV":
            made.set(step.text)
        elif step in others:
            done = made.run(made.here(step.text))
            assert done.returncode == 0, f"{step.text}:\n{done.stdout}{done.stderr}"
    return made


def test_only_instructions_that_are_looked_at_here():
    known = ["FROM", "SHELL", "RUN", "USER", "WORKDIR", "COPY", "ENV", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"]
    assert [step for step in STEPS if step.name not in known] == []
    (base,) = [step.text for step in STEPS if step.name == "FROM"]
    assert re.fullmatch(r"nvidia/cuda:[\d.]+-base-ubuntu22\.04", base)
    assert [step.text for step in STEPS if step.name == "WORKDIR"] == ["/app"]


def test_the_first_step_is_a_script_that_installs_what_the_others_call():
    first = next(step.text for step in STEPS if step.name == "RUN")
    assert subprocess.run(["bash", "-n", "-c", first], timeout=60).returncode == 0
    words = shlex.split(first)
    assert {"python3.11", "python3.11-venv", "gcc", "curl"} <= set(words)
    assert {"/data", "/weights"} <= set(words)


def test_the_environment_holds_this_package_and_the_locked_ones(image: Image):
    done = image.run("python -c 'import cavsam, backend, sys; print(cavsam.__file__, backend.__file__, sys.prefix)'")
    assert done.stdout.split() == [
        str(image.root / "app" / "cavsam" / "__init__.py"),
        str(image.root / "app" / "backend" / "__init__.py"),
        str(image.root / "app" / ".venv"),
    ]
    assert image.run(image.here("tools/setup.sh runtime")).stderr == ""  # nothing is left to do


def test_the_command_serves_and_the_health_check_tells(image: Image, tmp_path: Path):
    (command,) = [shlex.split(step.text.strip("[]").replace(",", " ")) for step in STEPS if step.name == "CMD"]
    (health,) = [step.text.partition("CMD ")[2] for step in STEPS if step.name == "HEALTHCHECK"]
    port = free_port()  # the image's own may be taken on this machine
    image.env |= {"CAVSAM_PORT": str(port), "CAVSAM_MODEL": "nano"}
    assert image.run(health).returncode == 1
    log = tmp_path / "log"
    with log.open("wb") as output:
        program = shutil.which(command[0], path=image.env["PATH"])
        assert program == str(image.root / "app" / ".venv" / "bin" / "cavsam-backend")
        process = subprocess.Popen(
            [program, *command[1:]],
            cwd=image.root / "app",
            env=image.env,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(lambda: image.run(health).returncode == 0 or process.poll() is not None, "the health check", 120)
        answer = requests.get(f"http://127.0.0.1:{port}/health", timeout=5).json()
        wait_for(lambda: "The model is loaded" in log.read_text(), "the bundled model", 180)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        stop(process)
    assert "nano" in answer["model_version"]
    assert (image.root / "data" / "ledger.sqlite3").exists()
