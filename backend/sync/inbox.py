"""What other threads leave for the coordinator."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass

from backend.entities import Refusal
from backend.labelstudio.events import Event

UNREAD_LIMIT = 64_000_000
"""Bytes of large webhooks that may wait to be read."""


@dataclass(frozen=True)
class NewModels:
    """The models are others than those known so far: from now on this is the version without a reference."""

    base_version: str


Message = Event | Refusal | NewModels | bytes


class Inbox:
    """Events, refusals and webhooks that are still to be read, in the order in which they came; for any thread."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unread = 0
        self._doubtful: set[Event] = set()

    def put(self, message: Event | Refusal | NewModels) -> None:
        """Leave a message; returns at once. A doubtful event is left once, however often it comes meanwhile."""
        if isinstance(message, Event) and message.doubtful:
            with self._lock:
                if message in self._doubtful:
                    return
                self._doubtful.add(message)
        self._messages.put(message)

    def put_unread(self, webhook: bytes) -> bool:
        """Leave a webhook's body; returns at once, and False if too much waits to be read already."""
        with self._lock:
            if self._unread + len(webhook) > UNREAD_LIMIT:
                return False
            self._unread += len(webhook)
        self._messages.put(webhook)
        return True

    def wake(self) -> None:
        """Have `take_all` return although nothing has come."""
        self._messages.put(None)

    def take_all(self, patience: float) -> list[Message]:
        """All that has come; waits for the first message up to `patience` seconds."""
        found: list[Message] = []
        try:
            message = self._messages.get(timeout=patience) if patience > 0 else self._messages.get_nowait()
            while message is not None:
                found.append(message)
                message = self._messages.get_nowait()
        except queue.Empty:
            pass
        with self._lock:
            self._unread -= sum(len(message) for message in found if isinstance(message, bytes))
            self._doubtful.difference_update(message for message in found if isinstance(message, Event))
        return found
