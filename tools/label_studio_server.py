"""A real Label Studio on loopback with scratch data, and the few calls of its API that the demo and the tests make.

    python -m tools.label_studio_server ENVIRONMENT     make ENVIRONMENT/empty-data, the migrated empty database

The calls are plain requests, independent of the client in `backend/`, which is under test here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import requests

from tools.servers import ServerError, free_port, running

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = Path(os.environ.get("VENV_LABEL_STUDIO", ROOT / ".venv-label-studio"))
EMPTY_DATA = "empty-data"
EMAIL = "demo@example.com"
PORT_TAKEN = "*** WARNING! ***"  # Label Studio moves to the next port when its own is busy, and says so with this


@dataclass(frozen=True)
class LabelStudio:
    """A running Label Studio and its one user. `url` has no trailing slash."""

    url: str
    data: Path
    log: Path
    email: str = EMAIL
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    token: str = field(default_factory=lambda: secrets.token_hex(20))
    """The user's legacy token."""
    bearer: str = ""
    """A short-lived access token that is used instead, once legacy tokens are turned off."""

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """One request to the API; the decoded answer, or None where there is none.

        Raises:
            ServerError: the answer's status is not 2xx.
        """
        headers = {"Authorization": f"Bearer {self.bearer}" if self.bearer else f"Token {self.token}"}
        answer = requests.request(method, self.url + path, headers=headers, timeout=120, **kwargs)
        if not answer.ok:
            raise ServerError(
                f"Label Studio answered {answer.status_code} to {method} {path}: {answer.text[:300]} (log: {self.log})"
            )
        return answer.json() if answer.content else None

    def create_project(self, title: str, label_config: str) -> int:
        """A new project's id."""
        return int(self.call("POST", "/api/projects/", json={"title": title, "label_config": label_config})["id"])

    def upload(self, project: int, pictures: Mapping[str, bytes]) -> dict[str, int]:
        """Import encoded pictures, one task each; file name -> task id, in the order given.

        One request a picture, because the ids of one request come back without saying which is whose.
        """
        tasks = {}
        for name, content in pictures.items():
            answer = self.call(
                "POST",
                f"/api/projects/{project}/import",
                params={"return_task_ids": "true"},
                files={name: (name, content)},
            )
            (tasks[name],) = answer["task_ids"]
        return tasks

    def connect_backend(self, project: int, url: str) -> dict[str, Any]:
        """Connect an ML backend as the settings page does, with its address only; what Label Studio knows of it."""
        answer = self.call("POST", "/api/ml/", json={"project": project, "url": url})
        return dict(answer)

    def annotate(self, task: int, regions: list[dict[str, Any]]) -> dict[str, Any]:
        """Submit an annotation, as the editor's Submit button does."""
        body = {"result": regions, "lead_time": 12.3, "was_cancelled": False, "ground_truth": False}
        return dict(self.call("POST", f"/api/tasks/{task}/annotations/", json=body))

    def predictions(self, project: int) -> list[dict[str, Any]]:
        """Every prediction of the project, with its regions."""
        return list(self.call("GET", "/api/predictions/", params={"project": project}))

    def retrieve_predictions(self, project: int) -> Any:
        """What the data manager's "Retrieve predictions" does with all tasks selected."""
        return self.call(
            "POST",
            "/api/dm/actions",
            params={"id": "retrieve_tasks_predictions", "project": project},
            json={"selectedItems": {"all": True, "excluded": []}, "project": project},
        )

    def personal_access_token(self) -> str:
        """The personal access token (a refresh JWT) of the user, who can have one only."""
        return str(self.call("POST", "/api/token/", json={})["token"])

    def without_legacy_tokens(self, personal: str) -> LabelStudio:
        """Turn legacy tokens off, as in a new organisation; this server for a holder of a personal token."""
        access = self.call("POST", "/api/token/refresh/", json={"refresh": personal})["access"]
        self.call("POST", "/api/jwt/settings", json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": False})
        return replace(self, bearer=str(access))


def environment(server: LabelStudio, home: Path, *, with_user: bool = True) -> dict[str, str]:
    """What it is started with: nothing reaches out, backends on loopback are allowed, predictions are validated."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LABEL_STUDIO_", "HEARTEX_", "DJANGO_"))}
    user = {
        "LABEL_STUDIO_USERNAME": server.email,
        "LABEL_STUDIO_PASSWORD": server.password,
        "LABEL_STUDIO_USER_TOKEN": server.token,
    }
    return (
        inherited
        | (user if with_user else {})
        | {
            "HOME": str(home),
            "PYTHONUNBUFFERED": "1",
            "LABEL_STUDIO_BASE_DATA_DIR": str(server.data),
            "LABEL_STUDIO_HOST": server.url,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_ML_BLOCK_LOCAL_IP": "false",
            "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "false",
            "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
            "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
            "LABEL_STUDIO_SENTRY_DSN": "",
            "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
            "LABEL_STUDIO_LOG_LEVEL": "INFO",
            "fflag_feat_utc_210_prediction_validation_15082025": "true",
        }
    )


@contextmanager
def label_studio(
    scratch: Path, *, environment_folder: Path = ENVIRONMENT, settings: Mapping[str, str] | None = None
) -> Iterator[LabelStudio]:
    """A Label Studio whose data, home and log lie in `scratch`, stopped when the block is left.

    `settings` are further variables of its environment.

    Raises:
        ServerError: it did not start.
    """
    template = environment_folder / EMPTY_DATA
    if not template.is_dir():
        raise ServerError(f"{template} is missing; run `make setup` first.")
    data = scratch / "label-studio-data"
    shutil.copytree(template, data)
    with _started(scratch, data, environment_folder, with_user=True, settings=settings) as server:
        yield server


@contextmanager
def _started(
    scratch: Path,
    data: Path,
    environment_folder: Path,
    *,
    with_user: bool,
    settings: Mapping[str, str] | None = None,
) -> Iterator[LabelStudio]:
    log = scratch / "label-studio.log"
    port = free_port()
    server = LabelStudio(url=f"http://127.0.0.1:{port}", data=data, log=log)

    def not_elsewhere() -> None:
        if PORT_TAKEN in log.read_text(encoding="utf-8", errors="replace"):
            raise ServerError(f"Port {port} was taken while Label Studio started; try again (log: {log}).")

    with running(
        [
            environment_folder / "bin" / "label-studio",
            *("start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)),
        ],
        name="Label Studio",
        health=f"{server.url}/health",
        env=environment(server, scratch, with_user=with_user) | dict(settings or {}),
        log=log,
        start_seconds=600,  # half a minute for the migrations alone, several on a busy machine
        check=not_elsewhere,
    ):
        not_elsewhere()  # something else may have answered on the port
        yield server


def make_empty_data(environment_folder: Path) -> None:
    """Start Label Studio once on nothing, so that it makes its database, and keep that; no user is in it."""
    scratch = Path(tempfile.mkdtemp(prefix="label-studio-"))  # stays, with its log, where the start fails
    data = scratch / "data"
    data.mkdir()
    with _started(scratch, data, environment_folder, with_user=False):
        pass
    # Copied beside its place first: an interrupted copy is never taken for the real one.
    unfinished = environment_folder / f"{EMPTY_DATA}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(data, unfinished)
    unfinished.rename(environment_folder / EMPTY_DATA)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    try:
        make_empty_data(Path(sys.argv[1]))
    except ServerError as error:
        raise SystemExit(f"setup: {error}") from error
