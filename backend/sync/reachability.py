"""Whether Label Studio answers and takes our key.

It is asked from time to time, so that whoever wants to know need not wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from backend.entities import ALL_PROJECTS
from backend.errors import LabelStudioDenied, LabelStudioError
from backend.labelstudio.client import LabelStudio

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that Label Studio has to answer."""
PAUSE = 30.0
"""Seconds from one question to the next."""


class Reachability:
    """What came of the last question, for any thread; one thread asks."""

    def __init__(self, connections: Callable[[], Mapping[int, LabelStudio]]):
        """Take what gives the connections that are in use now by project; nothing is asked yet."""
        self._connections = connections
        self._refusals: dict[int, str] = {}
        self.trouble = ""
        """Why Label Studio cannot be worked with, and what to do about it; empty if it can, or was not asked yet."""
        self.release = ""
        """Of the Label Studio that answered first; empty until one did."""

    def refusal(self, project: int) -> str:
        """Say why a project's key was not taken when it was tried last; empty if it was, or was not tried yet."""
        refusals = self._refusals
        return refusals.get(project) or refusals.get(ALL_PROJECTS, "")

    def ask(self) -> float:
        """Ask each Label Studio who we are; returns the seconds until the next time."""
        in_use = self._connections()
        errors = {connection: self._ask_one(connection) for connection in set(in_use.values())}
        found = next((str(errors[one]) for one in in_use.values() if errors[one]), "")
        denied = {project: errors[one] for project, one in in_use.items()}
        self._refusals = {p: str(error) for p, error in denied.items() if isinstance(error, LabelStudioDenied)}
        if found and not self.trouble:
            log.warning("%s", found)
        elif self.trouble and not found:
            log.info("Label Studio answers and takes the key again.")
        self.trouble = found
        return PAUSE

    def _ask_one(self, connection: LabelStudio) -> LabelStudioError | None:
        try:
            connection.user(timeout=PATIENCE)
            self.release = self.release or str(connection.version().get("release", ""))
        except LabelStudioError as error:
            return error
        return None
