"""SAM2 on frames in memory, against the predictor's own loading of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cavsam.tracking import PIXEL_MEAN, PIXEL_STD, Prompt, Tracker, bounding_box


@pytest.fixture
def frames(tracker: Tracker) -> torch.Tensor:
    """Five frames of a bright square that moves over noise, (5, 3, S, S) in 0..1, exact in 8 bits."""
    generator = torch.Generator().manual_seed(3)
    size = tracker.image_size
    video = torch.randint(60, 120, (5, 3, size, size), generator=generator)
    for index in range(5):
        start = 30 + 20 * index
        video[index, :, start : start + 60, 40 + 10 * index : 110 + 10 * index] += 110
    return video.float() / 255


@pytest.fixture
def first_mask(tracker: Tracker) -> torch.Tensor:
    mask = torch.zeros(tracker.image_size, tracker.image_size, dtype=torch.bool)
    mask[30:90, 40:110] = True
    return mask


def test_memory_state_equals_the_predictors_own_state(
    tracker: Tracker, frames: torch.Tensor, first_mask: torch.Tensor, tmp_path: Path
) -> None:
    """The same pixels through `init_state` on a folder of JPEGs give the same masks and scores on every frame."""
    for index, frame in enumerate(frames):
        pixels = (frame * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{index}.jpg", quality=95)
    # what SAM2 will decode, so that both sides see the same pixels
    decoded = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(tmp_path / f"{i}.jpg"))).permute(2, 0, 1) / 255.0
            for i in range(len(frames))
        ]
    )
    predictor = tracker.predictor
    second_mask = torch.roll(first_mask, (60, 30), dims=(0, 1))
    state = predictor.init_state(str(tmp_path))
    predictor.add_new_mask(state, 0, 0, first_mask)
    predictor.add_new_mask(state, 0, 1, second_mask)
    predictor.add_new_mask(state, 2, 1, first_mask)
    expected = {frame: masks[:, 0].clone() for frame, _, masks in predictor.propagate_in_video(state)}

    trunk = tracker.trunk(decoded)
    prompts = [Prompt(0, 0, mask=first_mask), Prompt(0, 1, mask=second_mask), Prompt(2, 1, mask=first_mask)]
    for read in range(1, 5):
        track = tracker.track(trunk, prompts, 2, read=read)
        torch.testing.assert_close(track.logits, expected[read], atol=2e-3, rtol=1e-3)
    scores = [
        state["output_dict_per_obj"][i]["non_cond_frame_outputs"][4]["object_score_logits"].item() for i in range(2)
    ]
    torch.testing.assert_close(track.object_scores, torch.tensor(scores), atol=1e-3, rtol=1e-3)


def test_box_prompt_equals_the_predictors_own(tracker: Tracker, frames: torch.Tensor, first_mask: torch.Tensor) -> None:
    trunk = tracker.trunk(frames)
    by_box = tracker.track(trunk, [Prompt.of(0, 0, first_mask, "box")], 1, read=4)
    by_hand = tracker.track(trunk, [Prompt(0, 0, box=(40.0, 30.0, 110.0, 90.0))], 1, read=4)
    by_mask = tracker.track(trunk, [Prompt.of(0, 0, first_mask, "mask")], 1, read=4)
    torch.testing.assert_close(by_box.logits, by_hand.logits)
    assert not torch.allclose(by_box.logits, by_mask.logits)


@pytest.mark.parametrize("kind", ["box", "point"])
def test_a_correction_equals_the_predictors_own(
    tracker: Tracker, frames: torch.Tensor, first_mask: torch.Tensor, kind: str
) -> None:
    """Propagate two objects to frame 2, then prompt the second one there; the first stays as it was."""
    trunk = tracker.trunk(frames)
    prompts = [Prompt(0, 0, mask=first_mask), Prompt(0, 1, mask=first_mask.roll(80, 0))]
    plain = tracker.track(trunk, prompts, 2, read=2)
    if kind == "box":
        correction = Prompt(2, 1, box=(60.0, 70.0, 130.0, 130.0))
        given: dict[str, list] = {"box": [60.0, 70.0, 130.0, 130.0]}
    else:
        correction = Prompt(2, 1, point=(95.5, 100.5))
        given = {"points": [[95.5, 100.5]], "labels": [1]}
    corrected = tracker.track(trunk, prompts, 2, read=2, corrections=[correction])

    predictor, state = tracker.predictor, tracker.state(trunk)
    for prompt in prompts:
        predictor.add_new_mask(state, 0, prompt.label, prompt.mask)
    for frame, _, _ in predictor.propagate_in_video(state):
        if frame == 2:
            break
    _, _, expected = predictor.add_new_points_or_box(state, 2, 1, **given)
    torch.testing.assert_close(corrected.logits, expected[:, 0])
    torch.testing.assert_close(corrected.logits[0], plain.logits[0])
    assert not torch.allclose(corrected.logits[1], plain.logits[1])
    assert corrected.predicted_ious[0] == plain.predicted_ious[0]
    assert corrected.predicted_ious[1] != plain.predicted_ious[1]


def test_predicted_ious_are_the_decoders(tracker: Tracker, frames: torch.Tensor) -> None:
    """Boxes on a single frame, through the SAM heads by hand."""
    boxes = [(40.0, 30.0, 110.0, 90.0), (10.0, 120.0, 90.0, 200.0)]
    trunk = tracker.trunk(frames[:1])
    track = tracker.track(trunk, [Prompt(0, i, box=box) for i, box in enumerate(boxes)], 2, read=0)
    predictor = tracker.predictor
    with torch.inference_mode():
        encoded = predictor.forward_image((frames[:1] - _column(PIXEL_MEAN)) / _column(PIXEL_STD))
        _, features, _, sizes = predictor._prepare_backbone_features(encoded)
        levels = [f.permute(1, 2, 0).view(1, -1, *size) for f, size in zip(features, sizes, strict=True)]
        image = levels[-1] + predictor.no_mem_embed.view(1, -1, 1, 1)
        for index, box in enumerate(boxes):
            points = {"point_coords": torch.tensor(box).view(1, 2, 2), "point_labels": torch.tensor([[2, 3]])}
            ious = predictor._forward_sam_heads(image, points, None, levels[:-1], multimask_output=False)[2]
            assert track.predicted_ious[index].item() == pytest.approx(ious.max().item(), abs=1e-4)
    assert not predictor.sam_mask_decoder._forward_hooks


def _column(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values).view(3, 1, 1)


def test_reverse_mirrors_forward(tracker: Tracker, frames: torch.Tensor, first_mask: torch.Tensor) -> None:
    """Playing the mirrored video backwards from its last frame is playing the video forwards."""
    forward = tracker.track(tracker.trunk(frames), [Prompt(0, 0, mask=first_mask)], 1, read=4)
    backward = tracker.track(tracker.trunk(frames.flip(0)), [Prompt(4, 0, mask=first_mask)], 1, read=0, reverse=True)
    torch.testing.assert_close(forward.logits, backward.logits, atol=2e-3, rtol=1e-3)


def test_trunk_and_neck_are_the_image_encoder(tracker: Tracker, frames: torch.Tensor) -> None:
    mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
    with torch.no_grad():
        expected = tracker.predictor.image_encoder((frames - mean) / std)
        features, levels = tracker.neck(tracker.trunk(frames))
    torch.testing.assert_close(features, expected["vision_features"])
    assert len(levels) == len(expected["backbone_fpn"])


def test_other_neck_weights_change_the_features_and_not_the_model(tracker: Tracker, frames: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in tracker.predictor.state_dict().items()}
    trunk = tracker.trunk(frames[:1])
    other = {name: tensor * 1.5 for name, tensor in tracker.neck_weights.items()}
    with torch.no_grad():
        features, tuned = tracker.neck(trunk)[0], tracker.neck(trunk, other)[0]
    torch.testing.assert_close(tuned, features * 1.5)  # the neck is linear
    assert all(torch.equal(before[name], tensor) for name, tensor in tracker.predictor.state_dict().items())


def test_reading_a_frame_off_the_way_is_refused(
    tracker: Tracker, frames: torch.Tensor, first_mask: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="frame 0"):
        tracker.track(tracker.trunk(frames[:3]), [Prompt(1, 0, mask=first_mask)], 1, read=0)


def test_bounding_box_against_numpy() -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        mask = generator.random((23, 31)) > 0.97
        mask[generator.integers(23), generator.integers(31)] = True
        rows, columns = np.nonzero(mask)
        expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert bounding_box(torch.from_numpy(mask)) == expected


@pytest.mark.parametrize("first", [0, 1])
def test_an_object_that_is_not_on_the_first_frame_is_tracked_like_any(tracker: Tracker, first: int) -> None:
    """SAM2 tracks objects apart: the one on the first frame is the same alone, the other one is tracked at all."""
    size = tracker.image_size
    trunk = tracker.trunk(torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(4)))
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    masks[0, 20:90, 30:120] = masks[1, 100:180, 90:200] = True
    prompts = [Prompt(first, 0, mask=masks[0]), Prompt(1 - first, 1, mask=masks[1])]
    both = tracker.track(trunk, prompts, 2, read=2).logits
    assert both.isfinite().all()
    on_first = next(index for index, prompt in enumerate(prompts) if prompt.frame == 0)
    alone = tracker.track(trunk, [Prompt(0, 0, mask=masks[on_first])], 1, read=2).logits[0]
    torch.testing.assert_close(both[on_first], alone)
