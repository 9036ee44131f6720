"""Which files weights are read from: in a local folder or in the hub's cache; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cavsam.errors import ModelError

SAM2_CHECKPOINTS = {
    "sam2_hiera_tiny": "configs/sam2/sam2_hiera_t.yaml",
    "sam2_hiera_small": "configs/sam2/sam2_hiera_s.yaml",
    "sam2_hiera_base_plus": "configs/sam2/sam2_hiera_b+.yaml",
    "sam2_hiera_large": "configs/sam2/sam2_hiera_l.yaml",
    "sam2.1_hiera_tiny": "configs/sam2.1/sam2.1_hiera_t.yaml",
    "sam2.1_hiera_small": "configs/sam2.1/sam2.1_hiera_s.yaml",
    "sam2.1_hiera_base_plus": "configs/sam2.1/sam2.1_hiera_b+.yaml",
    "sam2.1_hiera_large": "configs/sam2.1/sam2.1_hiera_l.yaml",
}
"""Stem of a published checkpoint -> its configuration inside the sam2 package."""

DIFFUSION_FILES = [
    "vae/config.json",
    "unet/config.json",
    "text_encoder/config.json",
    "tokenizer/*",
    "scheduler/scheduler_config.json",
    "model_index.json",
]
"""What of a hub repository is fetched besides weights; the rest is gigabytes that nothing reads."""

WEIGHTS = {
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "text_encoder": "",
}
"""Part of a diffusion model -> stem of its weights' file; the text encoder's depends on the format."""


BACKBONE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of a backbone's weights, the preferred one first."""


@dataclass(frozen=True)
class WeightFormat:
    """One of the ways in which a diffusers folder stores the weights of a part."""

    variant: str | None
    safetensors: bool

    def file(self, part: str) -> str:
        """Name the part's file in this format, relative to the folder; a large one may be split into several."""
        stem = WEIGHTS[part] or ("model" if self.safetensors else "pytorch_model")
        variant = f".{self.variant}" if self.variant else ""
        return f"{part}/{stem}{variant}.{'safetensors' if self.safetensors else 'bin'}"

    def is_in(self, folder: Path, part: str) -> bool:
        """Whether a folder holds a part in this format, whole or split."""
        file = folder / self.file(part)
        # a split file's index is called model.safetensors.index.json or model.safetensors.index.fp16.json
        index = file.name if self.variant is None else file.name.replace(f".{self.variant}", "")
        variant = f".{self.variant}" if self.variant else ""
        return file.is_file() or (file.parent / f"{index}.index{variant}.json").is_file()

    def patterns(self, part: str) -> list[str]:
        """List patterns of the files that a hub repository may hold of a part in this format."""
        file = Path(self.file(part))
        stem, variant = file.name.split(".")[0], f".{self.variant}" if self.variant else ""
        return [str(file), f"{part}/{stem}{file.suffix}.index{variant}.json", f"{part}/{stem}{variant}-*{file.suffix}"]


FORMATS = (
    WeightFormat(None, safetensors=True),
    WeightFormat("fp16", safetensors=True),
    WeightFormat(None, safetensors=False),
    WeightFormat("fp16", safetensors=False),
)
"""In the order of preference: full precision first, and pickles, which are read without running code, last."""


def checkpoints_in(folder: Path) -> list[Path]:
    """List the SAM2 checkpoints of a folder, under their published names if there are any."""
    found = sorted(p for p in folder.iterdir() if p.suffix in (".pt", ".safetensors"))
    published = [p for p in found if p.stem in SAM2_CHECKPOINTS]
    # a clone of the hub's repository holds the same weights once more for another library
    return published or found


def only_checkpoint(folder: Path) -> Path:
    """Choose the SAM2 checkpoint of a folder; raises `ModelError` if there is not exactly one."""
    chosen = checkpoints_in(folder)
    if len(chosen) != 1:
        names = ", ".join(p.name for p in chosen) or "none"
        raise ModelError(f"{folder} must hold one SAM2 checkpoint (.pt or .safetensors), found: {names}.")
    return chosen[0]


def hub_checkpoint_stem(hub_id: str) -> str:
    """Name the checkpoint of a hub id, without its suffix; raises `ModelError` on an id that is not SAM2's."""
    stem = _stem_of(hub_id)
    if stem not in SAM2_CHECKPOINTS:
        known = ", ".join(f"facebook/{s.replace('_', '-')}" for s in SAM2_CHECKPOINTS)
        raise ModelError(f"{hub_id} is not a SAM2 model on the hub that is known here; choose one of {known}.")
    return stem


def _stem_of(hub_id: str) -> str:
    """Name the checkpoint of a hub id: `facebook/sam2.1-hiera-tiny` -> `sam2.1_hiera_tiny`."""
    return hub_id.split("/")[-1].replace("-", "_")


def format_in(folder: Path, part: str) -> WeightFormat:
    """Choose the format in which a part is read."""
    for stored in FORMATS:
        if stored.is_in(folder, part):
            return stored
    found = ", ".join(sorted(path.name for path in (folder / part).iterdir())) or "nothing"
    raise ModelError(
        f"{folder / part} has no weights that can be read, only {found}; "
        f"it must hold {Path(FORMATS[0].file(part)).name}, its fp16 variant or a .bin file of PyTorch."
    )


def is_hub_id(source: str) -> bool:
    """Whether a source that is no file or folder here can be `owner/name` on the hub, and not a mistyped path."""
    files = (".pt", ".pth", ".safetensors", ".ckpt", ".yaml", ".bin")
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not source.endswith(("/", *files))


# ---- what is on this machine ----


def sam2_files(source: str, revision: str | None = None) -> list[Path]:
    """List the checkpoint of a SAM2 source and the configuration beside it; nothing that is not on this machine.

    Args:
        source: see `ModelSources`.
        revision: of a hub id.
    """
    path = Path(source)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = checkpoints_in(path)
    elif is_hub_id(source) and _stem_of(source) in SAM2_CHECKPOINTS:
        file = in_hub_cache(source, f"{_stem_of(source)}.pt", revision)
        found = [file] if file else []
    else:
        found = []
    beside = [file.with_suffix(".yaml") for file in found]
    return found + [file for file in beside if file.is_file()]


def diffusion_files(source: str, revision: str | None = None) -> list[Path]:
    """List the files that a diffusion model is read from; nothing that is not on this machine.

    Args:
        source: see `ModelSources`.
        revision: of a hub id.
    """
    if Path(source).is_file():
        return [Path(source)]
    folder = _folder_of(source, "unet/config.json", revision)
    if folder is None:
        return []
    patterns = list(DIFFUSION_FILES)
    for part in WEIGHTS:
        stored = next((one for one in FORMATS if one.is_in(folder, part)), None)
        if stored is None:
            return []  # fetched in part only
        patterns += stored.patterns(part)
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def backbone_files(source: str, revision: str | None = None) -> list[Path]:
    """List the configuration and the weights of a backbone; nothing that is not on this machine.

    Args:
        source: folder or hub id.
        revision: of a hub id.
    """
    folder = _folder_of(source, "config.json", revision)
    if folder is None or not (folder / "config.json").is_file():
        return []
    weights = next((file for name in BACKBONE_WEIGHTS if (file := folder / name).is_file()), None)
    return [folder / "config.json", weights] if weights else []


def _folder_of(source: str, file: str, revision: str | None) -> Path | None:
    """Find the folder of a source on this machine: a local one, or the snapshot in the hub's cache that has `file`."""
    if Path(source).is_dir():
        return Path(source)
    found = in_hub_cache(source, file, revision) if is_hub_id(source) else None
    return found.parents[file.count("/")] if found else None


def in_hub_cache(hub_id: str, file: str, revision: str | None) -> Path | None:
    """Find a file of a hub repository in the cache on this machine, without asking the hub."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, file, revision=revision)
    return Path(found) if isinstance(found, str) else None
