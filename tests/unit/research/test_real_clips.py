"""Clips made from real videos, on tiny drawn ones."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from research.train_nano import real_clips, train_sam2

HEIGHT, WIDTH = 60, 100


def write_video(folder: Path, colour: tuple[int, int, int], count: int = 14) -> None:
    """A disc of one colour that goes to the right over a grey slope."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    for n in range(count):
        mask = (ys - 30) ** 2 + (xs - 20 - 4 * n) ** 2 < 12**2
        image = np.repeat((60 + xs)[..., None], 3, axis=2).astype(np.uint8)
        image[mask] = colour
        cv2.imwrite(str(folder / "images" / f"{n:05d}.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(folder / "masks" / f"{n:05d}.png"), 255 * mask.astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("videos")
    write_video(place / "green", (20, 220, 40))
    write_video(place / "red", (230, 20, 20))
    write_video(place / "blue", (20, 40, 230))
    return place


@pytest.fixture(scope="module")
def videos(folder):
    return real_clips.load_videos(folder)


def test_a_folder_is_read_in_order_with_its_masks(videos):
    assert [video.name for video in videos] == ["blue", "green", "red"]
    green = videos[1]
    assert green.frames.shape == (14, HEIGHT, WIDTH, 3)
    centres = [np.nonzero(mask)[1].mean() for mask in green.masks]
    assert np.allclose(centres, 20 + 4 * np.arange(14), atol=0.6)
    assert green.frames[3][green.masks[3]].mean(0) == pytest.approx([20, 220, 40], abs=12)


def test_large_frames_are_made_smaller(folder):
    small = real_clips.load_videos(folder, longest=50)[0]
    assert small.frames.shape[1:3] == (30, 50)
    assert small.masks.shape[1:] == (30, 50)


def test_a_frame_without_a_mask_is_said(tmp_path):
    write_video(tmp_path / "one", (20, 220, 40), 2)
    (tmp_path / "one" / "masks" / "00001.png").unlink()
    with pytest.raises(FileNotFoundError, match="00001"):
        real_clips.load_videos(tmp_path)
    with pytest.raises(FileNotFoundError, match="SEQUENCE"):
        real_clips.load_videos(tmp_path / "nothing")


@pytest.mark.parametrize("kind", real_clips.ODDS)
@pytest.mark.parametrize("length", [2, 6])
def test_every_kind_of_clip_is_a_function_of_its_generator_and_starts_with_its_object(videos, kind, length):
    for seed in range(6):
        frames, masks = real_clips.clip(np.random.default_rng(seed), videos, length, 64, kind)
        again = real_clips.clip(np.random.default_rng(seed), videos, length, 64, kind)
        assert frames.shape == (length, 64, 64, 3)
        assert frames.dtype == np.uint8
        assert masks.shape[1:] == (length, 64, 64)
        assert 1 <= len(masks) <= real_clips.TARGETS
        assert masks.dtype == bool
        assert (masks[:, 0].mean((1, 2)) >= real_clips.SMALLEST).all()
        assert np.array_equal(frames, again[0])
        assert np.array_equal(masks, again[1])


@pytest.mark.parametrize("kind", ["video", "pasted", "still", "repeat"])
def test_the_mask_stays_on_the_object(videos, kind):
    """The object is the only saturated thing of its colour: what the mask covers has that colour, and little else."""
    inside, outside = [], []
    for seed in range(12):
        frames, masks = real_clips.clip(np.random.default_rng(seed), videos, 5, 64, kind)
        masks = masks[0]
        first = frames[0][masks[0]].astype(float)
        channel = int(first.mean(0).argmax())
        for frame, mask in zip(frames, masks, strict=True):
            if mask.sum() < 20:
                continue
            strength = frame[..., channel].astype(float) - np.delete(frame, channel, axis=2).max(2)
            inside.append((strength[mask] > 80).mean())
            outside.append((strength[~mask] > 80).mean() if kind != "pasted" else 0.0)
    assert np.mean(inside) > 0.85
    assert np.mean(outside) < 0.05


def test_a_repeated_target_is_the_same_frame(videos):
    frames, masks = real_clips.repeat(np.random.default_rng(1), videos, 5, 64)
    assert not np.array_equal(frames[0], frames[1])
    for t in range(2, 5):
        assert np.array_equal(frames[t], frames[1])
        assert np.array_equal(masks[0, t], masks[0, 1])


def test_a_morph_has_both_real_ends_and_moves_from_one_to_the_other(videos):
    for seed in range(8):
        frames, masks = real_clips.morph(np.random.default_rng(seed), videos, 7, 64)
        assert masks.any((2, 3)).all()
        start, end = frames[0].astype(float), frames[-1].astype(float)
        middle = frames[3].astype(float)
        whole = np.abs(start - end).mean()
        assert min(np.abs(middle - start).mean(), np.abs(middle - end).mean()) <= whole + 30
        areas = masks[0].mean((1, 2))
        assert areas.max() <= 3 * max(areas[0], areas[-1])


def test_what_looks_like_a_spot_has_its_colour():
    image = np.full((60, 60, 3), 128, dtype=np.uint8)
    for y, x in ((10, 10), (10, 45), (45, 10), (45, 45)):
        cv2.circle(image, (x, y), 8, (220, 30, 30), -1)
    rng = np.random.default_rng(0)
    for _ in range(30):
        mask = real_clips.lookalikes(rng, image)
        if not mask.any():
            continue
        red = (image[..., 0] > 200)[mask].mean()
        assert red > 0.6 or red < 0.4 or mask.mean() > 0.3


def test_a_view_of_the_whole_picture_is_the_picture_resized(videos):
    frame, mask = videos[0].frames[0], videos[0].masks[0]
    seen, cover = real_clips.look(frame, mask, real_clips.whole().matrix(mask.shape, 64), 64)
    expected = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_LINEAR)
    assert np.abs(seen.astype(int) - expected.astype(int)).mean() < 4
    assert cover.mean() == pytest.approx(mask.mean(), abs=0.01)
    turned, _ = real_clips.look(frame, mask, real_clips.whole(mirrored=True).matrix(mask.shape, 64), 64)
    assert np.abs(turned[:, ::-1].astype(int) - seen.astype(int)).mean() < 4


def test_a_batch_of_real_clips_is_a_function_of_seed_step_and_worker(videos):
    first, again = (train_sam2.make_batch(3, 5, 64, 0, videos) for _ in range(2))
    other = train_sam2.make_batch(3, 5, 64, 1, videos)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.masks, again.masks)
    assert first.frames.shape == other.frames.shape
    assert not np.array_equal(first.frames, other.frames)


def test_two_targets_of_one_clip_are_followed_as_if_each_were_alone(videos):
    torch.manual_seed(0)
    model = train_sam2.build_model().eval()
    train_sam2.set_image_size(model, 64)
    frames, masks = real_clips.clip(np.random.default_rng(3), videos, 3, 64, "stuff")
    assert len(masks) == 2
    with torch.no_grad():
        both = train_sam2.Batch(frames[None], masks, "mask", (0,), None, None, clips=np.array([0, 0]))
        together = train_sam2.track(model, both, train_sam2.encode(model, both))
        for n in range(2):
            alone = train_sam2.Batch(frames[None], masks[n : n + 1], "mask", (0,), None, None)
            outputs = train_sam2.track(model, alone, train_sam2.encode(model, alone))
            for t in (1, 2):
                assert torch.allclose(together[t].chosen[n], outputs[t].chosen[0], atol=1e-3)


def test_prompts_lie_on_the_frames_of_their_targets(videos):
    """A click's pixel has the right side of the target's own mask, and the frame is that of the target's clip."""
    for step in range(12):
        batch = train_sam2.make_batch(7, step, 64, 0, videos)
        count, clips = len(batch.masks), len(batch.frames)
        for row, frame in zip(batch.single.rows, batch.single.frames, strict=True):
            assert row // count == frame // clips
            assert batch.owners[row % count] == frame % clips
            assert batch.masks[row % count, row // count].any()
