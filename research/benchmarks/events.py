"""Seconds that the backend itself takes for an event, a full sync and a job of a project with very many tasks.

    python -m research.benchmarks.events

Label Studio is in memory and answers at once, so that only the store and the coordinator are measured. Of 100,000
tasks, 100 of them annotated, on a core that others used at the same time (hence the seconds of the processor):

    first sync                   4.6 s
    event, all tasks queued      0.05 s
    job: taken and finished      0.03 s
    full sync, nothing new       1.9 s
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.clients import Clients
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.events import Event
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.coordinator import Coordinator

PROJECT = 1
CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="tag" toName="image"><Label value="cat"/>'
    "</RectangleLabels></View>"
)


class Instant(LabelStudio):
    """Label Studio in memory, with one project; the first tasks are annotated, and all that is pushed is kept."""

    def __init__(self, tasks: int, annotated: int):
        self.count, self.annotated, self.predicted = tasks, annotated, 0

    def project(self, project: int, *, timeout: float | None = None) -> dict[str, Any]:
        return {"title": "many", "label_config": CONFIG, "created_at": "2026-01-01"}

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        for number in range(1, self.count + 1):
            yield {
                "id": number,
                "data": {"image": f"/data/upload/{PROJECT}/{number:08d}.png", "site": "north", "visit": number},
                "updated_at": "2026-01-01T00:00:00Z",
                "total_annotations": int(number <= self.annotated),
                "total_predictions": self.predicted,
            }

    def tasks_with_prediction(
        self, project: int, version: str, *, between: tuple[int, int] | None = None, timeout: float | None = None
    ) -> set[int]:
        return set(range(1, self.count + 1)) if self.predicted else set()

    def annotations(self, task: int) -> list[dict[str, Any]]:
        value: dict[str, Any] = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["cat"]}
        region: dict[str, Any] = {"id": "r", "from_name": "tag", "to_name": "image", "type": "rectanglelabels"}
        region |= {"value": value, "original_width": 64, "original_height": 64, "image_rotation": 0}
        return [{"id": task, "task": task, "created_at": f"2026-01-01T{task:08d}", "result": [region]}]

    def annotation(self, annotation: int) -> dict[str, Any]:
        return self.annotations(annotation)[0]

    def import_predictions(self, project: int, body: str) -> int:
        return body.count('"task":')

    def backends(self, project: int, *, timeout: float | None = None) -> list[dict[str, Any]]:
        return [{"id": 1, "url": "http://backend.example:9090", "model_version": "cavsam-0"}]

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        return [{"url": "http://backend.example:9090/webhook", "headers": {}}]

    def set_webhook_headers(self, *given: Any) -> None:
        pass


class OneClient(Clients):
    """The connection in memory, whatever the project."""

    def __init__(self, client: LabelStudio):
        self._client = client

    def of(self, project: int) -> LabelStudio:
        return self._client

    def keep(self, project: int) -> None:
        pass


def main() -> int:
    """Fill a store with a first sync, and measure what comes after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000, help="tasks of the project (default: 100000)")
    parser.add_argument("--annotated", type=int, default=100, help="tasks that are annotated (default: 100)")
    parser.add_argument("--times", type=int, default=5, help="times that each is measured (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "ledger.sqlite3")
        client = Instant(options.tasks, options.annotated)
        settings = Settings(webhook_secret="not-a-secret-here")
        coordinator = Coordinator(
            settings, store, OneClient(client), "cavsam-0", wake=lambda: None, introduce=lambda _: None
        )

        def sync(event: Event) -> None:
            coordinator.send(event)
            coordinator.turn(0.0)

        def job() -> None:
            found = store.queue.take_next()
            assert found is not None
            store.queue.finish(found, "[]", 0.5, 1.0)

        print(f"{options.tasks} tasks, {options.annotated} annotated")
        _report("first sync", 1, lambda: sync(Event(PROJECT, "again")))
        touched = Event(PROJECT, "touched", frozenset({2}))
        _report("event, all tasks queued", options.times, lambda: sync(touched))
        _report("job: taken and finished", options.times, job)
        _report("full sync, nothing new", options.times, lambda: sync(Event(PROJECT, "again")))
        store.close()
    return 0


def _report(name: str, times: int, work: Callable[[], None]) -> None:
    """Print the wall seconds of some work, and those of the processor."""
    wall, processor = [], []
    for _ in range(times):
        began, began_processor = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - began_processor)
    print(f"{name:28} median {statistics.median(wall):8.4f} s, processor {statistics.median(processor):8.4f} s")


if __name__ == "__main__":
    sys.exit(main())
