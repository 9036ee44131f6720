"""The status page for browsers, and the same for programs under /api: what is shown, and the buttons.

Reading works without JavaScript; with it the page renews itself. Everything the page needs is served from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from backend.entities import ALL_PROJECTS
from backend.errors import InvalidRequest, NotKnown
from backend.labelstudio.events import LARGEST
from backend.service import Service
from backend.web import controls
from backend.web.status import PER_PAGE, backend_status, model_status, project_state, project_states, task_page
from backend.web.thumbnails import Thumbnails

ACTIONS: dict[str, Callable[[Service, int], str]] = {
    "pause": controls.pause,
    "resume": controls.resume,
    "retry": controls.retry,
    "cancel": controls.cancel,
    "predict-again": controls.predict_again,
}
TASK_ACTIONS: dict[str, Callable[[Service, int, int], str]] = {"retry": controls.retry, "cancel": controls.cancel}
NUMBER = f"int(max={LARGEST})"
"""Of a project or a task, in a route."""
PICTURE_AGE = 86_400
"""Seconds that a browser may keep a thumbnail; its address changes with what it shows."""


def create_page(service: Service, overview: Callable[[], dict[str, Any]]) -> Blueprint:
    """The routes over a service; `overview` gives what /health says."""
    page = Blueprint("page", __name__)
    page.add_app_template_filter(duration)
    page.add_app_template_filter(size)
    thumbnails = Thumbnails(
        service.store,
        service.clients.of,
        service.drawing,
        service.settings.data_dir / "thumbnails",
        image_limit=int(service.settings.max_image_mb * 1e6),
        waiting=max(1, service.settings.threads * 3 // 8),
    )

    @page.get("/api/status")
    def status() -> Response:
        return jsonify({**overview(), **backend_status(service)})

    @page.get("/api/model")
    def model() -> Response:
        return jsonify(model_status(service))

    @page.get("/api/projects")
    def projects() -> Response:
        return jsonify({"projects": project_states(service)})

    @page.get(f"/api/projects/<{NUMBER}:project>")
    def one_project(project: int) -> Response:
        return jsonify(project_state(service, project))

    @page.get(f"/api/projects/<{NUMBER}:project>/tasks")
    def tasks(project: int) -> Response:
        return jsonify(_asked_page(service, project))

    @page.get(f"/api/projects/<{NUMBER}:project>/tasks/<{NUMBER}:task>/image")
    def image(project: int, task: int) -> Response:
        return _picture(thumbnails.image(project, task))

    @page.get(f"/api/projects/<{NUMBER}:project>/tasks/<{NUMBER}:task>/masks")
    def masks(project: int, task: int) -> Response:
        return _picture(thumbnails.masks(project, task))

    @page.post("/api/<action>", defaults={"project": ALL_PROJECTS})
    @page.post(f"/api/projects/<{NUMBER}:project>/<action>")
    def act(project: int, action: str) -> AnyResponse:
        if action not in ACTIONS:
            raise NotKnown(f"There is no action {action!r}; there are {', '.join(ACTIONS)}.")
        return _done(ACTIONS[action](service, project))

    @page.post(f"/api/projects/<{NUMBER}:project>/tasks/<{NUMBER}:task>/<action>")
    def act_on_task(project: int, task: int, action: str) -> AnyResponse:
        if action not in TASK_ACTIONS:
            raise NotKnown(f"There is no action {action!r} on a task; there are {', '.join(TASK_ACTIONS)}.")
        return _done(TASK_ACTIONS[action](service, project, task))

    @page.get("/")
    def index() -> Response | str:
        """The status page for a browser, the same as JSON for anything else."""
        if not _is_browser():
            return status()
        shown = {**overview(), **backend_status(service)}
        chosen = _chosen(shown)
        listed = _asked_page(service, chosen) if chosen is not None else None
        return render_template("page.html", status=shown, chosen=chosen, listed=listed, address=_address)

    return page


def duration(seconds: float) -> str:
    """Seconds in words that a person would use: `40 s`, `5 min`, `2 h 10 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def size(number: float) -> str:
    """Bytes in words: `850 MB`, `3.2 GB`."""
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"


def _asked_page(service: Service, project: int) -> dict[str, Any]:
    """The page of tasks that the request's query names."""
    query = request.args
    return task_page(
        service,
        project,
        page=_number("page", 1),
        per_page=_number("per_page", PER_PAGE),
        show=query.get("show", "all"),
        order=query.get("order", "task"),
    )


def _chosen(status: dict[str, Any]) -> int | None:
    """The project whose tasks are shown: the one asked for, else the one in work, else the first."""
    known = [project["id"] for project in status["projects"]]
    asked = _number("project", 0)
    if asked:
        if asked not in known:
            raise NotKnown(f"The backend does not know project {asked}; connect it in Label Studio.")
        return asked
    working = status["work"]["project"]
    return working if working in known else next(iter(known), None)


def _address(**changes: Any) -> str:
    """The page's address with some of its query changed."""
    query = {
        name: request.args[name] for name in ("project", "show", "order", "page", "per_page") if name in request.args
    }
    return "?" + urlencode(query | changes)


def _number(name: str, default: int) -> int:
    text = request.args.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise InvalidRequest(f"{name} must be a whole number, not {text[:40]!r}.")
    return int(text)


def _done(sentence: str) -> AnyResponse:
    """What an action answers: a sentence for programs, the page again for a browser without JavaScript."""
    return redirect(url_for("page.index"), 303) if _is_browser() else jsonify({"done": sentence})


def _is_browser() -> bool:
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def _picture(content: bytes) -> Response:
    answer = Response(content, mimetype="image/jpeg")
    answer.headers["Cache-Control"] = f"private, max-age={PICTURE_AGE}" if "of" in request.args else "no-cache"
    return answer
