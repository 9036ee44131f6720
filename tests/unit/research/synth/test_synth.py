"""SynthFSS: every image is a function of its seed, and its masks are exact."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_gradient_magnitude

from research import synth
from research.synth import objects, textures
from research.synth.raster import as_size, grid, hsv

TARGETS = ("lesions", "lungs", "satellite", "cells")


def dev_seed(index: int) -> int:
    return synth.seed_of("dev", index)


def one_class_images(domain: str, count: int, size=128):
    names = synth.classes(domain, "dev")
    for index in range(count):
        name = names[index % len(names)]
        yield name, synth.generate(domain, [name], seed=dev_seed(index), size=size)


def test_the_five_domains_and_their_classes():
    assert ("textures", *TARGETS) == synth.DOMAINS
    for domain in TARGETS:
        assert synth.classes(domain, "train") == ()
        assert synth.classes(domain, "dev") == synth.classes(domain, "test") != ()
    assert len(synth.classes("cells")) >= 2
    assert len(synth.classes("satellite")) >= 2


def test_texture_classes_are_divided_without_overlap_and_every_word_is_seen_in_training():
    splits = [set(synth.classes("textures", split)) for split in synth.SPLITS]
    assert [len(names) for names in splits] == [120, 30, 30]
    for first, second in itertools.combinations(splits, 2):
        assert not first & second
    words = [{word for name in names for word in name.split()} for names in splits]
    assert words[1] <= words[0]
    assert words[2] <= words[0]


def test_seed_ranges_do_not_meet():
    for first, second in itertools.combinations(synth.SEEDS.values(), 2):
        assert first.stop <= second.start or second.stop <= first.start
    assert synth.seed_of("dev", 3) in synth.SEEDS["dev"]
    with pytest.raises(ValueError, match="outside the dev split"):
        synth.seed_of("dev", len(synth.SEEDS["dev"]))


@pytest.mark.parametrize("domain", synth.DOMAINS)
def test_an_image_is_a_function_of_its_seed(domain):
    name = synth.classes(domain, "dev")[0]
    first, again = (synth.generate(domain, [name], seed=dev_seed(5), size=96) for _ in range(2))
    other = synth.generate(domain, [name], seed=dev_seed(6), size=96)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks[name], again.masks[name])
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("domain", synth.DOMAINS)
def test_shapes_types_and_sizes(domain):
    areas = []
    for name, scene in one_class_images(domain, 24, size=(96, 128)):
        assert scene.image.shape == (96, 128, 3)
        assert scene.image.dtype == np.uint8
        assert set(scene.masks) == {name}
        mask = scene.masks[name]
        assert mask.shape == (96, 128)
        assert mask.dtype == bool
        areas.append(mask.mean())
    assert min(areas) >= 0.01
    assert max(areas) <= 0.6
    assert max(areas) / min(areas) > 3, "sizes must vary"


@pytest.mark.parametrize("domain", synth.DOMAINS)
def test_a_mask_lies_where_the_image_changes(domain):
    """Independent of the generators: edges of the image lie on the mask's outline, not beside it."""
    on_outline, beside = [], []
    for name, scene in one_class_images(domain, 16):
        mask = scene.masks[name]
        edges = gaussian_gradient_magnitude(scene.image.mean(axis=2), 1.0)
        outline = binary_dilation(mask) & ~binary_erosion(mask)
        on_outline.append(edges[outline].mean())
        moved = np.roll(outline, (6, 6), (0, 1))
        beside.append(edges[moved].mean())
    assert np.mean(on_outline) > 1.15 * np.mean(beside)


@pytest.mark.parametrize("domain", ["cells", "satellite", "textures"])
def test_two_classes_share_an_image_and_no_pixel(domain):
    names = synth.classes(domain, "dev")[:2]
    for index in range(8):
        scene = synth.generate(domain, names, seed=dev_seed(index), size=128)
        assert set(scene.masks) == set(names)
        first, second = scene.masks.values()
        assert not (first & second).any()


@pytest.mark.parametrize("domain", synth.DOMAINS)
def test_a_target_without_the_object(domain):
    names = synth.classes(domain, "dev")
    scene = synth.generate(domain, [], seed=dev_seed(0), size=96, avoid=names[:1])
    assert scene.masks == {}
    assert scene.image.std() > 1


def test_no_cell_is_in_view_where_all_are_avoided():
    """Cells are far darker than anything else in bright field: count dark pixels with and without them."""
    dark = {}
    for present in (True, False):
        counts = []
        for index in range(20):
            names = synth.classes("cells")
            scene = synth.generate(
                "cells", names if present else [], seed=dev_seed(index), size=128, avoid=() if present else names
            )
            grey = scene.image.mean(axis=2)
            if np.median(grey) > 128:
                counts.append((grey < 0.8 * np.median(grey)).mean())
        dark[present] = np.mean(counts)
    assert dark[True] > 5 * dark[False]


def test_look_alikes_share_something_but_are_never_of_the_class():
    excluded = synth.classes("textures", "dev")[:2]
    rng = np.random.default_rng(0)
    alike = [textures._look_alike(rng, excluded) for _ in range(300)]
    assert not {f"{one.pattern} {one.shape}" for one in alike} & set(excluded)
    words = {word for name in excluded for word in name.split()}
    assert np.mean([one.shape in words or one.pattern in words for one in alike]) > 0.4


def straight(rng: np.random.Generator, shape: str) -> objects.Instance:
    instance = objects.draw_instance(rng, shape, "plain")
    return replace(instance, waves=np.zeros_like(instance.waves), stretch=1.0, knob=0.375)


def test_a_painted_disc_is_the_disc_of_geometry():
    size, scale = (90, 120), 0.31
    unit = np.sqrt(size[0] * size[1])
    instance = straight(np.random.default_rng(1), "disc")  # knob 0.375: both axes have length 1
    canvas = np.zeros((*size, 3), dtype=np.float32)
    mask = objects.paint(canvas, grid(size), instance, objects.Pose(x=0.5, y=0.4, scale=scale, angle=0.7))
    expected = np.array(
        [
            [
                (column + 0.5 - 0.5 * unit) ** 2 + (row + 0.5 - 0.4 * unit) ** 2 < (scale * unit) ** 2
                for column in range(120)
            ]
            for row in range(90)
        ]
    )
    assert np.array_equal(mask, expected)
    changed = canvas.any(axis=2)
    assert np.array_equal(changed | mask, changed), "every pixel of the mask is painted"
    assert (changed & ~binary_dilation(mask)).sum() == 0, "nothing is painted further out than one pixel"


@pytest.mark.parametrize("shape", sorted(objects.SHAPES))
def test_a_form_covers_the_area_asked_for_and_turns_with_its_pose(shape):
    size = (256, 256)
    instance = objects.draw_instance(np.random.default_rng(3), shape, "plain")
    scale = float(np.sqrt(0.12 / instance.area))
    masks = [
        objects.paint(
            np.zeros((*size, 3), dtype=np.float32), grid(size), instance, objects.Pose(0.5, 0.5, scale, angle)
        )
        for angle in (0.0, np.pi / 2)
    ]
    assert masks[0].mean() == pytest.approx(0.12, rel=0.12)
    turned = np.rot90(masks[0], -1)
    assert (turned ^ masks[1]).sum() <= 0.02 * masks[1].sum()


def test_clips_show_one_object_that_moves_and_may_go():
    names = synth.classes("textures", "dev")
    steps: dict[str, list[float]] = {"smooth": [], "far": []}
    gone = 0
    for motion, index in itertools.product(steps, range(16)):
        clip = synth.clip(names[index], seed=dev_seed(index), size=64, length=4, motion=motion)
        assert clip.frames.shape == (4, 64, 64, 3)
        assert clip.masks.shape == (4, 64, 64)
        assert clip.masks[0].any()
        gone += sum(not mask.any() for mask in clip.masks)
        centres = [np.argwhere(mask).mean(axis=0) if mask.any() else None for mask in clip.masks]
        for before, after in itertools.pairwise(centres):
            if before is not None and after is not None:
                steps[motion].append(float(np.linalg.norm(after - before)) / 64)
    assert np.median(steps["smooth"]) < 0.08
    assert np.median(steps["far"]) > 0.12
    assert 0 < gone < 40


def test_a_clip_is_a_function_of_its_seed_and_can_be_without_absences():
    name = synth.classes("textures", "dev")[0]
    first, again = (synth.clip(name, seed=dev_seed(2), size=64, length=3, motion="far") for _ in range(2))
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.masks, again.masks)
    for index in range(20):
        clip = synth.clip(name, seed=dev_seed(index), size=64, length=2, absent=False)
        assert clip.masks[0].any()


def test_misuse_is_answered_in_plain_words():
    with pytest.raises(ValueError, match="Unknown domain 'xrays'"):
        synth.generate("xrays", [], seed=0)
    with pytest.raises(ValueError, match="has no class 'liver'"):
        synth.generate("lungs", ["liver"], seed=0)
    with pytest.raises(ValueError, match="Unknown split"):
        synth.classes("lungs", "validation")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 32 pixels"):
        synth.generate("lungs", ["lung"], seed=0, size=16)
    with pytest.raises(ValueError, match="Unknown motion"):
        synth.clip(synth.classes("textures")[0], seed=0, motion="wild")


def test_size_and_colour_helpers():
    assert as_size(64) == (64, 64)
    assert as_size((40, 60)) == (40, 60)
    assert np.allclose(hsv(0.0, 1.0, 1.0), [1, 0, 0])
    assert np.allclose(hsv(1 / 3, 1.0, 0.5), [0, 0.5, 0])
    assert np.allclose(hsv(1.5, 0.5, 1.0), [0.5, 1, 1])
