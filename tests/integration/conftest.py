"""A real Label Studio for the whole session, projects in it, and the real backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support import backend as peers
from tests.support.backend_process import BackendProcess, backends
from tests.support.fake_label_studio import LEGACY_KEY, FakeLabelStudio
from tests.support.pictures import LABELS
from tools import brush
from tools.demo.pictures import Picture, label_config, names_in
from tools.editor import chromium
from tools.label_studio_server import ROOT, LabelStudio
from tools.label_studio_server import label_studio as real_label_studio

label_studio = peers.label_studio  # the peer, a fixture


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    with real_label_studio(tmp_path_factory.mktemp("label-studio")) as running:
        yield running


@pytest.fixture
def serve(tmp_path: Path, label_studio: FakeLabelStudio) -> Iterator[Callable[..., BackendProcess]]:
    """Starts backends for the peer; tests against the real Label Studio have their own."""
    with backends(tmp_path, label_studio.url, LEGACY_KEY) as start:
        yield start


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@dataclass(frozen=True)
class Project:
    """A project of a running Label Studio; `tasks` is task id -> picture, the one to annotate first."""

    server: LabelStudio
    id: int
    tasks: dict[int, Picture]
    config: str

    @classmethod
    def made(cls, server: LabelStudio, files: list[tuple[Picture, str, bytes]]) -> Project:
        config = label_config(ROOT / "label_config" / "brush.xml", LABELS)
        project = server.create_project("end to end", config)
        tasks = server.upload(project, {name: content for _, name, content in files})
        return cls(server, project, {tasks[name]: picture for picture, name, _ in files}, config)

    @property
    def first(self) -> int:
        return next(iter(self.tasks))

    @property
    def others(self) -> list[int]:
        return list(self.tasks)[1:]

    def annotate_first(self) -> None:
        from_name, to_name = names_in(self.config)
        truth = self.tasks[self.first].truth
        self.server.annotate(self.first, brush.regions(truth, from_name=from_name, to_name=to_name))

    def predictions(self) -> list[dict[str, Any]]:
        return self.server.predictions(self.id)

    def wait_for_predictions(self, count: int, *, log: Path, seconds: float = 300) -> list[dict[str, Any]]:
        deadline = time.monotonic() + seconds
        while len(found := self.predictions()) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} predictions:\n{log.read_text()[-3000:]}"
            time.sleep(0.3)
        return found


@pytest.fixture
def project(server: LabelStudio) -> Callable[[list[Picture]], Project]:
    """A function that makes a project of some pictures, uploaded as PNG."""
    return lambda shown: Project.made(server, [(picture, picture.name, picture.png()) for picture in shown])
