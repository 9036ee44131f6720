"""Label Studio's client without a socket, and a clock that stands still."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from backend.clients import Clients
from backend.errors import LabelStudioError, LabelStudioNotFound
from backend.labelstudio.client import LabelStudio
from tests.support.fake_label_studio import CONFIG, brush

BOX = (8, 30, 20, 50)
BACKEND = {"id": 1, "url": "http://backend.example:9090", "title": "CavSam", "model_version": "cavsam-0"}


class FakeClock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class FakeClient(LabelStudio):
    """One project in memory; `asked` names the calls in order."""

    def __init__(self, tasks: int = 4) -> None:
        self.asked: list[str] = []
        self.error: LabelStudioError | None = None
        """What every call raises, if anything."""
        self.described: dict[str, Any] = {"title": "cats", "label_config": CONFIG, "created_at": "2026-01-01"}
        self.rows: dict[int, dict[str, Any]] = {}
        self.made: dict[int, dict[str, Any]] = {}
        self.given: dict[int, dict[str, Any]] = {}
        self.connected: list[dict[str, Any]] = [BACKEND]
        self.hooks: list[dict[str, Any]] = []
        self._last = 0
        for _ in range(tasks):
            self.add_task()

    # what a person does

    def add_task(self) -> int:
        number = self._next()
        self.rows[number] = {"id": number, "data": {"image": "a.png"}, "updated_at": str(number)}
        return number

    def annotate(self, task: int, label: str = "cat") -> int:
        number = self._next()
        self.made[number] = {"id": number, "task": task, "created_at": f"2026-01-01T00:00:{number:02d}Z"}
        self.edit(number, label)
        return number

    def edit(self, annotation: int, label: str) -> None:
        self.made[annotation]["result"] = [brush(BOX, label)]
        self.rows[self.made[annotation]["task"]]["updated_at"] = str(self._next())

    def predict(self, task: int, version: str) -> int:
        number = self._next()
        self.given[number] = {"id": number, "task": task, "model_version": version}
        return number

    def versions_of(self, task: int) -> list[str]:
        return [one["model_version"] for one in self.given.values() if one["task"] == task]

    # what the backend asks

    def project(self, project: int, *, timeout: float | None = None) -> dict[str, Any]:
        self._ask("project")
        return self.described

    def set_model_version(self, project: int, version: str) -> None:
        self._ask("set_model_version")
        self.described["model_version"] = version

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        self._ask("tasks")
        for number, row in self.rows.items():
            count = sum(one["task"] == number for one in self.made.values())
            yield row | {"total_annotations": count, "total_predictions": len(self.versions_of(number))}

    def tasks_with_prediction(
        self, project: int, version: str, *, between: tuple[int, int] | None = None, timeout: float | None = None
    ) -> set[int]:
        self._ask("tasks_with_prediction")
        return {number for number in self.rows if any(version in one for one in self.versions_of(number))}

    def annotations(self, task: int) -> list[dict[str, Any]]:
        self._ask("annotations")
        return [one for one in self.made.values() if one["task"] == task]

    def annotation(self, annotation: int) -> dict[str, Any]:
        self._ask("annotation")
        if annotation not in self.made:
            raise LabelStudioNotFound("There is no such annotation.")
        return self.made[annotation]

    def backends(self, project: int, *, timeout: float | None = None) -> list[dict[str, Any]]:
        self._ask("backends")
        return self.connected

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        self._ask("webhooks")
        return self.hooks

    def add_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> None:
        self._ask("add_webhook")
        self.hooks.append({"id": self._next(), "url": url, "headers": dict(headers), "actions": []})

    def set_webhook_headers(self, webhook: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        self._ask("set_webhook_headers")
        (found,) = (hook for hook in self.hooks if hook["id"] == webhook["id"])
        found["headers"] = dict(headers)

    def import_predictions(self, project: int, body: str) -> int:
        self._ask("import_predictions")
        items = json.loads(body)
        for item in items:
            self.predict(item["task"], item["model_version"])
        return len(items)

    def predictions(self, task: int) -> list[dict[str, Any]]:
        self._ask("predictions")
        return [one for one in self.given.values() if one["task"] == task]

    def delete_prediction(self, prediction: int) -> None:
        self._ask("delete_prediction")
        del self.given[prediction]

    def delete_version(self, project: int, version: str) -> int:
        self._ask("delete_version")
        gone = [number for number, one in self.given.items() if one["model_version"] == version]
        for number in gone:
            del self.given[number]
        return len(gone)

    def _ask(self, call: str) -> None:
        self.asked.append(call)
        if self.error is not None:
            raise self.error

    def _next(self) -> int:
        self._last += 1
        return self._last


class FakeClients(Clients):
    """The clients of some projects."""

    def __init__(self, clients: dict[int, FakeClient]):
        self.clients = clients

    def of(self, project: int) -> LabelStudio:
        return self.clients[project]

    def keep(self, project: int) -> None:
        """There are no keys to keep."""
