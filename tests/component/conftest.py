"""The fixtures of tests that start a backend and the peer that plays Label Studio."""

from __future__ import annotations

from tests.support.backend import label_studio, make_settings, start_backend
from tests.support.store import store

__all__ = ["label_studio", "make_settings", "start_backend", "store"]
