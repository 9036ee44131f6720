"""The HTTP side: what Label Studio calls a machine learning backend for, and nothing of the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from backend.errors import (
    BackendError,
    CrossSiteRequest,
    ImageNotKept,
    ImageUnavailable,
    InvalidRequest,
    LabelConfigError,
    NotCorrected,
    NotKnown,
    NotPossibleNow,
)
from backend.labelstudio.events import is_number, read_webhook
from backend.labelstudio.project_keys import SPAN
from backend.readiness import DEAD_THREAD, problems
from backend.service import Service
from backend.settings import Settings
from backend.text import read_json
from backend.web.metrics import Metrics
from backend.web.security import is_from_label_studio, may_read, secure
from backend.web.status_page import create_page

log = logging.getLogger(__name__)

MODEL_CLASS = "CavSam"
OPENAPI = Path(__file__).with_name("openapi.yaml")
TRIAL_WARNING = "try-out models (nano): for trying the backend out, not for real work"
LONGEST_TEXT = 5000
EVENT_READ_NOW = 100_000
"""Bytes up to which an event is read before it is answered; Label Studio gives up on an answer after a second."""
LONGEST_REASON = 400
"""Characters of a sentence in the status line; proxies bound a line at some thousands."""

RETRY_AFTER = "5"
"""Seconds after which a call that was answered 503 may be made again."""

STATUS_OF: tuple[tuple[type[BackendError], int], ...] = (
    (InvalidRequest, 400),
    (LabelConfigError, 400),
    (CrossSiteRequest, 403),
    (NotKnown, 404),
    (ImageNotKept, 503),
    (ImageUnavailable, 404),
    (NotPossibleNow, 409),
    (NotCorrected, 422),
    (BackendError, 503),
)
"""All others are of what the backend depends on: the ledger, the model process, Label Studio."""


def create_app(settings: Settings, service: Service) -> Flask:
    """The application over a service; whoever starts the service also stops it."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = int(settings.max_request_mb * 1e6)
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the provider Flask installs has it
    metrics = Metrics(service)
    metrics.install(app)
    secure(app, settings)
    _handle_errors(app, metrics)
    _answer_monitors(app, settings, service)
    _answer_label_studio(app, settings, service)
    app.register_blueprint(create_page(service, partial(_overview, service)))
    return app


def _overview(service: Service) -> dict[str, Any]:
    """What /health says."""
    answer: dict[str, Any] = {
        "status": "UP",
        "model_class": MODEL_CLASS,
        "model_version": service.base_version,
        "work": service.worker.activity.state,
    }
    if service.trial_models:
        answer["warning"] = TRIAL_WARNING
    if service.worker.activity.error:
        answer["error"] = service.worker.activity.error
    dead = service.dead_threads()
    if dead:
        answer |= {"status": "DOWN", "dead": dead, "error": DEAD_THREAD.format(" and ".join(dead))}
    return answer


def _answer_monitors(app: Flask, settings: Settings, service: Service) -> None:
    """Add what container managers and programs ask."""

    @app.get("/health")
    def health() -> tuple[Response, int]:
        answer = _overview(service)
        return jsonify(answer), 200 if answer["status"] == "UP" else 503

    @app.get("/ready")
    def ready() -> tuple[Response, int]:
        found = problems(service)
        told = [asdict(problem) if may_read(settings) else {"subject": problem.subject} for problem in found]
        answer = {"ready": not found, "problems": told}
        return jsonify(answer), 503 if found else 200

    @app.get("/openapi.json")
    def openapi() -> Response:
        return jsonify(yaml.safe_load(OPENAPI.read_text(encoding="utf-8")))


def _answer_label_studio(app: Flask, settings: Settings, service: Service) -> None:
    """Add what Label Studio calls a machine learning backend for."""

    @app.post("/setup")
    def setup() -> Response:
        body = _body()
        number, _ = _project_named(body.get("project"))
        hostname, token, extra_params = _text(body, "hostname"), _text(body, "access_token"), body.get("extra_params")
        if max(len(hostname), len(token)) > LONGEST_TEXT:
            raise InvalidRequest(f"The fields hostname and access_token have at most {LONGEST_TEXT} characters.")
        version = service.setup(number, hostname, token, extra_params)
        _, problems = settings.for_project(extra_params)
        service.interactive.prepare(_text(body, "schema"))
        return jsonify({"model_version": version} | ({"warning": " ".join(problems)} if problems else {}))

    @app.post("/predict")
    def predict() -> Response:
        body = _body()
        tasks = _task_numbers(body.get("tasks"))
        project = service.project_of(*_project_named(body.get("project")))
        if _is_interactive(body) and tasks:
            regions, score = service.interactive.answer(
                project, body["tasks"][0], _text(body, "label_config"), body["params"]["context"]
            )
            answer = {"result": regions, "score": score, "model_version": service.version_of(project)}
            results = [json.dumps(answer), *["[]"] * (len(tasks) - 1)]  # the editor asks for one
        else:
            results = service.predict(project, tasks)
        return Response('{"results": [' + ", ".join(results) + "]}", mimetype="application/json")

    @app.post("/webhook")
    def webhook() -> tuple[Response, int]:
        small = request.content_length is not None and request.content_length <= EVENT_READ_NOW
        match small, is_from_label_studio(service.settings):
            case True, True:
                service.coordinator.take_webhook(read_webhook(request.get_data(cache=False)))
            case False, True:
                service.coordinator.take_webhook_later(request.get_data(cache=False))
            case True, False:
                service.coordinator.take_doubtful_webhook(read_webhook(request.get_data(cache=False)))
            case False, False:
                while request.stream.read(EVENT_READ_NOW):
                    pass  # nobody should have us hold it in memory
                service.coordinator.take_doubtful_webhook(None)
        return jsonify({"status": "ok"}), 201

    @app.get("/versions")
    def versions() -> Response:
        return jsonify({"versions": service.versions()})


def _handle_errors(app: Flask, metrics: Metrics) -> None:
    """Every error becomes one sentence for the caller; what a developer needs goes to the log."""

    @app.errorhandler(BackendError)
    def known(error: BackendError) -> Response:
        status = next(code for kind, code in STATUS_OF if isinstance(error, kind))
        log.warning("%s %s: %s", request.method, request.path, error)
        metrics.count_error(error)
        answer = jsonify({"error": str(error)})
        # of a failed call Label Studio shows the line with the status, and nothing of the body
        answer.status = f"{status} {_on_one_line(str(error))}"
        return answer

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> tuple[Response, int]:
        if error.code == 413:
            return jsonify({"error": "The request is larger than CAVSAM_MAX_REQUEST_MB allows."}), 413
        return jsonify({"error": error.description or error.name}), error.code or 500

    @app.after_request
    def say_when(answer: Response) -> Response:
        if answer.status_code == 503:
            answer.headers.setdefault("Retry-After", RETRY_AFTER)
        return answer

    @app.errorhandler(Exception)
    def unknown(error: Exception) -> tuple[Response, int]:
        log.error("%s %s failed.", request.method, request.path, exc_info=error)
        metrics.count_error(error)
        return jsonify({"error": "The backend failed on this request; its log says why."}), 500


def _on_one_line(text: str) -> str:
    """A text as HTTP's status line can hold it: short, and in Latin-1 without control characters."""
    printable = "".join(character if character.isprintable() else " " for character in text[:LONGEST_REASON])
    return printable.encode("latin-1", "replace").decode("latin-1")


def _body() -> dict[str, Any]:
    try:
        body = read_json(request.get_data(cache=False))
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body


def _project_named(value: Any) -> tuple[int, int | None]:
    """The number in Label Studio's `"number.created"`, and the second; a bare number works too."""
    number, _, created = str(value).partition(".")
    if isinstance(value, bool) or not number.isascii() or not number.isdigit() or len(number) > 19:
        raise InvalidRequest("The field project must be like '12.1700000000', as Label Studio sends it.")
    if not 0 < int(number) < SPAN:
        raise InvalidRequest(f"There is no project {number}.")
    known = created.isascii() and created.isdigit() and len(created) <= 12
    return int(number), int(created) if known else None


def _task_numbers(tasks: Any) -> list[int]:
    if not isinstance(tasks, list) or not all(isinstance(task, Mapping) for task in tasks):
        raise InvalidRequest("The field tasks must be a list of tasks.")
    numbers = [task.get("id") for task in tasks]
    if not all(map(is_number, numbers)):
        raise InvalidRequest("Each task must have its number in the field id.")
    return numbers


def _is_interactive(body: Mapping[str, Any]) -> bool:
    params = body.get("params")
    return isinstance(params, Mapping) and params.get("context") is not None


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    return value if isinstance(value, str) else ""
