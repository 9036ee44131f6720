"""A dress rehearsal: the pair of full size, in the file layouts in which it is published, without its weights.

    python -m research.rehearsal                    (or `make rehearsal`)
    python -m research.rehearsal --layout fp16      (one layout only)

Weights are drawn at random and written under the published names: SAM2.1 tiny and SAM2 tiny as Meta stores them, and
Stable Diffusion 2.1-base as a diffusers folder, as one with fp16 weights only, and as a single file. On each layout
`cavsam segment` runs, with as few steps as there can be, and one task goes through the backend's model process. It
proves that files of these layouts load, and shows how much memory they need; masks of random weights say nothing. The
weights of a layout are deleted before the next is written: 6 GB of disk are enough, 3 GB without the layout `folder`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cavsam.recipe import Recipe
from cavsam.weights.sources import ModelSources
from research import synth
from tools.servers import unwinding_on_signals

QUICK: dict[str, Any] = {"mode": "full", "lora_steps": 1, "ttga_steps": 1, "ddim_steps": 2, "frames": 1}
SMALL = 256
"""Side in pixels at which diffusion runs in every layout but the first, which shows the memory of the model's own."""
GIGABYTE = 1e9


@dataclass(frozen=True)
class Measured:
    """What a rehearsal of one layout took."""

    what: str
    seconds: float
    processor: float
    """Seconds of processor time, of all threads together: what does not depend on the machine's other work."""
    peak_bytes: int


@dataclass(frozen=True)
class Layout:
    """How the pair's weights lie in files.

    Attributes:
        words: what it is.
        sam2: name of SAM2's checkpoint.
        diffusion: name of the diffusion model's folder or file.
        half: whether the diffusion model's weights are in float16.
        size: side in pixels at which diffusion runs; 0 for the model's own.
    """

    words: str
    sam2: str
    diffusion: str
    half: bool
    size: int


LAYOUTS = {
    "folder": Layout("SAM2.1, folder, 512 pixels", "sam2.1_hiera_tiny.pt", "stable-diffusion-2-1-base", False, 0),
    "fp16": Layout("SAM2, fp16 folder, 256 pixels", "sam2_hiera_tiny.pt", "stable-diffusion-2-1-base", True, SMALL),
    "file": Layout(
        "SAM2.1, single file, 256 pixels", "sam2.1_hiera_tiny.pt", "v2-1_512-ema-pruned.safetensors", True, SMALL
    ),
}


def main() -> int:
    """Write the weights of each layout, rehearse it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where the weights are written; they are deleted at the end")
    parser.add_argument("--layout", action="append", choices=LAYOUTS, help="repeatable (default: all)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.layout or list(LAYOUTS)
    if options.write:
        write_weights(options.write, LAYOUTS[names[0]])
        return 0
    for name in names:
        # however it ends, the gigabytes go
        with unwinding_on_signals(), tempfile.TemporaryDirectory(prefix="cavsam-", dir=options.scratch) as folder:
            # in a process of its own, whose memory is free again when the rehearsal begins
            writing = [sys.executable, "-m", "research.rehearsal", "--layout", name, "--write", folder]
            show(run(f"weights written: {name}", writing))
            rehearse(Path(folder), LAYOUTS[name])
    return 0


def rehearse(folder: Path, layout: Layout) -> None:
    """Run the command and a task of the backend on weights in `folder`."""
    sources = ModelSources(sam2=str(folder / layout.sam2), diffusion=str(folder / layout.diffusion))
    recipe = Recipe(**QUICK, diffusion_size=layout.size)
    show(segment(folder, write_pictures(folder), layout.words, sources, recipe))
    show(backend_task(folder, sources, f"backend, {layout.words}", recipe))


def show(measured: Measured) -> None:
    """Print one line."""
    print(
        f"{measured.what:<45}{measured.seconds:>7.0f} s{measured.processor:>7.0f} s of processor time"
        f"{measured.peak_bytes / GIGABYTE:>7.1f} GB",
        flush=True,
    )


def run(what: str, command: list[str]) -> Measured:
    """Run a program to its end; raises `SystemExit` if it fails."""
    begun = time.monotonic()
    process = subprocess.Popen(command)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{what}: ended with status {process.returncode}")
    return Measured(what, time.monotonic() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def write_pictures(folder: Path) -> list[Path]:
    """Write a reference, its mask and a target; returns their files."""
    label = synth.classes("cells", "dev")[0]
    pictures = (synth.generate("cells", [label], seed=synth.seed_of("dev", number), size=512) for number in range(64))
    reference, target = [picture for picture in pictures if label in picture.masks][:2]
    files = [folder / name for name in ("reference.png", "mask.png", "target.png")]
    drawn = (reference.masks[label] * np.uint8(255)).astype(np.uint8)
    for file, picture in zip(files, (reference.image, drawn, target.image), strict=True):
        Image.fromarray(picture).save(file)
    return files


def segment(folder: Path, pictures: list[Path], what: str, sources: ModelSources, recipe: Recipe) -> Measured:
    """Segment the target with `cavsam segment`."""
    out = folder / "out"
    command = [sys.executable, "-m", "cavsam.cli", "segment", *map(str, pictures), "--out", str(out)]
    command += ["--sam2", sources.sam2, "--diffusion", sources.diffusion, "--class-name", "cell", "--mode", recipe.mode]
    chosen = {name: getattr(recipe, name) for name in (*QUICK, "diffusion_size") if name != "mode"}
    command += [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
    measured = run(what, command)
    (result,) = json.loads((out / "results.json").read_text())
    if result["error"] or not (out / "target.png").is_file():
        raise SystemExit(f"{what}: {result['error'] or 'no mask was written'}")
    return measured


def backend_task(folder: Path, sources: ModelSources, what: str, recipe: Recipe) -> Measured:
    """Have the backend's model process do one task."""
    import psutil

    from research.benchmarks.pipeline import one_job, peak_memory

    begun = time.monotonic()
    with one_job(folder, sources, recipe, "auto", labels=1, size=512) as process:
        seconds, peak = time.monotonic() - begun, peak_memory(process.pid or 0)
        times = psutil.Process(process.pid).cpu_times()
    return Measured(what, seconds, times.user + times.system, round(peak * 1e6))


# ---- the files ----


def write_weights(folder: Path, layout: Layout) -> None:
    """Write SAM2 and the diffusion model in one layout, with random weights."""
    import torch

    from cavsam.weights.files import SAM2_CHECKPOINTS
    from cavsam.weights.loading import SAM2_PACKAGE, build_sam2
    from research.original_names import original_checkpoint

    torch.manual_seed(0)
    model = build_sam2(SAM2_PACKAGE / SAM2_CHECKPOINTS[Path(layout.sam2).stem], None)
    torch.save({"model": model.state_dict()}, folder / layout.sam2)
    weights = {name: part.state_dict() for name, part in random_parts().items()}
    if layout.half:
        for name, tensors in weights.items():
            weights[name] = {key: tensor.half() for key, tensor in tensors.items()}
    if not layout.diffusion.endswith(".safetensors"):
        write_folder(folder / layout.diffusion, weights, half=layout.half)
        return
    tensors = original_checkpoint(weights["unet"], weights["vae"], weights["text_encoder"], layers_per_block=2)
    # the published text encoder has one more layer, which Stable Diffusion 2 does not use
    last = "cond_stage_model.model.transformer.resblocks.22."
    tensors |= {name.replace(".22.", ".23."): tensor.clone() for name, tensor in tensors.items() if last in name}
    _save(tensors, folder / layout.diffusion)


def random_parts() -> dict[str, Any]:
    """Build the networks of Stable Diffusion 2.1-base, from the configuration that ships with this package."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from cavsam.weights.single_file import SD2

    return {
        "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD2, subfolder="unet")),
        "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(SD2, subfolder="vae")),
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(SD2, subfolder="text_encoder")),
    }


def write_folder(folder: Path, weights: Mapping[str, Mapping[str, Any]], *, half: bool) -> None:
    """Write a folder as the published ones are: their names of files and tensors, their scheduler and tokenizer."""
    from cavsam.weights.single_file import SD2, read_tokenizer

    for name, tensors in weights.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text((SD2 / name / "config.json").read_text())
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        _save(published_names(name, tensors), folder / name / f"{stem}{'.fp16' if half else ''}.safetensors")
    (folder / "scheduler").mkdir()
    schedule = json.loads((SD2 / "scheduler" / "scheduler_config.json").read_text())
    schedule |= {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    tokenizer = read_tokenizer(SD2 / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
    merges = (SD2 / "tokenizer" / "merges.txt").read_text(encoding="utf-8")
    (folder / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "!"}
    config |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text((SD2 / "model_index.json").read_text())


def published_names(part: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Give a part's tensors the names of the published folders, which are older than the libraries' own."""
    if part == "text_encoder":
        return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    if part == "vae":
        older = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
        return {_replaced(name, older): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _replaced(name: str, words: Mapping[str, str]) -> str:
    for ours, theirs in words.items():
        name = name.replace(ours, theirs)
    return name


def _save(tensors: Mapping[str, Any], file: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})


if __name__ == "__main__":
    sys.exit(main())
