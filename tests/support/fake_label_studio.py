"""A small peer that speaks Label Studio's API over a real socket, as 1.23.2 was seen to.

It stores projects, tasks, annotations and predictions in memory, asks the connected backend the way Label Studio
does (`retrieve`), and has switches for what goes wrong in life. The integration tests use the real one.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import requests
from flask import Flask, Response, jsonify, request
from label_studio_sdk.converter.brush import mask2rle
from PIL import Image
from werkzeug.serving import make_server

BACKEND_TITLE = "CavSam"
LEGACY_KEY = "0123456789abcdef0123456789abcdef01234567"
START = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    '<Label value="cat"/><Label value="dog"/></BrushLabels></View>'
)
GROUND, CAT, DOG = (10, 20, 30), (200, 30, 30), (30, 200, 30)


def jwt(life: float, name: str) -> str:
    now = int(time.time())
    claims = json.dumps({"iat": now, "exp": now + life, "name": name}).encode()
    return f"head.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.{name}"


PERSONAL_TOKEN = jwt(1e6, "refresh")


def picture(cat: tuple[int, int, int, int] | None, dog: tuple[int, int, int, int] | None = None) -> bytes:
    """A PNG of 96x64 with flat boxes (top, bottom, left, right) on the ground colour."""
    image = np.full((64, 96, 3), GROUND, np.uint8)
    for box, colour in ((cat, CAT), (dog, DOG)):
        if box is not None:
            top, bottom, left, right = box
            image[top:bottom, left:right] = colour
    return png(image)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def brush(box: tuple[int, int, int, int], label: str, size: tuple[int, int] = (64, 96), **changes: Any) -> dict:
    """A region as the editor stores it: a box on an image of `size` (H, W)."""
    mask = np.zeros(size, np.uint8)
    top, bottom, left, right = box
    mask[top:bottom, left:right] = 255
    region = {
        "id": f"{label}{top}",
        "from_name": "tag",
        "to_name": "image",
        "type": "brushlabels",
        "origin": "manual",
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": mask2rle(mask), "brushlabels": [label]},
    }
    return region | changes


@dataclass
class Failures:
    """What goes wrong; all off by default."""

    strict: bool = True
    refuse_imports: int = 0  # answer so many imports with 503 before storing anything
    drop_import_answers: int = 0  # store so many imports, then cut the connection
    drop_silently: set[int] = field(default_factory=set)  # tasks whose predictions vanish with 201
    invalid_labels: set[str] = field(default_factory=set)
    deny: bool = False
    cut_files: bool = False  # files end in their middle
    pages_for_files: int = 0  # answer so many requests for files with a web page
    slow: float = 0.0
    before_answer: Callable[[], None] = lambda: None


class FakeLabelStudio:
    def __init__(self) -> None:
        self.projects: dict[int, dict[str, Any]] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.annotations: dict[int, dict[str, Any]] = {}
        self.predictions: dict[int, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.connected: dict[int, str] = {}
        self.extra_params: dict[int, Any] = {}
        self.backend_state = "CO"
        self.sets_up_when_listed = False  # as the real one does, which calls each backend that it lists
        self.missing_paths: set[str] = set()
        self.forbidden_paths: set[str] = set()
        self.webhooks: list[dict[str, Any]] = []
        self.makes_webhooks = True  # when a backend is connected; a real one does not for a name without a dot
        self.failures = Failures()
        self.calls: list[tuple[str, str, str]] = []  # method, path, authorization
        self.legacy_key = LEGACY_KEY
        self.offset = 0.0  # seconds by which its moments are later than those of another
        self.exchanges = 0
        self.token_life = 300.0
        self.access_tokens: set[str] = set()
        self.lock = threading.RLock()
        self._next = 0
        self._server = make_server("127.0.0.1", 0, self._app(), threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # what a person does

    def add_project(self, config: str = CONFIG) -> int:
        number = self._number()
        self.projects[number] = {
            "id": number,
            "title": f"project {number}",
            "label_config": config,
            "created_at": self._moment(),
            "evaluate_predictions_automatically": False,
            "model_version": None,
        }
        return number

    def add_task(self, project: int, image: bytes | None = None, **data: Any) -> int:
        number = self._number()
        if image is not None:
            self.files[f"/data/upload/{number}.png"] = image
            data = {"image": f"/data/upload/{number}.png"}
        self.tasks[number] = {"id": number, "project": project, "data": data, "updated_at": self._moment()}
        return number

    def annotate(self, task: int, regions: list[dict], **fields: Any) -> int:
        number = self._number()
        self.annotations[number] = {
            "id": number,
            "task": task,
            "project": self.tasks[task]["project"],
            "result": regions,
            "was_cancelled": False,
            "parent_prediction": None,
            "created_at": self._moment(),
        } | fields
        self.tasks[task]["updated_at"] = self._moment()
        self.tell(task, "ANNOTATION_CREATED", self.annotations[number])
        return number

    def update_annotation(self, annotation: int, regions: list[dict]) -> None:
        found = self.annotations[annotation]
        found["result"] = regions
        self.tasks[found["task"]]["updated_at"] = self._moment()
        self.tell(found["task"], "ANNOTATION_UPDATED", found)

    def delete_annotation(self, annotation: int) -> None:
        found = self.annotations.pop(annotation)
        self.tasks[found["task"]]["updated_at"] = self._moment()
        self._event(found["project"], {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": annotation}]})

    def tell(self, task: int, action: str, annotation: dict[str, Any]) -> None:
        found = self.tasks[task]
        self._event(found["project"], {"action": action, "annotation": annotation, "task": found})

    def _event(self, project: int, body: dict[str, Any]) -> None:
        url = self.connected.get(project)
        if url:
            described = body | {"project": self.projects[project]}
            requests.post(f"{url}/webhook", json=described, headers=self.webhook_headers(project), timeout=5)

    def webhook_headers(self, project: int) -> dict[str, str]:
        """What the project's webhook to its backend sends, once it was told to."""
        url = f"{self.connected.get(project)}/webhook"
        found = [hook for hook in self.webhooks if (hook.get("project"), hook["url"]) == (project, url)]
        return found[0].get("headers") or {} if found else {}

    def connect(self, project: int, url: str) -> dict[str, Any]:
        answer = self.setup(project, url)
        self.connected[project] = url
        self.projects[project]["model_version"] = self.projects[project]["model_version"] or BACKEND_TITLE
        if self.makes_webhooks:
            self._add_webhook({"project": project, "url": f"{url}/webhook", "is_active": True, "headers": {}})
        return answer

    def _add_webhook(self, hook: dict[str, Any]) -> dict[str, Any]:
        self.webhooks.append({"id": self._number(), "actions": []} | hook)
        return self.webhooks[-1]

    def setup(self, project: int, url: str | None = None) -> dict[str, Any]:
        body = {
            "project": self.uid(project),
            "schema": self.projects[project]["label_config"],
            "hostname": self.url,
            "access_token": self.legacy_key,
            "extra_params": self.extra_params.get(project),
        }
        answer = requests.post(f"{url or self.connected[project]}/setup", json=body, timeout=5)
        answer.raise_for_status()
        return answer.json()

    def uid(self, project: int) -> str:
        """What /setup and /predict call a project."""
        return f"{project}.{int(datetime.fromisoformat(self.projects[project]['created_at']).timestamp())}"

    def retrieve(
        self,
        project: int,
        tasks: Iterable[int] | None = None,
        *,
        before_predict: Callable[[], None] = lambda: None,
        before_store: Callable[[], object] = lambda: None,
        lose_answer: bool = False,
    ) -> list[Any]:
        """As Label Studio retrieves predictions; the callbacks happen where it is not watching."""
        version = self.setup(project)["model_version"]
        wanted = sorted(tasks if tasks is not None else self.tasks_of(project))
        with self.lock:
            asked = [task for task in wanted if version not in self.versions_of(task)]
            body = {
                "tasks": [
                    self.tasks[t]
                    | {
                        "annotations": [a for a in self.annotations.values() if a["task"] == t],
                        "predictions": [p for p in self.predictions.values() if p["task"] == t],
                    }
                    for t in asked
                ],
                "project": self.uid(project),
                "label_config": self.projects[project]["label_config"],
                "params": {"login": None, "password": None, "context": None},
            }
        if not asked:
            return []
        before_predict()
        answer = requests.post(f"{self.connected[project]}/predict", json=body, timeout=100)
        answer.raise_for_status()
        results = answer.json()["results"]
        before_store()
        if len(results) != len(asked) or lose_answer:
            return results
        for task, given in zip(asked, results, strict=True):
            for prediction in given if isinstance(given, list) else [given]:
                self.store(
                    task, prediction["result"], prediction.get("score"), prediction.get("model_version", version)
                )
        return results

    # what is there

    def store(self, task: int, result: list, score: float | None, version: str) -> int:
        with self.lock:
            number = self._number()
            self.predictions[number] = {
                "id": number,
                "task": task,
                "result": result,
                "score": score,
                "model_version": version,
            }
            return number

    def tasks_of(self, project: int) -> list[int]:
        return [number for number, task in self.tasks.items() if task["project"] == project]

    def versions_of(self, task: int) -> list[str]:
        with self.lock:
            return [p["model_version"] for p in self.predictions.values() if p["task"] == task]

    def regions_of(self, task: int) -> list[dict]:
        (prediction,) = [p for p in self.predictions.values() if p["task"] == task]
        return prediction["result"]

    def authorizations(self, path: str) -> list[str]:
        return [auth for _, called, auth in self.calls if called == path]

    def _number(self) -> int:
        with self.lock:
            self._next += 1
            return self._next

    def _moment(self) -> str:
        return (START + timedelta(seconds=self._number() + self.offset)).isoformat().replace("+00:00", "Z")

    # the API

    def _app(self) -> Flask:
        app = Flask("fake-label-studio")

        @app.before_request
        def check() -> tuple[Response, int] | None:
            authorization = request.headers.get("Authorization", "")
            self.calls.append((request.method, request.path, authorization))
            time.sleep(self.failures.slow)
            self.failures.before_answer()
            if request.path in ("/api/token/refresh/", "/api/version"):
                return None
            kind, _, key = authorization.partition(" ")
            good = (kind, key) == ("Token", self.legacy_key) or (kind == "Bearer" and key in self.access_tokens)
            if not good or self.failures.deny:
                return jsonify({"detail": "Invalid token."}), 401
            if request.path in self.missing_paths:
                return jsonify({"detail": "Not found."}), 404
            if request.path in self.forbidden_paths:
                return jsonify({"detail": "You do not have permission to perform this action."}), 403
            return None

        @app.post("/api/token/refresh/")
        def refresh() -> Any:
            if request.get_json()["refresh"] != PERSONAL_TOKEN:
                return jsonify({"detail": "Token is invalid"}), 401
            self.exchanges += 1
            token = jwt(self.token_life, f"access{self.exchanges}")
            self.access_tokens.add(token)
            return jsonify({"access": token})

        @app.get("/api/projects/")
        def list_projects() -> Any:
            return jsonify({"count": len(self.projects), "results": list(self.projects.values())})

        @app.get("/api/projects/<int:project>/")
        def get_project(project: int) -> Any:
            if project not in self.projects:
                return jsonify({"detail": "No Project matches the given query."}), 404
            return jsonify(self.projects[project])

        @app.patch("/api/projects/<int:project>/")
        def patch_project(project: int) -> Any:
            self.projects[project] |= request.get_json()
            return jsonify(self.projects[project])

        @app.get("/api/ml")
        def backends() -> Any:
            project = int(request.args["project"])
            if project not in self.connected:
                return jsonify([])
            if self.sets_up_when_listed:
                self.setup(project)
            backend = {"id": 1, "project": project, "url": self.connected[project], "state": self.backend_state}
            backend["extra_params"] = self.extra_params.get(project)
            return jsonify([backend | {"model_version": "cavsam-0", "title": BACKEND_TITLE}])

        @app.get("/api/webhooks/")
        def webhooks() -> Any:
            project = int(request.args["project"])
            return jsonify([hook for hook in self.webhooks if hook.get("project", project) == project])

        @app.post("/api/webhooks/")
        def add_webhook() -> Any:
            if "." not in request.get_json()["url"].split("/")[2]:
                return jsonify({"validation_errors": {"url": ["Enter a valid URL."]}}), 400
            return jsonify(self._add_webhook(request.get_json())), 201

        @app.patch("/api/webhooks/<int:number>/")
        def set_webhook(number: int) -> Any:
            (found,) = (hook for hook in self.webhooks if hook["id"] == number)
            found |= {"actions": []} | request.get_json()
            return jsonify(found)

        @app.get("/api/version")
        def version() -> Any:
            return jsonify({"release": "1.23.2"})

        @app.get("/api/current-user/whoami")
        def whoami() -> Any:
            return jsonify({"id": 1, "email": "admin@example.com"})

        @app.get("/api/tasks")
        def list_tasks() -> Any:
            return self._list_tasks(int(request.args["project"]))

        @app.get("/api/tasks/<int:task>/annotations/")
        def annotations(task: int) -> Any:
            found = [a for a in self.annotations.values() if a["task"] == task and not a["was_cancelled"]]
            return jsonify(found) if task in self.tasks else (jsonify({"detail": "Not found."}), 404)

        @app.get("/api/annotations/<int:annotation>/")
        def annotation(annotation: int) -> Any:
            found = self.annotations.get(annotation)
            return jsonify(found) if found else (jsonify({"detail": "Not found."}), 404)

        @app.post("/api/projects/<int:project>/import")
        def import_tasks(project: int) -> Any:
            return jsonify(self._import_tasks(project, request.get_json())), 201

        @app.post("/api/projects/<int:project>/import/predictions")
        def import_predictions(project: int) -> Any:
            return self._import(project, request.get_json())

        @app.get("/api/predictions/<int:prediction>/")
        def one_prediction(prediction: int) -> Any:
            found = self.predictions.get(prediction)
            return jsonify(found) if found else (jsonify({"detail": "Not found."}), 404)

        @app.get("/api/predictions/")
        def predictions() -> Any:
            task = int(request.args["task"])
            return jsonify([p for p in self.predictions.values() if p["task"] == task])

        @app.delete("/api/predictions/<int:prediction>/")
        def delete(prediction: int) -> Any:
            del self.predictions[prediction]
            return "", 204

        @app.delete("/api/projects/<int:project>/model-versions/")
        def delete_version(project: int) -> Any:
            version = request.get_json()["model_version"]
            tasks = set(self.tasks_of(project))
            gone = [n for n, p in self.predictions.items() if p["task"] in tasks and p["model_version"] == version]
            for number in gone:
                del self.predictions[number]
            return jsonify({"deleted_predictions": len(gone)})

        @app.get("/data/upload/<name>")
        def upload(name: str) -> Any:
            content = self.files.get(request.path)
            if self.failures.pages_for_files > 0:
                self.failures.pages_for_files -= 1
                return "<!DOCTYPE html><title>Log in</title>"
            if self.failures.cut_files and content is not None:
                length = {"Content-Length": str(len(content))}
                return Response(iter([content[: len(content) // 2]]), mimetype="image/png", headers=length)
            return Response(content, mimetype="image/png") if content is not None else (jsonify({}), 404)

        return app

    def _list_tasks(self, project: int) -> Any:
        with self.lock:
            found = [task for task in self.tasks.values() if task["project"] == project]
            for item in json.loads(request.args.get("query", "{}")).get("filters", {}).get("items", []):
                if item["filter"] == "filter:tasks:predictions_model_versions":
                    (version,) = item["value"]
                    found = [t for t in found if any(version in v for v in self.versions_of(t["id"]))]
                else:
                    assert item["filter"] == "filter:tasks:id"
                    found = [t for t in found if item["value"]["min"] <= t["id"] <= item["value"]["max"]]
            page, size = int(request.args["page"]), int(request.args["page_size"])
            if page > 1 and (page - 1) * size >= len(found):
                return jsonify({"detail": "Invalid page."}), 404
            fields = request.args["include"].split(",")
            rows = [self._row(task, fields) for task in found[(page - 1) * size : page * size]]
            return jsonify({"tasks": rows, "total": len(found), "total_annotations": 0, "total_predictions": 0})

    def _row(self, task: dict[str, Any], fields: list[str]) -> dict[str, Any]:
        annotations = [a for a in self.annotations.values() if a["task"] == task["id"]]
        row = task | {
            "total_annotations": sum(not a["was_cancelled"] for a in annotations),
            "cancelled_annotations": sum(a["was_cancelled"] for a in annotations),
            "total_predictions": len(self.versions_of(task["id"])),
        }
        return {name: row[name] for name in fields}

    def _import(self, project: int, items: list[dict[str, Any]]) -> Any:
        failures = self.failures
        if failures.refuse_imports > 0:
            failures.refuse_imports -= 1
            return jsonify({"detail": "busy"}), 503
        errors = [f"Prediction {i}: {why}" for i, item in enumerate(items) if (why := self._invalid(project, item))]
        if errors and failures.strict:
            return jsonify({"detail": "Validation error", "validation_errors": {"non_field_errors": errors}}), 400
        good = [
            item for item in items if not self._invalid(project, item) and item["task"] not in failures.drop_silently
        ]
        for item in good:
            self.store(item["task"], item["result"], item["score"], item["model_version"])
        if failures.drop_import_answers > 0:
            failures.drop_import_answers -= 1
            request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return jsonify({"created": len(good)}), 201

    def _import_tasks(self, project: int, tasks: list[dict[str, Any]]) -> dict[str, int]:
        counts = {"task_count": len(tasks), "annotation_count": 0, "prediction_count": 0}
        for task in tasks:
            number = self.add_task(project)
            self.tasks[number]["data"] = task["data"]
            for given in task.get("annotations", []):
                self.annotate(number, given["result"], ground_truth=given.get("ground_truth", False))
                counts["annotation_count"] += 1
            for given in task.get("predictions", []):
                self.store(number, given["result"], given.get("score"), given.get("model_version", ""))
                counts["prediction_count"] += 1
        return counts

    def _invalid(self, project: int, item: dict[str, Any]) -> str:
        if self.tasks.get(item["task"], {}).get("project") != project:
            return f"Invalid task ID {item['task']} - task not found in project"
        for region in item["result"]:
            if set(region["value"]["brushlabels"]) & self.failures.invalid_labels:
                return f"Region 0: Invalid value for control 'tag'. Got: {region['value']}"
        return ""
