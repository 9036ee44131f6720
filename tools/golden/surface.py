"""The only place where the golden run touches the project: a move or a rename is followed here and nowhere else.

Everything that leaves this file is plain: numbers, texts, arrays, dictionaries. The keys of those dictionaries are the
golden run's own, whatever the project calls its fields.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from flask import Flask, request
from label_studio_sdk.converter.brush import mask2rle
from safetensors import safe_open
from werkzeug.serving import make_server

from backend.service import Service
from backend.settings import Settings
from backend.version import base_version
from backend.web.app import create_app
from cavsam import cli
from cavsam.adapted import AdaptedReference
from cavsam.pipeline import CavSam
from cavsam.recipe import PRESETS, Recipe, choices_of
from cavsam.types import Reference, TargetResult
from research import synth
from research.episodes import episode
from tests.support.fake_label_studio import LEGACY_KEY, FakeLabelStudio, brush, picture, png

THRESHOLD = "tests.support.threshold:open_threshold"
"""Name of the segmenter whose answer anyone can compute, for the model process."""
MODES: tuple[str, ...] = choices_of("mode")
PRESET_NAMES = {"default": "bundled", "quick": "quick", "paper": "published"}
"""What the golden run calls the presets -> what the project calls them now."""
OPTION_NAMES: dict[str, str] = {}
"""The same for options of the recipe whose names changed since the golden run was made."""
assert set(PRESET_NAMES.values()) == set(PRESETS), "a preset came, went or was renamed"

__all__ = ["LEGACY_KEY", "brush", "picture", "png"]


# the method


@dataclasses.dataclass(frozen=True)
class Task:
    """References and one target. `masks` of each reference: label -> bool (H, W)."""

    images: list[np.ndarray]
    masks: list[dict[str, np.ndarray]]
    target: np.ndarray


def bench_task(domain: str, index: int, shots: int = 1) -> Task:
    """An episode of the bench's development split."""
    found = episode(domain, "dev", shots, index)
    return Task([r.image for r in found.references], [dict(r.masks) for r in found.references], found.image)


def drawn(domain: str, classes: Sequence[str], seed: int, size: tuple[int, int] = (256, 256)) -> tuple[Any, Any]:
    """One synthetic image, uint8 (H, W, 3), and its masks by class."""
    found = synth.generate(domain, classes, seed=synth.seed_of("dev", seed), size=size)
    return found.image, dict(found.masks)


def class_names(domain: str) -> tuple[str, ...]:
    return synth.classes(domain, "dev")


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the recipe under their present names."""
    return {OPTION_NAMES.get(name, name): value for name, value in options.items()}


def open_model(preset: str, options: Mapping[str, Any]) -> Any:
    """The bundled models on the CPU under a preset and some options."""
    recipe = Recipe.preset(PRESET_NAMES[preset]).replace(**renamed(options))
    return CavSam.from_pretrained("nano", device="cpu", recipe=recipe)


def adapt(model: Any, task: Task, shots: int = 0) -> Any:
    references = [Reference(image, masks) for image, masks in zip(task.images, task.masks, strict=True)]
    return model.adapt(references, shots=shots)


def segment(model: Any, adapted: Any, targets: Sequence[np.ndarray | bytes]) -> list[dict[str, Any]]:
    return [_plain(result) for result in model.segment(adapted, targets)]


def _plain(result: TargetResult) -> dict[str, Any]:
    """Everything but the times."""
    candidates = {
        label: [
            {
                "kind": one.kind,
                "mask": one.mask,
                "score": one.score,
                "presence": one.presence,
                "signs": dict(one.cues),
                "chosen": one.chosen,
            }
            for one in found
        ]
        for label, found in result.candidates.items()
    }
    return {
        "masks": dict(result.masks),
        "scores": dict(result.scores),
        "candidates": candidates,
        "sources": dict(result.sources),
        "contested": {" | ".join(pair): share for pair, share in result.contested.items()},
        "instances": {
            label: [{"mask": one.mask, "score": one.score} for one in found]
            for label, found in result.instances.items()
        },
        "held_back": sorted(result.held_back),
        "held_back_why": dict(result.held_back),  # prose, apart from what was held back
        "calibrated": result.calibrated,
        "rest": {"index": result.index, "size": list(result.size), "score": result.score, "error": result.error},
    }


def save_adapted(adapted: Any, path: Path) -> None:
    adapted.save(path)


def load_adapted(path: Path) -> Any:
    return AdaptedReference.load(path)


def read_adapted(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a saved reference, and its metadata without times, the fingerprint and the checksum of it all.

    The fingerprint changes with the names of the recipe's options, which may go; the checksum covers it.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    described = json.loads(metadata["described"])
    del described["timings"], described["fingerprint"]
    return tensors, {"format": metadata["format"], **described}


def explain(arguments: Sequence[str]) -> int:
    """`cavsam explain`."""
    with redirect_stderr(io.StringIO()):
        return cli.main(["explain", *arguments])


# Label Studio and the backend


@dataclasses.dataclass(frozen=True)
class Request:
    """One request to Label Studio, as it came in."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str
    body: Any


class Peer(FakeLabelStudio):
    """The tests' Label Studio that also keeps what it is asked, with queries and bodies."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        super().__init__()

    def _app(self) -> Flask:
        app = super()._app()

        def keep() -> None:
            body = request.get_json(silent=True)
            if body is None and request.get_data():
                body = request.get_data().decode(errors="replace")
            authorization = request.headers.get("Authorization", "")
            self.requests.append(Request(request.method, request.path, request.args.to_dict(), authorization, body))

        app.before_request_funcs.setdefault(None, []).insert(0, keep)
        return app


def region(mask: np.ndarray, label: str) -> dict[str, Any]:
    """A brush region as the editor stores it; mask: bool (H, W)."""
    empty: dict[str, Any] = brush((0, 1, 0, 1), label, mask.shape)
    value = {"format": "rle", "rle": mask2rle(mask.astype(np.uint8) * 255), "brushlabels": [label]}
    return empty | {"value": value}


@dataclasses.dataclass(frozen=True)
class Backend:
    """A backend that answers on a socket."""

    url: str
    base: str
    """Version without a reference."""


@contextmanager
def running_backend(peer: Peer, folder: Path, *, threshold: bool = True, **settings: Any) -> Iterator[Backend]:
    """The backend with a model process of its own: the threshold segmenter or the bundled models."""
    chosen = _settings(peer, folder, settings)
    service = Service(chosen, segmenter=THRESHOLD) if threshold else Service(chosen)
    server = make_server("127.0.0.1", 0, create_app(chosen, service), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        service.start()
        yield Backend(f"http://127.0.0.1:{server.server_port}", base_version(chosen))
    finally:
        service.begin_stop()
        server.shutdown()
        server.server_close()
        service.stop()


def _settings(peer: Peer, folder: Path, changes: Mapping[str, Any]) -> Settings:
    values: dict[str, Any] = {
        "label_studio_url": peer.url,
        "label_studio_api_key": LEGACY_KEY,
        "model": "nano",
        "device": "cpu",
        "data_dir": folder,
        "predict_deadline": 90.0,
        "quiet_period": 0.2,
        "push_interval": 0.3,
        "push_batch": 1,
        "sync_interval": 3600.0,
        "log_level": "ERROR",
    }
    return Settings(**(values | dict(changes)))


def present_base(peer: Peer, folder: Path) -> str:
    """The version that a backend here gives without a reference."""
    return base_version(_settings(peer, folder, {}))


def task_states(backend: Backend, project: int) -> list[dict[str, Any]]:
    """What the backend says of each task of a project, without times and addresses."""
    address = f"{backend.url}/api/projects/{project}/tasks"
    found = requests.get(address, params={"per_page": 100}, timeout=60).json()["tasks"]
    return [{name: one[name] for name in ("task", "state", "score", "error", "attempts")} for one in found]


def ledger_file(folder: Path) -> Path:
    """Where a backend keeps its ledger in this data folder."""
    return folder / "ledger.sqlite3"


def ledger_rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """What a closed ledger holds."""
    connection = sqlite3.connect(ledger_file(folder))
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()
