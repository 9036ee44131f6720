"""The order of the frames of a pseudo video, and what is squashed to its square."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cavsam.tracking import Tracker
from cavsam.video import Video, encode, frames_square, masks_square, picture_square


@pytest.fixture
def video() -> Video:
    """References 2, 0 and 3 of four; a frame's features are its number, the target's are 9."""
    numbers = torch.arange(4.0).view(4, 1, 1, 1)
    target = torch.full((1, 1, 1, 1), 9.0)
    return Video.of([numbers, numbers.repeat(1, 2, 2, 2)], [2, 0, 3], [target, target.repeat(1, 2, 2, 2)])


def frames(video: Video) -> list[float]:
    """The numbers of the frames, which all levels must agree on."""
    found = [level.flatten(1).unique(dim=1)[:, 0].tolist() for level in video.trunk]
    assert found[0] == found[1]
    return found[0]


def test_references_come_first_and_the_nearest_stands_next_to_the_target(video: Video) -> None:
    assert frames(video) == [2, 0, 3, 9]
    assert (len(video), video.nearest, video.reference_frame, video.target) == (4, 3, 2, 3)
    assert list(video.generated) == []


def test_generated_frames_stand_between(video: Video) -> None:
    middle = torch.tensor([5.0, 6.0]).view(2, 1, 1, 1)
    longer = video.with_frames([middle, middle.repeat(1, 2, 2, 2)])
    assert frames(longer) == [2, 0, 3, 5, 6, 9]
    assert (longer.nearest, longer.reference_frame, longer.target) == (3, 2, 5)
    assert list(longer.generated) == [3, 4]
    assert frames(video) == [2, 0, 3, 9]


@pytest.mark.parametrize(("reference", "expected"), [(2, [0, 3, 2, 9]), (0, [2, 3, 0, 9]), (3, [2, 0, 3, 9])])
def test_any_reference_may_begin_the_transition(video: Video, reference: int, expected: list[int]) -> None:
    turned = video.beginning_at(reference)
    assert turned.nearest == reference
    assert frames(turned) == expected
    assert [*turned.order, 9] == expected


def test_frames_are_encoded_as_they_are_one_by_one(tracker: Tracker) -> None:
    size = tracker.image_size
    pictures = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(5))
    together = encode(tracker, pictures)
    for index in range(3):
        for level, alone in zip(together, tracker.trunk(pictures[index : index + 1]), strict=True):
            torch.testing.assert_close(level[index : index + 1], alone, atol=1e-4, rtol=1e-4)


def test_pictures_and_masks_are_squashed_alike() -> None:
    mask = np.zeros((40, 120), dtype=bool)
    mask[10:30, 30:90] = True
    picture = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255
    square = picture_square(picture, 64)
    masks = masks_square({"b": mask}, ["a", "b"], 64)
    assert square.shape == (3, 64, 64)
    assert masks.shape == (2, 64, 64)
    assert not masks[0].any()
    assert ((square[0] > 0.5) == masks[1]).float().mean() > 0.99
    assert masks[1].nonzero().amin(dim=0).tolist() == [16, 16]
    assert masks[1].nonzero().amax(dim=0).tolist() == [47, 47]


def test_frames_are_scaled_and_stay_in_range() -> None:
    small = torch.zeros(2, 3, 8, 8)
    small[1, :, 4:] = 1  # an edge at which cubic interpolation overshoots
    large = frames_square(small, 32)
    assert large.shape == (2, 3, 32, 32)
    assert (float(large.min()), float(large.max())) == (0, 1)
    assert large[0].max() == 0
    assert (large[1, 0, 20:] > 0.9).all()
