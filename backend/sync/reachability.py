"""Whether Label Studio answers and takes our key.

It is asked from time to time, so that whoever wants to know need not wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from backend.errors import LabelStudioError
from backend.labelstudio.client import LabelStudio

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that Label Studio has to answer."""
PAUSE = 30.0
"""Seconds from one question to the next."""


class Reachability:
    """What came of the last question, for any thread; one thread asks."""

    def __init__(self, connections: Callable[[], list[LabelStudio]]):
        """Take what gives the connections that are in use now; nothing is asked yet."""
        self._connections = connections
        self.trouble = ""
        """Why Label Studio cannot be worked with, and what to do about it; empty if it can, or was not asked yet."""

    def ask(self) -> float:
        """Ask each Label Studio who we are; returns the seconds until the next time."""
        found = ""
        for connection in self._connections():
            try:
                connection.user(timeout=PATIENCE)
            except LabelStudioError as error:
                found = str(error)
                break
        if found and not self.trouble:
            log.warning("%s", found)
        elif self.trouble and not found:
            log.info("Label Studio answers and takes the key again.")
        self.trouble = found
        return PAUSE
