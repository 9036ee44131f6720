"""What SAM2-nano is judged by, against figures worked out by hand, and the whole on tiny folders."""

import json

import cv2
import numpy as np
import pytest
import torch

from cavsam.evaluation.metrics import boundary_f
from research.train_nano import evaluate_sam2, train_sam2


def square(top: int, left: int, side: int, shape: tuple[int, int] = (100, 100)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_region_similarity_by_hand():
    assert evaluate_sam2.region_similarity(square(10, 10, 20), square(10, 20, 20)) == pytest.approx(200 / 600)
    assert evaluate_sam2.region_similarity(square(0, 0, 0), square(0, 0, 0)) == 1


def test_a_border_within_the_tolerance_counts_and_one_beyond_does_not():
    """The diagonal is 141 pixels: the tolerance is 1.13, rounded up to 2."""
    truth = square(30, 30, 40)
    assert boundary_f(truth, truth) == 1
    assert boundary_f(square(28, 28, 44), truth) > 0.95
    assert boundary_f(square(26, 26, 48), truth) == 0
    shifted = boundary_f(square(30, 40, 40), truth)
    assert 0.3 < shifted < 0.8  # the upper and lower sides lie on the true ones for three quarters of their length


def test_the_boundary_measure_of_empty_masks():
    nothing = np.zeros((50, 50), dtype=bool)
    assert boundary_f(nothing, nothing) == 1
    assert boundary_f(nothing, square(10, 10, 20, (50, 50))) == 0


@pytest.fixture
def split(tmp_path):
    """One sequence and one class of stills, of discs on a slope, in the shape of a split's folder."""
    for place, count in (("video-x/disc", 6), ("stills/disc", 4)):
        folder = tmp_path / "dev" / place
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        ys, xs = np.mgrid[:48, :80]
        for n in range(count):
            mask = (ys - 24) ** 2 + (xs - 20 - 5 * n) ** 2 < 10**2
            image = np.repeat((60 + xs)[..., None], 3, axis=2).astype(np.uint8)
            image[mask] = (220, 40, 30)
            cv2.imwrite(str(folder / "images" / f"{n:03d}.jpg"), image[..., ::-1])
            cv2.imwrite(str(folder / "masks" / f"{n:03d}.png"), 255 * mask.astype(np.uint8))
    return tmp_path / "dev"


def test_a_split_is_judged_and_the_bundled_weights_find_a_plain_disc(split):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures = evaluate_sam2.judge(train_sam2.load_weights(train_sam2.PACKAGED), split, pairs=2, drawn=0)
    finally:
        torch.set_num_threads(before)
    assert figures["videos"].keys() == {"disc", "mean"}
    assert figures["videos"]["mean"]["J"] > 60
    assert figures["pairs"]["stills"] > 50
    assert figures["repeated"].keys() == figures["pairs"].keys()
    assert json.loads(json.dumps(evaluate_sam2.rounded(figures)))["videos"]["disc"]["J"] == pytest.approx(
        figures["videos"]["disc"]["J"], abs=1e-3
    )
