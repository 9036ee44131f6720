"""Readers on miniature folders of each layout, seeded lists, and options that make no sense."""

import argparse

import numpy as np
import pytest

from cavsam.errors import CavSamError
from cavsam.evaluation import evaluate
from cavsam.evaluation.datasets import (
    DEEPGLOBE_COLOURS,
    READERS,
    SUIM_COLOURS,
    Sample,
    draw_episodes,
    load_episode,
    read_dataset,
    read_list,
    read_sample,
    write_list,
)
from tests.support.pictures import save


def picture(seed: int, size=(40, 48)):
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, dtype=bool)
    top, left = rng.integers(2, 20, 2)
    mask[top : top + 12, left : left + 15] = True
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8), mask


def colour_coded(mask, inside, outside):
    return np.where(mask[..., None], np.uint8(inside), np.uint8(outside)).astype(np.uint8)


def make_fss(root):
    for folder in ("apple", "bus"):
        for number in range(1, 5):
            image, mask = picture(number)
            save(image, root / folder / f"{number}.jpg")
            save(mask.astype(np.uint8) * 255, root / folder / f"{number}.png")


def make_isic(root):
    for number in range(4):
        image, mask = picture(number)
        folder = "ISIC2018_Task1-2_Training_Input" + ("/2" if number > 1 else "")
        save(image, root / folder / f"ISIC_{number:07d}.jpg")
        save(
            mask.astype(np.uint8) * 255,
            root / f"ISIC2018_Task1_Training_GroundTruth/ISIC_{number:07d}_segmentation.png",
        )


def make_chest(root):
    for number, name in enumerate(("MCUCXR_0001_0", "CHNCXR_0001_0_mask", "MCUCXR_0002_0")):
        image, mask = picture(number)
        save(image, root / "CXR_png" / f"{name.removesuffix('_mask')}.png")
        save(mask.astype(np.uint8) * 255, root / "masks" / f"{name}.png")
    save(picture(9)[0], root / "CXR_png" / "without_a_mask.png")


def make_deepglobe(root):
    for number in range(3):
        image, mask = picture(number)
        save(image, root / "train" / f"{number}_sat.jpg")
        coded = colour_coded(mask, DEEPGLOBE_COLOURS["water"], DEEPGLOBE_COLOURS["forest"])
        save(coded, root / "train" / f"{number}_mask.png")


def make_suim(root):
    for number in range(3):
        image, mask = picture(number)
        save(image, root / "TEST" / "images" / f"d_{number}.jpg")
        save(colour_coded(mask, SUIM_COLOURS["fish"], (0, 0, 0)), root / "TEST" / "masks" / f"d_{number}.bmp")


def make_folder(root):
    for folder, numbers in (("cell", (1, 2)), ("nucleus", (2, 3, 4))):
        for number in numbers:
            image, mask = picture(number)
            save(image, root / folder / "images" / f"{number}.jpg")
            save(mask.astype(np.uint8) * 255, root / folder / "masks" / f"{number}.png")


MAKERS = {
    "fss1000": make_fss,
    "isic": make_isic,
    "chest": make_chest,
    "deepglobe": make_deepglobe,
    "suim": make_suim,
    "folder": make_folder,
}
EXPECTED = {
    "fss1000": {"apple": 4, "bus": 4},
    "isic": {"lesion": 2, "lesion 2": 2},
    "chest": {"lung": 3},
    "deepglobe": {"forest": 3, "water": 3},
    "suim": {"fish": 3},
    "folder": {"cell": 2, "nucleus": 3},
}


@pytest.mark.parametrize("name", READERS)
def test_each_layout_is_read_with_its_classes_and_masks(name, tmp_path):
    MAKERS[name](tmp_path)
    samples = read_dataset(name, tmp_path)
    found = {label: sum(s.class_name == label for s in samples) for label in {s.class_name for s in samples}}
    assert found == EXPECTED[name]
    truths = [picture(number)[1] for number in range(10)]
    for sample in samples:
        image, mask = read_sample(tmp_path, sample)
        assert image.shape == (40, 48, 3)
        wanted = ~mask if sample.class_name == "forest" else mask
        assert any(np.array_equal(wanted, truth) for truth in truths), "the mask is one that was written"


def test_deepglobe_as_patnet_cuts_it(tmp_path):
    for folder, number in (("1", 0), ("1", 1), ("5", 2)):
        image, mask = picture(number)
        save(image, tmp_path / folder / "test" / "origin" / f"{number}.jpg")
        save(mask.astype(np.uint8) * 255, tmp_path / folder / "test" / "groundtruth" / f"{number}.png")
    samples = read_dataset("deepglobe", tmp_path)
    assert [sample.class_name for sample in samples] == ["1", "1", "5"]
    assert np.array_equal(read_sample(tmp_path, samples[2])[1], picture(2)[1])


def test_fss_can_be_limited_to_listed_classes(tmp_path):
    make_fss(tmp_path)
    (tmp_path / "classes.txt").write_text("bus\n")
    assert {sample.class_name for sample in read_dataset("fss1000", tmp_path)} == {"bus"}


def test_what_does_not_lie_as_it_should_is_said(tmp_path):
    with pytest.raises(CavSamError, match="no folder"):
        read_dataset("chest", tmp_path / "nowhere")
    with pytest.raises(CavSamError, match="CXR_png"):
        read_dataset("chest", tmp_path)
    make_isic(tmp_path)
    (tmp_path / "ISIC2018_Task1_Training_GroundTruth" / "ISIC_0000001_segmentation.png").unlink()
    with pytest.raises(CavSamError, match=r"ISIC_0000001_segmentation.png is missing"):
        read_dataset("isic", tmp_path)
    save(picture(0)[0], tmp_path / "a.png")
    save(np.zeros((8, 8), dtype=np.uint8), tmp_path / "b.png")
    with pytest.raises(CavSamError, match="not of the size"):
        read_sample(tmp_path, Sample("a.png", "b.png", "lesion"))


def test_a_list_is_seeded_covers_each_object_once_and_round_trips(tmp_path):
    make_fss(tmp_path)
    samples = read_dataset("fss1000", tmp_path)
    episodes = draw_episodes(samples, 2, None, seed=4)
    assert {episode.target for episode in episodes} == set(samples)
    for episode in episodes:
        assert len({sample.image for sample in (episode.target, *episode.references)}) == 3
        assert {sample.class_name for sample in episode.references} == {episode.target.class_name}
    assert episodes == draw_episodes(samples, 2, None, seed=4)
    assert episodes != draw_episodes(samples, 2, None, seed=5)
    assert draw_episodes(samples, 2, 3, seed=4) == episodes[:3]
    write_list(tmp_path / "list.jsonl", episodes)
    assert read_list(tmp_path / "list.jsonl") == episodes
    (tmp_path / "list.jsonl").write_text('{"target": 3}\n')
    with pytest.raises(CavSamError, match="not a list of episodes"):
        read_list(tmp_path / "list.jsonl")
    with pytest.raises(CavSamError, match="too few images for 5 references"):
        draw_episodes(samples, 5, None, seed=0)


def test_colours_survive_the_list(tmp_path):
    make_deepglobe(tmp_path)
    episodes = draw_episodes(read_dataset("deepglobe", tmp_path), 1, None, seed=0)
    write_list(tmp_path / "list.jsonl", episodes)
    read = read_list(tmp_path / "list.jsonl")
    assert read == episodes
    for listed in read:
        task = load_episode("deepglobe", tmp_path, listed)
        water = task.truth if task.class_name == "water" else ~task.truth
        assert water.sum() == 12 * 15


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args(["--dataset", *arguments, "--model", "nano", "--mode", "concat", "--device", "cpu"])


def test_bad_options_are_refused(tmp_path):
    make_fss(tmp_path / "fss")
    for shard in ("2/2", "x", "1"):
        with pytest.raises(CavSamError, match="--shard needs I/N"):
            evaluate.run(parse("fss1000", str(tmp_path / "fss"), "--out", str(tmp_path), "--shard", shard))


def test_a_class_list_from_windows_is_read(tmp_path):
    make_fss(tmp_path)
    names = sorted({sample.class_name for sample in read_dataset("fss1000", tmp_path)})
    (tmp_path / "classes.txt").write_bytes(f"{names[0]}\r\n".encode())
    assert {sample.class_name for sample in read_dataset("fss1000", tmp_path)} == {names[0]}
