"""Which of several references serve a target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cavsam import AdaptedReference, CavSam, Recipe, Reference
from cavsam.tracking import Tracker
from tests.support.tiny_models import blob_picture


@pytest.fixture
def model(tracker: Tracker) -> CavSam:
    return CavSam(tracker, None, Recipe(mode="concat"))


@pytest.fixture
def references(rng: np.random.Generator) -> list[Reference]:
    return [blob_picture(rng, 120, 160) for _ in range(4)]


@pytest.mark.parametrize("wanted", range(4))
def test_the_reference_most_like_the_target_serves_it_alone(model: CavSam, references: list[Reference], wanted: int):
    target = references[wanted].image  # nothing is more like it than itself
    (one_shot,) = model.segment(model.adapt(references, shots=1), [target])
    (alone,) = model.segment(model.adapt([references[wanted]]), [target])
    assert one_shot.scores == alone.scores
    assert one_shot.masks.keys() == alone.masks.keys()
    for label, mask in alone.masks.items():
        assert (one_shot.masks[label] == mask).all()


def adapted(descriptors: list[tuple[float, float]], shows: list[set[str]], shots: int) -> AdaptedReference:
    """References at some places of a plane, each with the labels that it shows."""
    labels = ("a", "b")
    masks = torch.zeros(len(descriptors), len(labels), 8, 8, dtype=torch.bool)
    for index, shown in enumerate(shows):
        for label in shown:
            masks[index, labels.index(label), 2, 2] = True
    places = torch.nn.functional.normalize(torch.tensor(descriptors), dim=1)
    trunk, pictures = [torch.zeros(len(masks), 1, 1, 1)], torch.zeros(len(masks), 3, 8, 8, dtype=torch.uint8)
    return AdaptedReference(labels, masks, trunk, pictures, places, "", None, [], "x", {}, shots)


ROUND = [(1.0, 0.0), (0.9, 0.4), (0.4, 0.9), (0.0, 1.0)]
BOTH = {"a", "b"}


@pytest.mark.parametrize(
    ("shows", "shots", "order"),
    [
        ([BOTH] * 4, 0, [0, 2, 3, 1]),  # all, by number, but for the nearest, which stands next to the target
        ([BOTH] * 4, 1, [1]),
        ([BOTH] * 4, 2, [0, 1]),
        ([BOTH] * 4, 9, [0, 2, 3, 1]),
        ([{"a"}, {"a"}, {"b"}, {"b"}], 1, [2, 1]),  # the nearest lacks b: the most alike that shows it joins
        ([{"a"}, {"a"}, {"a"}, {"b"}], 2, [0, 3, 1]),
    ],
)
def test_the_nearest_and_what_they_lack(shows: list[set[str]], shots: int, order: list[int]):
    target = torch.nn.functional.normalize(torch.tensor([0.95, 0.35]), dim=0)
    assert adapted(ROUND, shows, shots).order(target) == order


def test_the_number_of_shots_survives_the_disk(tmp_path: Path):
    adapted(ROUND, [BOTH] * 4, 2).save(tmp_path / "a.safetensors")
    assert AdaptedReference.load(tmp_path / "a.safetensors").shots == 2
