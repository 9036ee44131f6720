"""What a monitoring system asks for: counts, ages and memory in Prometheus's text, without anything that names work.

Most of it is read from the ledger when it is asked for; only requests and errors are counted as they happen.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from flask import Blueprint, Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from backend.entities import JobGroup
from backend.readiness import problems
from backend.service import Service

STATES = ("queued", "running", "done", "failed")
NO_ROUTE = "none"
"""Stands for addresses that there are not: a caller may make up any number of them."""
REQUEST_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 3, 10, 30, 100)
"""Bounds of the histogram; Label Studio waits 1, 3 and 100 seconds for its calls."""


class Metrics:
    """The metrics of one application over a service."""

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        self.registry.register(_ServiceCollector(service))
        self._requests = Counter(
            "cavsam_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "cavsam_request_seconds",
            "Seconds until a request was answered.",
            ("route",),
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        self._errors = Counter(
            "cavsam_errors", "Requests that failed, by the kind of error.", ("kind",), registry=self.registry
        )

    def count_error(self, error: Exception) -> None:
        """Count an error that a request ended with, by its class: messages may name tasks."""
        self._errors.labels(type(error).__name__).inc()

    def install(self, app: Flask) -> None:
        """Add the route, and count every request."""
        routes = Blueprint("metrics", __name__)

        @routes.get("/metrics")
        def metrics() -> Response:
            return Response(generate_latest(self.registry), content_type=CONTENT_TYPE_LATEST)

        @app.before_request
        def begin() -> None:
            g.begun = time.monotonic()

        @app.after_request
        def end(response: Response) -> Response:
            route = request.url_rule.rule if request.url_rule else NO_ROUTE
            method = request.method if request.url_rule else NO_ROUTE
            self._requests.labels(method, route, response.status_code).inc()
            if "begun" in g:
                self._seconds.labels(route).observe(time.monotonic() - g.begun)
            return response

        app.register_blueprint(routes)


class _ServiceCollector(Collector):
    """Reads the ledger and the model process whenever metrics are asked for."""

    def __init__(self, service: Service):
        self._service = service

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand, so that registering reads nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the metrics."""
        service = self._service
        yield from _job_metrics(service.store.queue.groups(), time.time())
        yield GaugeMetricFamily("cavsam_projects", "Projects connected.", value=len(service.store.projects.all()))
        healthy = not problems(service)
        yield GaugeMetricFamily("cavsam_healthy", "1 if /ready names nothing wrong, else 0.", value=healthy)
        memory = GaugeMetricFamily("cavsam_model_memory_bytes", "Memory of the model process.", labels=("kind",))
        for kind, amount in (("main", service.model_process.resident_bytes), ("gpu", service.model_process.gpu_bytes)):
            if amount is not None:
                memory.add_metric((kind,), amount)
        yield memory


def _job_metrics(groups: list[JobGroup], now: float) -> Iterator[Metric]:
    """Sum up the jobs of the present versions."""
    jobs = GaugeMetricFamily("cavsam_jobs", "Tasks of the present versions by state.", labels=("state",))
    for state in STATES:
        jobs.add_metric((state,), sum(group.count for group in groups if group.state == state))
    yield jobs
    delivered = sum(group.count for group in groups if group.delivered)
    yield GaugeMetricFamily("cavsam_delivered", "Predictions that Label Studio has.", value=delivered)
    queued = [group.oldest for group in groups if group.state == "queued"]
    age = max(0.0, now - min(queued)) if queued else 0.0
    yield GaugeMetricFamily("cavsam_oldest_queued_seconds", "Age of the task that waits longest; 0 if none.", value=age)
    done = [group for group in groups if group.state == "done"]
    count, seconds = sum(group.count for group in done), sum(group.seconds for group in done)
    yield SummaryMetricFamily("cavsam_task_seconds", "Seconds of work on a predicted task.", count, seconds)
    buckets: list[tuple[str, float]] = []
    for tenth in range(10):
        below = sum(group.count for group in done if group.tenth <= tenth)
        buckets.append((str((tenth + 1) / 10), below))
    buckets.append(("+Inf", count))
    score = sum(group.score for group in done)
    yield HistogramMetricFamily("cavsam_score", "Scores of the present predictions.", buckets, score)
