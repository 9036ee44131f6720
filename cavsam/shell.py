"""What both commands do alike in a shell: their version, completion, and a reader who went away."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

import cavsam

READER_GONE = 141
"""Exit status of a program that a closed pipe ends, as shells report it."""


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`."""
    parser.add_argument("--version", action="version", version=f"{parser.prog} {cavsam.__version__}")


def add_completion(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], parser: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """Add the command `completion`, which prints a script for a shell; see `completion_script`."""
    command = commands.add_parser(
        "completion",
        help="print a completion script for bash or zsh",
        description=f'In bash: eval "$({parser.prog} completion bash)"',
    )
    command.add_argument("shell", choices=("bash", "zsh"))
    return command


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Write the script by which `shell` completes the commands and options of a parser."""
    import shtab

    return shtab.complete(parser, shell=shell)


def until_reader_leaves(run: Callable[[], int]) -> int:
    """Run a command whose output may go to a pipe; one that is closed, as by `head`, ends it silently.

    Returns its exit status, or `READER_GONE`.
    """
    try:
        status = run()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # what is still buffered goes nowhere, or Python would complain about it when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
