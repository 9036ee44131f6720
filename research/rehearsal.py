"""A dress rehearsal: the pair of full size, in the file layouts in which it is published, without its weights.

    python -m research.rehearsal        (or `make rehearsal`)

Weights are drawn at random and written under the published names: SAM2.1 tiny and SAM2 tiny as Meta stores them, and
Stable Diffusion 2.1-base as a diffusers folder, as one with fp16 weights only, and as a single file. `cavsam segment`
runs with each, with as few steps as there can be, and one task goes through the backend's model process. It proves that
files of these layouts load, and shows how much memory they need; masks of random weights say nothing. It needs 11 GB of
disk.
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
SAM2 = {"sam2.1": "sam2.1_hiera_tiny.pt", "sam2": "sam2_hiera_tiny.pt"}
FOLDER, HALF, FILE = "stable-diffusion-2-1-base", "stable-diffusion-2-1-base-fp16", "v2-1_512-ema-pruned.safetensors"
GIGABYTE = 1e9


@dataclass(frozen=True)
class Measured:
    """What a rehearsal of one layout took."""

    what: str
    seconds: float
    processor: float
    """Seconds of processor time, of all threads together: what does not depend on the machine's other work."""
    peak_bytes: int


def main() -> int:
    """Write the weights, rehearse each layout, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where the weights are written; they are deleted at the end")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_weights(options.write)
        return 0
    # however it ends, the gigabytes go
    with unwinding_on_signals(), tempfile.TemporaryDirectory(prefix="cavsam-rehearsal-", dir=options.scratch) as name:
        folder = Path(name)
        # in a process of its own, whose memory is free again when the rehearsal begins
        show(run("weights written", [sys.executable, "-m", "research.rehearsal", "--write", name]))
        pictures = write_pictures(folder)
        show(segment(folder, pictures, "SAM2.1, folder, 512 pixels", SAM2["sam2.1"], FOLDER, 0))
        show(segment(folder, pictures, f"SAM2, fp16 folder, {SMALL} pixels", SAM2["sam2"], HALF, SMALL))
        show(segment(folder, pictures, f"SAM2.1, single file, {SMALL} pixels", SAM2["sam2.1"], FILE, SMALL))
        sources = ModelSources(sam2=str(folder / SAM2["sam2.1"]), diffusion=str(folder / HALF))
        show(backend_task(folder, sources, f"backend, SAM2.1, fp16 folder, {SMALL} pixels"))
    return 0


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


def segment(folder: Path, pictures: list[Path], what: str, sam2: str, diffusion: str, size: int) -> Measured:
    """Segment the target with `cavsam segment`."""
    out = folder / f"out-{diffusion}"
    options = {**QUICK, "diffusion_size": size}
    mode = str(options.pop("mode"))
    command = [sys.executable, "-m", "cavsam.cli", "segment", *map(str, pictures), "--out", str(out), "--mode", mode]
    command += ["--sam2", str(folder / sam2), "--diffusion", str(folder / diffusion), "--class-name", "cell"]
    command += [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
    measured = run(what, command)
    (result,) = json.loads((out / "results.json").read_text())
    if result["error"] or not (out / "target.png").is_file():
        raise SystemExit(f"{what}: {result['error'] or 'no mask was written'}")
    return measured


def backend_task(folder: Path, sources: ModelSources, what: str) -> Measured:
    """Have the backend's model process do one task."""
    import psutil

    from research.benchmarks.pipeline import one_job, peak_memory

    begun = time.monotonic()
    with one_job(folder, sources, Recipe(**QUICK, diffusion_size=SMALL), "auto", labels=1, size=512) as process:
        seconds, peak = time.monotonic() - begun, peak_memory(process.pid or 0)
        times = psutil.Process(process.pid).cpu_times()
    return Measured(what, seconds, times.user + times.system, round(peak * 1e6))


# ---- the files ----


def write_weights(folder: Path) -> None:
    """Write both SAM2 models and the three layouts of the diffusion model, all with random weights."""
    import torch

    from cavsam.weights.loading import SAM2_CHECKPOINTS, SAM2_PACKAGE, build_sam2
    from research.original_names import original_checkpoint

    torch.manual_seed(0)
    for file in SAM2.values():
        model = build_sam2(SAM2_PACKAGE / SAM2_CHECKPOINTS[Path(file).stem], None)
        torch.save({"model": model.state_dict()}, folder / file)
    weights = {name: part.state_dict() for name, part in random_parts().items()}
    write_folder(folder / FOLDER, weights, half=False)
    for name, tensors in weights.items():
        weights[name] = {key: tensor.half() for key, tensor in tensors.items()}
    write_folder(folder / HALF, weights, half=True)
    tensors = original_checkpoint(weights["unet"], weights["vae"], weights["text_encoder"], layers_per_block=2)
    # the published text encoder has one more layer, which Stable Diffusion 2 does not use
    last = "cond_stage_model.model.transformer.resblocks.22."
    tensors |= {name.replace(".22.", ".23."): tensor.clone() for name, tensor in tensors.items() if last in name}
    _save(tensors, folder / FILE)


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
