from __future__ import annotations

from tests.support.store import store

__all__ = ["store"]
