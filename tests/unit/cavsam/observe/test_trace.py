"""What a trace keeps is what happened: against the result, and against the same things computed apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.filters import threshold_otsu

from cavsam import CavSam, Recipe, Reference, TargetResult
from cavsam.diffusion import LatentDiffusion
from cavsam.observe.trace import Trace
from cavsam.recipe import Mode
from cavsam.tracking import Tracker
from cavsam.transition import DiffusionTransition
from tests.support.candidates import ALL_KNOWN
from tests.support.tiny_models import blob_picture

pytestmark = pytest.mark.usefixtures("few_trees")

QUICK = Recipe().replace(frames=4, ddim_steps=2, lora_steps=3, lora_rank=2, ttga_steps=3)
Traced = Callable[..., tuple[Trace, TargetResult]]


@pytest.fixture
def tracker(small_tracker: Tracker) -> Tracker:
    return small_tracker


@pytest.fixture
def reference(tracker: Tracker, rng: np.random.Generator) -> Reference:
    """As large as SAM2 sees it, so that no mask is resized on the way."""
    return blob_picture(rng, tracker.image_size, tracker.image_size)


@pytest.fixture
def target(tracker: Tracker, rng: np.random.Generator) -> np.ndarray:
    return blob_picture(rng, tracker.image_size, tracker.image_size).image


@pytest.fixture
def traced(tracker: Tracker, diffusion: LatentDiffusion, reference: Reference, target: np.ndarray) -> Traced:
    """Segments the target with a trace, after one reference or more."""

    def run(*more: Reference, **changes: object) -> tuple[Trace, TargetResult]:
        recipe = QUICK.replace(**changes)
        transition = DiffusionTransition(diffusion, recipe) if recipe.generates_frames else None
        model = CavSam(tracker, transition, recipe, calibration=ALL_KNOWN)
        trace = Trace()
        adapted = model.adapt([reference, *more], trace=trace)
        (result,) = model.segment(adapted, [target], trace=trace)
        assert result.error is None
        return trace, result

    return run


@pytest.mark.parametrize(("mode", "frames"), [("concat", 2), ("ttga", 2), ("dbst", 6), ("full", 6)])
def test_the_last_tracked_frame_is_the_result(traced: Traced, mode: Mode, frames: int) -> None:
    trace, result = traced(mode=mode)
    (candidate,) = trace.candidates
    assert (candidate.name, candidate.frames) == (mode, frames)
    assert sorted(candidate.tracked) == list(range(frames))
    last = candidate.tracked[frames - 1].numpy()
    highest = last.argmax(axis=0)
    assert result.masks
    for index, label in enumerate(result.scores):
        found = result.masks.get(label, np.zeros(result.size, dtype=bool))
        np.testing.assert_array_equal((last[index] > 0) & (highest == index), found)
        np.testing.assert_array_equal(candidate.masks[index].numpy(), found)
    assert (trace.generated is None) == (frames == 2)
    assert trace.generated is None or trace.generated.shape[0] == 4
    assert candidate.chosen == [True, True]
    assert candidate.scores == pytest.approx(list(result.scores.values()), abs=1e-6)


def test_backward_tracking_gives_the_consistency_of_the_score(traced: Traced, reference: Reference) -> None:
    trace, result = traced(mode="dbst")
    (candidate,) = trace.candidates
    assert sorted(candidate.backward) == list(range(6))
    for index, (label, truth) in enumerate(reference.masks.items()):
        back = candidate.backward[0][index].numpy()
        expected = (back & truth).sum() / (back | truth).sum() if label in result.masks else 0.0
        assert candidate.cues[index]["consistency"] == pytest.approx(expected, abs=1e-6)
    # backward tracking begins with what was found
    for index, label in enumerate(result.masks):
        assert candidate.backward[5][index].any(), label


def test_each_decision_follows_from_the_activation_it_is_about(traced: Traced) -> None:
    trace, _ = traced(mode="full", prompted_fraction=0.5)
    (candidate,) = trace.candidates
    assert [(one.frame, one.label) for one in candidate.pseudo_labels] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert trace.activations is not None
    assert trace.activations.shape[:2] == (6, 2)
    size = trace.references.shape[-1]
    for one in candidate.pseudo_labels:
        activation = trace.activations[one.frame]
        assert one.threshold == pytest.approx(threshold_otsu(activation[one.label].double().numpy()), abs=1e-4)
        large = F.interpolate(activation[None], size=(size, size), mode="bilinear")[0]
        expected = (large[one.label] > one.threshold) & (large.argmax(dim=0) == one.label)
        # cells of the tracked video and of the trace's are encoded in batches of their own
        assert float((expected != one.mask).float().mean()) < 0.01
        prompts = [p for p in candidate.prompts if (p.frame, p.label) == (one.frame, one.label)]
        assert bool(prompts) == (not one.refused)
        for prompt in prompts:
            assert torch.equal(prompt.mask, one.mask)


@pytest.mark.parametrize(
    ("bar", "reason"),
    [({"min_separation": 1e6}, "not clearly bimodal"), ({"min_cycle_iou": 1.0}, "find the reference again")],
)
def test_a_refused_frame_says_why(traced: Traced, bar: dict[str, float], reason: str) -> None:
    trace, _ = traced(mode="full", **bar)
    (candidate,) = trace.candidates
    assert len(candidate.pseudo_labels) == 4
    assert all(one.refused for one in candidate.pseudo_labels)
    assert any(reason in one.refused for one in candidate.pseudo_labels)
    assert {prompt.frame for prompt in candidate.prompts} == {0}


def test_more_references_come_first_in_their_order(traced: Traced, rng: np.random.Generator, tracker: Tracker) -> None:
    other = blob_picture(rng, 90, 70)
    trace, _ = traced(other, mode="full")
    (candidate,) = trace.candidates
    assert sorted(trace.order) == [0, 1]
    assert candidate.frames == 2 + 4 + 1
    assert trace.references.shape == (2, 3, tracker.image_size, tracker.image_size)
    assert trace.activations.shape[0] == candidate.frames
    assert min(candidate.backward) == 1  # the reference beside the transition


def test_instances_are_kept_as_their_label(tracker: Tracker, reference: Reference, target: np.ndarray) -> None:
    both = Reference(reference.image, {"block": reference.masks["bright"] | reference.masks["dark"]})
    model, trace = CavSam(tracker, None, QUICK.replace(mode="concat", instances="split")), Trace()
    (result,) = model.segment(model.adapt([both], trace=trace), [target], trace=trace)
    (candidate,) = trace.candidates
    assert len(result.instances["block"]) == 2
    assert candidate.tracked[0].shape[0] == candidate.masks.shape[0] == 1
    assert {prompt.label for prompt in candidate.prompts} == {0}
    # the reference's frame shows the whole of the annotated mask
    shown = candidate.tracked[0][0].numpy() > 0
    assert (shown == both.masks["block"]).mean() > 0.99


def test_auto_keeps_every_candidate(traced: Traced) -> None:
    trace, result = traced(mode="auto", auto_threshold=1.0)
    assert [candidate.name for candidate in trace.candidates] == [
        "concat",
        "ttga",
        "activation",
        "linear",
        "pixels",
        "full",
    ]
    for index, label in enumerate(result.scores):
        (chosen,) = (one for one in trace.candidates if one.chosen[index])
        assert chosen.name == next(c.kind for c in result.candidates[label] if c.chosen)
        assert chosen.scores[index] == max(one.scores[index] for one in trace.candidates)
    assert [candidate.frames for candidate in trace.candidates] == [2, 2, 2, 2, 2, 6]
    assert not trace.candidates[2].tracked


def test_a_trace_changes_nothing_and_only_the_first_target_is_kept(
    tracker: Tracker, diffusion: LatentDiffusion, reference: Reference, target: np.ndarray
) -> None:
    recipe = QUICK.replace(frames=2, ddim_steps=1)
    model = CavSam(tracker, DiffusionTransition(diffusion, recipe), recipe)
    other = np.ascontiguousarray(target[::-1])
    plain = list(model.segment(model.adapt([reference]), [target, other]))
    trace = Trace()
    seen = list(model.segment(model.adapt([reference], trace=trace), [target, other], trace=trace))
    for one, two in zip(plain, seen, strict=True):
        assert one.scores == two.scores
        for label, mask in one.masks.items():
            np.testing.assert_array_equal(mask, two.masks[label])
    assert len(trace.candidates) == 1
    pixels = (trace.target.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(pixels, target)


def test_the_steps_are_those_of_the_timings(
    tracker: Tracker, diffusion: LatentDiffusion, reference: Reference, target: np.ndarray
) -> None:
    model, trace = CavSam(tracker, DiffusionTransition(diffusion, QUICK), QUICK), Trace()
    adapted = model.adapt([reference], trace=trace)
    (result,) = model.segment(adapted, [target], trace=trace)
    together: dict[str, float] = {}
    for step in trace.steps:
        together[step.name] = together.get(step.name, 0.0) + step.seconds
        assert step.peak_rss > 10_000_000
        assert (step.peak_cuda is None) == (not torch.cuda.is_available())
    both = adapted.timings, result.timings
    expected = {name: sum(part.get(name, 0.0) for part in both) for name in {*both[0], *both[1]}}
    assert together == pytest.approx(expected)


def test_peak_memory_is_that_of_the_step() -> None:
    trace = Trace()
    trace.step_begins()
    block = np.ones(300_000_000, dtype=np.uint8)
    del block
    trace.step_ends("large", 0.0)
    trace.step_begins()
    trace.step_ends("small", 0.0)
    large, small = trace.steps
    if trace.rss_per_step:
        assert large.peak_rss - small.peak_rss > 200_000_000
    else:  # the system counts from the start of the process only
        assert small.peak_rss >= large.peak_rss > 300_000_000
