"""HTTP as the client uses it: when a call is repeated, and answers as values or as errors with a remedy."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError, ReadTimeoutError
from urllib3.util import Retry

from backend.errors import (
    LabelStudioDenied,
    LabelStudioError,
    LabelStudioNotFound,
    LabelStudioRejected,
    LabelStudioUnreachable,
)
from backend.text import read_json, whole

RETRIED_STATUSES = frozenset({429, *range(500, 600)})
"""Statuses after which the same call may succeed a little later."""
RETRY = Retry(
    total=3,
    backoff_factor=0.5,
    status_forcelist=RETRIED_STATUSES,
    allowed_methods=None,
    raise_on_status=False,
    retry_after_max=10,
)
"""Repeats of a call that changes nothing: 0, 1 and 2 seconds apart, or as `Retry-After` says, up to 10 seconds."""


def session(retry: Retry | None = None) -> requests.Session:
    """Open a session whose calls are repeated as `retry` says, or not at all."""
    opened = requests.Session()
    if retry is not None:
        for scheme in ("http://", "https://"):
            opened.mount(scheme, HTTPAdapter(max_retries=retry))
    return opened


def check_status(response: requests.Response, path: str) -> None:
    """Raise the `LabelStudioError` of an answer's status."""
    status = response.status_code
    if status < 300:
        return
    if status < 400:  # never followed: the key and what is stored belong to the configured address
        raise LabelStudioError(
            f"Label Studio sends {path} on to {shown(response.headers.get('Location', 'nowhere'))} ({status}); set "
            "LABEL_STUDIO_URL to the address that answers by itself, such as https instead of http."
        )
    if status == 401:
        raise LabelStudioDenied(
            "Label Studio does not accept the API key (401). Copy the token again from Account & Settings; a legacy "
            "token also has to be enabled by the organisation's owner, a personal access token always works."
        )
    if status == 403:
        raise LabelStudioDenied(
            f"The API key's user may not call {path} (403); use a key of a user who may manage the project."
        )
    if status == 404 and not _is_own(response):  # an ingress's, while Label Studio is being deployed
        raise LabelStudioUnreachable(
            f"What answers 404 to {path} is not Label Studio; check LABEL_STUDIO_URL and the proxy before it."
        )
    if status == 404:
        raise LabelStudioNotFound(f"Label Studio has no {path}: {_detail(response)}")
    if status in RETRIED_STATUSES:
        raise LabelStudioUnreachable(
            f"Label Studio answered {status} to {path}: {_detail(response)}", sent=status not in (429, 503)
        )
    raise LabelStudioRejected(f"Label Studio refused {path} ({status}): {_detail(response)}")


def _is_own(response: requests.Response) -> bool:
    """Whether an error answer has the body that Label Studio gives its own."""
    try:
        answer = read_json(response.content)
    except ValueError:
        return False
    return isinstance(answer, dict) and "detail" in answer


def _detail(response: requests.Response, length: int = 300) -> str:
    """What an error answer says, shortened: validation errors repeat the whole region."""
    try:
        answer = read_json(response.content)
    except ValueError:
        return response.reason or "no reason given"
    errors = answer.get("validation_errors") or answer.get("detail") if isinstance(answer, dict) else answer
    if isinstance(errors, dict):
        errors = [message for messages in errors.values() for message in _as_list(messages)]
    text = "; ".join(str(message) for message in _as_list(errors))
    return text if len(text) <= length else text[:length] + "..."


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def json_of(response: requests.Response) -> Any:
    """Read an answer's JSON; raises `LabelStudioError` if something else than Label Studio answered."""
    try:
        return read_json(response.content)
    except ValueError as error:
        raise LabelStudioError(
            f"What answers at {shown(response.url)} is not Label Studio's API; check LABEL_STUDIO_URL."
        ) from error


def unreachable(url: str, error: Exception) -> LabelStudioUnreachable:
    """Say that no answer came from `url`, which may be no address at all."""
    never_connected = isinstance(error, requests.ConnectTimeout) or "NewConnectionError" in repr(error)
    return LabelStudioUnreachable(
        f"Label Studio cannot be reached at {shown(url)}: {cause(error)}. Check LABEL_STUDIO_URL and that it runs.",
        sent=not never_connected,
    )


def cause(error: Exception) -> str:
    """Name in a few words why a call failed."""
    given_up = error.args[0] if error.args else None
    timed_out = isinstance(given_up, MaxRetryError) and isinstance(given_up.reason, ReadTimeoutError)
    if timed_out or isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "the connection failed"
    return type(error).__name__


def shown(address: str) -> str:
    """An address without its query, which may hold a signature."""
    return whole(address.split("?")[0][:200])
