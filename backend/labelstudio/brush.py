"""Label Studio's brush encoding: a run-length code over the interleaved RGBA bytes of a picture.

A code is a stream of bits, most significant first (thi.ng's rle-pack). Its header is 32 bits for the number of values,
5 for the bits of a value less one, and four times 4 for the bits of a count less one. Tokens follow: one bit (1: one
value repeated, 0: values one by one), two bits that choose the size of the count, the count less one, and the value or
the values.

The editor paints a region by its alpha, in steps of 0 to 255; strokes drawn by a person are anti-aliased.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnusableRegion

THRESHOLD = 128
CHANNELS = 4
VALUE_BITS = 8
COUNT_BITS = (3, 4, 8, 16)
"""Sizes of a count that Label Studio writes; each count is written in the smallest that holds it."""
MOST_IN_TOKEN = 2 ** COUNT_BITS[-1]
HEADER_BITS = 53
LONGEST_TOKEN = 3 + COUNT_BITS[-1] + VALUE_BITS
"""Bits of the longest token of one value."""
SHORTEST_CODE = 8
"""Bytes of the shortest code that a picture can have."""
BLOCK = 1 << 16
"""Runs encoded, or bytes decoded, at a time: what the work needs in memory beside the code and the mask."""


def encode_mask(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask of shape (H, W), not empty: 255 in all four channels inside, 0 outside.

    The bytes are those of the SDK's `mask2rle`.
    """
    flat = np.ascontiguousarray(mask, dtype=bool).ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size) * CHANNELS
    header = flat.size * CHANNELS << 5 | VALUE_BITS - 1
    for bits in COUNT_BITS:
        header = header << 4 | bits - 1
    tokens = len(ends) + flat.size * CHANNELS // MOST_IN_TOKEN
    code = np.zeros((HEADER_BITS + tokens * LONGEST_TOKEN) // 8 + 8, np.uint8)
    code[:7] = np.frombuffer((header << 3).to_bytes(7, "big"), np.uint8)
    at, before = HEADER_BITS, 0
    for first in range(0, len(ends), BLOCK):
        block = ends[first : first + BLOCK]
        inside = flat[block // CHANNELS - 1]
        at = _write(code, at, *_run_tokens(np.diff(block, prepend=before), inside))
        before = block[-1]
    # a code that fills its last byte is followed by an empty one, as the SDK writes it
    encoded: list[int] = code[: at // 8 + 1].tolist()
    return encoded


def decode_mask(rle: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Decode the mask of shape (H, W) where a code's alpha is at least 128.

    Raises:
        UnusableRegion: the code is malformed or is that of a picture of another size.
    """
    return decode_alpha(rle, height, width) >= THRESHOLD


def decode_alpha(rle: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Decode the alpha, uint8 of shape (H, W), of a picture's code.

    The memory used is bounded by the picture's and the code's size. What follows the last value is ignored.

    Args:
        rle: the code, a list of bytes.
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Raises:
        UnusableRegion: the code is malformed or is that of a picture of another size.
    """
    code = _Code(_as_bytes(rle))
    total = height * width * CHANNELS
    if code.total != total:
        raise UnusableRegion(
            f"A brush region says {width}x{height} pixels but encodes {code.total // CHANNELS} of them; draw it again."
        )
    if code.value_bits > VALUE_BITS:
        raise _damaged(f"its values have {code.value_bits} bits")
    alpha = np.empty(height * width, np.uint8)
    at, done = HEADER_BITS, 0
    for first in range(0, len(code), BLOCK):
        starts, at = code.token_starts(first, at)
        if not starts.size:
            continue
        values, counts = code.runs(starts, total - done)
        # alpha is the last byte of each pixel, so a run gives one for every multiple of four that it reaches
        pixels = np.append(done, done + np.cumsum(counts)) // CHANNELS
        alpha[pixels[0] : pixels[-1]] = np.repeat(values, np.diff(pixels))
        done += int(counts.sum())
        if done == total:
            return alpha.reshape(height, width)
    raise _damaged(f"it ends after {done} of {total} values")


class _Code:
    """The bits of a code, read at any position.

    `total` is how many values it says that it holds, `value_bits` the bits of each, `count_bits` the sizes that a
    count may have.
    """

    def __init__(self, code: bytes) -> None:
        header = int.from_bytes(code[:7], "big") >> (56 - HEADER_BITS)
        self.total = header >> 21
        self.value_bits = (header >> 16 & 31) + 1
        self.count_bits = [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
        self._bytes = code
        # eight bytes from every byte on, without a copy of them
        self._words: NDArray[np.uint64] = np.ndarray(len(code), dtype=">u8", buffer=code + bytes(8), strides=(1,))
        lengths = [self._token_length(start << 24, 8) for start in range(256)]
        self._lengths = bytes(length if length < 256 else 0 for length in lengths)

    def __len__(self) -> int:
        return len(self._bytes)

    def token_starts(self, first: int, at: int) -> tuple[NDArray[np.int64], int]:
        """Find where the tokens begin in a block of the code, following each to the next.

        Where a token begins depends on the one before; that walk is quick because the length of a token is looked up
        beforehand for every bit of the block.

        Args:
            first: the block's first byte.
            at: the bit of the code at which the block's first token begins.

        Returns:
            The bit at which each begins, without one that the code's end cuts off; and where the next begins.
        """
        words = self._words[first : first + BLOCK]
        eight = (words[:, None] >> np.arange(56, 48, -1, dtype=np.uint64)).astype(np.uint8)  # bits, from every bit on
        lengths = eight.tobytes().translate(self._lengths)
        starts: list[int] = []
        begin = starts.append
        base, end = 8 * first, len(lengths)
        at -= base
        while at < end:
            begin(at)
            at += lengths[at] or self._token_length(self._bits(base + at), 32)
        at += base
        if starts and at > 8 * len(self):
            starts.pop()
        return np.array(starts, np.int64) + base, at

    def runs(self, starts: NDArray[np.int64], most: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read tokens as runs: the value of each and how often it stands, up to `most` in all.

        Raises:
            UnusableRegion: the tokens hold more than `most` values and do not part there.
        """
        heads = self._words[starts >> 3].astype(np.uint64) << (starts & 7).astype(np.uint64)
        repeated = heads >> np.uint64(63) == 1
        count_bits = np.array(self.count_bits)[(heads >> np.uint64(61) & np.uint64(3)).astype(np.intp)]
        counts = (heads << np.uint64(3) >> (64 - count_bits).astype(np.uint64)).astype(np.int64) + 1
        ends = np.cumsum(counts)
        if ends[-1] > most:
            needed = int(np.searchsorted(ends, most)) + 1
            if ends[needed - 1] > most:
                raise _damaged(f"it holds {ends[needed - 1] - most} values too many")
            starts, repeated, count_bits, counts = (a[:needed] for a in (starts, repeated, count_bits, counts))
        # values given one by one are runs of one
        runs = np.where(repeated, 1, counts)
        firsts = np.repeat(np.cumsum(runs) - runs, runs)
        at = np.repeat(starts + 3 + count_bits, runs) + (np.arange(len(firsts)) - firsts) * self.value_bits
        bits = self._words[at >> 3].astype(np.uint64) << (at & 7).astype(np.uint64)
        values = (bits >> np.uint64(64 - self.value_bits)).astype(np.uint8)
        return values, np.repeat(np.where(repeated, counts, 1), runs)

    def _token_length(self, bits: int, known: int) -> int:
        """Return the length of the token that begins with these 32 bits; 0 if the first `known` do not tell."""
        count_bits = self.count_bits[bits >> 29 & 3]
        if bits >> 31:
            return 3 + count_bits + self.value_bits
        if 3 + count_bits > known:
            return 0
        count = (bits >> (29 - count_bits) & (1 << count_bits) - 1) + 1
        return 3 + count_bits + count * self.value_bits

    def _bits(self, at: int) -> int:
        """Return the 32 bits from bit `at` on, zeros behind the code's end."""
        five = self._bytes[at >> 3 : (at >> 3) + 5].ljust(5, b"\0")
        return int.from_bytes(five, "big") >> (8 - (at & 7)) & 0xFFFFFFFF


def _run_tokens(counts: NDArray[np.int64], inside: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write runs of values as tokens: the bits of each as a number, and how many bits they are."""
    choice = np.searchsorted([1 << bits for bits in COUNT_BITS[:-1]], counts)
    # a run that is longer than a count can say takes several tokens, all full but the last
    tokens = -(-counts // MOST_IN_TOKEN)
    rest = counts - (tokens - 1) * MOST_IN_TOKEN
    last = np.cumsum(tokens) - 1
    counts = np.full(last[-1] + 1, MOST_IN_TOKEN)
    counts[last] = rest
    choice, inside = np.repeat(choice, tokens), np.repeat(inside, tokens)
    count_bits = np.array(COUNT_BITS)[choice]
    bits = ((0b100 | choice) << count_bits | counts - 1) << VALUE_BITS | np.where(inside, 255, 0)
    return bits, 3 + count_bits + VALUE_BITS


def _write(code: NDArray[np.uint8], at: int, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    """Write tokens into a code from bit `at` on; return the bit behind them."""
    ends = at + np.cumsum(lengths)
    starts = ends - lengths
    aligned = tokens << 40 - lengths - (starts & 7)
    # tokens are longer than a byte, so no two begin in the same one, and each assignment meets a byte once
    for byte in range(5):
        code[(starts >> 3) + byte] |= (aligned >> 32 - 8 * byte & 255).astype(np.uint8)
    return int(ends[-1])


def _as_bytes(rle: Any) -> bytes:
    if not isinstance(rle, list) or len(rle) < SHORTEST_CODE:
        raise UnusableRegion("A brush region has no run-length code; draw the region again.")
    try:
        return bytes(rle)
    except (TypeError, ValueError) as error:
        raise UnusableRegion("A brush region's run-length code is not a list of bytes.") from error


def _damaged(reason: str) -> UnusableRegion:
    return UnusableRegion(f"A brush region's run-length code is damaged ({reason}); draw the region again.")
