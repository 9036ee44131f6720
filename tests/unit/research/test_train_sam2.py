"""The training of SAM2-nano: batches and losses against computations of their own, and a resumed run."""

import numpy as np
import pytest
import torch

from research import synth
from research.train_nano import train_sam2


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_batch_is_a_function_of_seed_and_step():
    first, again = (train_sam2.make_batch(3, 11, 128) for _ in range(2))
    other = train_sam2.make_batch(3, 12, 128)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.single.points, again.single.points)
    assert first.frames.shape != other.frames.shape or not np.array_equal(first.frames, other.frames)


def test_prompts_lie_where_they_should():
    rng = np.random.default_rng(0)
    clip = synth.clip(synth.classes("textures", "train")[0], seed=5, size=128, length=2)
    masks = clip.masks[:1].repeat(40, axis=0)
    points, labels = train_sam2._drawn_points(rng, "points", masks)
    for mask, spots, kinds in zip(masks, points, labels, strict=True):
        for (x, y), kind in zip(spots.astype(int), kinds, strict=True):
            assert mask[y, x] == bool(kind)
    boxes, labels = train_sam2._drawn_points(rng, "box", masks)
    assert (labels == [2, 3]).all()
    ys, xs = np.nonzero(masks[0])
    assert np.allclose(boxes.mean(axis=0), [[xs.min(), ys.min()], [xs.max(), ys.max()]], atol=0.03 * 128)


def test_frame_loss_by_hand():
    """Against numpy, for one frame with the object and one without, whose masks must not count."""
    rng = np.random.default_rng(1)
    side = 32
    logits = rng.normal(0, 2, (2, 3, side // 2, side // 2)).astype(np.float32)
    ious = rng.random((2, 3)).astype(np.float32)
    presence = np.array([[1.3], [-0.4]], dtype=np.float32)
    truth = np.zeros((2, side, side), dtype=np.float32)
    truth[0, 5:20, 7:29] = 1
    said = [torch.from_numpy(array) for array in (logits, ious, presence)]
    output = train_sam2.FrameOutput(said[0], said[1], said[2], chosen=torch.empty(0))
    loss, parts = train_sam2.frame_loss(output, torch.from_numpy(truth))

    small = truth[0].reshape(side // 2, 2, side // 2, 2).mean(axis=(1, 3))
    per_mask, actual = [], []
    for mask in logits[0].astype(np.float64):
        p = 1 / (1 + np.exp(-mask))
        entropy = -(train_sam2.POSITIVE_WEIGHT * small * np.log(p) + (1 - small) * np.log(1 - p)).mean()
        dice = 1 - (2 * (p * small).sum() + 1) / (p.sum() + small.sum() + 1)
        per_mask.append(entropy + dice)
        actual.append(((mask > 0) & (small > 0.5)).sum() / ((mask > 0) | (small > 0.5)).sum())
    expected_presence = (np.log1p(np.exp(-1.3)) + np.log1p(np.exp(-0.4))) / 2
    expected_iou = np.mean((ious[0] - np.array(actual)) ** 2)
    best = train_sam2.BEST_PART
    expected_mask = best * min(per_mask) + (1 - best) * np.mean(per_mask)
    assert parts["mask"] == pytest.approx(expected_mask, rel=1e-4)
    assert parts["iou_head"] == pytest.approx(expected_iou, rel=1e-4)
    assert parts["presence"] == pytest.approx(expected_presence, rel=1e-4)
    assert loss.item() == pytest.approx(expected_mask + expected_iou + expected_presence, rel=1e-4)


def test_the_image_size_can_be_changed_as_if_built_with_it():
    torch.manual_seed(0)
    model = train_sam2.build_model()
    train_sam2.set_image_size(model, 128)
    batch = train_sam2.make_batch(0, 2, 128)
    output = train_sam2.single(model, train_sam2.encode(model, batch), batch.single)
    assert output.masks.shape[-2:] == (32, 32)
    assert output.chosen.shape[-2:] == (128, 128)
    encoder = model.sam_prompt_encoder
    assert (encoder.input_image_size, encoder.mask_input_size) == ((128, 128), (32, 32))


def test_tracking_hands_no_output_for_frames_whose_mask_was_given():
    torch.manual_seed(0)
    model = train_sam2.build_model()
    train_sam2.set_image_size(model, 128)
    for step in range(20):
        batch = train_sam2.make_batch(0, step, 128)
        if batch.prompt == "mask":
            break
    outputs = train_sam2.track(model, batch, train_sam2.encode(model, batch))
    assert [output is None for output in outputs] == [t in batch.prompted for t in range(len(outputs))]


def test_the_learning_rate_warms_up_stays_and_falls():
    rates = [train_sam2.learning_rate(step, 1 - step / 1000, 1.0) for step in range(1000)]
    assert rates[0] < rates[100] < rates[199] == 1.0
    assert rates[600] == 1.0
    assert 0 < rates[-1] < 0.01


def test_the_learning_rate_stays_at_zero_once_the_time_is_over():
    assert train_sam2.learning_rate(1000, -0.01, 1.0) == 0


def test_a_repeated_frame_has_the_features_of_the_frame_itself():
    torch.manual_seed(0)
    model = train_sam2.build_model().eval()
    train_sam2.set_image_size(model, 128)
    rng = np.random.default_rng(0)
    distinct = rng.integers(0, 255, (2, 2, 128, 128, 3)).astype(np.uint8)
    frames = distinct[:, [0, 1, 1, 0]]
    masks = np.zeros(frames.shape[:-1], dtype=bool)
    with torch.no_grad():
        repeated = train_sam2.encode(model, train_sam2.Batch(frames, masks, "mask", (0,), None, None))
        once = train_sam2.encode(model, train_sam2.Batch(distinct, masks[:, :2], "mask", (0,), None, None))
    rows = torch.tensor([0, 1, 2, 3, 2, 3, 0, 1])  # frame by frame: two clips each
    for found, expected in zip(repeated.features, once.features, strict=True):
        assert torch.allclose(found, expected[:, rows], atol=1e-4)


def test_a_correcting_click_lies_in_what_is_wrong_and_says_how():
    rng = np.random.default_rng(2)
    ys, xs = np.mgrid[:128, :128]
    mask = (ys - 60) ** 2 + (xs - 70) ** 2 < 30**2
    wrong = mask.copy()
    wrong[40:60] = False
    wrong[100:120, 10:30] = True
    seen = set()
    for _ in range(40):
        points, labels = train_sam2._corrections(rng, mask[None], wrong[None])
        assert labels[0, 1] == -1
        if labels[0, 0] >= 0:
            x, y = points[0, 0].astype(int)
            assert mask[y, x] != wrong[y, x]
            assert labels[0, 0] == mask[y, x]
        seen.add(int(labels[0, 0]))
    assert seen == {-1, 0, 1}


def test_a_damaged_mask_is_neither_right_nor_lost():
    rng = np.random.default_rng(3)
    ys, xs = np.mgrid[:128, :128]
    mask = (ys - 60) ** 2 + (xs - 70) ** 2 < 30**2
    ious = []
    for _ in range(60):
        faulty = train_sam2.damaged(rng, mask)
        ious.append((mask & faulty).sum() / (mask | faulty).sum())
    assert max(ious) < 1
    assert 0.4 < np.median(ious) < 0.98
