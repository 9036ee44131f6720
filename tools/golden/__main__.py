"""A golden run: digests of everything that a restructuring must leave as it is.

    python -m tools.golden make  [--only NAME]   write digests.json
    python -m tools.golden check [--only NAME]   compare with it; 1 where anything differs

Both write what the digests are of under build/golden/make and build/golden/check, a line per digest, to be compared
with diff. The digests are those of one machine: another CPU or another build of torch rounds differently.
"""

from __future__ import annotations

import os

# before torch is imported here or in a process of ours: more threads would add in another order
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tools.golden import exchange, ledger, method
from tools.golden.digests import digest

STORED = Path(__file__).parent / "digests.json"
KEPT = Path("build") / "golden"
COMMAND = "OMP_NUM_THREADS=1 python -m tools.golden make"
PARTS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "inputs": method.inputs,
    "segment": method.segment,
    "adapted": method.adapted,
    "explain": method.explain,
    "exchange": exchange.threshold,
    "exchange-nano": exchange.nano,
    "ledger": ledger.goes_on,
}


def run_part(name: str, folder: Path) -> dict[str, str]:
    """Digests of one part; what they are of goes to a file in `folder`."""
    begun = time.monotonic()
    found: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.txt").open("w", buffering=1) as kept:
        for key, text in PARTS[name]():
            assert key not in found, f"{name}/{key} came twice"
            found[key] = digest(text)
            kept.write(f"{key}: {text}\n")
    print(f"{name}: {len(found)} digests, {time.monotonic() - begun:.0f} s", flush=True)
    return found


def machine() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def make(names: list[str]) -> int:
    found = {name: run_part(name, KEPT / "make") for name in names}
    stored = json.loads(STORED.read_text())["digests"] if STORED.exists() else {}
    digests = {name: found.get(name, stored.get(name)) for name in PARTS if name in found or name in stored}
    STORED.write_text(json.dumps({"command": COMMAND, "machine": machine(), "digests": digests}, indent=1) + "\n")
    return 0


def check(names: list[str]) -> int:
    stored = json.loads(STORED.read_text())
    if stored["machine"] != machine():
        print(f"The digests were made on {stored['machine']}, this is {machine()}.", file=sys.stderr)
    different = 0
    for name in names:
        expected, found = stored["digests"].get(name, {}), run_part(name, KEPT / "check")
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                kind = "missing" if key not in found else "new" if key not in expected else "different"
                print(f"{kind}: {name}/{key}")
                different += 1
    print(f"{different} differences." if different else "All is equal.")
    return 1 if different else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.golden", description="Make or check the golden digests.")
    parser.add_argument("action", choices=("make", "check"))
    parser.add_argument("--only", metavar="NAME", action="append", choices=PARTS, help="repeatable (default: all)")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    names = options.only or list(PARTS)
    return make(names) if options.action == "make" else check(names)


if __name__ == "__main__":
    sys.exit(main())
