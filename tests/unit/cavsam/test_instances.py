"""From labels to what SAM2 tracks, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.measure import label as connected_components

from cavsam.instances import Objects
from cavsam.tracking import Prompt


@pytest.fixture
def masks() -> torch.Tensor:
    """Two references of 20 x 20 with two labels: on the second one the first label has three parts and a speck."""
    masks = torch.zeros(2, 2, 20, 20, dtype=torch.bool)
    masks[0, 0, 2:6, 2:6] = True
    masks[0, 0, 10:12, 10:12] = True
    masks[0, 1, 15:18, 3:9] = True
    masks[1, 0, 1:8, 1:14] = True
    masks[1, 0, 8:11, 14:18] = True  # touches the first at a corner: one part with it
    masks[1, 0, 13:19, 2:6] = True
    masks[1, 0, 14:17, 14:19] = True
    masks[1, 0, 0, 19] = True  # below 1 % of the largest
    masks[1, 1, 5:7, 14:19] = True
    return masks


def test_a_union_is_one_object_per_label(masks: torch.Tensor) -> None:
    objects = Objects.of(masks, 1, "union")
    assert objects.owners == (0, 1)
    assert torch.equal(objects.masks, masks)


def test_split_parts_are_the_components_of_the_nearest_reference(masks: torch.Tensor) -> None:
    objects = Objects.of(masks, 1, "split")
    assert objects.owners == (0, 0, 0, 1)
    numbered = connected_components(masks[1, 0].numpy(), connectivity=2)
    expected = sorted((np.bincount(numbered.ravel())[1:]).tolist())[1:]  # without the speck
    areas = objects.masks[1, :3].flatten(1).sum(dim=1).tolist()
    assert areas == sorted(areas, reverse=True)
    assert sorted(areas) == [*expected[:-1], expected[-1] + 1]  # the speck is with the largest
    assert torch.equal(objects.masks[1, :3].any(dim=0), masks[1, 0])
    assert int(objects.masks[1, :3].sum()) == int(masks[1, 0].sum())
    # another reference cannot say which of its parts is which, unless there is but one object
    assert not objects.masks[0, :3].any()
    assert torch.equal(objects.masks[:, 3], masks[:, 1])


def test_objects_and_labels_translate_into_each_other(masks: torch.Tensor) -> None:
    objects = Objects.of(masks, 1, "split")
    values = torch.tensor([[1.0, 5.0], [3.0, 2.0], [0.0, 0.0], [-1.0, 7.0]])
    torch.testing.assert_close(objects.per_label(values), torch.tensor([[3.0, 5.0], [-1.0, 7.0]]))
    assert torch.equal(objects.per_label(objects.masks[1]), masks[1])
    prompts = [Prompt(3, 0, box=(0, 0, 1, 1)), Prompt(3, 1, point=(2, 2))]
    assert objects.from_labels(prompts) == [Prompt(3, 3, point=(2, 2))]
    assert objects.to_labels([Prompt(0, 2, point=(1, 1)), Prompt(0, 3, point=(2, 2))]) == [
        Prompt(0, 0, point=(1, 1)),
        Prompt(0, 1, point=(2, 2)),
    ]


def test_many_equal_parts_are_all_objects() -> None:
    dots = torch.zeros(1, 1, 60, 60, dtype=torch.bool)
    dots[..., 2::5, 2::5] = True  # each far less than a hundredth of the label
    split = Objects.of(dots, 0, "split")
    assert len(split.owners) == 144
    assert torch.equal(split.masks.any(dim=1), dots[:, 0])
    assert split.several() == (0,)
