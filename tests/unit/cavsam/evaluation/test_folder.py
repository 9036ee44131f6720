"""A plain folder of pictures and masks: layouts, distances, absent objects, and what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cavsam.errors import CavSamError
from cavsam.evaluation import evaluate
from cavsam.evaluation.datasets import (
    draw_absent_episodes,
    draw_far_episodes,
    load_episode,
    read_dataset,
    read_list,
    write_list,
)
from tests.support.pictures import save


def add_picture(folder: Path, name: str, *, empty: bool = False, size: tuple[int, int] = (12, 16)) -> None:
    mask = np.zeros(size, dtype=np.uint8)
    if not empty:
        mask[2:6, 3:9] = 255
    save(np.full((*size, 3), 90, dtype=np.uint8), folder / "images" / f"{name}.jpg")
    save(mask, folder / "masks" / f"{name}.png")


def add_class(folder: Path, count: int) -> None:
    for number in range(count):
        add_picture(folder, str(number))


def test_without_domains_the_folder_is_the_domain(tmp_path: Path) -> None:
    root = tmp_path / "microscope"
    add_class(root / "nucleus", 2)
    add_class(root / "wall", 1)
    samples = read_dataset("folder", root)
    assert [(sample.domain, sample.class_name) for sample in samples] == [
        ("microscope", "nucleus"),
        ("microscope", "nucleus"),
        ("microscope", "wall"),
    ]


def test_domains_may_have_classes_of_one_name(tmp_path: Path) -> None:
    for domain in ("air", "sea"):
        add_class(tmp_path / domain / "bird", 3)
    samples = read_dataset("folder", tmp_path)
    assert {(sample.domain, sample.class_name) for sample in samples} == {("air", "bird"), ("sea", "bird")}
    episodes = draw_far_episodes(tmp_path, samples, 2, None, seed=0)
    assert len(episodes) == len(samples)
    for episode in episodes:
        assert {sample.domain for sample in episode.references} == {episode.target.domain}
        assert load_episode("folder", tmp_path, episode).domain == episode.target.domain


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    for name in ("slice_10", "slice_9", "slice_1", "slice_100"):
        add_picture(tmp_path / "membrane", name)
    samples = read_dataset("folder", tmp_path)
    assert [Path(sample.image).stem for sample in samples] == ["slice_1", "slice_9", "slice_10", "slice_100"]


def test_what_a_folder_lacks_is_said_with_its_remedy(tmp_path: Path) -> None:
    def refused(root: Path) -> str:
        with pytest.raises(CavSamError) as caught:
            read_dataset("folder", root)
        return str(caught.value)

    assert "no folder" in refused(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    assert "CLASS/images" in refused(tmp_path / "a")
    add_picture(tmp_path / "b" / "cat", "1")
    (tmp_path / "b" / "cat" / "masks" / "1.png").unlink()
    message = refused(tmp_path / "b")
    assert "1.jpg has no mask" in message
    assert "put 1.png into" in message
    (tmp_path / "b" / "cat" / "masks").rmdir()
    assert "has no folder masks" in refused(tmp_path / "b")
    add_picture(tmp_path / "c" / "cat", "1")
    save(np.zeros((12, 17), dtype=np.uint8), tmp_path / "c" / "cat" / "masks" / "1.png")
    assert "differ in size" in refused(tmp_path / "c")
    add_picture(tmp_path / "d" / "cat", "1")
    (tmp_path / "d" / "cat" / "images" / "1.jpg").unlink()
    assert "holds no picture" in refused(tmp_path / "d")


def test_the_size_of_a_turned_photograph_is_that_which_is_shown(tmp_path: Path) -> None:
    add_picture(tmp_path / "cat", "1", size=(12, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(np.zeros((16, 12, 3), dtype=np.uint8))
    lying.save(tmp_path / "cat" / "images" / "1.jpg", exif=exif)
    assert len(read_dataset("folder", tmp_path)) == 1


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9, 30])
def test_references_lie_a_third_of_the_list_away(tmp_path: Path, count: int) -> None:
    add_class(tmp_path / "frames", count)
    samples = read_dataset("folder", tmp_path)
    for seed in range(5):
        episodes = draw_far_episodes(tmp_path, samples, 1, None, seed)
        assert len(episodes) == count
        for episode in episodes:
            target, (reference,) = samples.index(episode.target), map(samples.index, episode.references)
            assert abs(target - reference) >= count / 3


def test_too_few_far_references_are_made_up_by_the_farthest_others(tmp_path: Path) -> None:
    add_class(tmp_path / "frames", 9)
    samples = read_dataset("folder", tmp_path)
    episodes = draw_far_episodes(tmp_path, samples, 4, None, seed=1)
    assert len(episodes) == 9
    for episode in episodes:
        target = samples.index(episode.target)
        distances = sorted(abs(target - samples.index(sample)) for sample in episode.references)
        everywhere = sorted((abs(target - other) for other in range(9) if other != target), reverse=True)
        assert len(set(episode.references)) == 4
        if everywhere[3] < 3:  # fewer than four lie a third of nine away
            assert distances == sorted(everywhere[:4])
        else:
            assert distances[0] >= 3


def test_references_show_the_object_and_targets_need_not(tmp_path: Path) -> None:
    for number in range(6):
        add_picture(tmp_path / "crack", str(number), empty=number in (0, 5))
    samples = read_dataset("folder", tmp_path)
    episodes = draw_far_episodes(tmp_path, samples, 2, None, seed=0)
    loaded = [load_episode("folder", tmp_path, episode) for episode in episodes]
    assert sum(episode.absent for episode in loaded) == 2
    assert all(reference.masks["crack"].any() for episode in loaded for reference in episode.references)
    with pytest.raises(CavSamError, match="needs 5 that show the object"):
        draw_far_episodes(tmp_path, samples, 4, None, seed=0)


def test_a_class_s_episodes_stay_whatever_is_beside_it(tmp_path: Path) -> None:
    add_class(tmp_path / "a", 12)
    alone = draw_far_episodes(tmp_path, read_dataset("folder", tmp_path), 2, None, seed=3)
    add_class(tmp_path / "b", 12)
    samples = read_dataset("folder", tmp_path)
    both = draw_far_episodes(tmp_path, samples, 2, None, seed=3)
    assert [episode.target.class_name for episode in both[:4]] == ["a", "b", "a", "b"]

    def drawn(episodes: list) -> list:
        return [(e.target, e.references) for e in episodes if e.target.class_name == "a"]

    assert drawn(both) == drawn(alone)
    assert drawn(draw_far_episodes(tmp_path, samples, 2, 5, seed=3)) == drawn(alone)[:5]
    assert drawn(draw_far_episodes(tmp_path, samples, 2, None, seed=4)) != drawn(alone)
    bounded = draw_far_episodes(tmp_path, samples, 2, None, seed=3, per_domain=5)
    assert [episode.target.class_name for episode in bounded] == ["a", "b", "a", "b", "a"]
    assert drawn(bounded) == drawn(alone)[:3]
    write_list(tmp_path / "list.jsonl", both)
    assert read_list(tmp_path / "list.jsonl") == both


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([*arguments, "--model", "nano", "--device", "cpu"])


def test_a_video_must_show_its_object_at_first(tmp_path: Path) -> None:
    add_picture(tmp_path / "videos" / "ball", "0", empty=True)
    add_picture(tmp_path / "videos" / "ball", "1")
    with pytest.raises(CavSamError, match="first frame of 'ball' shows no object"):
        evaluate.run(parse(str(tmp_path / "videos"), "--dataset", "video", "--out", str(tmp_path / "out")))


@pytest.mark.parametrize(
    "option", [("--episodes", "0"), ("--absent", "0"), ("--shots", "0"), ("--every", "0"), ("--at-most", "1")]
)
def test_numbers_that_mean_nothing_are_refused(option: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(CavSamError, match=rf"{option[0]} must be at least"):
        evaluate.run(parse(str(tmp_path), *option, "--out", str(tmp_path / "out")))


def test_absent_targets_come_from_other_domains_and_other_words(tmp_path: Path) -> None:
    for folder in ("street/car", "street/sky", "video/car_shadow", "video/dog", "cells/nucleus"):
        add_class(tmp_path / folder, 4)
    samples = read_dataset("folder", tmp_path)
    episodes = draw_absent_episodes(tmp_path, samples, 2, 12, seed=0)
    assert len(episodes) == 5 * 12
    lenders: dict[str, set[str]] = {}
    for episode in episodes:
        lender, name, *_ = Path(episode.target.image).parts
        lenders.setdefault(episode.target.class_name, set()).add(f"{lender}/{name}")
        assert lender != episode.target.domain
        assert {(s.domain, s.class_name) for s in episode.references} == {
            (episode.target.domain, episode.target.class_name)
        }
        loaded = load_episode("folder", tmp_path, episode)
        assert loaded.absent
        assert loaded.truth.shape == loaded.image.shape[:2]
    assert lenders["car"] == {"video/dog", "cells/nucleus"}
    assert lenders["car_shadow"] == {"street/sky", "cells/nucleus"}
    assert draw_absent_episodes(tmp_path, samples, 2, 12, seed=0) == episodes
    assert draw_absent_episodes(tmp_path, samples, 2, 12, seed=1) != episodes
    assert len(draw_absent_episodes(tmp_path, samples, 2, 12, seed=0, per_domain=3)) == 3 * 3
    write_list(tmp_path / "list.jsonl", episodes)
    assert read_list(tmp_path / "list.jsonl") == episodes
    alone = [sample for sample in samples if sample.domain == "street"]
    with pytest.raises(CavSamError, match="No other domain"):
        draw_absent_episodes(tmp_path, alone, 1, 1, seed=0)
