"""A backend in this process, its peer that plays Label Studio, and helpers that wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

from backend.entities import ReferenceAnnotation, References
from backend.service import Service
from backend.settings import Settings
from backend.supervision import EndProcess, end_process
from backend.web.app import create_app
from tests.support.fake_label_studio import LEGACY_KEY, FakeLabelStudio

THRESHOLD = "tests.support.threshold:open_threshold"


def wait_for(condition: Callable[[], Any], what: str, patience: float = 60.0) -> None:
    """Wait until something is so; the patience is only there to end a test that will never pass."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"in vain waited for: {what}"
        time.sleep(0.02)


def learned_from(*annotations: ReferenceAnnotation) -> References:
    """References under the first one's key."""
    return References(annotations[0].key, annotations)


@dataclass
class RunningBackend:
    """A service with a model process of its own, answering on a real socket."""

    service: Service
    url: str


@pytest.fixture
def label_studio() -> Iterator[FakeLabelStudio]:
    fake = FakeLabelStudio()
    yield fake
    fake.close()


@pytest.fixture
def make_settings(tmp_path: Path, label_studio: FakeLabelStudio) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        values: dict[str, Any] = {
            "label_studio_url": label_studio.url,
            "label_studio_api_key": LEGACY_KEY,
            "model": "nano",
            "data_dir": tmp_path / "data",
            "predict_deadline": 60.0,
            "quiet_period": 0.2,
            "push_interval": 0.05,
            "sync_interval": 3600.0,
        }
        return Settings(**(values | changes))

    return make


@pytest.fixture
def start_backend(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., RunningBackend]]:
    with ExitStack() as stack:

        def start(*, segmenter: str = THRESHOLD, give_up: EndProcess = end_process, **changes: Any) -> RunningBackend:
            settings = make_settings(**changes)
            service = Service(settings, segmenter=segmenter, give_up=give_up)
            stack.callback(service.stop)
            server = make_server("127.0.0.1", 0, create_app(settings, service), threaded=True)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            stack.callback(service.begin_stop)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            service.start()
            return RunningBackend(service, f"http://127.0.0.1:{server.server_port}")

        yield start
