from __future__ import annotations

import base64
import contextlib
import logging
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask, redirect, request
from werkzeug.serving import make_server

from backend.entities import Task
from backend.errors import (
    BackendError,
    ImageNotKept,
    ImageUnavailable,
    LabelStudioDenied,
    LabelStudioError,
    LabelStudioNotFound,
    LabelStudioRejected,
    LabelStudioUnreachable,
)
from backend.image_folder import ImageFolder
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.image_hosts import PrivateHosts
from backend.labelstudio.images import fetch_image
from backend.labelstudio.label_config import parse_label_config
from tests.support.fake_label_studio import LEGACY_KEY, PERSONAL_TOKEN, FakeLabelStudio, picture

IMAGE = picture((1, 9, 1, 9))
LIMIT = 10**6
LOCALHOST = PrivateHosts.parse("localhost")


@pytest.fixture
def client(label_studio: FakeLabelStudio) -> LabelStudio:
    return LabelStudio(label_studio.url, LEGACY_KEY, timeout=5, private_hosts=LOCALHOST)


class OtherHost:
    """A storage host: serves pictures, and notes whether it was shown a key."""

    def __init__(self, back_to: str = ""):
        app = Flask("other-host")
        self.authorizations: list[str | None] = []

        @app.get("/<path:name>")
        def serve(name: str):
            self.authorizations.append(request.headers.get("Authorization"))
            if name == "there":
                return redirect(back_to)
            if name == "missing.png":
                return "gone", 404
            return IMAGE

        self.server = make_server("127.0.0.1", 0, app, threaded=True)
        self.url = f"http://localhost:{self.server.server_port}"  # another host name than Label Studio's
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def other_host() -> Iterator[OtherHost]:
    host = OtherHost()
    yield host
    host.server.shutdown()
    host.server.server_close()


def test_lists_all_pages(label_studio: FakeLabelStudio, client: LabelStudio, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backend.labelstudio.client.PAGE_SIZE", 3)
    project = label_studio.add_project()
    numbers = [label_studio.add_task(project, IMAGE) for _ in range(6)]
    assert [task["id"] for task in client.tasks(project)] == numbers
    assert [call[1] for call in label_studio.calls].count("/api/tasks") == 2


def test_finds_the_tasks_that_hold_a_version(label_studio: FakeLabelStudio, client: LabelStudio):
    project = label_studio.add_project()
    a, b, c = (label_studio.add_task(project, IMAGE) for _ in range(3))
    for task, version in ((a, "v1"), (b, "v2"), (c, "v1")):
        label_studio.store(task, [], 0.5, version)
    assert client.tasks_with_prediction(project, "v1") == {a, c}
    assert client.tasks_with_prediction(project, "v1", between=(b, c)) == {c}


def test_a_personal_token_is_exchanged_once_and_renewed(label_studio: FakeLabelStudio):
    client = LabelStudio(label_studio.url, PERSONAL_TOKEN, timeout=5)
    project = label_studio.add_project()
    for _ in range(3):
        client.project(project)
    assert label_studio.exchanges == 1
    assert set(label_studio.authorizations(f"/api/projects/{project}/")) == {
        f"Bearer {token}" for token in label_studio.access_tokens
    }
    label_studio.access_tokens.clear()  # revoked before its time
    assert client.project(project)["id"] == project
    assert label_studio.exchanges == 2


def test_a_short_lived_token_is_renewed_before_it_ends(label_studio: FakeLabelStudio):
    label_studio.token_life = 5.0  # less than the margin kept
    client = LabelStudio(label_studio.url, PERSONAL_TOKEN, timeout=5)
    project = label_studio.add_project()
    client.project(project)
    client.project(project)
    assert label_studio.exchanges == 2


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "no API key"),
        ("f" * 40, "does not accept the API key"),
        (PERSONAL_TOKEN + "x", "does not accept the personal access token"),
    ],
)
def test_a_bad_key_is_told_plainly(label_studio: FakeLabelStudio, key: str, words: str):
    with pytest.raises(LabelStudioDenied, match=words):
        LabelStudio(label_studio.url, key).project(1)


def test_keys_never_reach_the_log(label_studio: FakeLabelStudio, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    project = label_studio.add_project()
    for key in (LEGACY_KEY, PERSONAL_TOKEN):
        LabelStudio(label_studio.url, key).project(project)
    secrets = [LEGACY_KEY, PERSONAL_TOKEN, *label_studio.access_tokens]
    assert not any(secret in caplog.text for secret in secrets)


def test_errors_have_types(label_studio: FakeLabelStudio, client: LabelStudio):
    with pytest.raises(LabelStudioNotFound):
        client.project(77)
    project = label_studio.add_project()
    with pytest.raises(LabelStudioRejected, match="not found in project"):
        client.import_predictions(project, '[{"task": 99, "result": [], "score": 0, "model_version": "v"}]')
    label_studio.failures.drop_import_answers = 1
    with pytest.raises(LabelStudioUnreachable) as caught:
        client.import_predictions(project, "[]")
    assert caught.value.sent


def test_nobody_there_means_nothing_was_sent():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(LabelStudioUnreachable, match="Check LABEL_STUDIO_URL") as caught:
        LabelStudio(f"http://127.0.0.1:{port}", LEGACY_KEY, timeout=1).import_predictions(1, "[]")
    assert not caught.value.sent


def test_something_else_at_the_address(other_host: OtherHost):
    with pytest.raises(LabelStudioError, match="is not Label Studio's API"):
        LabelStudio(other_host.url, LEGACY_KEY, timeout=2).project(1)


def test_fetches_an_upload_with_the_key(label_studio: FakeLabelStudio, client: LabelStudio, tmp_path: Path):
    task = label_studio.add_task(label_studio.add_project(), IMAGE)
    for number, address in enumerate((f"/data/upload/{task}.png", f"{label_studio.url}/data/upload/{task}.png")):
        fetch_image(client, address, tmp_path / str(number), LIMIT)
        assert (tmp_path / str(number)).read_bytes() == IMAGE


def test_other_hosts_do_not_see_the_key(client: LabelStudio, other_host: OtherHost, tmp_path: Path):
    fetch_image(client, f"{other_host.url}/a.png?signature=1", tmp_path / "a", LIMIT)
    assert (tmp_path / "a").read_bytes() == IMAGE
    assert other_host.authorizations == [None]


@pytest.mark.parametrize(
    "address",
    [
        "/http://{evil}/x",
        " //{evil}/x",
        "\t//{evil}/x",
        "//{evil}/x",
        "http://{evil}\\@{ours}/x",
        "http://{ours}@{evil}/x",
        "http:{evil}/x",
        "http:////{evil}/x",
    ],
)
def test_no_spelling_of_an_address_takes_the_key_elsewhere(
    client: LabelStudio, label_studio: FakeLabelStudio, other_host: OtherHost, tmp_path: Path, address: str
):
    hosts = {"evil": other_host.url.removeprefix("http://"), "ours": label_studio.url.removeprefix("http://")}
    with contextlib.suppress(BackendError):
        fetch_image(client, address.format(**hosts), tmp_path / "a", LIMIT)
    assert not any(LEGACY_KEY in (authorization or "") for authorization in other_host.authorizations)


def test_a_redirect_to_another_host_loses_the_key(other_host: OtherHost, tmp_path: Path):
    relay = OtherHost(back_to=f"{other_host.url}/a.png")
    relay_url = relay.url.replace("localhost", "127.0.0.1")
    fetch_image(LabelStudio(relay_url, LEGACY_KEY, private_hosts=LOCALHOST), "/there", tmp_path / "a", LIMIT)
    relay.server.shutdown()
    relay.server.server_close()
    assert relay.authorizations == [f"Token {LEGACY_KEY}"]
    assert other_host.authorizations == [None]
    assert (tmp_path / "a").read_bytes() == IMAGE


def test_the_address_that_people_use_leads_to_the_configured_one(label_studio: FakeLabelStudio, tmp_path: Path):
    client = LabelStudio(label_studio.url, LEGACY_KEY, public_url="https://labels.example.org/")
    task = label_studio.add_task(label_studio.add_project(), IMAGE)
    fetch_image(client, f"https://labels.example.org/data/upload/{task}.png", tmp_path / "a", LIMIT)
    assert (tmp_path / "a").read_bytes() == IMAGE


def test_an_image_inside_its_address(client: LabelStudio, tmp_path: Path):
    text = base64.b64encode(IMAGE).decode()
    fetch_image(client, f"data:image/png;base64,{text}", tmp_path / "a", LIMIT)
    assert (tmp_path / "a").read_bytes() == IMAGE
    with pytest.raises(ImageUnavailable, match="not valid base64"):
        fetch_image(client, "data:image/png;base64,???", tmp_path / "b", LIMIT)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://bucket/a.png", "Cloud Storage"),
        ("/data/upload/none.png", "status 404"),
        ("file:///etc/x", "not resolved"),
    ],
)
def test_images_that_never_come(client: LabelStudio, tmp_path: Path, address: str, words: str):
    with pytest.raises(ImageUnavailable, match=words) as caught:
        fetch_image(client, address, tmp_path / "a", LIMIT)
    assert caught.value.permanent
    assert list(tmp_path.iterdir()) == []


def test_a_missing_image_elsewhere_is_permanent_and_an_absent_host_is_not(
    client: LabelStudio, other_host: OtherHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backend.labelstudio.client.RETRY", None)
    with pytest.raises(ImageUnavailable) as caught:
        fetch_image(client, f"{other_host.url}/missing.png", tmp_path / "a", LIMIT)
    assert caught.value.permanent
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ImageUnavailable) as caught:
        fetch_image(client, f"http://localhost:{port}/a.png", tmp_path / "a", LIMIT)
    assert not caught.value.permanent


def test_a_file_that_is_too_large_is_not_kept(label_studio: FakeLabelStudio, client: LabelStudio, tmp_path: Path):
    task = label_studio.add_task(label_studio.add_project(), IMAGE)
    with pytest.raises(ImageUnavailable, match="CAVSAM_MAX_IMAGE_MB"):
        fetch_image(client, f"/data/upload/{task}.png", tmp_path / "a", len(IMAGE) - 1)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 10 bytes: the system refuses to write, as on a full disk.

    Not a fixture: pytest reports before these end, and may do so into a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["upload", "data address", "web address"])
def test_an_image_for_which_there_is_no_room_leaves_nothing(
    client: LabelStudio,
    label_studio: FakeLabelStudio,
    other_host: OtherHost,
    tmp_path: Path,
    kind: str,
):
    task = label_studio.add_task(label_studio.add_project(), IMAGE)
    address = {
        "upload": f"/data/upload/{task}.png",
        "data address": f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}",
        "web address": f"{other_host.url}/a.png",
    }[kind]
    told = r"The folder .* cannot be written \(File too large\); make room"
    with small_files(), pytest.raises(ImageNotKept, match=told) as caught:
        fetch_image(client, address, tmp_path / "a", LIMIT)
    assert not caught.value.permanent
    assert list(tmp_path.iterdir()) == []


def test_an_image_broken_off_leaves_nothing(client: LabelStudio, label_studio: FakeLabelStudio, tmp_path: Path):
    label_studio.failures.cut_files = True
    task = label_studio.add_task(label_studio.add_project(), IMAGE)
    with pytest.raises(LabelStudioUnreachable, match="broke off"):
        fetch_image(client, f"/data/upload/{task}.png", tmp_path / "a", LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_two_threads_may_fetch_the_same_image(client: LabelStudio, label_studio: FakeLabelStudio, tmp_path: Path):
    task = label_studio.add_task(label_studio.add_project(), IMAGE)
    label_studio.failures.slow = 0.05
    threads = [
        threading.Thread(target=fetch_image, args=(client, f"/data/upload/{task}.png", tmp_path / "a", LIMIT))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == IMAGE


@pytest.mark.parametrize("presigned", [True, False])
@pytest.mark.parametrize("path", ["/tasks/7/resolve/?fileuri=czM6Ly9iL2EucG5n", "/tasks/7/presign/?fileuri=czM6Ly9i"])
def test_cloud_storage_through_label_studio(other_host: OtherHost, tmp_path: Path, path: str, presigned: bool):
    """Label Studio either sends on to the storage, which must not see the key, or passes the file through."""
    app = Flask("storage-proxy")
    asked: list[tuple[str, str | None]] = []

    @app.get("/tasks/<int:task>/<way>/")
    def proxy(task: int, way: str):
        asked.append((request.args["fileuri"], request.headers.get("Authorization")))
        return redirect(f"{other_host.url}/a.png?X-Amz-Signature=secret", 303) if presigned else IMAGE

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        ours = LabelStudio(f"http://127.0.0.1:{server.server_port}", LEGACY_KEY, private_hosts=LOCALHOST)
        fetch_image(ours, path, tmp_path / "a", LIMIT)
    finally:
        server.shutdown()
        server.server_close()
    assert (tmp_path / "a").read_bytes() == IMAGE
    assert asked == [(path.rpartition("=")[2], f"Token {LEGACY_KEY}")]
    assert other_host.authorizations == ([None] if presigned else [])


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    """The address of an application while the block runs."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_busy_server_is_asked_again_when_it_says_and_told_once():
    app = Flask("busy")
    calls: list[str] = []

    @app.route("/api/projects/1/", methods=["GET", "PATCH"])
    def project():
        calls.append(request.method)
        return {"id": 1} if len(calls) == 2 else ("busy", 429, {"Retry-After": "0"})

    with serving(app) as url:
        client = LabelStudio(url, LEGACY_KEY, timeout=5)
        assert client.project(1) == {"id": 1}
        with pytest.raises(LabelStudioUnreachable, match="429"):
            client.set_model_version(1, "v")
    assert calls == ["GET", "GET", "PATCH"]


@pytest.mark.parametrize("key", [LEGACY_KEY, PERSONAL_TOKEN])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_of_the_api_is_not_followed(key: str, status: int):
    """A 307 would pass the token exchange's body, which is the personal access token, to any host."""
    seen: list[bytes] = []
    elsewhere, here = Flask("elsewhere"), Flask("here")

    @elsewhere.route("/<path:path>", methods=["GET", "POST"])
    def take(path: str):
        seen.append(request.get_data())
        return {"id": 1, "access": "x"}

    with serving(elsewhere) as other:

        @here.route("/<path:path>", methods=["GET", "POST"])
        def send_on(path: str):
            return redirect(f"{other}/{path}", status)

        with serving(here) as url, pytest.raises(LabelStudioError, match="set LABEL_STUDIO_URL"):
            LabelStudio(url, key, timeout=5).project(1)
    assert seen == []


def test_nobody_else_may_read_the_images_in_work(client: LabelStudio, label_studio: FakeLabelStudio, tmp_path: Path):
    before = os.umask(0)
    try:
        project = label_studio.add_project()
        tasks = [label_studio.add_task(project, IMAGE), label_studio.add_task(project)]
        label_studio.tasks[tasks[1]]["data"] = {"image": f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}"}
        folder = ImageFolder(tmp_path / "images", LIMIT)
        config = parse_label_config(label_studio.projects[project]["label_config"])
        paths = [
            Path(folder.fetch(client, config, Task(project, task, data, False, ""), ["image"])["image"])
            for task, data in ((task, label_studio.tasks[task]["data"]) for task in tasks)
        ]
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o600, 0o600]
    assert (tmp_path / "images").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("body", ["<h1>404 Not Found</h1>", "", "default backend - 404", "{}", "[]"])
def test_a_404_that_is_not_label_studios_own_says_nothing_of_a_project(body: str):
    app = Flask("ingress")
    app.register_error_handler(404, lambda error: (body, 404))
    with serving(app) as url, pytest.raises(LabelStudioUnreachable, match="is not Label Studio"):
        LabelStudio(url, LEGACY_KEY, timeout=5).project(1)
