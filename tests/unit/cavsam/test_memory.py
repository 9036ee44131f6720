"""Batches that shrink: every item once, in order, and a device that holds nothing says so."""

from __future__ import annotations

import pytest
import torch

from cavsam.memory import in_batches


@pytest.mark.parametrize("room", [1, 2, 3, 5, 9, 20])
def test_whatever_fits_every_item_is_computed_once_and_in_order(room: int) -> None:
    tried: list[int] = []

    def compute(chosen: slice) -> list[int]:
        items = list(range(9))[chosen]
        tried.append(len(items))
        if len(items) > room:
            raise torch.OutOfMemoryError("full")
        return items

    assert [item for batch in in_batches(compute, 9, 9) for item in batch] == list(range(9))
    assert max(size for size in tried if size <= room) > room / 2 or room >= 9
    # it does not grow again and run out once more
    assert len([size for size in tried if size > room]) <= 4


def test_what_fits_not_even_alone_is_an_error() -> None:
    def compute(_: slice) -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches(compute, 3, 2)
    assert in_batches(compute, 0, 2) == []
