"""Command-line options that the `cavsam` commands and the benchmarks share, and what they choose."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from cavsam.errors import RecipeError
from cavsam.recipe import PRESETS, Mode, Recipe, choices_of
from cavsam.scoring.calibration import Calibration
from cavsam.weights.sources import NAMES, ModelSources

MODES: tuple[str, ...] = get_args(Mode)

_SOURCES = ("sam2", "sam2_revision", "sam2_config", "diffusion", "diffusion_revision", "calibration", "features")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the models; `sources_of` reads them."""
    group = parser.add_argument_group("models")
    group.add_argument("--model", default="default", choices=NAMES, help="a pair of models (default: default)")
    group.add_argument("--sam2", metavar="SOURCE", help="SAM2: hub id, folder or checkpoint file")
    group.add_argument("--sam2-revision", metavar="REV", help="revision of the hub id")
    group.add_argument("--sam2-config", metavar="YAML", help="configuration of a SAM2 checkpoint file")
    group.add_argument("--diffusion", metavar="SOURCE", help="diffusion model: hub id, folder or checkpoint file")
    group.add_argument("--diffusion-revision", metavar="REV", help="revision of the hub id")
    group.add_argument("--features", metavar="SOURCE", help="backbone for regions, such as facebook/dinov2-small")
    group.add_argument("--calibration", metavar="FILE", help="of the scores (default: beside SAM2's checkpoint)")


def add_method_arguments(parser: argparse.ArgumentParser, *, several_modes: bool = False) -> None:
    """Add the options that choose the models, the device and the recipe; `recipe_of` reads the recipe's but `--mode`.

    Args:
        parser: gets the options.
        several_modes: `--mode` may be repeated, to compare modes, and is None if it is not given.
    """
    add_source_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    group = parser.add_argument_group("recipe")
    if several_modes:
        group.add_argument("--mode", action="append", choices=MODES, help="repeatable (default: all)")
    else:
        group.add_argument("--mode", choices=MODES, help="parts of the method (default: auto with nano, else full)")
    group.add_argument("--seed", type=int, default=0, help="seed of every random draw (default: 0)")
    group.add_argument("--preset", choices=PRESETS, help="a whole recipe (default: bundled with nano, else published)")
    group.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="another option of the recipe; repeatable"
    )


def sources_of(options: argparse.Namespace) -> ModelSources:
    """Choose the models that the options name."""
    return ModelSources.named(options.model).replace(**{name: getattr(options, name) for name in _SOURCES})


def recipe_of(options: argparse.Namespace, mode: str | None) -> Recipe:
    """Build the recipe that the options choose, in a mode or, with None, in the pair's own.

    Raises:
        RecipeError: an option does not exist or cannot have this value.
    """
    values: dict[str, Any] = {"seed": options.seed}
    for setting in options.set:
        name, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set needs NAME=VALUE, not {setting!r}.")
        try:
            # Some choices are words that JSON reads otherwise, such as `true` for `cycle_mask`.
            values[name] = text if text in choices_of(name) else json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    return sources_of(options).recipe(options.preset or "", mode or "", **values)


def announce(sources: ModelSources, recipe: Recipe) -> None:
    """Say on stderr what will run, and that the bundled models are for trying out only if they are chosen."""
    trial = " These are try-out models, not for real work." if sources.is_nano else ""
    print(f"cavsam: models {sources.name}, recipe {recipe.described()}.{trial}", file=sys.stderr)
    if sources.is_nano:
        print(
            "cavsam: These are the bundled try-out models: they show how the method works, they are not for real work.",
            file=sys.stderr,
        )
    if sources.calibration and (doubts := Calibration.load(Path(sources.calibration)).doubts(recipe)):
        print(f"cavsam: {doubts}", file=sys.stderr)
