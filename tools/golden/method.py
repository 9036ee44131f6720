"""The method on synthetic episodes: every mode and preset, with few steps so that all of it takes minutes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.golden import surface
from tools.golden.digests import digest, text_of
from tools.golden.surface import Task

Entries = Iterator[tuple[str, str]]

SHORT = {"frames": 2, "ddim_steps": 2, "lora_steps": 2, "lora_rank": 4, "ttga_steps": 4}
"""Few of everything that costs time; half of two generated frames is one frame with a pseudo-label."""


def two_labels() -> Task:
    names = surface.class_names("textures")[:2]
    image, masks = surface.drawn("textures", names, 11)
    target, _ = surface.drawn("textures", names, 12)
    return Task([image], [masks], target)


def incomplete() -> Task:
    """Three references of two labels, the second of which lacks one."""
    names = surface.class_names("textures")[2:4]
    whole, masks = surface.drawn("textures", names, 21)
    half, one = surface.drawn("textures", names[:1], 22)
    last, others = surface.drawn("textures", names, 23)
    target, _ = surface.drawn("textures", names, 24)
    return Task([whole, half, last], [masks, one, others], target)


def oblong() -> Task:
    """Pictures that are not square, of different sizes."""
    names = surface.class_names("satellite")[:1]
    image, masks = surface.drawn("satellite", names, 31, (200, 320))
    target, _ = surface.drawn("satellite", names, 32, (330, 240))
    return Task([image], [masks], target)


def absent() -> Task:
    """A target without the object."""
    (name,) = surface.class_names("textures")[4:5]
    image, masks = surface.drawn("textures", [name], 41)
    target, _ = surface.drawn("textures", [], 42)
    return Task([image], [masks], target)


def bench(domain: str, index: int, shots: int = 1) -> Callable[[], Task]:
    return lambda: surface.bench_task(domain, index, shots)


EPISODES: dict[str, Callable[[], Task]] = {
    "textures": bench("textures", 1),
    "lesions": bench("lesions", 3),
    "lungs": bench("lungs", 0),
    "satellite": bench("satellite", 2),
    "cells": bench("cells", 1),
    "two-labels": two_labels,
    "incomplete": incomplete,
    "oblong": oblong,
    "absent": absent,
    "five-shot": bench("lungs", 4, 5),
    "components": bench("cells", 2),
    "prompts": bench("lesions", 5),
}

PLAN: dict[str, dict[str, tuple[str, ...]]] = {
    "default": {
        "concat": ("textures", "lesions", "lungs", "satellite", "two-labels", "incomplete", "oblong", "absent"),
        "ttga": ("textures", "lesions", "cells", "two-labels", "incomplete", "oblong", "absent"),
        "dbst": ("lesions", "two-labels"),
        "full": ("cells", "two-labels", "incomplete", "oblong", "absent", "five-shot"),
        "auto": ("lesions", "satellite", "incomplete"),
    },
    "quick": {
        "concat": ("cells", "components"),
        "ttga": ("prompts", "two-labels"),
        "dbst": ("textures",),
        "full": ("lungs",),
        "auto": ("two-labels", "absent"),
    },
    "paper": {
        "concat": ("lungs", "two-labels"),
        "ttga": ("cells", "two-labels", "incomplete"),
        "dbst": ("satellite", "incomplete"),
        "full": ("lesions", "two-labels"),
        "auto": ("textures", "absent"),
    },
}

VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "split": ("components", "full", {**SHORT, "instances": "split"}),
    "split-ttga": ("components", "ttga", {**SHORT, "instances": "split"}),
    "split-tracked": ("components", "concat", {**SHORT, "instances": "split"}),
    "split-incomplete": ("incomplete", "concat", {**SHORT, "instances": "split"}),
    "split-labels": ("two-labels", "auto", {**SHORT, "instances": "split", "auto_threshold": 1.0}),
    "boxes": ("prompts", "full", {**SHORT, "reference_prompt": "box", "pseudo_label": "box", "min_separation": 0.0}),
    "points": ("prompts", "full", {**SHORT, "target_prompt": "point", "min_cycle_iou": 0.0, "min_separation": 0.0}),
    "untold": ("two-labels", "ttga", {**SHORT, "target_prompt": "none", "region_fallback": False}),
    "tuned": ("cells", "full", {**SHORT, "propagate_with": "tuned", "cycle_mask": "true", "lora_mix": "factor"}),
    "from-all": ("incomplete", "full", {**SHORT, "transition_from": "all", "frame_batch": 1}),
    "trusted": ("lesions", "auto", {**SHORT, "auto_threshold": 0.0}),
    "distrusted": ("lesions", "auto", {**SHORT, "auto_threshold": 1.0}),
    "stride-16": ("textures", "ttga", {**SHORT, "activation_stride": 16, "activation": "foreground"}),
    "seed-7": ("satellite", "full", {**SHORT, "seed": 7, "alpha_min": 0.1, "alpha_max": 0.9}),
    "presence": ("absent", "full", {**SHORT, "min_presence": 1.0}),
    "small-diffusion": ("lesions", "dbst", {**SHORT, "diffusion_size": 64, "prompted_fraction": 1.0}),
    "held-back": ("lesions", "concat", {**SHORT, "min_score": 0.9}),
    "calibrated": ("lesions", "ttga", {}),
}
"""Name -> episode, mode and options. With none, `quick` runs as it is: the recipe that the scores are fitted for."""


@cache
def task_of(name: str) -> Task:
    return EPISODES[name]()


def segment() -> Entries:
    """Every mode and preset on some of the episodes, and single options on one each."""
    for preset, modes in PLAN.items():
        assert set(modes) == set(surface.MODES), "a mode came, went or was renamed"
        for mode, names in modes.items():
            model = surface.open_model(preset, {**SHORT, "mode": mode})
            for name in names:
                shots = 2 if name == "five-shot" else 0
                yield from _segmented(f"{preset}/{mode}/{name}", model, task_of(name), shots)
    for variant, (name, mode, options) in VARIANTS.items():
        model = surface.open_model("default" if options else "quick", {**options, "mode": mode})
        yield from _segmented(f"variant/{variant}", model, task_of(name))


def _segmented(key: str, model: Any, task: Task, shots: int = 0) -> Entries:
    (result,) = surface.segment(model, surface.adapt(model, task, shots), [task.target])
    for name, value in result.items():
        yield f"{key}/{name}", text_of(value)


def adapted() -> Entries:
    """Saved adapted references, and what they give after loading: on two targets with an unreadable one between."""
    for preset, mode, name in (
        ("default", "full", "incomplete"),
        ("paper", "full", "cells"),
        ("quick", "ttga", "lungs"),
    ):
        model = surface.open_model(preset, {**SHORT, "mode": mode})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adapted.safetensors"
            surface.save_adapted(surface.adapt(model, task_of(name)), path)
            tensors, metadata = surface.read_adapted(path)
            loaded = surface.load_adapted(path)
        key = f"{preset}/{mode}/{name}"
        yield f"{key}/tensors", text_of(tensors)
        yield f"{key}/metadata", text_of(metadata)
        targets: list[np.ndarray | bytes] = [task_of(name).target, b"no picture", task_of("oblong").target]
        results = surface.segment(model, loaded, targets)
        for index, result in enumerate(results):
            for facet, value in result.items():
                yield f"{key}/target{index}/{facet}", text_of(value)


def explain() -> Entries:
    """One report: its pictures, its numbers and its whole text, so that a change of words alone can be told."""
    task = task_of("lesions")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("reference.png", "mask.png", "target.png")]
        (mask,) = task.masks[0].values()
        for path, picture in zip(paths, (task.images[0], mask, task.target), strict=True):
            Image.fromarray(picture).save(path)
        out = Path(folder) / "report.html"
        options = [f"--set={name}={value}" for name, value in surface.renamed(SHORT).items()]
        code = surface.explain(
            [*map(str, paths), f"--out={out}", "--model=nano", "--device=cpu", "--class-name=lesion", *options]
        )
        assert code == 0, f"explain ended with {code}"
        page = out.read_text()
    page = timeless(page)
    images = re.findall(r"data:[^\"')\s]+", page)
    yield "pictures", "\n".join(f"{len(one)} {digest(one)}" for one in images)
    page = re.sub(r"data:[^\"')\s]+", lambda found: f"data:{digest(found[0])}", page)
    visible = re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", re.sub(r"\s+", " ", page))
    yield "numbers", " ".join(re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", visible))
    yield "page", page


def timeless(page: str) -> str:
    """The page without seconds, bytes of memory, the bars of the table of steps, and the row of versions."""
    page = re.sub(r'<table class="list" id="steps">.*?</table>', _steps_only, page, flags=re.S)
    page = re.sub(r"<tr><th>Versions</th>.*?</tr>", "", page, flags=re.S)
    return re.sub(r"\d[\d,.]* (s|seconds|MB)\b", r"# \1", page)


def _steps_only(table: re.Match[str]) -> str:
    return re.sub(r'<td class="number">[^<]*</td>|<span class="bar".*?</span>', "", table[0])


def inputs() -> Entries:
    """The episodes themselves: where these differ, nothing else can be equal."""
    for name in EPISODES:
        task = task_of(name)
        yield name, text_of({"images": task.images, "masks": task.masks, "target": np.asarray(task.target)})
