"""Where images are fetched from, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask, redirect, request
from werkzeug.serving import make_server

from backend.errors import BackendError, ImageServerFault, ImageUnavailable, LabelStudioDenied, LabelStudioUnreachable
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.image_hosts import PrivateHosts
from backend.labelstudio.images import fetch_image
from tests.support.fake_label_studio import LEGACY_KEY, picture

IMAGE = picture((1, 9, 1, 9))
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><body><form><input type='password'></form></body></html>"
STARTING = b"<html><body>The server is being started.</body></html>"
LIMIT = 10**6
OTHER_NAMES = ("127.1", "localhost", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "127.0.0.2")


class Pictures:
    """A server on all of this machine's loopback addresses: pictures, pages, and redirects to wherever a path says."""

    def __init__(self) -> None:
        app = Flask("pictures")
        self.hosts: list[str] = []
        self.local_status = 200

        @app.get("/<path:name>")
        def serve(name: str):
            self.hosts.append(request.host)
            if name == "to":
                return redirect(request.args["url"])
            if name == "data/local-files/":
                return "", self.local_status
            return {"page": PAGE, "starting": STARTING, "user/login": PAGE}.get(name, IMAGE)

        self._server = make_server("0.0.0.0", 0, app, threaded=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def client(self, private_hosts: str = "", url: str = "") -> LabelStudio:
        """A connection to a Label Studio that is here too."""
        url = url or f"http://127.0.0.1:{self.port}"
        return LabelStudio(url, LEGACY_KEY, timeout=5, private_hosts=PrivateHosts.parse(private_hosts))


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    found = Pictures()
    yield found
    found.close()


@pytest.mark.parametrize("name", OTHER_NAMES)
@pytest.mark.parametrize("redirected", [False, True])
def test_no_address_inside_is_asked(pictures: Pictures, tmp_path: Path, name: str, redirected: bool):
    inside = f"http://{name}:{pictures.port}/a.png"
    start = f"/to?url={inside}" if redirected else inside
    with pytest.raises(ImageUnavailable, match="CAVSAM_PRIVATE_IMAGE_HOSTS") as caught:
        fetch_image(pictures.client(), start, tmp_path / "a", LIMIT)
    assert caught.value.permanent
    assert len(pictures.hosts) == redirected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("allowed", ["localhost", "127.0.0.0/8, ::1", "*"])
def test_the_setting_opens_what_it_names(pictures: Pictures, tmp_path: Path, allowed: str):
    fetch_image(pictures.client(allowed), f"http://localhost:{pictures.port}/a.png", tmp_path / "a", LIMIT)
    assert (tmp_path / "a").read_bytes() == IMAGE


def test_label_studio_may_send_on_to_its_own_host(pictures: Pictures, tmp_path: Path):
    """As to a storage that runs beside it, on another port."""
    storage = Pictures()
    try:
        address = f"/to?url=http://127.0.0.1:{storage.port}/bucket/a.png"
        fetch_image(pictures.client(), address, tmp_path / "a", LIMIT)
        assert (tmp_path / "a").read_bytes() == IMAGE
        with pytest.raises(ImageUnavailable):  # but a task may not name that port itself
            fetch_image(pictures.client(), f"http://127.0.0.1:{storage.port}/a.png", tmp_path / "b", LIMIT)
    finally:
        storage.close()


def test_the_address_that_was_checked_is_connected_to(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A name that resolves to something else with every question, as in DNS rebinding."""
    answers = iter([["127.0.0.7", "169.254.169.254"], ["169.254.169.254"]])
    resolved = socket.getaddrinfo

    def resolve(host: str, port: int, *args: object, **kwargs: object):
        if host != "pictures.example":
            return resolved(host, port, *args, **kwargs)  # type: ignore[arg-type]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(answers)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    client = pictures.client("127.0.0.0/8", url="http://label-studio.example")
    address = f"http://pictures.example:{pictures.port}/a.png"
    fetch_image(client, address, tmp_path / "a", LIMIT)
    assert (tmp_path / "a").read_bytes() == IMAGE
    assert pictures.hosts == [f"pictures.example:{pictures.port}"]  # its own name is what the server was asked for
    again = pictures.client("127.0.0.0/8", url="http://label-studio.example")  # a connection is not kept for long
    with pytest.raises(ImageUnavailable, match=r"169\.254\.169\.254"):
        fetch_image(again, address, tmp_path / "b", LIMIT)


def test_a_web_page_is_the_servers_fault_and_not_the_images(pictures: Pictures, tmp_path: Path):
    with pytest.raises(LabelStudioUnreachable, match="log-in page"):
        fetch_image(pictures.client(), "/page", tmp_path / "a", LIMIT)
    with pytest.raises(ImageServerFault, match="log-in page") as caught:
        fetch_image(pictures.client("localhost"), f"http://localhost:{pictures.port}/page", tmp_path / "a", LIMIT)
    assert not caught.value.permanent
    assert list(tmp_path.iterdir()) == []


def test_a_page_without_a_password_field_is_not_called_a_log_in_page(pictures: Pictures, tmp_path: Path):
    with pytest.raises(LabelStudioUnreachable, match="a web page, such as") as caught:
        fetch_image(pictures.client(), "/starting", tmp_path / "a", LIMIT)
    assert "log-in" not in str(caught.value)


def test_label_studios_own_log_in_page_is_named_with_what_it_means(pictures: Pictures, tmp_path: Path):
    with pytest.raises(LabelStudioDenied, match="Label Studio's log-in page: the API key does not open it"):
        fetch_image(pictures.client(), "/to?url=/user/login?next=/a.png", tmp_path / "a", LIMIT)


@pytest.mark.parametrize(
    ("status", "kind"), [(403, LabelStudioDenied), (404, ImageUnavailable), (400, ImageUnavailable)]
)
def test_a_local_file_that_is_not_served_names_the_file_and_the_switches(
    pictures: Pictures, tmp_path: Path, status: int, kind: type[BackendError]
):
    pictures.local_status = status
    with pytest.raises(kind) as caught:
        fetch_image(pictures.client(), "/data/local-files/?d=cats/a%20b.png&token=secret", tmp_path / "a", LIMIT)
    said = str(caught.value)
    assert "/data/local-files/?d=cats/a b.png" in said
    assert "secret" not in said
    for setting in ("LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true", "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"):
        assert setting in said
    assert "key of a member" not in said  # with the right key it is the same


def test_another_hosts_address_of_that_form_is_not_label_studios(pictures: Pictures, tmp_path: Path):
    pictures.local_status = 403
    address = f"http://localhost:{pictures.port}/data/local-files/?d=a.png"
    with pytest.raises(ImageUnavailable, match="status 403") as caught:
        fetch_image(pictures.client("localhost"), address, tmp_path / "a", LIMIT)
    assert "LABEL_STUDIO" not in str(caught.value)
