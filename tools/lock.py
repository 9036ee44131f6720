"""Write the lock files in requirements/ from the two environments as they are installed.

    .venv/bin/python tools/lock.py            (or `make lock`)

To move a version: install it with pip into `.venv` or `.venv-label-studio`, run the tests, then run this.
A lock holds the whole closure of what it locks, so that an install with `pip --no-deps` is complete.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"

# Installed by tools/setup.sh one by one: torch (its build depends on the machine), then sam2 without its dependencies
# (it asks for torchvision, whose wheels fit only CUDA builds of torch), and the installers.
SEPARATE = {"torch", "torchvision", "triton", "sam2", "cavsam", "pip", "setuptools", "wheel"}
SEPARATE_PREFIXES = ("nvidia-", "cuda-")

HEADER = "# {what}\n# Written by `make lock` from {where}; do not edit by hand.\n"


def closure(requirements: list[str], but: frozenset[str] = frozenset()) -> dict[str, str]:
    """Name and version of every installed distribution that `requirements` lead to, except SEPARATE ones and `but`.

    Raises:
        PackageNotFoundError: something required is not installed in this environment.
    """
    pins: dict[str, str] = {}
    waiting = [Requirement(line) for line in requirements]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in done or name == "torchvision" or name.startswith(SEPARATE_PREFIXES):
            continue
        done.add((name, extras))
        distribution = metadata.distribution(name)
        if name not in SEPARATE:
            pins[name] = distribution.version
        for line in distribution.requires or []:
            needed = Requirement(line)
            wanted = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if needed.marker is None or any(needed.marker.evaluate(environment) for environment in wanted):
                waiting.append(needed)
    return {name: version for name, version in pins.items() if name not in but}


def write(name: str, pins: dict[str, str], what: str, where: str) -> None:
    lines = [f"{package}=={version}\n" for package, version in sorted(pins.items())]
    (LOCKS / name).write_text(HEADER.format(what=what, where=where) + "".join(lines), encoding="utf-8")
    print(f"requirements/{name}: {len(pins)} packages")


def frozen(python: Path) -> dict[str, str]:
    output = subprocess.run([python, "-m", "pip", "freeze", "--all"], check=True, capture_output=True, text=True)
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", output.stdout, flags=re.MULTILINE))
    return {canonicalize_name(name): version for name, version in pins.items()}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime = closure(project["dependencies"])
    write("runtime.txt", runtime, "What cavsam and its backend need, without torch and sam2.", ".venv")
    dev = closure(project["optional-dependencies"]["dev"], but=frozenset(runtime))
    write("dev.txt", dev, "What the tests, the demo and the checks need on top of runtime.txt.", ".venv")
    server = frozen(ROOT / ".venv-label-studio" / "bin" / "python")
    server = {name: version for name, version in server.items() if name not in SEPARATE}
    write("label-studio.txt", server, "Label Studio, in an environment of its own.", ".venv-label-studio")


if __name__ == "__main__":
    main()
