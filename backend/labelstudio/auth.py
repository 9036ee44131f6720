"""Keys of Label Studio's API: legacy tokens as they are, personal access tokens exchanged for short-lived ones."""

from __future__ import annotations

import base64
import json
import threading
import time

import requests
from requests.auth import AuthBase

from backend.errors import LabelStudioDenied
from backend.labelstudio.transport import RETRY, check_status, json_of, session, unreachable

TOKEN_MARGIN = 30.0
"""Seconds before its end at which a short-lived token is exchanged anew."""
TOKEN_LIFE = 240.0
"""Seconds that a short-lived token is used at most, and when it does not say how long it is valid."""


class KeyAuth(AuthBase):
    """Puts the key into a request: a legacy token as it is, a personal access token exchanged for a short-lived one."""

    def __init__(self, url: str, key: str, timeout: float):
        self._url, self._key, self._timeout = url, key, timeout
        self.personal = key.count(".") == 2
        self._lock = threading.Lock()
        self._access, self._good_until = "", 0.0

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header; raises `LabelStudioDenied` if there is no key or it is not accepted."""
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
            with session(RETRY) as opened:
                answer = opened.post(
                    f"{self._url}/api/token/refresh/",
                    json={"refresh": self._key},
                    timeout=(5.0, self._timeout),
                    allow_redirects=False,  # a 307 would have the key sent wherever it points
                )
        except (requests.RequestException, ValueError) as error:  # ValueError: the address cannot be encoded
            raise unreachable(self._url, error) from error
        if answer.status_code == 401:
            raise LabelStudioDenied(
                "Label Studio does not accept the personal access token; it may have expired or been revoked. Create "
                "a new one under Account & Settings and set LABEL_STUDIO_API_KEY."
            )
        check_status(answer, "/api/token/refresh/")
        return str(json_of(answer)["access"])


def _lifetime(token: str) -> float:
    """Seconds a JWT is valid for from its issue, so that the two machines' clocks need not agree."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return float(claims["exp"] - claims["iat"])
    except (IndexError, KeyError, TypeError, ValueError):
        return TOKEN_LIFE
