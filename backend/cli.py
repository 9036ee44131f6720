"""The command `cavsam-backend`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.commands.service import unit
from backend.errors import BackendError
from backend.settings import Settings, settings_table
from cavsam.shell import add_completion, add_version, completion_script, until_reader_leaves

OPTIONS = {
    "host": "address to listen on (CAVSAM_HOST)",
    "port": "port to listen on, 0 for a free one (CAVSAM_PORT)",
    "model": "default, paper or nano (CAVSAM_MODEL)",
    "data_dir": "folder of the ledger (CAVSAM_DATA_DIR)",
    "device": "auto, cpu, cuda or mps (CAVSAM_DEVICE)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = _parser()
    return until_reader_leaves(lambda: _run(parser, parser.parse_args(arguments)))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        if options.command == "settings":
            print(settings_table())
            return 0
        if options.command == "completion":
            print(completion_script(parser, options.shell))
            return 0
        if options.command == "service":
            print(unit(options.folder), end="")
            return 0
        overrides = {name: getattr(options, name, None) for name in OPTIONS}
        settings = Settings.from_environment(os.environ, **overrides)
        if options.command == "doctor":
            return _doctor(settings, options.project, with_model=not options.skip_model, as_json=options.json)
        if options.command == "status":
            return _status(settings, as_json=options.json)
        if options.command == "backfill":
            return _backfill(settings, options.project, options.dry_run, as_json=options.json)
        if options.command == "export":
            return _export(settings, options)
        if options.command == "evaluate":
            return _evaluate(settings, options)
        from backend.server import serve

        return serve(settings)
    except BackendError as error:
        print(f"cavsam-backend: {error}", file=sys.stderr)
        return 2


def _doctor(settings: Settings, project: int | None, *, with_model: bool, as_json: bool) -> int:
    """Print the findings as they are made, or all as one JSON object; 1 where something does not work."""
    from backend.commands.doctor import examine

    findings = []
    for finding in examine(settings, project, environ=os.environ, with_model=with_model):
        findings.append(finding)
        if not as_json:
            print(f"{finding.verdict:<5} {finding.subject}: {finding.message}", flush=True)
    failed = any(finding.verdict == "fail" for finding in findings)
    if as_json:
        print(json.dumps({"ok": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    return 1 if failed else 0


def _status(settings: Settings, *, as_json: bool) -> int:
    """Print a line on the model and one on each project of the backend that runs with these settings, or its JSON."""
    import requests

    # those that listen everywhere are asked here
    url = f"http://{settings.address({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(settings.host))}"
    user = (settings.basic_auth_user, settings.basic_auth_password) if settings.basic_auth_user else None
    try:
        answer = requests.get(f"{url}/api/status", auth=user, timeout=5)
        answer.raise_for_status()
        status = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise BackendError(
            f"No backend answers at {url} ({type(error).__name__}); start it with `cavsam-backend serve`, or give its "
            "--host and --port."
        ) from error
    if as_json:
        print(json.dumps(status))
        return 0
    work = status["work"]
    print(f"{status['model_version']}: {work['state']}{': ' + work['error'] if work['error'] else ''}")
    if "warning" in status:
        print(status["warning"])
    for project in status["projects"]:
        jobs = project["jobs"]
        print(
            f"project {project['id']} {project['title']!r}: {jobs['done']} of {project['total']} tasks predicted, "
            f"{jobs['delivered']} in Label Studio, {jobs['failed']} failed. "
            f"{project['error'] or project['why_no_reference'] or ''}".rstrip()
        )
    return 0


def _backfill(settings: Settings, project: int, limit: int | None, *, as_json: bool) -> int:
    """Predict with a progress bar, then print a line per task or one JSON object; 1 where one failed."""
    from tqdm import tqdm

    from backend.commands.backfill import backfill
    from backend.server import configure_logging

    configure_logging(dataclasses.replace(settings, log_level="WARNING"))
    tasks: list[dict[str, Any]] = []
    with tqdm(unit="task", disable=None) as bar:
        for tasks in backfill(settings, project, limit=limit):
            bar.total = len(tasks)
            bar.n = sum(task["state"] in ("done", "delivered", "failed") for task in tasks)
            bar.refresh()
    failed = any(task["state"] == "failed" for task in tasks)
    if as_json:
        print(json.dumps({"project": project, "pushed": limit is None, "tasks": tasks}))
        return 1 if failed else 0
    for task in sorted(tasks, key=lambda task: task["task"]):
        score = "" if task["score"] is None else f" score {task['score']:.2f}"
        print(f"task {task['task']}: {task['state']}{score}{' ' + task['error'] if task['error'] else ''}")
    if limit is not None:
        print("Nothing was pushed; the results are kept for the next run.")
    return 1 if failed else 0


def _export(settings: Settings, options: argparse.Namespace) -> int:
    """Write the files with a line per task, or one JSON object at the end; 1 if a task could not be written."""
    from backend.commands.export import export

    tasks = []
    for task in export(settings, options.project, options.out, options.format, options.what):
        tasks.append(task)
        if not options.json:
            print(f"task {task.task}: {task.error or f'{task.objects} regions, {task.source}'}")
            for warning in task.warnings:
                print(f"    {warning}")
    failed = sum(task.error is not None for task in tasks)
    if options.json:
        summary = {"project": options.project, "format": options.format, "what": options.what, "out": str(options.out)}
        counts = {"written": len(tasks) - failed, "failed": failed, "objects": sum(task.objects for task in tasks)}
        print(json.dumps(summary | counts | {"tasks": [dataclasses.asdict(task) for task in tasks]}))
    else:
        print(f"{len(tasks) - failed} tasks are in {options.out}{f', {failed} are not' if failed else ''}.")
    return 1 if failed else 0


def _evaluate(settings: Settings, options: argparse.Namespace) -> int:
    """Print what a project's annotations say of its predictions, in words or as one JSON object."""
    from backend.commands.evaluate import evaluate, lines

    found = evaluate(settings, options.project, fetch=not options.offline)
    if options.json:
        print(json.dumps({"project": options.project} | found.to_json()))
    else:
        print("\n".join(lines(found)))
    return 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cavsam-backend", description="CAV-SAM as a machine learning backend of Label Studio."
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser(
        "serve", help="answer Label Studio", description="Every option is also a setting; see the command `settings`."
    )
    checking = commands.add_parser("doctor", help="check settings, Label Studio, a project and the model")
    checking.add_argument("--project", type=int, help="number of a project to look at")
    checking.add_argument("--skip-model", action="store_true", help="do not load the model")
    asking = commands.add_parser("status", help="say what a running backend is doing")
    asking.add_argument("--host", help=OPTIONS["host"])
    asking.add_argument("--port", type=int, help=OPTIONS["port"])
    filling = commands.add_parser("backfill", help="predict a whole project now, without a running backend")
    filling.add_argument("project", type=int, help="number of the project")
    filling.add_argument("--dry-run", type=_count, metavar="N", help="predict only N tasks and push nothing")
    exporting = _export_parser(commands)
    evaluating = commands.add_parser(
        "evaluate",
        help="say how good a project's predictions are by its annotations",
        description="docs/learning.md explains the figures.",
    )
    evaluating.add_argument("project", type=int, help="number of the project")
    evaluating.add_argument("--offline", action="store_true", help="only what a running backend has measured already")
    evaluating.add_argument("--data-dir", help=OPTIONS["data_dir"])
    for command in (checking, asking, filling, exporting, evaluating):
        command.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    for command in (serving, checking, filling):
        for name, description in OPTIONS.items():
            kind = int if name == "port" else str
            command.add_argument(f"--{name.replace('_', '-')}", type=kind, help=description)
    commands.add_parser("settings", help="print all settings as a table")
    describing = commands.add_parser("service", help="print a systemd unit that runs the backend")
    describing.add_argument(
        "--folder", type=Path, default=Path(), help="where it works, with its settings in .env (default: this one)"
    )
    add_completion(commands, parser)
    return parser


def _export_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command `export`."""
    exporting: argparse.ArgumentParser = commands.add_parser(
        "export", help="write a project's masks as files", description="docs/export.md describes the files."
    )
    exporting.add_argument("project", type=int, help="number of the project")
    exporting.add_argument("--out", type=Path, required=True, help="folder to write to, new or empty")
    exporting.add_argument("--format", choices=("coco", "yolo-seg", "png", "label-studio"), required=True)
    exporting.add_argument(
        "--what",
        choices=("predictions", "annotations", "best"),
        default="predictions",
        help="best: of each task its annotation, else its prediction (default: predictions)",
    )
    exporting.add_argument("--data-dir", help=OPTIONS["data_dir"])
    return exporting


if __name__ == "__main__":
    sys.exit(main())
