"""Images of tasks: fetched from Label Studio or from where its tasks say, each into a file."""

from __future__ import annotations

import base64
import binascii
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, parse_qs, unquote_to_bytes, urlsplit

import requests
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from backend.errors import (
    BackendError,
    ImageNotKept,
    ImageServerFault,
    ImageUnavailable,
    LabelStudioDenied,
    LabelStudioUnreachable,
)
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.transport import RETRIED_STATUSES, cause, shown
from backend.text import whole

CHUNK = 1 << 16
PASSWORD_FIELD = re.compile(rb"""type\s*=\s*["']?password""", re.IGNORECASE)
LOCAL_FILES = "/data/local-files"
"""Label Studio's path for files of its own machine; which file is in the query."""
HOW_LOCAL_FILES_ARE_SERVED = (
    "Label Studio must be started with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and with "
    "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, a folder above the storage's own path"
)


def fetch_image(client: LabelStudio, address: str, path: Path, limit: int) -> None:
    """Write the file behind a task's image address to `path`; at most `limit` bytes.

    The key goes to Label Studio only, and a file that is there is whole. Raises `ImageUnavailable` (`ImageNotKept`
    where `path` cannot be written), `LabelStudioDenied` or `LabelStudioUnreachable`.
    """
    # of one's own: requests and the worker may fetch the same image at once
    part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
    try:
        if address.startswith("data:"):
            content = _inside(address, limit)
            with _writing(part.parent), _private(part) as file:
                file.write(content)
        else:
            _fetch_file(client, address, part, limit)
        with _writing(part.parent):
            part.replace(path)
    finally:
        with suppress(OSError):  # the folder itself may be gone
            part.unlink()


def _fetch_file(client: LabelStudio, address: str, path: Path, limit: int) -> None:
    url, ours = _resolve(client, address)
    response = _download(client, url, ours)
    with response:
        _check_download(response, url, ours)
        try:
            _stream(response, path, limit, ours)
        except requests.RequestException as error:
            raise _image_away(f"The image {_named(url)} broke off: {cause(error)}.", ours) from error


def _resolve(client: LabelStudio, address: str) -> tuple[str, bool]:
    """The full address of an image and whether it is Label Studio's own.

    Whoever may import tasks chooses the address, so what counts is the host that will be connected to, as the
    library that connects reads it.
    """
    address = address.strip()
    if "\\" in address or any(ord(character) < 32 or ord(character) == 127 for character in address):
        raise ImageUnavailable(f"The image address {shown(address)} is not valid.", permanent=True)
    parts = _split(address)
    if client.public_url and _same_origin(address, client.public_url):
        prefix = urlsplit(client.public_url).path.rstrip("/")
        if f"{parts.path}/".startswith(f"{prefix}/"):
            inside = parts.path.removeprefix(prefix)
            address = client.url + inside + (f"?{parts.query}" if parts.query else "")
            parts = _split(address)
    if parts.scheme in ("http", "https"):
        return address, _same_origin(_connected_to(address), client.url)
    if parts.scheme:
        raise ImageUnavailable(
            f"The image address {shown(address)} is not resolved by Label Studio; add the storage it lies in to "
            "the project (Settings, Cloud Storage) or use a web address.",
            permanent=True,
        )
    return f"{client.url}/{address.lstrip('/')}", True


def _download(client: LabelStudio, url: str, ours: bool) -> requests.Response:
    try:
        return client.open(url, with_key=ours)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _image_away(f"The image {_named(url)} cannot be fetched: {cause(error)}.", ours) from error
    except (requests.RequestException, UnicodeError) as error:
        raise ImageUnavailable(f"The image address {shown(url)} is not valid.", permanent=True) from error


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:
        raise ImageUnavailable(f"The image address {shown(address)} is not valid.", permanent=True) from error


def _connected_to(address: str) -> str:
    """Scheme, host and port of `address` as urllib3, which makes the connection, reads them."""
    try:
        url = parse_url(address)
    except LocationParseError as error:
        raise ImageUnavailable(f"The image address {shown(address)} is not valid.", permanent=True) from error
    return f"{url.scheme}://{url.host}" + (f":{url.port}" if url.port else "")


def _same_origin(address: str, base: str) -> bool:
    return _origin(address) == _origin(base)


def _origin(address: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return ("", None, None)
    return parts.scheme, parts.hostname, port or {"http": 80, "https": 443}.get(parts.scheme)


def _image_away(message: str, ours: bool) -> BackendError:
    """For now there is no image: Label Studio's trouble, or that of another host."""
    return LabelStudioUnreachable(message) if ours else ImageUnavailable(message)


def _check_download(response: requests.Response, url: str, ours: bool) -> None:
    status, local = response.status_code, ours and _is_local_file(url)
    if local and status == 403:  # whose key it is makes no difference
        raise LabelStudioDenied(
            f"Label Studio does not serve the local file {_named(url)} (403). {HOW_LOCAL_FILES_ARE_SERVED}."
        )
    if local and status in (400, 404):
        raise ImageUnavailable(
            f"Label Studio does not have the local file {_named(url)} ({status}), or its storage is not connected to "
            f"a project of the key's user. {HOW_LOCAL_FILES_ARE_SERVED}.",
            permanent=True,
        )
    if ours and "/user/login" in response.url:
        raise LabelStudioDenied(
            f"Instead of the image {_named(url)} came Label Studio's log-in page: the API key does not open it; use "
            "a key of a member of the project."
        )
    if ours and status in (401, 403):
        raise LabelStudioDenied(
            f"The API key does not open the image {_named(url)} ({status}); use a key of a member of the project."
        )
    if status in RETRIED_STATUSES:
        raise _image_away(f"The image {_named(url)} cannot be fetched: status {status}.", ours)
    if status >= 400:
        raise ImageUnavailable(
            f"The image {_named(url)} cannot be fetched: status {status}. Check the address in the task's data.",
            permanent=True,
        )


def _is_local_file(url: str) -> bool:
    return _split(url).path.rstrip("/").endswith(LOCAL_FILES)


def _named(url: str) -> str:
    """An image's address without its query, which may hold a signature, but for the name of a local file."""
    files = parse_qs(_split(url).query).get("d", []) if _is_local_file(url) else []
    return shown(url) + (f"?d={whole(files[0][:200])}" if files else "")


def _stream(response: requests.Response, path: Path, limit: int, ours: bool) -> None:
    size = 0
    with _writing(path.parent), _private(path) as file:
        for chunk in response.iter_content(CHUNK):
            if not size and _is_web_page(chunk):
                raise _page_instead(response.url, chunk, ours)
            size += len(chunk)
            if size > limit:
                raise ImageUnavailable(
                    f"The image {shown(response.url)} is larger than {limit / 1e6:g} MB; raise CAVSAM_MAX_IMAGE_MB.",
                    permanent=True,
                )
            file.write(chunk)


def _private(path: Path) -> BinaryIO:
    """A new file that only this process's user may read, whatever the umask."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _is_web_page(start: bytes) -> bool:
    text = start[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))


def _page_instead(url: str, page: bytes, ours: bool) -> BackendError:
    """A page of a log-in, a proxy or an ingress has status 200 and says nothing of the image behind it."""
    kind = (
        "a log-in page" if PASSWORD_FIELD.search(page) else "a web page, such as that of a server that is being started"
    )
    message = f"Instead of the image {_named(url)} came {kind}; open the address in a browser."
    return LabelStudioUnreachable(message) if ours else ImageServerFault(message)


def _inside(address: str, limit: int) -> bytes:
    """The picture that an address holds itself."""
    head, _, body = address.partition(",")
    try:
        content = base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise ImageUnavailable("The image's data address is not valid base64.", permanent=True) from error
    if len(content) > limit:
        raise ImageUnavailable(
            f"The image is larger than {limit / 1e6:g} MB; raise CAVSAM_MAX_IMAGE_MB.", permanent=True
        )
    return content


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into `ImageNotKept`; the network's errors, which are OSErrors too, pass."""
    try:
        yield
    except requests.RequestException:
        raise
    except OSError as error:
        raise ImageNotKept(f"The folder {folder} cannot be written ({error.strerror or error}); make room.") from error
