"""gunicorn's threaded worker, with an end to waiting for clients that send half a request or do not read an answer.

A thread that reads a request waits for its client. Without a bound as many half-sent requests as there are threads
silence the backend, for as long as their senders like.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from typing import Any

from gunicorn.workers.gthread import _DEFER, ThreadWorker

GRACE = 0.2
"""Seconds of waiting for a request's parts that every client has; an ordinary one sends all at once."""
PATIENCE = 15.0
"""Seconds of waiting in all for one request, or for a client to take a part of an answer."""


class ImpatientSocket(socket.socket):
    """A client's connection whose `recv` ends, as if the client had hung up, once the client is too slow.

    Beyond the first moments a wait needs one of the `seats`, which are fewer than the threads.
    """

    seats: threading.BoundedSemaphore

    @classmethod
    def of(cls, plain: socket.socket, seats: threading.BoundedSemaphore) -> ImpatientSocket:
        """Take a connection over."""
        made = cls(plain.family, plain.type, plain.proto, fileno=plain.detach())
        made.seats = seats
        made.begin()
        return made

    def begin(self) -> None:
        """Give a new request its time."""
        self._grace, self._patience = GRACE, PATIENCE

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Read as `socket.recv` does; nothing from a client that took too long."""
        return super().recv(size, flags) if self._is_ready() else b""

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Write as `socket.sendall` does; a client that does not read counts as gone."""
        self.settimeout(PATIENCE)
        try:
            super().sendall(data, flags)
        except TimeoutError as error:
            raise ConnectionResetError(errno.ECONNRESET, "The client does not read the answer.") from error
        finally:
            self.setblocking(True)

    def _is_ready(self) -> bool:
        if self._waited_for(0.0):
            return True
        started = time.monotonic()
        ready = self._waited_for(self._grace)
        self._grace = max(0.0, self._grace - (time.monotonic() - started))
        if ready:
            return True
        if not self.seats.acquire(blocking=False):
            return False
        try:
            started = time.monotonic()
            ready = self._waited_for(self._patience)
            self._patience = max(0.0, self._patience - (time.monotonic() - started))
            return ready
        finally:
            self.seats.release()

    def _waited_for(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


class ImpatientWorker(ThreadWorker):
    """The threaded worker over impatient connections; at most a quarter of its threads wait for slow clients."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._seats = threading.BoundedSemaphore(max(1, self.cfg.threads // 4))

    def handle(self, conn: Any) -> Any:
        """Answer a request; called in one of the threads."""
        if isinstance(conn.sock, ImpatientSocket):
            conn.sock.begin()
        else:
            conn.sock = ImpatientSocket.of(conn.sock, self._seats)
        if not conn.initialized and not conn.wait_for_data(GRACE):
            return _DEFER  # to gunicorn's poller, which costs no thread; its own patience here is some seconds
        return super().handle(conn)
