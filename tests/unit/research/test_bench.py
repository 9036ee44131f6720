"""Episodes, and what the benchmark refuses."""

import argparse
import itertools
from pathlib import Path

import numpy as np
import pytest

from cavsam.errors import CavSamError
from research import bench, synth
from research.episodes import episode


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(arguments)


def test_an_episode_is_a_function_of_its_number_and_shows_different_scenes():
    first, again = (episode("cells", "dev", 2, 7) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    images = [reference.image for reference in first.references] + [first.image]
    for one, other in itertools.combinations(images, 2):
        assert not np.array_equal(one, other)
    for reference in first.references:
        assert reference.masks[first.class_name].any()


def test_more_shots_keep_the_target_and_the_first_references():
    one, five = episode("lesions", "dev", 1, 3), episode("lesions", "dev", 5, 3)
    assert len(five.references) == 5
    assert np.array_equal(one.image, five.image)
    assert np.array_equal(one.references[0].image, five.references[0].image)


def test_episodes_take_their_scenes_from_the_seeds_of_their_split(monkeypatch):
    seeds = []
    generate = synth.generate

    def noted(*arguments, seed, **options):
        seeds.append(seed)
        return generate(*arguments, seed=seed, **options)

    monkeypatch.setattr(synth, "generate", noted)
    for split in ("dev", "test"):
        seeds.clear()
        for domain, index in itertools.product(("cells", "textures"), range(4)):
            episode(domain, split, 2, index)
        assert len(set(seeds)) == len(seeds) == 2 * 4 * 3
        assert all(seed in synth.SEEDS[split] for seed in seeds)


def test_some_targets_lack_the_object_and_classes_come_in_turn():
    tasks = [episode("cells", "dev", 1, index) for index in range(30)]
    absent = [task for task in tasks if task.absent]
    assert 1 <= len(absent) <= 9
    assert not absent[0].truth.any()
    assert {tasks[0].class_name, tasks[1].class_name} == set(synth.classes("cells"))


def test_episodes_refuse_what_they_cannot_give():
    with pytest.raises(ValueError, match="no classes in the split 'train'"):
        episode("lungs", "train", 1, 0)
    with pytest.raises(ValueError, match="references"):
        episode("lungs", "dev", 0, 0)


def test_no_episodes_is_refused():
    with pytest.raises(CavSamError, match="at least 1"):
        bench.run(parse("--model", "nano", "--episodes", "0"))


@pytest.mark.parametrize(("place", "reason"), [("file", "File exists"), ("file/below", "Not a directory")])
def test_a_benchmark_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, reason: str
) -> None:
    (tmp_path / "file").write_text("")
    assert bench.main(["--model", "nano", "--mode", "concat", "--out", str(tmp_path / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / place) in line
    assert reason in line
