"""gunicorn's threaded worker, with an end to waiting for clients that send half a request or do not read an answer.

A thread that reads a request waits for its client. Without a bound as many half-sent requests as there are threads
silence the backend, for as long as their senders like. Who asks whether the backend is alive waits for nobody: there
are threads for that alone.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from selectors import EVENT_READ
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

GRACE = 0.2
"""Seconds of waiting for a request's parts that every client has; an ordinary one sends all at once."""
PATIENCE = 15.0
"""Seconds of waiting in all for one request, or for a client to take a part of an answer."""


HEALTH_CHECKS = (b"GET /health ", b"GET /ready ", b"HEAD /health ", b"HEAD /ready ")
HEALTH_THREADS = 2
LONGEST_HEAD = 8192
"""Bytes of a health check's head; a longer one is answered like any other request."""


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

    def init_process(self) -> None:
        """Begin, in the worker process."""
        self._health_pool = ThreadPoolExecutor(HEALTH_THREADS, thread_name_prefix="health")
        super().init_process()

    def accept(self, listener: Any) -> None:
        """Accept a connection; until its first bytes come it waits in the poller, which costs no thread."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        conn = TConn(self.cfg, client, address, listener.getsockname())
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(client, EVENT_READ, lambda client: self.on_pending_socket_readable(conn, client))

    def enqueue_req(self, conn: Any) -> None:
        """Have a request answered by one of the threads that are there for its kind."""
        # what follows another request may be a part of its body, for which a thread would wait
        conn.is_only_checking = getattr(conn, "is_only_checking", True) and _is_health_check(conn.sock)
        pool = self._health_pool if conn.is_only_checking else self.tpool
        answered = pool.submit(self.handle, conn)
        answered.add_done_callback(lambda future: self.method_queue.defer(self.finish_request, conn, future))

    def handle(self, conn: Any) -> Any:
        """Answer a request; called in one of the threads."""
        if isinstance(conn.sock, ImpatientSocket):
            conn.sock.begin()
        else:
            conn.sock = ImpatientSocket.of(conn.sock, self._seats)
        return super().handle(conn)


def _is_health_check(client: socket.socket) -> bool:
    """Whether what a client has sent is a whole health check, for which no thread has to wait."""
    try:
        sent = socket.socket.recv(client, LONGEST_HEAD, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False
    head, end, _ = sent.partition(b"\r\n\r\n")
    has_body = b"\r\ncontent-length" in head.lower() or b"\r\ntransfer-encoding" in head.lower()
    return bool(end) and sent.startswith(HEALTH_CHECKS) and not has_body
