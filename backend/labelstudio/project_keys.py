"""Projects of several Label Studios, each under a key of its own.

Each Label Studio counts its projects from 1. The backend knows a project by its key: its number, or, for one whose
number another Label Studio's project has already, the number and a multiple of `SPAN`. So the key says the number that
Label Studio's API is asked with, and is the number itself as long as there is one Label Studio.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from urllib.parse import urlsplit

SPAN = 10**12
"""No project's number is as large."""


def number_of(key: int) -> int:
    """The number that a project has in its Label Studio."""
    return key % SPAN


def keys_for(number: int) -> Iterator[int]:
    """The keys that a project of a number may have, the number itself first."""
    return (number + times * SPAN for times in count())


def origin_of(address: str) -> str:
    """Scheme, host, port and path of a Label Studio's address, alike for alike addresses; empty if it is none."""
    try:
        parts = urlsplit(address.strip())
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{port}{parts.path.rstrip('/')}"


def may_be_of(uid: str, created: int | None) -> bool:
    """Whether a project whose moment of creation is `uid` may be the one made `created` seconds after 1970."""
    if created is None:
        return True
    try:
        moment = datetime.fromisoformat(uid)
    except ValueError:
        return True
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) == created
