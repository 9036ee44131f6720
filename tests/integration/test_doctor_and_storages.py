"""Doctor, backfill and images in storages, against a real Label Studio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask, Response, request
from werkzeug.serving import make_server

from backend.commands.backfill import backfill
from backend.commands.doctor import examine
from backend.errors import BackendError
from backend.labelstudio.client import LabelStudio as Client
from backend.labelstudio.images import fetch_image
from backend.settings import Settings
from tests.support.backend import THRESHOLD, wait_for
from tests.support.backend_process import BackendProcess, backends
from tests.support.fake_label_studio import CONFIG, brush, picture
from tools import brush as sdk_brush
from tools.label_studio_server import LabelStudio, label_studio
from tools.servers import ServerError

pytestmark = pytest.mark.integration

BOX = (8, 30, 20, 50)
OTHER = (5, 25, 30, 60)


@pytest.fixture
def serve(tmp_path: Path, server: LabelStudio) -> Iterator[Callable[..., BackendProcess]]:
    with backends(tmp_path, server.url, server.token) as start:
        yield start


def settings_for(server: LabelStudio, folder: Path, **changes: Any) -> Settings:
    values = {"label_studio_url": server.url, "label_studio_api_key": server.token, "model": "nano"}
    return Settings(data_dir=folder, **(values | changes))


def report(settings: Settings, project: int) -> dict[str, str]:
    """What doctor says, by verdict."""
    said = {"ok": "", "note": "", "fail": ""}
    for finding in examine(settings, project, with_model=False):
        said[finding.verdict] += f"{finding.subject}: {finding.message}\n"
    return said


def test_doctor_follows_a_connection(server: LabelStudio, serve: Callable[..., BackendProcess], tmp_path: Path):
    project = server.create_project("doctor", CONFIG)
    settings = settings_for(server, tmp_path / "doctor")
    before = report(settings, project)
    assert "No backend is connected" in before["fail"]
    assert "LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false" in before["note"]
    assert f"legacy token of {server.email}" in before["ok"]

    backend = serve()
    server.connect_backend(project, backend.url)
    after = report(settings, project)
    assert after["fail"] == ""
    assert f"backend {backend.url} is connected" in after["ok"]
    assert "its webhook is registered" in after["ok"]
    (hook,) = server.call("GET", "/api/webhooks/", params={"project": project})
    server.call("DELETE", f"/api/webhooks/{hook['id']}/")
    assert "There is no active webhook" in report(settings, project)["note"]

    backend.stop()
    assert f"The connected backend {backend.url} is not in order" in report(settings, project)["fail"]
    wrong = settings_for(server, tmp_path / "doctor", label_studio_api_key="f" * 40)
    assert "does not accept the API key" in report(wrong, project)["fail"]


def test_a_guarded_label_studio_refuses_to_connect_but_local_files_are_predicted_without(tmp_path: Path):
    """With the defaults of 1.23.1 and later; `backfill` needs no connection."""
    files = tmp_path / "files" / "cats"
    files.mkdir(parents=True)
    for name, box in (("a.png", BOX), ("b.png", OTHER)):
        (files / name).write_bytes(picture(box))
    guarded = {
        "LABEL_STUDIO_ML_BLOCK_LOCAL_IP": "true",
        "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(files.parent),
    }
    with label_studio(tmp_path / "server", settings=guarded) as server:
        project = server.create_project("local files", CONFIG)
        with pytest.raises(ServerError, match="403"):
            server.connect_backend(project, "http://127.0.0.1:9")
        settings = settings_for(server, tmp_path / "data", label_studio_api_key=server.personal_access_token())
        found = report(settings, project)
        assert f"personal access token of {server.email}" in found["ok"]
        assert "LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false" in found["note"]

        storage = {"project": project, "path": str(files), "use_blob_urls": True, "regex_filter": ".*png"}
        made = server.call("POST", "/api/storages/localfiles", json=storage)
        server.call("POST", f"/api/storages/localfiles/{made['id']}/sync")
        assert_predicted_after_one(server, project, settings)


@pytest.mark.parametrize(("serving", "status"), [("false", 403), ("true", 404)])
def test_a_local_file_that_label_studio_does_not_serve(tmp_path: Path, serving: str, status: int):
    """With the right key: the serving is switched off, or the document root is not above the file."""
    switches = {
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": serving,
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(tmp_path),
    }
    with label_studio(tmp_path / "server", settings=switches) as server:
        client = Client(server.url, server.token, timeout=20)
        with pytest.raises(BackendError, match=r"/data/local-files/\?d=cats/a\.png") as caught:
            fetch_image(client, "/data/local-files/?d=cats/a.png", tmp_path / "a", 10**6)
        assert f"({status})" in str(caught.value)
        assert "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true" in str(caught.value)


def test_connecting_with_a_key_that_is_refused_shows_the_sentence(server: LabelStudio, tmp_path: Path):
    """Label Studio shows of a failed set-up the line with its status."""
    project = server.create_project("wrong key", CONFIG)
    with backends(tmp_path, server.url, "f" * 40) as start:
        backend = start()
        wait_for(lambda: not requests.get(f"{backend.url}/ready", timeout=5).ok, "the key to be refused")
        answer = requests.post(
            f"{server.url}/api/ml/",
            json={"project": project, "url": backend.url},
            headers={"Authorization": f"Token {server.token}"},
            timeout=60,
        )
        assert answer.status_code == 400
        assert "does not accept the API key" in answer.text


@pytest.mark.parametrize("presign", [True, False])
def test_images_in_cloud_storage(server: LabelStudio, tmp_path: Path, presign: bool):
    project = server.create_project("bucket", CONFIG)
    with bucket({"a.png": picture(BOX), "b.png": picture(OTHER)}) as (url, keys_seen):
        storage = {
            "project": project,
            "title": "bucket",
            "bucket": "cats",
            "s3_endpoint": url,
            "aws_access_key_id": "access",
            "aws_secret_access_key": "secret",
            "region_name": "us-east-1",
            "use_blob_urls": True,
            "presign": presign,
            "regex_filter": ".*png",
        }
        made = server.call("POST", "/api/storages/s3", json=storage)
        server.call("POST", f"/api/storages/s3/{made['id']}/sync")
        assert_predicted_after_one(server, project, settings_for(server, tmp_path / "data"))
    assert not any(server.token in seen for seen in keys_seen)


def assert_predicted_after_one(server: LabelStudio, project: int, settings: Settings) -> None:
    """Of two tasks made by a storage, the first is annotated and the second predicted, exactly."""
    tasks = server.call("GET", "/api/tasks", params={"project": project, "fields": "all"})["tasks"]
    first, second = sorted(tasks, key=lambda task: task["storage_filename"] or "")
    server.annotate(first["id"], [brush(BOX, "cat")])
    *_, states = backfill(settings, project, segmenter=THRESHOLD)
    assert [(state["task"], state["state"], state["error"]) for state in states] == [(second["id"], "delivered", None)]
    (prediction,) = server.predictions(project)
    mask = sdk_brush.masks(prediction["result"])["cat"]
    assert mask[OTHER[0] : OTHER[1], OTHER[2] : OTHER[3]].all()
    assert mask.sum() == (OTHER[1] - OTHER[0]) * (OTHER[3] - OTHER[2])


@contextmanager
def bucket(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """As much of S3 as Label Studio asks for: one bucket `cats`; yields its address and the headers that it saw."""
    app = Flask("bucket")
    seen: list[str] = []

    @app.before_request
    def note() -> None:
        seen.append(str(request.headers))

    @app.get("/cats")
    def listing() -> Response:
        entries = "".join(
            f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{name}</ETag>"
            f"<Size>{len(content)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for name, content in files.items()
        )
        text = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>cats</Name><Prefix></Prefix><KeyCount>{len(files)}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        )
        return Response(text, mimetype="application/xml")

    @app.get("/cats/<name>")
    def file(name: str) -> Response:
        return Response(files[name], mimetype="image/png")

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
