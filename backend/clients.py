"""The connections to Label Studio, one for each address and key."""

from __future__ import annotations

import threading

from backend.entities import ALL_PROJECTS
from backend.errors import LabelStudioDenied
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.image_hosts import PrivateHosts
from backend.settings import Settings
from backend.store.store import Store


class Clients:
    """Gives a project's connection: with the address and key that are configured, else those that /setup handed over.

    May be used by several threads.
    """

    def __init__(self, settings: Settings, store: Store):
        self._settings, self._store = settings, store
        self._granted = store.projects.grants()  # project -> address and token that /setup handed over
        self._clients: dict[tuple[str, str, str], LabelStudio] = {}
        self._lock = threading.Lock()

    def grant(self, project: int, hostname: str, token: str) -> None:
        """Remember what /setup handed over; `keep` makes it last."""
        with self._lock:
            self._granted[project] = (hostname, token)

    def granted(self) -> list[int]:
        """The projects for which /setup handed something over."""
        with self._lock:
            return list(self._granted)

    def keep(self, project: int) -> None:
        """Write to the ledger what was handed over for a project, if it is new."""
        granted = self._granted.get(project)
        if granted is not None and granted != self._store.projects.grants().get(project):
            self._store.projects.set_grant(project, *granted)

    def in_use(self) -> dict[int, LabelStudio]:
        """The connections that work needs: the configured one, for all projects, or those that /setup handed over."""
        if self._settings.label_studio_url and self._settings.label_studio_api_key:
            return {ALL_PROJECTS: self.of(ALL_PROJECTS)}
        return {project: self.of(project) for project in self.granted()}

    def of(self, project: int) -> LabelStudio:
        """A connection for a project; raises `LabelStudioDenied` where there is no address or key for one."""
        settings = self._settings
        with self._lock:
            hostname, token = self._granted.get(project, ("", ""))
            url = settings.label_studio_url or hostname
            key = settings.label_studio_api_key or token
            if not url or not key:
                raise LabelStudioDenied(
                    "The backend has no address or key of Label Studio; set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY."
                )
            identity = (url, key, hostname)
            if identity not in self._clients:
                self._clients[identity] = LabelStudio(
                    url,
                    key,
                    timeout=settings.api_timeout,
                    public_url=hostname,
                    private_hosts=PrivateHosts.parse(settings.private_image_hosts),
                )
            return self._clients[identity]
