"""Whether Label Studio has our backend connected to a project."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from backend.errors import LabelStudioDenied, LabelStudioNotFound, LabelStudioRejected
from backend.labelstudio.client import LabelStudio
from backend.settings import EXTRA_PARAMS_LIMIT
from backend.version import VERSION_PREFIX
from backend.webhook_secret import HEADER

log = logging.getLogger(__name__)

CONNECT_PAUSES = (0.5, 2.0, 4.0, 8.0, 16.0)
"""Seconds to the next syncs of a project without a backend: Label Studio calls /setup before it stores one."""


def extra_params_text(extra_params: Any) -> str:
    """The JSON text of extra params: Label Studio's form hands on what was typed as it is, its API an object.

    What is too long to be used is cut, which keeps it useless.
    """
    typed = isinstance(extra_params, str)
    text = extra_params.strip() if typed else json.dumps(extra_params) if extra_params else ""
    return text[: EXTRA_PARAMS_LIMIT + 1]


class Connection:
    """The backends that Label Studio has for one project, and their webhooks."""

    def __init__(self, client: LabelStudio, project: int, webhook_secret: str):
        self._client, self.project, self._secret = client, project, webhook_secret
        self._missed = 0  # times in a row that there was none
        self.is_settled = False
        """Whether there was a backend, and its webhook is as it should be."""

    def check(self) -> bool:
        """Ask whether there is a backend; unless all is settled, its webhook is ensured as well."""
        try:
            backends = self._client.backends(self.project)
        except LabelStudioDenied:
            self._missed, self.is_settled = 0, True
            return True  # a key that may label but not administrate cannot ask
        if backends:
            self._missed = 0
        if backends and not self.is_settled:
            self.is_settled = True
            self._ensure_webhook(backends)
        return bool(backends)

    def has_extra_params(self, text: str) -> bool:
        """Whether Label Studio gave one of its backends these extra params: anybody may have called /setup."""
        try:
            backends = self._client.backends(self.project)
        except LabelStudioDenied:
            return True  # a key that may label but not administrate cannot ask
        return any(extra_params_text(backend.get("extra_params")) == text for backend in backends)

    def next_pause(self) -> float | None:
        """Seconds until a project without a backend is synchronised again; `None` for the usual interval."""
        if self._missed == 0:
            log.info("Project %d has no machine learning backend connected (yet); nothing is queued.", self.project)
        self._missed += 1
        return CONNECT_PAUSES[self._missed - 1] if self._missed <= len(CONNECT_PAUSES) else None

    def _ensure_webhook(self, backends: Iterable[Mapping[str, Any]]) -> None:
        """Register the webhook of each of our connections that has none, and have all of them carry the secret.

        Label Studio makes it when a backend is connected, but does not say if that failed. Events are only the fast
        way: without them a full sync finds what is new, and without the secret they are followed more slowly.
        """
        connected = [b for b in backends if str(b.get("model_version")).startswith(VERSION_PREFIX)]
        ours = {str(b.get("url", "")).rstrip("/") + "/webhook" for b in connected}
        try:
            there = [hook for hook in self._client.webhooks(self.project) if str(hook.get("url")) in ours]
            for hook in there:
                self._have_secret_sent(hook)
            for url in sorted(ours - {str(hook["url"]) for hook in there}):
                self._client.add_webhook(self.project, url, {HEADER: self._secret})
                log.info("Project %d: registered the missing webhook to %s.", self.project, url)
        except (LabelStudioRejected, LabelStudioDenied, LabelStudioNotFound) as error:
            log.warning("Project %d: the webhook is not as it should be; news may come late. %s", self.project, error)

    def _have_secret_sent(self, hook: Mapping[str, Any]) -> None:
        """Put the secret on a webhook, beside what else it sends."""
        headers = hook.get("headers")
        sent = dict(headers) if isinstance(headers, Mapping) else {}
        if sent.get(HEADER) != self._secret:
            self._client.set_webhook_headers(hook, sent | {HEADER: self._secret})
            log.info("Project %d: the webhook to %s carries the secret from now on.", self.project, hook.get("url"))
