"""The recipe: all hyperparameters of the method, in one documented place; free of torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from cavsam.errors import RecipeError

Mode = Literal["concat", "ttga", "dbst", "full", "auto"]
LoraMix = Literal["delta", "factor"]
ReferencePrompt = Literal["mask", "box"]
PropagateWith = Literal["tuned", "original"]
PseudoLabel = Literal["mask", "box"]
CycleMask = Literal["predicted", "true"]
Activation = Literal["foreground", "contrast"]
ActivationStride = Literal[0, 16, 8, 4]
TargetPrompt = Literal["none", "box", "point"]
TransitionFrom = Literal["nearest", "all"]
Instances = Literal["union", "split"]
Precision = Literal["auto", "float32", "bfloat16", "bfloat16-weights"]


FRAME_OPTIONS = (
    "seed",
    "frames",
    "alpha_min",
    "alpha_max",
    "ddim_steps",
    "lora_rank",
    "lora_steps",
    "lora_lr",
    "lora_weight_decay",
    "lora_mix",
    "diffusion_size",
    "precision",
)
"""The options that the generated frames depend on."""

ALIGNMENT_OPTIONS = (
    "ttga_steps",
    "ttga_lr",
    "ttga_weight_decay",
    "activation",
    "activation_stride",
    "temperature",
    "cycle_mask",
)
"""The options that the tuned neck and its activations depend on."""

PROMPT_OPTIONS = ("propagate_with", "target_prompt", "min_separation", "min_cycle_iou")
"""The options that say what an aligned candidate is prompted with beside the references, and tracks on."""


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of CAV-SAM (arXiv 2508.07759); without arguments, the published reading.

    If the paper and its released code contradict each other, the choice is an option here, and `docs/method.md` says
    what each reading measured. What was chosen on the bundled models is the preset `bundled`, never a default here.
    """

    mode: Mode = "full"
    """`concat`: the two images only; `ttga`: + test-time alignment; `dbst`: + generated frames; `full`: both; `auto`:
    the cheap candidates first, and `full` only if none of them is trusted. Everybody chooses it."""
    seed: int = 0
    """Seed of every random draw: LoRA initialisation, timesteps, noise, augmentations. Who wants to know how much of a
    figure is chance changes it."""

    # DBST: the pseudo video
    frames: int = 9
    """Generated frames between the two images. Who has little time lowers it."""
    alpha_min: float = 0.2
    """Interpolation weight of the first generated frame. Who studies the transition changes it."""
    alpha_max: float = 0.8
    """Interpolation weight of the last generated frame. Who studies the transition changes it."""
    ddim_steps: int = 20
    """Steps of DDIM inversion and of DDIM denoising. Who has little time lowers it; who sees noisy frames raises it."""
    lora_rank: int = 16
    """Rank of each adapter. Who studies the transition changes it."""
    lora_steps: int = 200
    """Optimiser steps of each adapter. Who has little time lowers it, with a higher `lora_lr`."""
    lora_lr: float = 2e-4
    """AdamW learning rate of the adapters. Who changes `lora_steps`, or the diffusion model, changes it."""
    lora_weight_decay: float = 1e-2
    """AdamW weight decay of the adapters. Who studies the transition changes it."""
    lora_mix: LoraMix = "delta"
    """Mix the weight changes B A (the paper's equation) or the factors A and B apart (its released code). Who compares
    with the released code changes it."""
    diffusion_size: int = 0
    """Side in pixels at which diffusion runs; 0 means the model's own size (512 for Stable Diffusion). Who has little
    memory lowers it."""
    frame_batch: int = 9
    """Generated frames denoised together; halved by itself when the device runs out of memory. Who knows the memory
    lowers it and saves the failed attempts."""
    transition_from: TransitionFrom = "nearest"
    """With several references, generate frames from the one most like the target, or a pseudo video from each of them,
    whose logits on the target are averaged. Who has several references and time to spare tries `all`."""

    # TTGA: the alignment
    ttga_steps: int = 100
    """Optimiser steps of the augmentative cyclic consistency. Who has little time lowers it."""
    ttga_lr: float = 1e-3
    """Adam learning rate of the neck. Who sees the loss diverge lowers it."""
    ttga_weight_decay: float = 5e-4
    """Adam weight decay of the neck. Who studies the alignment changes it."""
    activation: Activation = "foreground"
    """Activation of a label: the cosine with its prototype (the paper), or that minus the highest cosine with a
    prototype of the background or of another label. Who sees activations on the background tries `contrast`."""
    activation_stride: ActivationStride = 16
    """Pixels of SAM2's square per cell of the activation; 0 takes the stride with 64 x 64 cells: 16 (the paper's) on
    SAM2's usual 1024 pixels, 4 on 256. Who looks for small objects lowers it."""
    temperature: float = 1.0
    """Divides the activation before the sigmoid; 1 is the released code. Who changes `activation` changes it."""
    cycle_mask: CycleMask = "predicted"
    """Mask of the augmented reference in the second half of the cycle: the predicted one (ACC) or the true one (ABC).
    Who compares with the paper's ablation changes it."""
    prompted_fraction: float = 0.5
    """Share of the generated frames, counted from the reference, that may get a pseudo-label prompt. Who studies the
    pseudo-labels changes it."""
    pseudo_label: PseudoLabel = "mask"
    """Prompt the middle frames with the binarised activation itself or with its bounding box. Who tracks
    compact objects with ragged activations tries `box`."""
    min_separation: float = 0.0
    """Distance of an activation's two Otsu classes, in deviations (Ashman's D), below which it is not trusted. Who sees
    wrong prompts raises it."""
    min_cycle_iou: float = 0.0
    """A pseudo-label must find the reference's mask again with this IoU on the feature grid; 0 asks for nothing. Who
    sees wrong prompts raises it."""
    target_prompt: TargetPrompt = "none"
    """Correct what is tracked on the target by the box or the peak of its activation, if that can be trusted. The
    paper has none. Who sees the right place activated and the wrong one tracked tries `box`, for one object `point`."""

    # SAM2: the tracking
    reference_prompt: ReferencePrompt = "mask"
    """Prompt frame 0 with the reference mask (text of the paper) or its bounding box (its code). Who compares with the
    released code changes it."""
    propagate_with: PropagateWith = "tuned"
    """Track on the features of the tuned neck or of the original one. Who sees `ttga` track worse than `concat` tries
    `original`."""
    instances: Instances = "union"
    """A label of several components is one object, or each component on the reference most like the target is one. Who
    counts objects takes `split`."""

    # choosing between candidates
    region_fallback: bool = False
    """In `ttga` and `full`, take the activation if it disagrees with the tracked mask and scores higher. The
    score must be calibrated for both. Who segments thin or scattered classes turns it on."""
    fallback_iou: float = 0.5
    """IoU of activation and tracked mask below which they disagree. Who sees coarse activations in place of good
    tracked masks lowers it."""
    auto_threshold: float = 0.25
    """In `auto`, a cheap candidate with this score for every label is trusted, and no frames are generated. Who has
    time to spare raises it."""
    min_presence: float = 0.0
    """Below this estimated probability that the object is on the target no mask is returned. Who misses objects lowers
    it; who sees masks of objects that are not there raises it."""
    min_score: float = 0.0
    """Below this score no mask is returned, if the score is calibrated for these models and this recipe. Who would
    rather correct a bad mask than draw one lowers it."""

    # where and how it runs
    precision: Precision = "auto"
    """Arithmetic of the large models: `auto` is bfloat16 autocast on CUDA and float32 elsewhere; `bfloat16-weights` is
    bfloat16 with the frozen UNet and text encoder held in it too, adapters and their optimiser stay float32. Who is
    told of values that are not finite takes `float32`; who lacks memory of a GPU tries `bfloat16-weights`."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name))
        _check_range("frames", self.frames, 1, 64)
        _check_range("alpha_min", self.alpha_min, 0.0, 1.0)
        _check_range("alpha_max", self.alpha_max, self.alpha_min, 1.0)
        _check_range("ddim_steps", self.ddim_steps, 1, 500)
        _check_range("lora_rank", self.lora_rank, 1, 1024)
        _check_range("lora_steps", self.lora_steps, 0, 100_000)
        _check_range("lora_lr", self.lora_lr, 0.0, 1.0)
        _check_range("lora_weight_decay", self.lora_weight_decay, 0.0, 1.0)
        _check_range("diffusion_size", self.diffusion_size, 0, 4096)
        _check_range("frame_batch", self.frame_batch, 1, 64)
        _check_range("ttga_steps", self.ttga_steps, 0, 100_000)
        _check_range("ttga_lr", self.ttga_lr, 0.0, 1.0)
        _check_range("ttga_weight_decay", self.ttga_weight_decay, 0.0, 1.0)
        _check_range("temperature", self.temperature, 1e-3, 1e3)
        _check_range("prompted_fraction", self.prompted_fraction, 0.0, 1.0)
        _check_range("min_separation", self.min_separation, 0.0, 1e6)
        _check_range("min_cycle_iou", self.min_cycle_iou, 0.0, 1.0)
        for share in ("fallback_iou", "auto_threshold", "min_presence", "min_score"):
            _check_range(share, getattr(self, share), 0.0, 1.0)
        _check_range("seed", self.seed, 0, 2**63 - 1)
        for field in dataclasses.fields(self):
            if _HINTS[field.name] is float:  # 1 and 1.0 are one recipe, with one fingerprint
                object.__setattr__(self, field.name, float(getattr(self, field.name)))

    @property
    def generates_frames(self) -> bool:
        """Whether DBST is part of the mode."""
        return self.mode in ("dbst", "full", "auto")

    @property
    def aligns(self) -> bool:
        """Whether TTGA is part of the mode."""
        return self.mode in ("ttga", "full", "auto")

    def replace(self, **changes: Any) -> Recipe:
        """Copy it with some fields changed; raises `RecipeError` on an unknown name or a bad value."""
        return Recipe.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Give all fields by name, JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """Take one of `PRESETS`; raises `RecipeError` on another name."""
        if name not in PRESETS:
            raise RecipeError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
        return cls(**PRESETS[name])

    def described(self) -> str:
        """Describe it in words: the nearest preset, the mode, and the options that differ from the preset.

        `bundled, mode auto, lora_steps=60`, say; what is printed before anything runs.
        """
        own = self.to_dict()
        changed = {
            name: [f"{key}={own[key]}" for key, value in self.preset(name).to_dict().items() if own[key] != value]
            for name in PRESETS
        }
        changed = {name: [one for one in found if not one.startswith("mode=")] for name, found in changed.items()}
        nearest = min(PRESETS, key=lambda name: len(changed[name]))
        return ", ".join([nearest, f"mode {self.mode}", *changed[nearest]])

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build from names and values; raises `RecipeError` on an unknown name or a bad value."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise RecipeError(f"The recipe has no option {name!r}; its options are {', '.join(sorted(known))}.")
        return cls(**values)


_BUNDLED: dict[str, Any] = {
    "activation": "contrast",
    "activation_stride": 0,
    "temperature": 0.1,
    "min_separation": 3.5,
    "min_cycle_iou": 0.3,
    "target_prompt": "box",
    "propagate_with": "original",
    "region_fallback": True,
    "min_presence": 0.5,
    "min_score": 0.1,
}

PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "bundled": _BUNDLED,
    "quick": {**_BUNDLED, "frames": 7, "ddim_steps": 10, "lora_steps": 15, "lora_lr": 1e-3, "ttga_steps": 30},
}
"""Recipes by name: the published reading; what was chosen on the bundled models, for them; and the same with few steps,
for the bundled models on a CPU."""

_HINTS = get_type_hints(Recipe)


def choices_of(name: str) -> tuple[Any, ...]:
    """List the values that an option chooses from; none for a number, for a truth value, or for no option at all."""
    return get_args(_HINTS.get(name))


def _check_type(name: str, value: Any) -> None:
    hint, choices = _HINTS[name], choices_of(name)
    if choices:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise RecipeError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}.")
        return
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or isinstance(value, bool) != (hint is bool):
        raise RecipeError(f"{name} must be of type {hint.__name__}, not {value!r}.")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RecipeError(f"{name} must lie between {low:g} and {high:g}, not {value!r}.")
