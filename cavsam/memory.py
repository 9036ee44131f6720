"""Batches that shrink when the device runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

T = TypeVar("T")


def in_batches(compute: Callable[[slice], T], count: int, size: int) -> list[T]:
    """Compute on slices of at most `size` that cover 0..count-1, in order.

    When the device runs out of memory the slice is halved, and so are those after it; each item's result must not
    depend on what shares its slice.

    Raises:
        torch.OutOfMemoryError: not even one item fits.
    """
    results: list[T] = []
    start = 0
    while start < count:
        size = min(size, count - start)
        try:
            results.append(compute(slice(start, start + size)))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        else:
            start += size
            continue
        # only here has the exception let go of what the failed attempt held
        size //= 2
        log.warning("The device is out of memory; going on with batches of %d.", size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results
