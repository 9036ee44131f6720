from __future__ import annotations

import numpy as np
import pytest
from label_studio_sdk.converter.brush import encode_rle

from backend.errors import UnusableRegion
from backend.labelstudio.brush import decode_mask, encode_mask


def decode_independently(rle: list[int]) -> np.ndarray:
    """The editor's decoder (thi.ng rle-pack), written from its description: a stream of bits."""
    bits = np.unpackbits(np.array(rle, np.uint8))
    at = 0

    def read(count: int) -> int:
        nonlocal at
        value = int("".join(map(str, bits[at : at + count])), 2)
        at += count
        return value

    length, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < length:
        repeated = read(1)
        count = read(sizes[read(2)]) + 1
        out += [read(word)] * count if repeated else [read(word) for _ in range(count)]
    return np.array(out, np.uint8)


def blob(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) > 0.6


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (33, 47)])
def test_round_trip_and_an_independent_decoder_agree(size: tuple[int, int]):
    mask = blob(sum(size), *size)
    rle = encode_mask(mask)
    assert (decode_mask(rle, *size) == mask).all()
    rgba = decode_independently(rle).reshape(*size, 4)
    assert set(np.unique(rgba)) <= {0, 255}  # 0/1 would be accepted by the server and invisible in the editor
    assert (rgba == np.where(mask, 255, 0)[..., None]).all()


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks(value: bool):
    mask = np.full((6, 9), value)
    assert (decode_mask(encode_mask(mask), 6, 9) == mask).all()


def test_a_stroke_drawn_by_hand_counts_from_half_its_alpha():
    alpha = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)
    rgba = np.stack([np.full_like(alpha, 255)] * 3 + [alpha], -1)  # colour tells nothing, alpha does
    mask = decode_mask(encode_rle(rgba.ravel()), 2, 3)
    assert mask.tolist() == [[False, False, False], [True, True, True]]


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        (None, "no run-length code"),
        ([], "no run-length code"),
        ([300] * 20, "not a list of bytes"),
        (["a"] * 20, "not a list of bytes"),
        (encode_mask(np.ones((4, 4), bool)), "says 7x5 pixels but encodes 16"),
        (encode_mask(blob(0, 5, 7))[:-8], "damaged"),
        ([255] * 30, "says 7x5 pixels"),
    ],
)
def test_refuses_a_code_that_is_not_that_of_the_picture(rle: object, words: str):
    with pytest.raises(UnusableRegion, match=words):
        decode_mask(rle, 5, 7)
