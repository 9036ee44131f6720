"""The whole method on small random models: order, independence of targets, cleanliness, bad input."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.ndimage import label as connected_components
from skimage.filters import threshold_otsu

from cavsam import AdaptedReference, CavSam, Recipe, Reference, TargetResult
from cavsam.candidates import linear
from cavsam.diffusion import LatentDiffusion
from cavsam.errors import CavSamError, ImageError, InvalidReference, ModelError, UsageError
from cavsam.features import guided_filter
from cavsam.recipe import Mode
from cavsam.scoring import appearance
from cavsam.scoring.calibration import Calibration, Logistic
from cavsam.scoring.experience import Correction, Experience
from cavsam.tracking import Prompt, Tracker
from cavsam.transition import DiffusionTransition, Frames
from cavsam.video import picture_square
from tests.support.candidates import ALL_KNOWN
from tests.support.tiny_models import blob_picture

pytestmark = pytest.mark.usefixtures("few_trees")

QUICK = Recipe().replace(
    frames=3, ddim_steps=2, lora_steps=3, lora_rank=2, ttga_steps=3, min_separation=0.0, min_cycle_iou=0.0
)
MODES: tuple[Mode, ...] = ("concat", "ttga", "dbst", "full", "auto")
Build = Callable[..., CavSam]


@pytest.fixture
def tracker(small_tracker: Tracker) -> Tracker:
    return small_tracker


@pytest.fixture
def build(tracker: Tracker, diffusion: LatentDiffusion) -> Build:
    def make(**changes: object) -> CavSam:
        recipe = QUICK.replace(**changes)
        transition = DiffusionTransition(diffusion, recipe) if recipe.generates_frames else None
        return CavSam(tracker, transition, recipe, calibration=ALL_KNOWN)

    return make


@pytest.fixture
def reference(rng: np.random.Generator) -> Reference:
    return blob_picture(rng, 150, 220)


@pytest.fixture
def targets(rng: np.random.Generator) -> list[np.ndarray]:
    return [blob_picture(rng, height, width).image for height, width in ((90, 130), (200, 100), (64, 64))]


def same(first: TargetResult, second: TargetResult) -> bool:
    return first.scores == second.scores and all(
        np.array_equal(first.masks.get(label, np.zeros(first.size)), second.masks.get(label, np.zeros(first.size)))
        for label in first.scores
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_result_does_not_depend_on_the_other_targets(
    build: Build, reference: Reference, targets: list[np.ndarray], mode: Mode
) -> None:
    model = build(mode=mode)
    adapted = model.adapt([reference])
    targets = targets[:2]
    together = list(model.segment(adapted, targets))
    backwards = list(model.segment(adapted, targets[::-1]))[::-1]
    assert [result.index for result in together] == [0, 1]
    for one, other, target in zip(together, backwards, targets, strict=True):
        assert one.error is None
        assert one.size == target.shape[:2]
        assert set(one.scores) == {"bright", "dark"}
        assert all(0 <= score <= 1 for score in one.scores.values())
        assert all(mask.shape == target.shape[:2] and mask.dtype == bool for mask in one.masks.values())
        assert same(one, other)
    assert any(result.masks for result in together)


@pytest.mark.parametrize("mode", MODES)
def test_same_seed_same_result_and_models_untouched(
    build: Build,
    tracker: Tracker,
    diffusion: LatentDiffusion,
    reference: Reference,
    targets: list[np.ndarray],
    mode: Mode,
) -> None:
    parts = (tracker.predictor, diffusion.unet, diffusion.vae, diffusion.text_encoder)
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
    results = []
    for _ in range(2):
        model = build(mode=mode)
        results.append(next(model.segment(model.adapt([reference]), targets[:1])))
    assert same(*results)
    for part, state in zip(parts, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
        assert not any(module._forward_hooks for module in part.modules())


def test_one_reference_does_not_leak_into_another(
    build: Build, reference: Reference, targets: list[np.ndarray], rng: np.random.Generator
) -> None:
    model = build()
    adapted = model.adapt([reference])
    alone = next(model.segment(adapted, targets[:1]))
    other = model.adapt([blob_picture(rng, 60, 60)])
    list(model.segment(other, targets[:1]))
    assert same(alone, next(model.segment(adapted, targets[:1])))


def test_concat_is_sam2_on_two_frames(build: Build, tracker: Tracker, reference: Reference) -> None:
    """The simplest mode written out: squash, prompt frame 0, read frame 1, back to the target's size."""
    from PIL import Image

    model = build(mode="concat")
    target = blob_picture(np.random.default_rng(9), 120, 170).image
    result = next(model.segment(model.adapt([reference]), [target]))
    size = tracker.image_size
    frames = [
        np.array(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in (reference.image, target)
    ]
    video = torch.stack([torch.from_numpy(f).permute(2, 0, 1).float() / 255 for f in frames])
    prompts = []
    for label, mask in enumerate(reference.masks.values()):
        squashed = Image.fromarray(mask.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BOX)
        prompts.append(Prompt(0, label, mask=torch.from_numpy(np.asarray(squashed) >= 128)))
    logits = tracker.track(tracker.trunk(video), prompts, 2, read=1).logits
    full = F.interpolate(logits[None], size=(120, 170), mode="bilinear")[0].numpy()
    assert result.masks
    for label, name in enumerate(reference.masks):
        expected = (full[label] > 0) & (full[label] >= full.max(axis=0))
        np.testing.assert_array_equal(result.masks.get(name, np.zeros_like(expected)), expected)


def test_masks_do_not_overlap(build: Build, reference: Reference, targets: list[np.ndarray]) -> None:
    same_place = Reference(reference.image, {"one": reference.masks["bright"], "two": reference.masks["bright"]})
    model = build(mode="concat")
    results = list(model.segment(model.adapt([same_place]), targets))
    assert [bool(result.masks) for result in results] == [True] * len(targets)
    for result in results:
        assert np.sum(list(result.masks.values()), axis=0).max() == 1


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("concat", [{"reference_prompt": "box"}]),
        (
            "ttga",
            [
                {"propagate_with": "original"},
                {"temperature": 0.1},
                {"activation": "contrast"},
                {"target_prompt": "box"},
                {"target_prompt": "point"},
                {"cycle_mask": "true"},
                {"seed": 1},
                {"activation_stride": 8},
                {"ttga_weight_decay": 0.5},
            ],
        ),
        ("dbst", [{"frames": 4}, {"seed": 1}, {"diffusion_size": 128}, {"lora_weight_decay": 0.5}]),
        ("full", [{"pseudo_label": "box"}, {"prompted_fraction": 0.0}]),
    ],
)
def test_options_of_the_recipe_reach_the_result(
    build: Build, reference: Reference, targets: list[np.ndarray], mode: Mode, changes: list[dict[str, Any]]
) -> None:
    """Each of these changes what is computed, and is not silently dropped."""

    def score(**changed: Any) -> dict[str, float]:
        model = build(**({"mode": mode, "frames": 2, "lora_lr": 0.05} | changed))
        return next(model.segment(model.adapt([reference]), targets[:1])).scores

    base = score()
    for change in changes:
        assert score(**change) != base, change


def test_auto_generates_frames_only_where_no_cheap_candidate_is_trusted(
    build: Build, reference: Reference, targets: list[np.ndarray]
) -> None:
    results = {}
    for threshold in (0.0, 1.0):
        model = build(mode="auto", auto_threshold=threshold)
        results[threshold] = next(model.segment(model.adapt([reference]), targets[:1]))
    cheap = ["concat", "ttga", "activation", "linear", "pixels"]
    tried = {t: [c.kind for c in result.candidates["bright"]] for t, result in results.items()}
    assert tried == {0.0: cheap, 1.0: [*cheap, "full"]}
    assert "generate" not in results[0.0].timings
    assert "generate" in results[1.0].timings
    for result in results.values():
        for label, ways in result.candidates.items():
            (chosen,) = (way for way in ways if way.chosen)
            assert chosen.score == max(way.score for way in ways)
            assert result.scores[label] == pytest.approx(chosen.score, abs=1e-6)
            if label in result.masks:
                assert result.sources[label] == chosen.kind


def test_experience_ends_the_ladder_and_corrects_the_scores(
    build: Build, reference: Reference, targets: list[np.ndarray]
) -> None:
    model = build(mode="auto", auto_threshold=1.0)
    adapted = model.adapt([reference])
    (whole,) = model.segment(adapted, targets[:1])
    taught = Correction(0.5, 0.5)
    (short,) = model.segment(adapted, targets[:1], experience=Experience({"concat": taught}, "activation"))
    for label, tried in short.candidates.items():
        before = whole.candidates[label]
        assert [one.kind for one in tried] == [one.kind for one in before][: len(tried)]
        assert tried[-1].kind == "activation"
        assert len(tried) < len(before)
        assert (
            [one.own for one in tried]
            == [one.own for one in before[: len(tried)]]
            == [one.score for one in before[: len(tried)]]
        )
        for one in tried:
            expected = taught(one.own, one.cues) if one.kind == "concat" and one.mask.any() else one.own
            assert one.score == pytest.approx(expected)
    assert 0 < sum(one.seconds for one in next(iter(short.candidates.values()))) < short.seconds


def test_auto_fits_the_references_adapters_when_a_target_first_asks_for_frames(
    build: Build, reference: Reference, targets: list[np.ndarray], tmp_path: Path
) -> None:
    model = build(mode="auto", auto_threshold=1.0)
    adapted = model.adapt([reference])
    assert "lora" not in adapted.timings
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    adapted.save(before)
    fits: list[int] = []
    first, second = model.segment(
        adapted, targets[:2], progress=lambda step, done, total: fits.append((step, done, total) == ("lora", 1, 3))
    )
    adapted.save(after)
    assert sum(fits) == 3  # of the reference and of each target
    for path in (before, after):  # in another process, and whichever target asks first
        loaded = AdaptedReference.load(path)
        assert bool(loaded.endpoints) == (path == after)
        for wanted, target in ((second, targets[1]), (first, targets[0])):
            (found,) = model.segment(loaded, [target])
            assert found.scores == wanted.scores
            assert all((found.masks[label] == mask).all() for label, mask in wanted.masks.items())
    cheap = build(mode="auto", auto_threshold=0.0)
    spared = cheap.adapt([reference])
    next(cheap.segment(spared, targets[:1]))
    assert spared.endpoints == []


def test_candidates_of_auto_are_those_of_the_modes(
    build: Build, reference: Reference, targets: list[np.ndarray]
) -> None:
    """The same steps give the same masks, alone or beside other candidates, with which only `auto` compares them."""
    model = build(mode="auto", auto_threshold=1.0)
    auto = next(model.segment(model.adapt([reference]), targets[:1]))
    for mode in ("concat", "ttga", "full"):
        model = build(mode=mode)
        (alone,) = next(model.segment(model.adapt([reference]), targets[:1])).candidates["dark"]
        (beside,) = (way for way in auto.candidates["dark"] if way.kind == mode)
        np.testing.assert_array_equal(alone.mask, beside.mask)
        assert {name: value for name, value in beside.cues.items() if name != "consensus"} == alone.cues


def test_the_candidate_activation_is_what_its_map_marks(build: Build, reference: Reference) -> None:
    """On the reference itself: the tuned neck's cosine above its Otsu threshold, its border moved to the picture's."""
    model = build(mode="ttga", region_fallback=True, ttga_steps=30)
    adapted = model.adapt([reference])
    size = model.tracker.image_size
    result = next(model.segment(adapted, [reference.image]))
    assert adapted.alignment is not None
    maps = adapted.alignment.activations(model.tracker, adapted.trunk, model.recipe)[0]
    full = F.interpolate(maps[None], size=(size, size), mode="bilinear")[0]
    plain = torch.stack([full[i] - threshold_otsu(maps[i].double().numpy()) for i in range(2)])
    margin = guided_filter(plain, picture_square(reference.image, size), size // 32).numpy()
    for label, name in enumerate(reference.masks):
        way = result.candidates[name][1]
        expected = (margin[label] > 0) & (margin[label] >= margin.max(axis=0))
        assert way.kind == "activation"
        assert (way.mask == expected).mean() > 0.999


@pytest.mark.parametrize(
    ("changes", "borrowed"),
    [
        ({"mode": "ttga", "region_fallback": True}, {"activation": "ttga"}),
        ({"mode": "full", "region_fallback": True}, {"activation": "full"}),
        ({"mode": "auto", "auto_threshold": 0.0}, {"activation": "ttga", "linear": "concat", "pixels": "concat"}),
        # without a `ttga` of its own, `concat` speaks for all
        (
            {"mode": "auto", "auto_threshold": 0.0, "propagate_with": "original"},
            {"activation": "concat", "linear": "concat", "pixels": "concat"},
        ),
    ],
)
def test_a_region_has_its_presence_from_a_tracked_candidate(
    build: Build,
    reference: Reference,
    targets: list[np.ndarray],
    changes: dict[str, Any],
    borrowed: dict[str, str],
) -> None:
    model = build(**changes)
    result = next(model.segment(model.adapt([reference]), targets[:1]))
    assert result.error is None
    for ways in result.candidates.values():
        presence = {way.kind: way.cues["presence"] for way in ways}
        assert {kind: presence[kind] for kind in borrowed} == {kind: presence[of] for kind, of in borrowed.items()}


@pytest.mark.parametrize(
    ("mode", "fitted", "changed", "calibrated"),
    [
        ("concat", "concat", {}, True),
        ("concat", "full", {}, False),
        ("concat", "concat", {"reference_prompt": "box"}, False),
        ("ttga", "ttga", {"frames": 5}, True),
        ("ttga", "ttga", {"ttga_lr": 0.01}, False),
        ("auto", "full", {}, True),  # beside bare orders, full is taken
        ("auto", "concat", {}, False),
    ],
)
def test_calibrated_says_whether_the_scores_given_were_fitted(
    build: Build,
    reference: Reference,
    targets: list[np.ndarray],
    mode: Mode,
    fitted: str,
    changed: dict[str, Any],
    calibrated: bool,
) -> None:
    model = build(mode=mode, auto_threshold=0.0)
    fitted_on = model.recipe.replace(**changed).to_dict()
    model.calibration = Calibration({fitted: Logistic(0.0, {}, {})}, recipe=fitted_on)
    (result,) = model.segment(model.adapt([reference]), targets[:1])
    assert result.calibrated is calibrated


def test_a_calibrated_score_below_the_one_asked_for_is_no_mask(
    build: Build, reference: Reference, targets: list[np.ndarray]
) -> None:
    model = build(mode="concat", min_score=0.3)
    low = {"concat": Logistic(-1.0, {}, {})}
    adapted = model.adapt([reference])
    model.calibration = Calibration(low, recipe=model.recipe.to_dict())
    (result,) = model.segment(adapted, targets[:1])
    assert not result.masks
    assert set(result.scores) == {"dark", "bright"}
    assert max(result.scores.values()) == pytest.approx(1 / (1 + np.e), abs=1e-6)
    # fitted for another recipe it is an order only, and nothing is held back
    model.calibration = Calibration(low, recipe=model.recipe.replace(reference_prompt="box").to_dict())
    (result,) = model.segment(adapted, targets[:1])
    assert result.masks


def test_below_the_presence_asked_for_no_mask_is_returned(
    build: Build, reference: Reference, targets: list[np.ndarray]
) -> None:
    model = build(mode="concat")
    adapted = model.adapt([reference])
    found = next(model.segment(adapted, targets[:1]))
    assert found.masks
    assert not found.calibrated
    # a calibration that tells the two labels apart by their own cues
    sure = next(iter(found.masks))
    cues = {label: ways[0].cues for label, ways in found.candidates.items()}
    level = cues[sure]["area"] + 0.01
    gate = Logistic(-1000 * level, {"area": 1000.0}, {"area": 0.5})
    picky = CavSam(
        model.tracker, None, model.recipe.replace(min_presence=0.5), calibration=Calibration({}, {"concat": gate})
    )
    adapted = dataclasses.replace(adapted, fingerprint=picky.fingerprint)  # what it holds does not depend on the change
    result = next(picky.segment(adapted, targets[:1]))
    assert sure not in result.masks
    assert result.scores[sure] < 0.5
    for label in set(found.masks) - {sure}:
        assert (label in result.masks) == (cues[label]["area"] > level)


@pytest.mark.parametrize("mode", ["concat", "ttga"])
@pytest.mark.parametrize("partial_first", [True, False])
def test_more_references_and_a_label_that_is_not_on_all(
    build: Build,
    reference: Reference,
    targets: list[np.ndarray],
    rng: np.random.Generator,
    partial_first: bool,
    mode: Mode,
) -> None:
    """The reference most like the target is the last of the video, so both are tried as targets too."""
    second = blob_picture(rng, 80, 110)
    partial = Reference(second.image, {"dark": second.masks["dark"]})
    model = build(mode=mode)
    adapted = model.adapt([partial, reference] if partial_first else [reference, partial])
    assert set(adapted.labels) == {"dark", "bright"}
    results = list(model.segment(adapted, [*targets[:1], reference.image, second.image]))
    assert len(results) == 3
    for result in results:
        assert result.error is None
        assert set(result.scores) == {"dark", "bright"}


def test_what_the_callers_progress_raises_goes_back_to_the_caller(
    build: Build, reference: Reference, targets: list[np.ndarray]
) -> None:
    model = build(mode="concat")
    adapted = model.adapt([reference])

    def stop(step: str, done: int, total: int) -> None:
        raise InvalidReference("enough")

    run = model.segment(adapted, targets, progress=stop)
    with pytest.raises(InvalidReference, match="enough"):
        next(run)
    assert list(run) == []


def test_models_without_a_name_know_their_recipe(build: Build, reference: Reference) -> None:
    adapted = build(mode="concat").adapt([reference])
    with pytest.raises(ModelError, match="another recipe"):
        build(mode="ttga").segment(adapted, [])
    assert list(build(mode="concat").segment(adapted, [])) == []


def test_bad_targets_fail_alone(build: Build, reference: Reference, targets: list[np.ndarray]) -> None:
    model = build(mode="ttga")
    adapted = model.adapt([reference])
    results = list(model.segment(adapted, ["nowhere.png", targets[0], b"junk"]))
    assert [result.error is None for result in results] == [False, True, False]
    assert "nowhere.png" in str(results[0].error)
    assert results[0].score == 0
    assert same(results[1], next(model.segment(adapted, [targets[0]])))


def test_not_a_number_is_an_error_for_that_target_alone(
    build: Build, reference: Reference, targets: list[np.ndarray], tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(mode="concat")
    adapted = model.adapt([reference])
    expected = next(model.segment(adapted, targets[1:]))
    trunk, calls = tracker.trunk, iter([torch.nan, 1.0])
    monkeypatch.setattr(tracker, "trunk", lambda frames: trunk(frames * next(calls)))
    first, second = model.segment(adapted, targets[:2])
    assert "not finite" in str(first.error)
    assert same(second, expected)


@pytest.mark.parametrize(
    ("mode", "step", "message"),
    [
        ("dbst", "denoise", "generated frames"),
        ("dbst", "invert", "inversion"),
        ("auto", "level", "not finite"),
        ("auto", "linear_logits", "linear gave values that are not finite"),
        ("concat", "palette", "not finite"),
    ],
)
def test_not_a_number_anywhere_is_an_error_for_that_target_alone(
    build: Build,
    reference: Reference,
    targets: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    mode: Mode,
    step: str,
    message: str,
) -> None:
    model = build(mode=mode, auto_threshold=0.0)
    adapted = model.adapt([reference])
    expected = next(model.segment(adapted, targets[1:2]))
    owners = {"level": Tracker, "linear_logits": linear, "palette": appearance}
    owner = owners.get(step, LatentDiffusion)
    real, calls = getattr(owner, step), itertools.count()
    monkeypatch.setattr(owner, step, lambda *given: real(*given) * (torch.nan if next(calls) == 0 else 1.0))
    first, second = model.segment(adapted, targets[:2])
    assert message in str(first.error)
    assert not first.masks
    assert same(second, expected)


def test_an_iou_guess_that_is_not_a_number_is_no_high_score(
    build: Build, reference: Reference, targets: list[np.ndarray], tracker: Tracker
) -> None:
    model = build(mode="concat")
    adapted = model.adapt([reference])
    head = tracker.predictor.sam_mask_decoder.iou_prediction_head
    hook = head.register_forward_hook(lambda _module, _inputs, output: output * torch.nan)
    try:
        (result,) = model.segment(adapted, targets[:1])
    finally:
        hook.remove()
    assert "not finite" in str(result.error)


@pytest.mark.parametrize("step", ["denoise", "fit_loras", "trunk"])
def test_running_out_of_memory_halves_the_batch_and_changes_nothing(
    build: Build, reference: Reference, targets: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A device that holds one sample at a time."""
    model = build(mode="dbst")
    adapted = model.adapt([reference, reference])
    expected = next(model.segment(adapted, targets[:1]))
    owner = Tracker if step == "trunk" else LatentDiffusion
    real, sizes = getattr(owner, step), []

    def small(self: object, samples: torch.Tensor, *rest: object) -> object:
        sizes.append(len(samples))
        if len(samples) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, samples, *rest)

    monkeypatch.setattr(owner, step, small)
    again = model.adapt([reference, reference])
    result = next(model.segment(again, targets[:1]))
    assert max(sizes) > 1
    assert result.error is None
    assert result.scores == pytest.approx(expected.scores, abs=0.02)
    for label, mask in expected.masks.items():
        assert (result.masks[label] == mask).mean() > 0.99
    monkeypatch.setattr(owner, step, lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    assert "out of memory" in str(next(model.segment(adapted, targets[:1])).error)


def test_many_targets_do_not_gather_memory(build: Build, reference: Reference, targets: list[np.ndarray]) -> None:
    """Tensors alive after few targets and after many; the results are let go."""
    model = build(mode="ttga", region_fallback=True, target_prompt="box")
    adapted = model.adapt([reference])

    def alive() -> tuple[int, int]:
        gc.collect()
        sizes = [one.numel() for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
        return len(sizes), sum(sizes)

    held = []
    for count in (1, 4):
        for _ in model.segment(adapted, [targets[2]] * count):
            pass
        held.append(alive())
    assert held[0] == held[1]


def test_instances_are_tracked_apart_and_part_the_mask_of_their_label(build: Build, tracker: Tracker) -> None:
    """Two components of one label are what two labels are; another label stays one object."""
    rng = np.random.default_rng(4)
    blobs = blob_picture(rng, 120, 150)
    left, right = blobs.masks["bright"].copy(), blobs.masks["dark"].copy()
    far = np.zeros_like(left)
    far[5:20, 110:140] = True
    target = blob_picture(rng, 100, 130).image
    split = build(mode="concat", instances="split")
    together = Reference(blobs.image, {"thing": left | right, "other": far})
    apart = Reference(blobs.image, {"left": left, "right": right, "other": far})
    result = next(split.segment(split.adapt([together]), [target]))
    model = build(mode="concat")
    expected = next(model.segment(model.adapt([apart]), [target]))
    assert not expected.instances
    empty = np.zeros((100, 130), dtype=bool)
    masks = {name: expected.masks.get(name, empty) for name in ("left", "right", "other")}
    # but for a pixel where the larger logit changes between two cells: the label's own mask has no seam there
    assert (result.masks.get("thing", empty) == masks["left"] | masks["right"]).mean() > 0.999
    wanted = [masks[name] for name in ("left", "right") if masks[name].any()]
    parts = result.instances.get("thing", ())
    assert len(parts) == len(wanted) > 0
    for part in parts:
        assert any((part.mask == mask).mean() > 0.999 for mask in wanted)
        assert 0 <= part.score <= 1
    for name, instances in result.instances.items():
        np.testing.assert_array_equal(np.any([part.mask for part in instances], axis=0), result.masks[name])
        assert np.sum([part.mask for part in instances], axis=0).max() == 1
    if "other" in result.instances:
        assert result.instances["other"][0].score == result.scores["other"]


def test_components_of_a_region_are_the_instances_of_a_scattered_label(build: Build) -> None:
    """Where a region is believed, nothing was tracked apart; the label is scattered where the reference shows it so."""
    rng = np.random.default_rng(4)
    blobs = blob_picture(rng, 120, 150)
    both = blobs.masks["bright"] | blobs.masks["dark"]
    model = build(mode="auto", auto_threshold=0.0, instances="split", min_presence=0.0)
    model.calibration = Calibration({"linear": Logistic(20.0, {}, {})})
    adapted = model.adapt([Reference(blobs.image, {"both": both, "one": blobs.masks["dark"]})])
    (result,) = model.segment(adapted, [blobs.image])
    assert set(result.sources.values()) == {"linear"}
    for name, mask in result.masks.items():
        parts = result.instances[name]
        numbered, _ = connected_components(mask, structure=np.ones((3, 3)))
        sizes = np.bincount(numbered.ravel())[1:]
        large = (sizes >= 0.01 * sizes.max()).sum()
        assert len(parts) == (large if name == "both" else 1)
        assert np.sum([part.mask for part in parts], axis=0).max() == 1
        np.testing.assert_array_equal(np.any([part.mask for part in parts], axis=0), mask)
        assert all(part.score == result.scores[name] for part in parts)
    assert len(result.instances["both"]) > 1


def test_contested_pixels_are_told(build: Build, reference: Reference, targets: list[np.ndarray]) -> None:
    twice = Reference(reference.image, {"one": reference.masks["bright"], "two": reference.masks["bright"]})
    model = build(mode="concat")
    result = next(model.segment(model.adapt([twice]), targets[:1]))
    # the same prompt gives the same logits: all that is claimed is claimed by both
    assert result.contested == {("one", "two"): 1.0}
    # of the calibrated ones, too, the one that lost everything is told
    fitted = Calibration({"concat": Logistic(9.0, {}, {})}, recipe=model.recipe.to_dict())
    sure = CavSam(model.tracker, None, model.recipe.replace(min_score=0.5), calibration=fitted)
    result = next(sure.segment(sure.adapt([twice]), targets[:1]))
    assert result.calibrated
    assert result.contested == {("one", "two"): 1.0}
    alone = Reference(reference.image, {"one": reference.masks["bright"]})
    assert next(model.segment(model.adapt([alone]), targets[:1])).contested == {}


def test_a_transition_from_each_reference_is_the_mean_of_their_videos(
    build: Build, reference: Reference, targets: list[np.ndarray], rng: np.random.Generator
) -> None:
    """Logits of the videos that end in each reference, averaged; frames are given so that none are generated."""
    references = [reference, blob_picture(rng, 90, 100)]
    size = 64
    frames = [torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    asked: list[int] = []

    class Given:
        """Frames made before."""

        def prepare(self, *_: Any) -> list[Any]:
            return []

        def between(self, ends: Any, references: Any, *_: Any) -> Iterator[Frames]:
            for index in references:
                asked.append(index)
                yield Frames(frames[index], [])

    recipe = QUICK.replace(mode="dbst", transition_from="all", prompted_fraction=0.0)
    model = CavSam(build(mode="concat").tracker, Given(), recipe)
    adapted = model.adapt(references)
    result = next(model.segment(adapted, targets[:1]))
    tracker, square = model.tracker, model.tracker.image_size
    target_trunk = tracker.trunk(picture_square(targets[0], square)[None])
    logits = []
    for last in asked:
        order = [1 - last, last]
        middle = tracker.trunk(
            F.interpolate(frames[last], (square, square), mode="bicubic", antialias=True).clamp(0, 1)
        )
        parts = zip(adapted.trunk, middle, target_trunk, strict=True)
        video = [torch.cat([level[order], between_, target]) for level, between_, target in parts]
        prompts = [Prompt(f, label, mask=adapted.masks[i, label]) for f, i in enumerate(order) for label in range(2)]
        logits.append(tracker.track(video, prompts, 2, read=5).logits.clamp(-10, 10))
    assert sorted(asked) == [0, 1]
    mean = torch.stack(logits).mean(dim=0).numpy()
    for label, name in enumerate(adapted.labels):
        expected = (mean[label] > 0) & (mean[label] >= mean.max(axis=0))
        assert (result.candidates[name][0].mask == expected).mean() > 0.999


def test_whatever_holds_a_picture_makes_a_reference(reference: Reference, tmp_path: Path) -> None:
    from PIL import Image

    mask = reference.masks["bright"]
    Image.fromarray(reference.image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    tensor = torch.from_numpy(reference.image).permute(2, 0, 1)
    for image, given in (
        (tmp_path / "image.png", str(tmp_path / "mask.png")),
        ((tmp_path / "image.png").read_bytes(), Image.fromarray(mask)),
        (reference.image, mask),
        (tensor, torch.from_numpy(mask)),
        (tensor.float() / 255, torch.from_numpy(mask)[None].float()),
    ):
        made = Reference.of(image, given, "bright")
        np.testing.assert_array_equal(made.image, reference.image)
        np.testing.assert_array_equal(made.masks["bright"], mask)
    both = Reference.of(reference.image, reference.masks)
    assert set(both.masks) == {"bright", "dark"}
    with pytest.raises(ImageError, match="channels, H, W"):
        Reference.of(tensor.permute(1, 2, 0), mask)


def test_odd_sizes(build: Build) -> None:
    thin = np.zeros((1, 40, 3), dtype=np.uint8)
    dot = np.zeros((1, 40), dtype=bool)
    dot[0, 17] = True
    model = build(mode="concat")
    adapted = model.adapt([Reference(thin, {"dot": dot})])
    huge = np.zeros((900, 30, 3), dtype=np.uint8)
    results = list(model.segment(adapted, [np.zeros((1, 1, 3), dtype=np.uint8), huge]))
    assert [(result.error, result.size) for result in results] == [(None, (1, 1)), (None, (900, 30))]


def test_an_object_too_small_for_the_canvas_is_still_prompted(build: Build, tracker: Tracker) -> None:
    image = np.zeros((3000, 40, 3), dtype=np.uint8)
    mask = np.zeros((3000, 40), dtype=bool)
    mask[1500, 20] = True
    adapted = build(mode="concat").adapt([Reference(image, {"speck": mask})])
    rows, columns = torch.nonzero(adapted.masks[0, 0], as_tuple=True)
    assert len(rows) >= 1
    assert abs(int(rows[0]) - tracker.image_size / 2) <= 1
    assert abs(int(columns[-1]) - tracker.image_size / 2) <= tracker.image_size / 40


def test_what_makes_no_reference_is_refused(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    full = np.ones((8, 9), dtype=bool)
    cases: list[tuple[Any, str]] = [
        ({}, "no mask"),
        ({"cell": np.zeros((8, 9), dtype=bool)}, "'cell' is empty"),
        ({"cell": np.ones((9, 8), dtype=bool)}, "8x9 pixels but its image has 9x8"),
        ({"cell": full.astype(np.uint8)}, "must be bool"),
    ]
    for masks, message in cases:
        with pytest.raises(InvalidReference, match=message):
            Reference(image, masks)
    with pytest.raises(InvalidReference, match="image"):
        Reference(image[..., 0], {"cell": full})


def test_misuse_is_refused(build: Build, tracker: Tracker, reference: Reference, targets: list[np.ndarray]) -> None:
    with pytest.raises(InvalidReference, match="no reference"):
        build().adapt([])
    with pytest.raises(ModelError, match="diffusion model"):
        CavSam(tracker, None, Recipe())
    model = build(mode="concat")
    foreign = dataclasses.replace(model.adapt([reference]), fingerprint="other")
    with pytest.raises(ModelError, match="adapt it again"):
        next(model.segment(foreign, targets))


def test_a_single_picture_in_place_of_several_is_refused_at_the_call(
    build: Build, reference: Reference, targets: list[np.ndarray], tmp_path: Path
) -> None:
    model = build(mode="concat")
    adapted = model.adapt([reference])
    path = tmp_path / "a.png"
    Image.fromarray(targets[0]).save(path)
    with Image.open(path) as picture, path.open("rb") as file:
        tensor = torch.from_numpy(targets[0])
        singles: list[Any] = [str(path), path, path.read_bytes(), picture, file, targets[0], tensor]
        for single in singles:
            with pytest.raises(UsageError, match="pass a list"):
                model.segment(adapted, single)
    for other in (None, 3, reference):
        with pytest.raises(UsageError, match="pass a list"):
            model.segment(adapted, other)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="what adapt returned, not Reference"):
        model.segment(reference, targets)  # type: ignore[arg-type]
    for several in ([path], iter([path]), np.array([str(path)]), np.stack([targets[0]])):
        (result,) = model.segment(adapted, several)
        assert same(result, next(model.segment(adapted, [targets[0]])))


@pytest.mark.parametrize("shots", [-1, 1.0, 1.5, "1", True, None])
def test_shots_that_are_no_number_of_references_are_refused(build: Build, reference: Reference, shots: Any) -> None:
    with pytest.raises(UsageError, match="shots must be a whole number"):
        build(mode="concat").adapt([reference], shots=shots)


def test_what_is_not_references_is_refused(build: Build, reference: Reference) -> None:
    model = build(mode="concat")
    for single in (reference, None, 3):
        with pytest.raises(UsageError, match="pass a list"):
            model.adapt(single)  # type: ignore[arg-type]
    for others in (["reference.png"], "reference.png", [reference, reference.image], [None]):
        with pytest.raises(UsageError, match=r"Reference\.of"):
            model.adapt(others)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="class_name"):
        model.adapt([reference], class_name=3)  # type: ignore[arg-type]
    assert model.adapt(each for each in [reference]).labels == ("bright", "dark")  # type: ignore[arg-type]


def test_progress_and_cancel(build: Build, reference: Reference, targets: list[np.ndarray]) -> None:
    model = build()
    steps: list[tuple[str, int, int]] = []
    adapted = model.adapt([reference], progress=lambda *step: steps.append(step))
    assert ("align", 3, 3) in steps
    assert ("lora", 2, 3) in steps
    done: list[TargetResult] = []
    for result in model.segment(adapted, targets, cancelled=lambda: len(done) == 1):
        done.append(result)
    assert len(done) == 1
    assert set(done[0].timings) == {"encode", "lora", "invert", "generate", "prompt", "track", "score"}
    assert sum(done[0].timings.values()) <= done[0].seconds


@pytest.mark.parametrize(
    "changes",
    [{"mode": "concat"}, {"mode": "ttga", "activation": "contrast"}, {"mode": "full"}],
)
def test_an_adapted_reference_survives_the_disk(
    build: Build, reference: Reference, targets: list[np.ndarray], tmp_path: Path, changes: dict[str, object]
) -> None:
    model = build(**changes)
    adapted = model.adapt([reference, reference])
    adapted.save(tmp_path / "reference.safetensors")
    loaded = AdaptedReference.load(tmp_path / "reference.safetensors")
    assert loaded.labels == adapted.labels
    assert loaded.timings == adapted.timings
    first, second = (next(model.segment(each, targets[:1])) for each in (adapted, loaded))
    assert second.scores == pytest.approx(first.scores, abs=0.02)
    for label in first.scores:
        masks = [result.masks.get(label, np.zeros(result.size, dtype=bool)) for result in (first, second)]
        assert (masks[0] == masks[1]).mean() > 0.99


def test_a_file_that_holds_no_adapted_reference_is_refused(build: Build, reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    for prepare, message in (
        (lambda: None, "cannot be read"),
        (lambda: path.write_bytes(b"junk"), "cannot be read"),
        (lambda: save_file({"x": torch.zeros(1)}, path), "does not hold"),
    ):
        prepare()
        with pytest.raises(InvalidReference, match=message):
            AdaptedReference.load(path)
    build(mode="concat").adapt([reference]).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidReference, match="cannot be read"):
        AdaptedReference.load(path)


@pytest.fixture
def saved(build: Build, reference: Reference, tmp_path: Path) -> Path:
    """An adapted reference of the mode that has most to keep."""
    path = tmp_path / "reference.safetensors"
    build(mode="full", activation="contrast").adapt([reference]).save(path)
    return path


def test_an_adapted_reference_of_which_anything_is_missing_or_changed_is_refused(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def refused(kept: dict[str, torch.Tensor], told: dict[str, str]) -> None:
        save_file(kept, saved, metadata=told)
        with pytest.raises(InvalidReference, match="adapt the reference again"):
            AdaptedReference.load(saved)

    save_file(tensors, saved, metadata=metadata)
    AdaptedReference.load(saved)  # so written it is whole: what follows fails for the damage alone
    for name in metadata:
        refused(tensors, {key: value for key, value in metadata.items() if key != name})
    described = json.loads(metadata["described"])
    for broken in (
        "",
        "{",
        "[]",
        *(json.dumps({k: v for k, v in described.items() if k != name}) for name in described),
    ):
        refused(tensors, metadata | {"described": broken})
    for name, tensor in tensors.items():
        refused({key: value for key, value in tensors.items() if key != name}, metadata)
        refused(tensors | {name: tensor[..., :-1].contiguous()}, metadata)
        refused(tensors | {name: tensor.to(torch.float64)}, metadata)
        refused(tensors | {name: tensor.logical_not() if tensor.dtype == torch.bool else tensor + 1}, metadata)


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file can grow beyond `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_saved_is_said_and_leaves_what_was_there(saved: Path, tmp_path: Path) -> None:
    adapted = AdaptedReference.load(saved)
    whole = saved.read_bytes()
    (tmp_path / "folder").mkdir()
    for path in (
        tmp_path / "none" / "a.safetensors",
        saved / "a.safetensors",
        tmp_path / "folder",
        tmp_path / ("n" * 300),
    ):
        with pytest.raises(CavSamError, match="name a file in a folder"):
            adapted.save(path)
    with full_disk(len(whole) // 2), pytest.raises(CavSamError, match="cannot be written"):
        adapted.save(saved)
    assert saved.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", saved.name]


def test_auto_runs_as_full_without_a_calibration_until_it_is_taught(
    tracker: Tracker, diffusion: LatentDiffusion, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = QUICK.replace(mode="auto", auto_threshold=0.0, min_presence=0.0)
    model = CavSam(tracker, DiffusionTransition(diffusion, recipe), recipe)
    assert "runs as full" in caplog.text
    assert "calibration" in caplog.text
    adapted, label = model.adapt([reference]), next(iter(reference.masks))
    (result,) = model.segment(adapted, [reference.image])
    assert [(one.kind, one.chosen) for one in result.candidates[label]] == [
        ("concat", False),
        ("ttga", False),
        ("full", True),
    ]
    assert not result.calibrated
    corrections = {"concat": Correction(1.0, 1.0), "ttga": Correction(0.0, 1.0), "full": Correction(-1.0, 1.0)}
    (taught,) = model.segment(adapted, [reference.image], experience=Experience(corrections))
    assert [(one.kind, one.chosen) for one in taught.candidates[label]] == [("concat", True), ("ttga", False)]
    assert taught.calibrated


@pytest.mark.parametrize("mode", ["concat", "full"])
def test_how_references_are_listed_makes_no_difference(
    build: Build, rng: np.random.Generator, targets: list[np.ndarray], mode: Mode
) -> None:
    model = build(mode=mode, transition_from="all")
    first, second, third = (blob_picture(rng, 120, 160) for _ in range(3))
    third = Reference(third.image, {"dark": third.masks["dark"]})
    expected = list(model.segment(model.adapt([first, second, third]), targets[:1]))
    for listed in ([third, second, first], [second, first, third]):
        (found,) = model.segment(model.adapt(listed), targets[:1])
        assert same(found, expected[0])
        assert {label: one[0].cues for label, one in found.candidates.items()} == {
            label: one[0].cues for label, one in expected[0].candidates.items()
        }
