"""How much faster brush masks are encoded and decoded here than by Label Studio's SDK, in one process.

    python -m research.benchmarks.brush

Masks of 3000x4000 pixels: a smooth one with two objects, a ragged one (blurred noise, as an uncertain model gives) and
an empty one. Both sides must agree in every byte. A ratio is of the SDK's shortest time to ours, and of the medians.

Measured on one thread of two cores that other programs used at the same time:

                       SDK, s  ours, s     min  median
    smooth, encode      0.102    0.005    20.2    12.7
    smooth, decode      0.102    0.012     8.7     8.3
    ragged, encode      1.153    0.072    15.9    20.7
    ragged, decode      4.911    0.162    30.3    30.7
    empty, encode       0.088    0.002    45.0    34.5
    empty, decode       0.026    0.003     8.8     8.7
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from numpy.typing import NDArray
from scipy import ndimage

from backend.labelstudio.brush import decode_alpha, encode_mask

BoolMask = NDArray[np.bool_]


def masks(height: int, width: int) -> dict[str, BoolMask]:
    """Masks of shape (H, W) by their kind."""
    y, x = np.ogrid[:height, :width]
    discs = [(0.3, 0.3, 0.2), (0.6, 0.7, 0.15)]
    smooth = np.zeros((height, width), bool)
    for across, down, radius in discs:
        smooth |= (x - across * width) ** 2 + (y - down * height) ** 2 < (radius * height) ** 2
    noise = np.random.default_rng(0).standard_normal((height, width)).astype(np.float32)
    ragged = ndimage.gaussian_filter(noise, 8) > 0
    return {"smooth": smooth, "ragged": ragged, "empty": np.zeros((height, width), bool)}


def timed(runs: int, function: Callable[..., Any], *arguments: Any) -> tuple[Any, list[float]]:
    """Return a function's answer and the seconds of each run."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        answer = function(*arguments)
        seconds.append(time.perf_counter() - start)
    return answer, seconds


def row(kind: str, sdk: list[float], ours: list[float]) -> str:
    """Return one line of the table: seconds of both sides and their ratios."""
    least, middle = min(sdk) / min(ours), statistics.median(sdk) / statistics.median(ours)
    return f"{kind:<16}{min(sdk):>9.3f}{min(ours):>9.3f}{least:>8.1f}{middle:>8.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--height", type=int, default=3000, help="of the masks (default: 3000)")
    parser.add_argument("--width", type=int, default=4000, help="of the masks (default: 4000)")
    options = parser.parse_args()
    height, width = options.height, options.width
    print(f"{'':<16}{'SDK, s':>9}{'ours, s':>9}{'min':>8}{'median':>8}")
    for kind, mask in masks(height, width).items():
        rle, sdk = timed(options.runs, mask2rle, mask.astype(np.uint8) * 255)
        own, ours = timed(options.runs, encode_mask, mask)
        assert own == rle
        print(row(f"{kind}, encode", sdk, ours), flush=True)
        rgba, sdk = timed(options.runs, decode_rle, rle)
        alpha, ours = timed(options.runs, decode_alpha, rle, height, width)
        assert (rgba.reshape(height, width, 4)[..., 3] == alpha).all()
        print(row(f"{kind}, decode", sdk, ours), f"  ({len(rle):,} bytes)", flush=True)


if __name__ == "__main__":
    main()
