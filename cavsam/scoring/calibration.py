"""The calibrated score: from cues to an estimate of the IoU; fitted once per pair of models, free of torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cavsam.errors import ModelError
from cavsam.recipe import ALIGNMENT_OPTIONS, FRAME_OPTIONS, PROMPT_OPTIONS, Recipe

FILE = "calibration.json"
"""Its name, in the folder that holds SAM2's checkpoint."""

FORMAT = "cavsam-calibration-2"

_CHANCE = {"seed", "precision"}
_FRAMES = (*(name for name in FRAME_OPTIONS if name not in _CHANCE), "transition_from")
_ALIGNED = (*ALIGNMENT_OPTIONS, *PROMPT_OPTIONS)
_ALL = ("reference_prompt", "instances")
OPTIONS = {
    "concat": _ALL,
    "ttga": (*_ALL, *_ALIGNED),
    "activation": (*_ALL, *_ALIGNED),
    "linear": _ALL,
    "pixels": _ALL,
    "dbst": (*_ALL, *_FRAMES),
    "full": (*_ALL, *_FRAMES, *_ALIGNED, "prompted_fraction", "pseudo_label"),
}
"""Kind of candidate -> the options of the recipe that its masks and their cues depend on."""

REGIONS = ("activation", "linear")
"""Kinds of candidates that a backbone's features may make."""

Features = Mapping[str, float]
"""Cues of one mask by name, see `cues`; the higher a value the better. One may be missing."""


@dataclass(frozen=True)
class Logistic:
    """A logistic function that rises with every feature, so that it can turn no order of a single cue around.

    Attributes:
        bias: its value in the middle.
        weights: by the feature's name, none negative.
        usual: what stands for a feature that is missing.
    """

    bias: float
    weights: dict[str, float]
    usual: dict[str, float]

    def __call__(self, features: Features) -> float:
        """Estimate a value in 0..1."""
        value = self.bias + sum(weight * features.get(name, self.usual[name]) for name, weight in self.weights.items())
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, value))))


@dataclass(frozen=True)
class Calibration:
    """Estimates by the kind of candidate; one that was never fitted leaves the uncalibrated values as they are.

    Attributes:
        overlap: kind -> estimate of the IoU with the ground truth.
        presence: kind -> estimate of the probability that the object is on the target.
        fitted: on what, in words.
        recipe: the options of the recipe whose masks it was fitted on.
        sam2: `sources.sam2_digest` of the weights it was fitted for; empty if it does not say.
        features: digest of the backbone whose features the regions had; empty for SAM2's own.
        foreign: kinds of candidates that are made with other features than those it was fitted on.
    """

    overlap: dict[str, Logistic] = field(default_factory=dict)
    presence: dict[str, Logistic] = field(default_factory=dict)
    fitted: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    sam2: str = ""
    features: str = ""
    foreign: frozenset[str] = frozenset()

    def beside(self, features: str) -> Calibration:
        """Give what it is worth beside a backbone: an order for regions, unless it was fitted with that backbone."""
        return self if features == self.features else replace(self, foreign=frozenset(REGIONS))

    def knows(self, kind: str) -> bool:
        """Tell whether the scores of a kind of candidate were fitted, under this recipe or another."""
        return kind in self.overlap

    def holds(self, kind: str, recipe: Recipe, presence_of: str | None = None) -> bool:
        """Tell whether the scores of a kind of candidate were fitted on masks and cues made as `recipe` makes them.

        Args:
            kind: of the candidate.
            recipe: that made it.
            presence_of: kind of the candidate that its cue `presence` comes from; its own when None.
        """
        options = recipe.to_dict()
        names = {*OPTIONS[kind], *OPTIONS[presence_of or kind]}
        return (
            self.knows(kind)
            and kind not in self.foreign
            and all(self.recipe.get(name) == options[name] for name in names)
        )

    def doubts(self, recipe: Recipe) -> str:
        """Say which scores under a recipe are a bare order, and why, in one sentence; empty if all estimate an IoU."""
        kinds = tried_by(recipe)
        doubted = [kind for kind in kinds if not self.holds(kind, recipe)]
        if not doubted:
            return ""
        if not any(self.knows(kind) for kind in kinds):
            return "There is no calibration for this mode: scores are an order, not estimates of the IoU."
        options = recipe.to_dict()
        names = dict.fromkeys(name for kind in doubted if self.knows(kind) for name in OPTIONS[kind])
        changed = [f"{n}={self.recipe.get(n)}, not {options[n]}" for n in names if self.recipe.get(n) != options[n]]
        why = f"was fitted for another recipe ({'; '.join(changed)})" if changed else "does not know all candidates"
        return f"The calibration {why}: the scores of {', '.join(doubted)} are an order, not estimates of the IoU."

    def score(self, kind: str, features: Features) -> float:
        """Estimate the IoU of a mask, 0..1; uncalibrated: backward consistency times SAM2's object probability."""
        if self.knows(kind):
            return self.overlap[kind](features)
        return features.get("consistency", 1.0) * features.get("presence", 1.0)

    def present(self, kind: str, features: Features) -> float:
        """Estimate the probability that the object is there, 0..1; uncalibrated: SAM2's own."""
        return self.presence[kind](features) if kind in self.presence else features.get("presence", 1.0)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        stored: dict[str, Any] = {"format": FORMAT, "fitted": self.fitted, "recipe": self.recipe}
        stored |= {name: value for name, value in (("sam2", self.sam2), ("features", self.features)) if value}
        for name, fits in (("overlap", self.overlap), ("presence", self.presence)):
            stored |= {name: {kind: vars(fit) for kind, fit in sorted(fits.items())}}
        path.write_text(json.dumps(stored, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, *, must_exist: bool = False) -> Calibration:
        """Read what `save` wrote; the identity if there is no such file, and none must be.

        Raises:
            ModelError: the file is damaged or of another kind, or is not there though it must be.
        """
        if not path.exists():
            if must_exist:
                raise ModelError(f"There is no calibration {path}; name the file, or none to go without.")
            return cls()
        try:
            stored = json.loads(path.read_text())
            if stored["format"] != FORMAT:
                raise ValueError(f"format {stored['format']!r}")
            fits = _fits(stored["overlap"]), _fits(stored["presence"])
            sam2, features = str(stored.get("sam2", "")), str(stored.get("features", ""))
            return cls(*fits, str(stored["fitted"]), dict(stored["recipe"]), sam2, features)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path} is not a calibration that can be read ({error}); fit it again with "
                "research/fit_calibration.py, or delete it to go without."
            ) from error


def tried_by(recipe: Recipe) -> tuple[str, ...]:
    """List the kinds of candidates whose scores a recipe goes by."""
    if recipe.mode == "auto":
        return ("concat", "ttga", "activation", "linear", "full")
    return (recipe.mode, "activation") if recipe.region_fallback and recipe.aligns else (recipe.mode,)


def _fits(stored: Mapping[str, Any]) -> dict[str, Logistic]:
    fits = {kind: Logistic(float(f["bias"]), dict(f["weights"]), dict(f["usual"])) for kind, f in stored.items()}
    for fit in fits.values():
        numbers = [fit.bias, *fit.weights.values(), *fit.usual.values()]
        if fit.weights.keys() != fit.usual.keys() or not _finite(numbers):
            raise ValueError("weights that are not finite or not named")
        if any(weight < 0 for weight in fit.weights.values()):
            raise ValueError("a negative weight")
    return fits


def _finite(values: Iterable[float]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
