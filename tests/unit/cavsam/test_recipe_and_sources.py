"""The recipe's border, and fingerprints that change with what they stand for and with nothing else."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from cavsam.errors import ModelError, RecipeError
from cavsam.recipe import PRESETS, Recipe
from cavsam.scoring.calibration import Calibration
from cavsam.weights.sources import NAMES, NANO, ModelSources, fingerprint


def test_the_numbers_are_the_papers() -> None:
    """The numbers of the method's specification."""
    recipe = Recipe()
    assert (recipe.mode, recipe.frames, recipe.alpha_min, recipe.alpha_max) == ("full", 9, 0.2, 0.8)
    assert (recipe.lora_rank, recipe.lora_steps, recipe.lora_lr, recipe.lora_weight_decay) == (16, 200, 2e-4, 1e-2)
    assert (recipe.ttga_steps, recipe.ttga_lr, recipe.ttga_weight_decay, recipe.ddim_steps) == (100, 1e-3, 5e-4, 20)


def test_round_trip() -> None:
    recipe = Recipe(mode="ttga", seed=5, lora_mix="factor")
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.replace(seed=6).seed == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "best"}, "concat, ttga, dbst, full, auto"),
        ({"steps": 3}, "no option 'steps'"),
        ({"frames": 0}, "between 1 and 64"),
        ({"frames": 2.5}, "type int"),
        ({"frames": True}, "type int"),
        ({"alpha_min": 0.9}, "alpha_max"),
        ({"lora_lr": "fast"}, "type float"),
        ({"seed": -1}, "seed"),
        ({"lora_lr": float("nan")}, "lora_lr"),
        ({"temperature": 10**400}, "temperature"),
        ({"activation_stride": False}, "activation_stride"),
    ],
)
def test_bad_values_say_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(values)


def other_value(name: str, default: Any) -> Any:
    """A value of an option that is not its default."""
    choices = get_args(get_type_hints(Recipe)[name])
    if choices:
        return next(choice for choice in choices if choice != default)
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int) else default / 2 or 0.1


def test_fingerprint_changes_with_each_option_of_the_recipe() -> None:
    sources = ModelSources.named("default")
    seen = {fingerprint(sources, Recipe())}
    for field in dataclasses.fields(Recipe):
        seen.add(fingerprint(sources, Recipe(**{field.name: other_value(field.name, field.default)})))
    assert len(seen) == 1 + len(dataclasses.fields(Recipe))
    assert all(len(text) == 8 and int(text, 16) >= 0 for text in seen)


def test_fingerprint_follows_the_weights_and_not_their_place(tmp_path: Path) -> None:
    here, there = tmp_path / "a" / "sam2", tmp_path / "b" / "sam2"
    for folder in (here, there):
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"weights" * 1000)
    first, second = (
        ModelSources(sam2=str(folder), diffusion=str(folder / "weights.safetensors")) for folder in (here, there)
    )
    assert fingerprint(first, Recipe()) == fingerprint(second, Recipe())
    (there / "weights.safetensors").write_bytes(b"weightz" * 1000)
    assert fingerprint(first, Recipe()) != fingerprint(second, Recipe())
    shutil.rmtree(there)
    assert fingerprint(first, Recipe()) == fingerprint(first, Recipe())


def test_fingerprint_follows_the_calibration_beside_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "sam2.pt"
    checkpoint.write_bytes(b"weights")
    for sources in (ModelSources(sam2=str(checkpoint)), ModelSources(sam2=str(tmp_path))):
        (tmp_path / "calibration.json").unlink(missing_ok=True)
        before = fingerprint(sources, Recipe())
        Calibration(fitted="here").save(tmp_path / "calibration.json")
        assert fingerprint(sources, Recipe()) != before


def test_fingerprint_follows_a_chosen_calibration_and_a_configuration(tmp_path: Path) -> None:
    calibration, config = tmp_path / "mine.json", tmp_path / "mine.yaml"
    sources = ModelSources.named("nano").replace(calibration=str(calibration), sam2_config=str(config))
    seen = set()
    for text in ("one", "two"):
        Calibration(fitted=text).save(calibration)
        for line in ("model: 1", "model: 2"):
            config.write_text(line)
            seen.add(fingerprint(sources, Recipe()))
    assert len(seen) == 4


def test_a_calibration_leaves_the_pair_its_recipe_and_goes_with_its_weights() -> None:
    calibrated = ModelSources.named("nano").replace(calibration="mine.json")
    assert (calibrated.name, calibrated.preset, calibrated.mode) == ("nano", "bundled", "auto")
    assert calibrated.replace(diffusion="someone/model").calibration == "mine.json"
    assert calibrated.replace(sam2="facebook/sam2.1-hiera-large").calibration is None


@pytest.mark.usefixtures("offline")
def test_fingerprint_follows_hub_id_and_revision() -> None:
    base = ModelSources.named("default")
    variants = [base, base.replace(sam2="facebook/sam2.1-hiera-small"), base.replace(diffusion_revision="main")]
    variants.append(ModelSources.named("paper"))
    assert len({fingerprint(sources, Recipe()) for sources in variants}) == len(variants)


def test_changing_a_source_drops_what_belonged_to_the_old_one() -> None:
    pinned = ModelSources.named("default").replace(sam2_revision="abc", diffusion_revision="def")
    moved = pinned.replace(sam2="facebook/sam2.1-hiera-large")
    assert (moved.sam2_revision, moved.diffusion_revision, moved.name) == (None, "def", "custom")
    assert pinned.replace(sam2=None) == pinned


def test_nano_is_known_for_what_it_is() -> None:
    assert ModelSources.named("nano").is_nano
    assert not ModelSources.named("default").is_nano
    assert ModelSources.named("default").replace(sam2=str(NANO / "sam2")).is_nano
    with pytest.raises(ModelError, match="default, paper, nano"):
        ModelSources.named("large")


def test_without_arguments_a_recipe_is_the_published_reading() -> None:
    """Whatever is chosen on the bundled models, the published reading stays what it is."""
    recipe = Recipe()
    assert recipe == Recipe.preset("published")
    assert (recipe.activation, recipe.activation_stride, recipe.temperature) == ("foreground", 16, 1.0)
    assert (recipe.min_separation, recipe.min_cycle_iou, recipe.min_presence, recipe.min_score) == (0.0, 0.0, 0.0, 0.0)
    assert (recipe.reference_prompt, recipe.propagate_with, recipe.lora_mix) == ("mask", "tuned", "delta")
    assert (recipe.target_prompt, recipe.region_fallback, recipe.pseudo_label) == ("none", False, "mask")
    assert (recipe.cycle_mask, recipe.prompted_fraction, recipe.transition_from) == ("predicted", 0.5, "nearest")
    with pytest.raises(RecipeError, match="published, bundled, quick"):
        Recipe.preset("best")


def test_every_pair_but_the_bundled_one_runs_the_published_recipe() -> None:
    bundled = ModelSources.named("nano")
    assert bundled.recipe() == Recipe.preset("bundled").replace(mode="auto")
    others = [ModelSources.named(name) for name in NAMES if name != "nano"]
    others += [bundled.replace(sam2="/weights/own.pt"), bundled.replace(diffusion="someone/their-model")]
    assert len(others) == 4
    for sources in others:
        assert sources.recipe() == Recipe()


def test_a_preset_a_mode_and_options_come_before_the_pair_s_own() -> None:
    recipe = ModelSources.named("default").recipe("quick", "ttga", frames=3)
    assert recipe == Recipe.preset("quick").replace(mode="ttga", frames=3)


def test_presets_and_pairs_share_no_name() -> None:
    assert set(PRESETS).isdisjoint(NAMES)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_is_described_by_its_preset_and_what_differs(preset: str) -> None:
    recipe = Recipe.preset(preset)
    assert recipe.replace(mode="ttga").described() == f"{preset}, mode ttga"
    assert recipe.replace(seed=5, lora_rank=3).described() == f"{preset}, mode full, seed=5, lora_rank=3"
