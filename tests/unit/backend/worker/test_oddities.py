"""What is said of masks that are to be learned from, and of which nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from backend.worker.oddities import oddities
from research import synth

SIZE = 128


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An orange disc on noise, and its mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    disc = np.hypot(rows - 60, columns - 50) < 25
    image = rng.normal(110, 10, (SIZE, SIZE, 3))
    image[disc] = np.array([235, 140, 20]) + rng.normal(0, 6, (int(disc.sum()), 3))
    return image.clip(0, 255).astype(np.uint8), disc


def said(mask: np.ndarray, cells: int = 16) -> str:
    return " ".join(oddities(scene()[0], {"cat": mask}, cells))


def test_a_good_mask_is_not_spoken_of():
    assert said(scene()[1]) == ""


def test_a_dot_is_tiny_and_where_the_cells_are_not_known_it_is_not():
    dot = np.zeros((SIZE, SIZE), bool)
    dot[60:62, 50:52] = True
    assert "'cat' is tiny: 4 pixels" in said(dot)
    assert "tiny" not in said(dot, cells=0)
    assert "thin" not in said(dot)


def test_a_line_is_thinner_than_a_cell():
    line = np.zeros((SIZE, SIZE), bool)
    line[60:63, 5:120] = True
    assert "thinner" in said(line)
    assert "thinner" not in said(line, cells=64)


def test_large_pictures_are_looked_at_alike():
    side = 16 * SIZE
    image = np.random.default_rng(0).normal(110, 30, (side, side, 3)).clip(0, 255).astype(np.uint8)
    rows, columns = np.mgrid[:side, :side]
    disc = np.hypot(rows - 960, columns - 800) < 400
    image[disc] = (235, 140, 20)
    bare, hair = np.zeros((2, side, side), bool)
    bare[1440:1920, 1440:1920] = True
    hair[1700, 100:1900] = True
    found = oddities(image, {"disc": disc, "bare": bare, "hair": hair}, 16)
    what = [(one.split("'")[1], one.split("' ")[1].split()[0]) for one in found]
    assert what == [("bare", "does"), ("hair", "is"), ("hair", "does")]


def test_crumbs_are_counted():
    _, mask = scene()
    mask[100:120:2, 100:120:4] = True
    assert "has 50 crumbs" in said(mask)


def test_a_scribble_on_the_bare_ground_does_not_differ_from_it():
    scribble = np.zeros((SIZE, SIZE), bool)
    scribble[90:120, 90:120] = True
    assert "does not differ from its surroundings" in said(scribble)


@pytest.mark.parametrize("domain", synth.DOMAINS)
def test_true_masks_of_drawn_scenes_stand_out(domain: str):
    name = synth.classes(domain, "dev")[0]
    for seed in range(4):
        drawn = synth.generate(domain, (name,), seed=synth.seed_of("dev", seed), size=SIZE)
        said = " ".join(oddities(drawn.image, drawn.masks, 16))
        assert "does not differ" not in said
        assert "tiny" not in said


def test_the_whole_picture_is_a_mask_like_others():
    assert said(np.ones((SIZE, SIZE), bool)) == ""
