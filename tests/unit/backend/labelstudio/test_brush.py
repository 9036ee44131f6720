from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle
from scipy import ndimage

from backend.errors import UnusableRegion
from backend.labelstudio.brush import decode_alpha, decode_mask, encode_mask


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Every pixel by itself, of a share drawn for the whole mask."""
    return rng.random((height, width)) < rng.random()


def ragged(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return ndimage.gaussian_filter(rng.standard_normal((height, width)), 1 + 3 * rng.random()) > 0


def long_runs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Runs about as long as where the code changes from one size of count to the next."""
    borders = [run for run in (1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 32768, 32769) if run <= height * width]
    runs: list[bool] = []
    while len(runs) < height * width:
        runs += [not (runs and runs[-1])] * int(rng.choice(borders))
    return np.array(runs[: height * width]).reshape(height, width)


def one_value(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.full((height, width), bool(rng.integers(2)))


MASKS: list[Callable[[np.random.Generator, int, int], np.ndarray]] = [noise, ragged, long_runs, one_value]


@pytest.mark.parametrize("draw", MASKS)
def test_a_mask_is_written_and_read_as_by_the_sdk(draw: Callable[[np.random.Generator, int, int], np.ndarray]):
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (1, 7), (9, 1), *rng.integers(1, 40, (30, 2)).tolist(), (257, 255)]:
        mask = draw(rng, height, width)
        rle = encode_mask(mask)
        assert rle == mask2rle(mask.astype(np.uint8) * 255)
        assert set(map(type, rle)) == {int}  # JSON takes no numbers of numpy
        assert (decode_mask(rle, height, width) == mask).all()
        assert (decode_alpha(rle, height, width) == np.where(mask, 255, 0)).all()


@pytest.mark.parametrize(("draw", "size"), [(noise, (400, 401)), (ragged, (700, 300)), (long_runs, (900, 1100))])
def test_large_masks_too(draw: Callable[[np.random.Generator, int, int], np.ndarray], size: tuple[int, int]):
    mask = draw(np.random.default_rng(1), *size)
    rle = encode_mask(mask)
    assert rle == mask2rle(mask.astype(np.uint8) * 255)
    assert (decode_mask(rle, *size) == mask).all()


def test_a_mask_that_is_a_view_is_written_as_it_looks():
    mask = ragged(np.random.default_rng(2), 40, 60)[::2, ::-3].T
    assert encode_mask(mask) == encode_mask(mask.copy())


def written(values: np.ndarray, rng: np.random.Generator, value_bits: int, count_bits: list[int]) -> list[int]:
    """A code of these values with tokens of both kinds, split at random, as other writers than the SDK may make it."""
    bits = [f"{len(values):032b}{value_bits - 1:05b}", *(f"{size - 1:04b}" for size in count_bits)]
    at = 0
    while at < len(values):
        choice = int(rng.integers(4))
        most = min(2 ** count_bits[choice], len(values) - at)
        count = int(min(most, rng.geometric(0.1 ** rng.integers(1, 4))))
        different = np.flatnonzero(values[at : at + count] != values[at])
        repeated = rng.random() < 0.5
        if repeated and len(different):
            count = int(different[0])
        shown = [values[at]] if repeated else values[at : at + count]
        bits.append(f"{int(repeated)}{choice:02b}{count - 1:0{count_bits[choice]}b}")
        bits += [f"{value:0{value_bits}b}" for value in shown]
        at += count
    stream = "".join(bits) + "0" * 16
    return [int(stream[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(stream), 8)]


def alpha_by_sdk(rle: list[int], height: int, width: int) -> np.ndarray:
    return decode_rle(rle).reshape(height, width, 4)[..., 3]


def strokes(rng: np.random.Generator, height: int, width: int, value_bits: int = 8) -> np.ndarray:
    """RGBA of soft strokes, (H * W * 4,): values of all sizes, few of them equal to their neighbours at the edges."""
    soft = np.clip(ndimage.gaussian_filter(noise(rng, height, width).astype(float), 1), 0, 1)
    alpha = np.round(np.where(soft < 0.3, 0, soft) * (2**value_bits - 1)).astype(np.uint8)
    return np.stack([alpha // 2, alpha // 3, np.zeros_like(alpha), alpha], -1).ravel()


def test_codes_of_other_writers_are_read_as_by_the_sdk():
    rng = np.random.default_rng(3)
    for _ in range(60):
        height, width = rng.integers(1, 40, 2).tolist()
        value_bits, count_bits = int(rng.integers(1, 9)), rng.integers(1, 17, 4).tolist()
        rle = written(strokes(rng, height, width, value_bits), rng, value_bits, count_bits)
        assert (decode_alpha(rle, height, width) == alpha_by_sdk(rle, height, width)).all()


def test_a_large_code_of_another_writer_is_read_as_by_the_sdk():
    rng = np.random.default_rng(4)
    rle = written(strokes(rng, 230, 310), rng, 8, [3, 4, 8, 16])
    assert (decode_alpha(rle, 230, 310) == alpha_by_sdk(rle, 230, 310)).all()


def test_a_damaged_code_is_refused_or_read_as_by_the_sdk():
    rng = np.random.default_rng(5)
    read = refused = 0
    for _ in range(600):
        height, width = rng.integers(2, 12, 2).tolist()
        rle = written(strokes(rng, height, width), rng, 8, [3, 4, 8, 16])
        bit = int(rng.integers(32, 8 * len(rle)))
        rle[bit // 8] ^= 1 << bit % 8
        rle = rle[: rng.integers(8, len(rle) + 1)] if rng.random() < 0.3 else rle
        try:
            alpha = decode_alpha(rle, height, width)
        except UnusableRegion:
            refused += 1
            continue
        read += 1
        assert (alpha == alpha_by_sdk(rle, height, width)).all()
    assert read > 50
    assert refused > 50


def test_a_stroke_drawn_by_hand_counts_from_half_its_alpha():
    alpha = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)
    rgba = np.stack([np.full_like(alpha, 255)] * 3 + [alpha], -1)  # colour tells nothing, alpha does
    mask = decode_mask(encode_rle(rgba.ravel()), 2, 3)
    assert mask.tolist() == [[False, False, False], [True, True, True]]


LEAF = noise(np.random.default_rng(6), 5, 7)


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        (None, "no run-length code"),
        ([], "no run-length code"),
        ([300] * 20, "not a list of bytes"),
        (["a"] * 20, "not a list of bytes"),
        (encode_mask(np.ones((4, 4), bool)), "says 7x5 pixels but encodes 16"),
        (encode_mask(LEAF)[:-8], r"damaged \(it ends after \d+ of 140 values\)"),
        (encode_mask(np.ones((5, 8), bool)), "says 7x5 pixels"),
        ([0, 0, 0, 140, *encode_mask(np.ones((5, 8), bool))[4:]], r"damaged \(it holds 20 values too many\)"),
        ([0, 0, 0, 140, 0b11111_001, *[0] * 40], r"damaged \(its values have 32 bits\)"),
        ([255] * 30, "says 7x5 pixels"),
    ],
)
def test_refuses_a_code_that_is_not_that_of_the_picture(rle: object, words: str):
    with pytest.raises(UnusableRegion, match=words):
        decode_mask(rle, 5, 7)


HEADER = [0, 0, 0, 140, 0b00111_001, 0b0_0011_011, 0b1_1111_000]  # 140 values of 8 bits, counts of 3, 4, 8 and 16


@pytest.mark.parametrize(
    "rle",
    [
        [255, 255, 255, 255, *HEADER[4:], *[255] * 100_000],  # says that it holds billions of values
        [*HEADER, *[255] * 100_000],  # runs of 65,536
        [*HEADER[:6], 0b1_1111_011, *[255] * 100_000],  # 65,536 values one by one
    ],
)
def test_what_a_code_promises_is_not_allocated(rle: list[int]):
    tracemalloc.start()
    try:
        with pytest.raises(UnusableRegion):
            decode_mask(rle, 5, 7)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * len(rle)


def test_what_follows_the_last_value_is_ignored():
    rle = encode_mask(LEAF)
    assert (decode_mask([*rle, *[255] * 1000], 5, 7) == LEAF).all()
