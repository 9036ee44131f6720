"""Seconds per step of the method, and peak memory of each process.

    python -m research.benchmarks.pipeline                          the bundled models, as the model process runs them
    python -m research.benchmarks.pipeline --sizes paper            the paper's architectures with random weights
    python -m research.benchmarks.pipeline --sizes paper --cut 20   the same with a 20th of the optimiser steps (CPU)

A step that was cut is measured cut and, beside it, scaled up to the recipe's own number of repetitions.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavsam.recipe import Recipe
from cavsam.types import Reference
from cavsam.weights.sources import ModelSources
from research import synth

if TYPE_CHECKING:
    from backend.worker.model_process import ModelProcess

MEGABYTE = 1e6
REPEATED = {"align": "ttga_steps", "lora": "lora_steps"}
"""Step -> the option of the recipe that says how often its inner loop runs."""


def main() -> int:
    """Measure in fresh processes, so that each one's peak memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=("nano", "paper"), default="nano", help="which architectures")
    parser.add_argument("--mode", default="full", help="concat, ttga, dbst or full")
    parser.add_argument("--targets", type=int, default=2, help="targets to segment (default: 2)")
    parser.add_argument("--labels", type=int, choices=(1, 2), default=2, help="labels of the reference (default: 2)")
    parser.add_argument("--cut", type=int, default=1, help="divide the number of optimiser steps by this")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_method(options)))
        return 0
    child = subprocess.run(
        [sys.executable, __file__, "--child", *sys.argv[1:]], stdout=subprocess.PIPE, text=True, check=True
    )
    figures = json.loads(child.stdout)
    if options.sizes == "nano":
        figures["memory_mb"] |= measure_backend(options)
    print(report(figures, options))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def whole_recipe(options: argparse.Namespace) -> Recipe:
    """Give the recipe of the sizes that are measured, with all its steps."""
    return ModelSources.named(options.sizes).recipe(mode=options.mode)


def measure_method(options: argparse.Namespace) -> dict[str, Any]:
    """Load, adapt and segment in this process."""
    import time

    import torch

    from research.benchmarks.models import describe_machine, load

    whole = whole_recipe(options)
    recipe = whole.replace(**{name: max(1, getattr(whole, name) // options.cut) for name in REPEATED.values()})
    started = time.perf_counter()
    model = load(options.sizes, recipe, options.device)
    loading = time.perf_counter() - started
    names = synth.classes("cells", "dev")[: options.labels]
    pictures = [synth.generate("cells", names, seed=synth.seed_of("dev", number)) for number in range(64)]
    reference = next(picture for picture in pictures if set(picture.masks) == set(names))
    adapted = model.adapt([Reference(reference.image, reference.masks)])
    targets = [picture.image for picture in pictures if picture is not reference][: options.targets]
    results = list(model.segment(adapted, targets))
    for result in results:
        if result.error:
            raise RuntimeError(result.error)
    memory = {"method (this process)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE}
    if torch.cuda.is_available():
        memory["GPU, allocated by torch"] = torch.cuda.max_memory_allocated() / MEGABYTE
    return {
        "machine": describe_machine(model.device),
        "loading": loading,
        "reference": adapted.timings,
        "targets": [result.timings for result in results],
        "seconds": [result.seconds for result in results],
        "memory_mb": memory,
    }


def measure_backend(options: argparse.Namespace) -> dict[str, float]:
    """Peak memory of the model process doing a real job, and of the web process answering a full-size request."""
    import requests

    from tools.backend_server import backend

    recipe = Recipe(mode=options.mode, lora_steps=max(1, 200 // options.cut), ttga_steps=max(1, 100 // options.cut))
    with tempfile.TemporaryDirectory() as folder:
        sources = ModelSources.named("nano")
        with one_job(Path(folder), sources, recipe, options.device, labels=options.labels, size=1024) as process:
            memory = {"model process": peak_memory(process.pid or 0)}

        tasks = [{"id": n, "data": {"image": "x" * 32_000}, "annotations": [], "predictions": []} for n in range(250)]
        with backend(Path(folder), settings={"CAVSAM_PREDICT_DEADLINE": "2"}) as server:
            requests.get(f"{server.url}/health", timeout=10).raise_for_status()
            body: dict[str, Any] = {"tasks": tasks, "project": "1.0", "label_config": "<View/>", "params": {}}
            requests.post(f"{server.url}/predict", json=body, timeout=60).raise_for_status()
            processes = [server.process.pid, *children(server.process.pid)]
            memory["web processes together"] = sum(peak_memory(pid) for pid in processes)
    return memory


@contextmanager
def one_job(
    folder: Path, sources: ModelSources, recipe: Recipe, device: str, *, labels: int, size: int
) -> Iterator[ModelProcess]:
    """A model process that has done one task of the backend, with pictures in `folder` of `size` pixels; then ended.

    Raises:
        RuntimeError: the task failed.
    """
    from PIL import Image

    from backend.labelstudio.label_config import parse_label_config
    from backend.sync.references import examine
    from backend.worker.messages import Example, ModelSpec, Result, SegmentTask
    from backend.worker.model_process import CAVSAM, ModelProcess
    from tools import brush

    names = synth.classes("cells", "dev")[:labels]
    pictures = [synth.generate("cells", names, seed=synth.seed_of("dev", n), size=size) for n in range(2)]
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(picture.image).save(paths[-1])
    drawn_labels = "".join(f'<Label value="{name}"/>' for name in names)
    config = parse_label_config(
        '<View><Image name="image" value="$image"/>'
        f'<BrushLabels name="tag" toName="image">{drawn_labels}</BrushLabels></View>'
    )
    drawn = brush.regions(pictures[0].masks, from_name="tag", to_name="image")
    regions = examine({"id": 1, "task": 1, "result": drawn}, config).regions
    options = {"sources": vars(sources), "recipe": recipe.to_dict(), "device": device}
    process = ModelProcess(ModelSpec(CAVSAM, options, "WARNING"))
    try:
        job = SegmentTask("bench", 0, (Example(1, regions, {"image": paths[0]}),), {"image": paths[1]})
        answer = process.run(job, lambda *_: None)
        if not isinstance(answer, Result):
            raise RuntimeError(str(answer))
        yield process
    finally:
        process.stop()


def peak_memory(pid: int) -> float:
    """Largest resident size of a process so far, in MB (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / MEGABYTE


def children(pid: int) -> list[int]:
    """All processes below `pid`."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def report(figures: dict[str, Any], options: argparse.Namespace) -> str:
    """The figures as text."""
    whole = whole_recipe(options)
    weights = "bundled nano models" if options.sizes == "nano" else "paper's sizes, RANDOM weights"
    lines = [f"{weights}, mode {options.mode}, {options.labels} labels; {figures['machine']}", ""]
    lines.append(f"loading the models {figures['loading']:8.2f} s")
    for title, steps in (("reference, once", [figures["reference"]]), ("per target", figures["targets"])):
        lines += ["", f"{title:<20}{'measured':>10}" + (f"{'at full steps':>16}" if options.cut > 1 else "")]
        total = scaled_total = 0.0
        for step in dict.fromkeys(step for timing in steps for step in timing):
            seconds = float(np.mean([timing.get(step, 0.0) for timing in steps]))
            scaled = seconds * _scale(step, whole, options.cut)
            total, scaled_total = total + seconds, scaled_total + scaled
            lines.append(f"  {step:<18}{seconds:>8.2f} s" + (f"{scaled:>14.2f} s" if options.cut > 1 else ""))
        lines.append(f"  {'sum':<18}{total:>8.2f} s" + (f"{scaled_total:>14.2f} s" if options.cut > 1 else ""))
    lines += ["", "peak memory"] + [f"  {name:<28}{size:>8.0f} MB" for name, size in figures["memory_mb"].items()]
    return "\n".join(lines)


def _scale(step: str, whole: Recipe, cut: int) -> float:
    option = REPEATED.get(step)
    if option is None:
        return 1.0
    full = int(getattr(whole, option))
    return full / max(1, full // cut)


if __name__ == "__main__":
    sys.exit(main())
