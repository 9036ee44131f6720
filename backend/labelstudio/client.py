"""Label Studio's HTTP API, as far as the backend needs it.

Only `requests` is used: the SDK's client would cost the web process 130 MB, and it sends personal access tokens as
they are where Label Studio wants them exchanged first.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

import requests
from requests.auth import AuthBase
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

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

log = logging.getLogger(__name__)

PAGE_SIZE = 200
TASK_FIELDS = "id,data,updated_at,total_annotations,cancelled_annotations,total_predictions"
PAUSES = (0.3, 1.0, 2.5)
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
TOKEN_MARGIN = 30.0
TOKEN_LIFE = 240.0
CHUNK = 1 << 16


class LabelStudio:
    """A connection to one Label Studio with one API key; may be used by several threads.

    `public_url` is the address under which people and tasks know the same Label Studio, where it differs from `url`.
    """

    def __init__(self, url: str, key: str, *, timeout: float = 30.0, public_url: str = ""):
        self.url = url.rstrip("/")
        self.public_url = public_url.rstrip("/")
        self._timeout = timeout
        self._auth = _KeyAuth(self.url, key, timeout)
        self._local = threading.local()

    # projects, tasks, annotations

    def project(self, project: int) -> dict[str, Any]:
        """The project's description; its `label_config` is the XML."""
        return self._get(f"/api/projects/{project}/")

    def set_model_version(self, project: int, version: str) -> None:
        """Have the project show, sort and sample by the predictions of one version."""
        self._request("PATCH", f"/api/projects/{project}/", json={"model_version": version})

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """All tasks of a project, without annotations and predictions; addresses in their data are resolved."""
        yield from self._task_pages(project, {"include": TASK_FIELDS})

    def tasks_with_prediction(
        self, project: int, version: str, *, between: tuple[int, int] | None = None, timeout: float | None = None
    ) -> set[int]:
        """The tasks that hold a prediction of `version`, all of them or those with numbers in `between`."""
        items: list[dict[str, Any]] = [
            {
                "filter": "filter:tasks:predictions_model_versions",
                "operator": "contains",
                "type": "List",
                "value": [version],
            }
        ]
        if between is not None:
            low, high = between
            items.append(
                {"filter": "filter:tasks:id", "operator": "in", "type": "Number", "value": {"min": low, "max": high}}
            )
        query = json.dumps({"filters": {"conjunction": "and", "items": items}})
        pages = self._task_pages(project, {"include": "id", "query": query}, timeout=timeout)
        return {int(task["id"]) for task in pages}

    def annotations(self, task: int) -> list[dict[str, Any]]:
        """A task's annotations with their results; Label Studio leaves the cancelled ones out."""
        found = self._get(f"/api/tasks/{task}/annotations/")
        return [dict(annotation, task=task) for annotation in found]

    def annotation(self, annotation: int) -> dict[str, Any]:
        """One annotation with its result."""
        return self._get(f"/api/annotations/{annotation}/")

    def backends(self, project: int, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """The machine learning backends connected to the project; Label Studio calls each of them to answer this."""
        return self._get("/api/ml", {"project": project}, timeout=timeout)

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        """The project's webhooks."""
        return self._get("/api/webhooks/", {"project": project})

    def add_webhook(self, project: int, url: str) -> None:
        """Have Label Studio send the project's events to `url`; raises `LabelStudioRejected` where it will not."""
        body = {"project": project, "url": url, "send_payload": True, "send_for_all_actions": True, "is_active": True}
        self._request("POST", "/api/webhooks/", json=body)

    def version(self) -> dict[str, Any]:
        """What runs there, with `release`; needs no key."""
        return _json(self._request("GET", "/api/version", auth=None))

    @property
    def has_personal_token(self) -> bool:
        """Whether the key is a personal access token."""
        return self._auth.personal

    def user(self) -> dict[str, Any]:
        """The user whose key this is."""
        return self._get("/api/current-user/whoami")

    # predictions

    def import_predictions(self, project: int, body: str) -> int:
        """Store predictions, given as the JSON text of a list; returns how many Label Studio says it created.

        Raises `LabelStudioRejected` where it found fault with one, and `LabelStudioUnreachable` with `sent` set where
        it may have stored them although no answer came.
        """
        answer = self._request(
            "POST",
            f"/api/projects/{project}/import/predictions",
            data=body.encode(),
            headers={"Content-Type": "application/json"},
        )
        return int(_json(answer)["created"])

    def predictions(self, task: int) -> list[dict[str, Any]]:
        """A task's predictions with their results."""
        return self._get("/api/predictions/", {"task": task})

    def prediction(self, prediction: int) -> dict[str, Any]:
        """One prediction with its result."""
        return self._get(f"/api/predictions/{prediction}/")

    def delete_prediction(self, prediction: int) -> None:
        """Remove one prediction."""
        self._request("DELETE", f"/api/predictions/{prediction}/")

    def delete_version(self, project: int, version: str) -> int:
        """Remove all predictions of a version from a project; returns how many there were."""
        path = f"/api/projects/{project}/model-versions/"
        return int(_json(self._request("DELETE", path, json={"model_version": version}))["deleted_predictions"])

    # images

    def fetch_image(self, address: str, path: Path, limit: int) -> None:
        """Write the file behind a task's image address to `path`; at most `limit` bytes.

        The key goes to Label Studio only, and a file that is there is whole. Raises `ImageUnavailable` (`ImageNotKept`
        where `path` cannot be written), `LabelStudioDenied` or `LabelStudioUnreachable`.
        """
        # of one's own: requests and the worker may fetch the same image at once
        part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
        try:
            if address.startswith("data:"):
                content = _inside(address, limit)
                with _writing(part.parent):
                    part.write_bytes(content)
            else:
                self._fetch_file(address, part, limit)
            with _writing(part.parent):
                part.replace(path)
        finally:
            with suppress(OSError):  # the folder itself may be gone
                part.unlink()

    def _fetch_file(self, address: str, path: Path, limit: int) -> None:
        url, ours = self._resolve(address)
        response = self._download(url, ours)
        with response:
            _check_download(response, url, ours)
            try:
                _stream(response, path, limit)
            except requests.RequestException as error:
                raise _image_away(f"The image {_shown(url)} broke off: {_cause(error)}.", ours) from error

    def _resolve(self, address: str) -> tuple[str, bool]:
        """The full address of an image and whether it is Label Studio's own.

        Whoever may import tasks chooses the address, so what counts is the host that will be connected to, as the
        library that connects reads it.
        """
        address = address.strip()
        if "\\" in address or any(ord(character) < 32 or ord(character) == 127 for character in address):
            raise ImageUnavailable(f"The image address {_shown(address)} is not valid.", permanent=True)
        parts = _split(address)
        if self.public_url and _same_origin(address, self.public_url):
            prefix = urlsplit(self.public_url).path.rstrip("/")
            if f"{parts.path}/".startswith(f"{prefix}/"):
                inside = parts.path.removeprefix(prefix)
                address = self.url + inside + (f"?{parts.query}" if parts.query else "")
                parts = _split(address)
        if parts.scheme in ("http", "https"):
            return address, _same_origin(_connected_to(address), self.url)
        if parts.scheme:
            raise ImageUnavailable(
                f"The image address {_shown(address)} is not resolved by Label Studio; add the storage it lies in to "
                "the project (Settings, Cloud Storage) or use a web address.",
                permanent=True,
            )
        return f"{self.url}/{address.lstrip('/')}", True

    def _download(self, url: str, ours: bool) -> requests.Response:
        last: requests.RequestException | None = None
        for pause in (0.0, *PAUSES[:2]):
            time.sleep(pause)
            try:
                return self._session().get(
                    url, auth=self._auth if ours else None, timeout=(5.0, self._timeout), stream=True
                )
            except (requests.ConnectionError, requests.Timeout) as error:
                last = error
            except (requests.RequestException, UnicodeError) as error:
                raise ImageUnavailable(f"The image address {_shown(url)} is not valid.", permanent=True) from error
        raise _image_away(f"The image {_shown(url)} cannot be fetched: {_cause(last)}.", ours) from last

    # requests

    def _session(self) -> requests.Session:
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
        return session

    def _task_pages(
        self, project: int, params: dict[str, Any], timeout: float | None = None
    ) -> Iterator[dict[str, Any]]:
        page, seen = 1, 0
        while True:
            page_params = {"project": project, "page": page, "page_size": PAGE_SIZE, "fields": "task_only", **params}
            try:
                answer = self._get("/api/tasks", page_params, timeout=timeout)
            except LabelStudioNotFound:
                if page == 1:
                    raise
                return  # tasks were deleted while we read: there is no such page any more
            tasks = answer["tasks"]
            yield from tasks
            seen += len(tasks)
            if not tasks or seen >= answer["total"]:
                return
            page += 1

    def _get(self, path: str, params: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        for pause in PAUSES if timeout is None else ():
            try:
                return _json(self._request("GET", path, params=params))
            except LabelStudioUnreachable as error:
                log.debug("%s Trying again in %.1f s.", error, pause)
                time.sleep(pause)
        return _json(self._request("GET", path, params=params, timeout=timeout))

    def _request(self, method: str, path: str, *, timeout: float | None = None, **kwargs: Any) -> requests.Response:
        wait = self._timeout if timeout is None else timeout
        arguments: dict[str, Any] = {"auth": self._auth, "timeout": (min(5.0, wait), wait)} | kwargs
        try:
            response = self._session().request(method, self.url + path, **arguments)
            if response.status_code == 401 and self._auth.renew():
                response = self._session().request(method, self.url + path, **arguments)
        except requests.RequestException as error:
            raise _unreachable(self.url, error) from error
        _check_status(response, path)
        return response


class _KeyAuth(AuthBase):
    """Puts the key into a request: a legacy token as it is, a personal access token exchanged for a short-lived one."""

    def __init__(self, url: str, key: str, timeout: float):
        self._url, self._key, self._timeout = url, key, timeout
        self.personal = key.count(".") == 2
        self._lock = threading.Lock()
        self._access, self._good_until = "", 0.0

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if not self._key:
            raise LabelStudioDenied(
                "There is no API key for Label Studio; set LABEL_STUDIO_API_KEY to a token from Account & Settings."
            )
        header = f"Bearer {self._access_token()}" if self.personal else f"Token {self._key}"
        request.headers["Authorization"] = header
        return request

    def renew(self) -> bool:
        """Forget the short-lived token, as after a 401; returns whether there was one."""
        with self._lock:
            had = bool(self._access)
            self._access = ""
            return had

    def _access_token(self) -> str:
        with self._lock:
            if not self._access or time.monotonic() >= self._good_until:
                asked = time.monotonic()
                self._access = self._exchange()
                self._good_until = asked + min(TOKEN_LIFE, _lifetime(self._access) - TOKEN_MARGIN)
            return self._access

    def _exchange(self) -> str:
        try:
            answer = requests.post(
                f"{self._url}/api/token/refresh/", json={"refresh": self._key}, timeout=(5.0, self._timeout)
            )
        except requests.RequestException as error:
            raise _unreachable(self._url, error) from error
        if answer.status_code == 401:
            raise LabelStudioDenied(
                "Label Studio does not accept the personal access token; it may have expired or been revoked. Create "
                "a new one under Account & Settings and set LABEL_STUDIO_API_KEY."
            )
        _check_status(answer, "/api/token/refresh/")
        return str(_json(answer)["access"])


def _lifetime(token: str) -> float:
    """Seconds a JWT is valid for from its issue, so that the two machines' clocks need not agree."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return float(claims["exp"] - claims["iat"])
    except (IndexError, KeyError, TypeError, ValueError):
        return TOKEN_LIFE


def _check_status(response: requests.Response, path: str) -> None:
    status = response.status_code
    if status < 400:
        return
    if status == 401:
        raise LabelStudioDenied(
            "Label Studio does not accept the API key (401). Copy the token again from Account & Settings; a legacy "
            "token also has to be enabled by the organisation's owner, a personal access token always works."
        )
    if status == 403:
        raise LabelStudioDenied(
            f"The API key's user may not call {path} (403); use a key of a user who may manage the project."
        )
    if status == 404:
        raise LabelStudioNotFound(f"Label Studio has no {path}: {_detail(response)}")
    if status in RETRIED_STATUSES or status >= 500:
        raise LabelStudioUnreachable(
            f"Label Studio answered {status} to {path}: {_detail(response)}", sent=status not in (429, 503)
        )
    raise LabelStudioRejected(f"Label Studio refused {path} ({status}): {_detail(response)}")


def _detail(response: requests.Response, length: int = 300) -> str:
    """What an error answer says, shortened: validation errors repeat the whole region."""
    try:
        answer = response.json()
    except ValueError:
        return response.reason or "no reason given"
    errors = answer.get("validation_errors") or answer.get("detail") if isinstance(answer, dict) else answer
    if isinstance(errors, dict):
        errors = [message for messages in errors.values() for message in _as_list(messages)]
    text = "; ".join(str(message) for message in _as_list(errors))
    return text if len(text) <= length else text[:length] + "..."


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _json(response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise LabelStudioError(
            f"What answers at {_shown(response.url)} is not Label Studio's API; check LABEL_STUDIO_URL."
        ) from error


def _unreachable(url: str, error: requests.RequestException) -> LabelStudioUnreachable:
    never_connected = isinstance(error, requests.ConnectTimeout) or "NewConnectionError" in repr(error)
    return LabelStudioUnreachable(
        f"Label Studio cannot be reached at {url}: {_cause(error)}. Check LABEL_STUDIO_URL and that it runs.",
        sent=not never_connected,
    )


def _cause(error: requests.RequestException | None) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "the connection failed"
    return type(error).__name__


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:
        raise ImageUnavailable(f"The image address {_shown(address)} is not valid.", permanent=True) from error


def _connected_to(address: str) -> str:
    """Scheme, host and port of `address` as urllib3, which makes the connection, reads them."""
    try:
        url = parse_url(address)
    except LocationParseError as error:
        raise ImageUnavailable(f"The image address {_shown(address)} is not valid.", permanent=True) from error
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


def _shown(address: str) -> str:
    """An address without its query, which may hold a signature."""
    return address.split("?")[0][:200]


def _image_away(message: str, ours: bool) -> BackendError:
    """For now there is no image: Label Studio's trouble, or that of another host."""
    return LabelStudioUnreachable(message) if ours else ImageUnavailable(message)


def _check_download(response: requests.Response, url: str, ours: bool) -> None:
    status = response.status_code
    if ours and (status in (401, 403) or "/user/login" in response.url):
        raise LabelStudioDenied(
            f"The API key does not open the image {_shown(url)} ({status}); use a key of a member of the project."
        )
    if status in RETRIED_STATUSES or status >= 500:
        raise _image_away(f"The image {_shown(url)} cannot be fetched: status {status}.", ours)
    if status >= 400:
        raise ImageUnavailable(
            f"The image {_shown(url)} cannot be fetched: status {status}. Check the address in the task's data.",
            permanent=True,
        )


def _stream(response: requests.Response, path: Path, limit: int) -> None:
    size = 0
    with _writing(path.parent), path.open("wb") as file:
        for chunk in response.iter_content(CHUNK):
            size += len(chunk)
            if size > limit:
                raise ImageUnavailable(
                    f"The image {_shown(response.url)} is larger than {limit / 1e6:g} MB; raise CAVSAM_MAX_IMAGE_MB.",
                    permanent=True,
                )
            file.write(chunk)


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
