"""The connections to Label Studio, one for each address and key."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from backend.entities import ALL_PROJECTS
from backend.errors import LabelStudioDenied
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.image_hosts import PrivateHosts
from backend.labelstudio.project_keys import keys_for, number_of, origin_of
from backend.settings import Settings
from backend.store.store import Store


class Clients:
    """Gives a project's connection: with the address and key that are configured, else those that /setup handed over.

    May be used by several threads.
    """

    def __init__(self, settings: Settings, store: Store):
        self._settings, self._store = settings, store
        self._granted = store.projects.grants()  # project's key -> address and token that /setup handed over
        self._clients: dict[tuple[str, str, str], LabelStudio] = {}
        self._lock = threading.Lock()

    def key_of(self, number: int, hostname: str = "") -> int | None:
        """The key of a project that Label Studio at `hostname` counts as `number`; `None` if it has none yet.

        With a configured address there is one Label Studio only, whatever a call says.
        """
        if self._settings.label_studio_url:
            return number
        with self._lock:
            alike = [key for key in sorted(self._granted) if number_of(key) == number]
            if not hostname:
                return alike[0] if len(alike) == 1 else None
            return next((key for key in alike if origin_of(self._granted[key][0]) == origin_of(hostname)), None)

    def has(self, project: int, hostname: str, token: str) -> bool:
        """Whether what a call hands over is what is believed already; also if it hands over nothing."""
        known_hostname, known_token = self._granted.get(project, ("", ""))
        if not hostname or not token:
            return True
        return hostname == known_hostname and (bool(self._settings.label_studio_api_key) or token == known_token)

    def trials(self, number: int, hostname: str, token: str) -> Iterator[tuple[LabelStudio, bool]]:
        """Connections by which a project may be opened, the token's first, and whether it is the token's."""
        settings = self._settings
        known = None if hostname or settings.label_studio_api_key else self.key_of(number)
        if known is not None and known in self._granted:
            yield self.of(known), False
        url = settings.label_studio_url or (hostname if origin_of(hostname) else "")
        if url and token:
            yield LabelStudio(url, token, timeout=settings.api_timeout), True
        if settings.label_studio_api_key:
            yield LabelStudio(settings.label_studio_url, settings.label_studio_api_key), False

    def believe(self, number: int, hostname: str, token: str, uid: str) -> int:
        """Use from now on what opened a project, made at the moment `uid`; returns the project's key.

        Without a token the address was not shown to be Label Studio's, and only counts if there was none.
        """
        known = self.key_of(number, hostname)
        with self._lock:
            project = known if known is not None else self._free_key(number, uid)
            if hostname and (token or project not in self._granted):
                self._granted[project] = (hostname, token)
            return project

    def _free_key(self, number: int, uid: str) -> int:
        """The first key that no other project has; called with the lock held."""
        known = self._store.projects.of_number(number)
        return next(
            key
            for key in keys_for(number)
            if known.get(key) == uid or (key not in known and key not in self._granted)  # the same project has moved
        )

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
