"""Whether Label Studio has our backend connected to a project."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from backend.errors import LabelStudioDenied, LabelStudioRejected
from backend.labelstudio.client import LabelStudio
from backend.version import VERSION_PREFIX

log = logging.getLogger(__name__)

CONNECT_PAUSES = (2.0, 4.0, 8.0, 16.0)
"""Seconds to the next syncs of a project without a backend: Label Studio calls /setup before it stores one."""


class Connection:
    """The backends that Label Studio has for one project, and their webhooks."""

    def __init__(self, client: LabelStudio, project: int):
        self._client, self.project = client, project
        self._missed = 0  # times in a row that there was none
        self._webhook_ensured = False

    def check(self) -> bool:
        """Ask whether there is a backend; the first time that there is one, its webhook is ensured."""
        try:
            backends = self._client.backends(self.project)
        except LabelStudioDenied:
            self._missed = 0
            return True  # a key that may label but not administrate cannot ask
        if backends:
            self._missed = 0
        if backends and not self._webhook_ensured:
            self._webhook_ensured = True
            self._ensure_webhook(backends)
        return bool(backends)

    def next_pause(self) -> float | None:
        """Seconds until a project without a backend is synchronised again; `None` for the usual interval."""
        if self._missed == 0:
            log.info("Project %d has no machine learning backend connected (yet); nothing is queued.", self.project)
        self._missed += 1
        return CONNECT_PAUSES[self._missed - 1] if self._missed <= len(CONNECT_PAUSES) else None

    def _ensure_webhook(self, backends: Iterable[Mapping[str, Any]]) -> None:
        """Register the webhook of each of our connections that has none.

        Label Studio makes it when a backend is connected, but does not say if that failed. Events are only the fast
        way: without them a full sync finds what is new.
        """
        connected = [b for b in backends if str(b.get("model_version")).startswith(VERSION_PREFIX)]
        ours = [str(b.get("url", "")).rstrip("/") for b in connected]
        try:
            there = {str(hook.get("url")) for hook in self._client.webhooks(self.project)}
            for url in ours:
                if f"{url}/webhook" not in there:
                    self._client.add_webhook(self.project, f"{url}/webhook")
                    log.info("Project %d: registered the missing webhook to %s/webhook.", self.project, url)
        except (LabelStudioRejected, LabelStudioDenied) as error:
            log.warning("Project %d: there is no webhook, so only full syncs find news. %s", self.project, error)
