"""What /setup hands over, believed only once it opens the project.

Whoever reaches the port may call /setup for any number, with any address and token. So nothing of it counts before a
Label Studio has answered for the project: the configured one, or the one that was named, to the token that came along.
That is found out on a thread of its own, which a silent address may keep waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from backend.clients import Clients
from backend.errors import LabelStudioError, LabelStudioNotFound, LedgerError
from backend.store.store import Store

log = logging.getLogger(__name__)

TRIAL_PATIENCE = 5.0
"""Seconds that a Label Studio has to answer for a project."""
AWAY_PAUSE = 5.0
"""Seconds until an offer is tried again if the configured Label Studio did not say yes or no."""
REFUSED_PAUSE = 0.5
"""Seconds after an offer that opened nothing before the next is tried: many of them should not be many calls."""
WAITING = 16
"""Offers that may wait; one more has the oldest dropped, for Label Studio calls again."""
REFUSED_FOR = 60.0
"""Seconds for which an offer that opened nothing is not tried again."""
REFUSED_KEPT = 1000


@dataclass(frozen=True)
class Offer:
    """What a call said of a project.

    Attributes:
        number: the project's, in its Label Studio.
        hostname: the address of that Label Studio; empty if the call did not say.
        token: a key of its API; empty if the call did not say.
        extra_params: JSON text of what the project's connection was given; None if the call did not say.
    """

    number: int
    hostname: str = ""
    token: str = ""
    extra_params: str | None = None


class Introductions:
    """Brings projects to the backend's knowledge; any thread may call."""

    def __init__(self, store: Store, clients: Clients, seen: Callable[[int, str | None], None]):
        """Take the store and the connections; `seen` is told the key and extra params of a project that is there."""
        self._store, self._clients, self._seen = store, clients, seen
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="introductions")
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._pending: dict[Offer, Future[int | None]] = {}
        self._undecided: set[Offer] = set()  # Label Studio could not say
        self._refused: OrderedDict[Offer, float] = OrderedDict()

    def stop(self) -> None:
        """Try no further offer."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def take(self, offer: Offer) -> int | None:
        """Take what /setup said; returns the project's key if the project is known already."""
        key = self._clients.key_of(offer.number, offer.hostname)
        if key is None or not self._store.projects.is_known(key):
            self.ask(offer)
            return None
        self._seen(key, offer.extra_params)
        if not self._clients.has(key, offer.hostname, offer.token):
            self.ask(offer)
        return key

    def ask(self, offer: Offer) -> Future[int | None]:
        """Find out whether an offer opens its project; the answer is the project's key, or `None`."""
        with self._lock:
            pending = self._pending.get(offer)
            if pending is not None:
                return pending
            if self._was_refused(offer):
                return _none()
            dropped = self._pending.pop(next(iter(self._pending))) if len(self._pending) >= WAITING else None
            try:
                asked = self._pool.submit(self._consider, offer)
            except RuntimeError:  # the backend is stopping
                return _none()
            self._pending[offer] = asked
        if dropped is not None:
            dropped.cancel()
        asked.add_done_callback(lambda done: self._end(offer, done))
        return asked

    def _consider(self, offer: Offer) -> int | None:
        """Try what may open the project; the first that does is believed."""
        reason, away = "There is neither an address nor a key of a Label Studio.", False
        for client, with_token in self._clients.trials(offer.number, offer.hostname, offer.token):
            try:
                uid = str(client.project(offer.number, timeout=TRIAL_PATIENCE).get("created_at"))
                key = self._clients.believe(offer.number, offer.hostname, offer.token if with_token else "", uid)
            except LabelStudioError as error:
                reason = str(error)
                away = not with_token and not isinstance(error, LabelStudioNotFound)
            except AttributeError:
                reason = "What answers is not Label Studio's API."
            except LedgerError as error:
                reason, away = str(error), True
            else:
                if not self._clients.has(key, offer.hostname, offer.token):
                    self._refuse(offer)  # it is there, but the address is not shown to be that Label Studio's
                self._seen(key, offer.extra_params)
                return key
        if away:
            self._try_again(offer, reason)
        else:
            log.warning("Project %d: what a call said of it is not believed. %s", offer.number, reason)
            self._refuse(offer)
            self._stopping.wait(REFUSED_PAUSE)
        return None

    def _try_again(self, offer: Offer, reason: str) -> None:
        """Have an offer tried once more when those that wait have had their turn, about every `AWAY_PAUSE` seconds."""
        with self._lock:
            first, waiting = offer not in self._undecided, len(self._pending)
            self._undecided.add(offer)
        log.log(logging.WARNING if first else logging.DEBUG, "Project %d cannot be looked at. %s", offer.number, reason)
        self._stopping.wait(AWAY_PAUSE / max(1, waiting))

    def _refuse(self, offer: Offer) -> None:
        with self._lock:
            self._undecided.discard(offer)
            self._refused[replace(offer, extra_params=None)] = time.monotonic()
            while len(self._refused) > REFUSED_KEPT:
                self._refused.popitem(last=False)

    def _was_refused(self, offer: Offer) -> bool:
        moment = self._refused.get(replace(offer, extra_params=None))
        return moment is not None and time.monotonic() - moment < REFUSED_FOR

    def _end(self, offer: Offer, asked: Future[int | None]) -> None:
        """Take an offer that was tried out of the line, or to its end again."""
        with self._lock:
            if self._pending.get(offer) is asked:
                del self._pending[offer]
            again = not asked.cancelled() and asked.result() is None and offer in self._undecided
            if not again:
                self._undecided.discard(offer)
        if again and not self._was_refused(offer):
            self.ask(offer)


def _none() -> Future[int | None]:
    answer: Future[int | None] = Future()
    answer.set_result(None)
    return answer
