"""gunicorn around the application: one worker process with threads, nothing loaded before the fork."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker as GunicornWorker

from backend import logs
from backend.errors import BackendError
from backend.ports import check_free
from backend.service import Service
from backend.settings import Settings, unknown_variables
from backend.web.app import TRIAL_WARNING, create_app
from backend.web.slow_clients import ImpatientWorker
from backend.worker.model_process import CAVSAM

log = logging.getLogger(__name__)

GRACE = 8
"""Seconds that open requests have to end after SIGTERM; /predict stops waiting within one."""


def serve(settings: Settings, *, segmenter: str = CAVSAM) -> int:
    """Answer Label Studio until a signal; returns the exit status. Raises as `check_listening` and `check_free` do."""
    settings.check_listening()
    check_free(settings.host, settings.port)
    configure_logging(settings)
    threading.excepthook = _log_end_of_thread
    for name in unknown_variables(os.environ):
        log.warning("%s is not a setting of the backend; see `cavsam-backend settings`.", name)
    _Server(settings, segmenter).run()
    return 0


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Log what ended a thread, whatever it was; on stderr alone it would look like no line of the log."""
    name = ended.thread.name if ended.thread else "unknown"
    error = ended.exc_value or ended.exc_type()
    log.critical("The thread %s ended by an exception.", name, exc_info=error)


def configure_logging(settings: Settings) -> None:
    """One line per event on stderr; the libraries' own chatter only where it warns."""
    logs.configure(settings.log_level, settings.log_format)
    for library in ("werkzeug", "requests"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns before each repeat, and the last is told anyway


class _Server(BaseApplication):
    """gunicorn configured by our settings; the service lives in its only worker, from after the fork to its end."""

    def __init__(self, settings: Settings, segmenter: str):
        self._settings, self._segmenter = settings, segmenter
        self._service: Service | None = None
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options = {
            "bind": settings.address(),
            "workers": 1,
            "worker_class": ImpatientWorker,
            "threads": settings.threads,
            "preload_app": False,
            "timeout": 120,
            "graceful_timeout": GRACE,
            "keepalive": 5,
            "proc_name": "cavsam-backend",
            "loglevel": "warning",
            "post_worker_init": self._after_fork,
            "worker_exit": self._before_end,
            "when_ready": self._listening,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Called in the worker process: build the service and the application over it."""
        try:
            self._service = Service(self._settings, segmenter=self._segmenter)
        except BackendError as error:
            # said once and plainly; status 4 tells the arbiter that starting again would not help
            print(f"cavsam-backend: {error}", file=sys.stderr)
            sys.exit(Arbiter.APP_LOAD_ERROR)
        return create_app(self._settings, self._service)

    def _after_fork(self, worker: GunicornWorker) -> None:
        service = self._service
        if service is None:
            return
        end_worker: Any = signal.getsignal(signal.SIGTERM)

        def end(number: int, frame: FrameType | None) -> None:
            service.begin_stop()
            end_worker(number, frame)

        signal.signal(signal.SIGTERM, end)
        service.start()
        log.info("Model version %s%s.", service.base_version, f" - {TRIAL_WARNING}" if service.trial_models else "")
        log.info("Models %s, recipe %s.", self._settings.sources().name, self._settings.method().described())

    def _before_end(self, arbiter: Arbiter, worker: GunicornWorker) -> None:
        if self._service is not None:
            self._service.stop()

    def _listening(self, arbiter: Arbiter) -> None:
        addresses = ", ".join(str(listener) for listener in arbiter.LISTENERS)
        log.info("Listening on %s; add this address to Label Studio as a model.", addresses)
