"""Seconds until a click is answered, over HTTP, on the bundled models, and what the second process takes in memory.

    python -m research.benchmarks.interactive

Measured on two cores, pictures of 1024x1024, one thread per process:

    from /setup to the first answer, the process being started    6.57 s
    model idle: first click on a picture   median   0.13 s, most   0.15 s (5)
    model idle: later clicks on it         median   0.05 s, most   0.09 s (15)
    model working on a target: first click on a picture   median   0.12 s, most   0.15 s (5)
    model working on a target: later clicks on it         median   0.07 s, most   0.10 s (15)
    peak memory of the backend's processes: 65 MB, 644 MB, 703 MB (from small to large)

With `--size 3464 --pictures 2 --clicks 3`, 12 megapixels:

    model idle: first click on a picture   median   0.96 s, most   0.99 s (2)
    model idle: later clicks on it         median   0.49 s, most   0.84 s (4)
    model working on a target: first click on a picture   median   0.82 s, most   0.91 s (2)
    model working on a target: later clicks on it         median   0.70 s, most   0.74 s (4)
    peak memory of the backend's processes: 188 MB, 644 MB, 1032 MB (from small to large)
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.errors import ModelProcessStopped
from backend.labelstudio.label_config import parse_label_config
from backend.sync.references import examine
from backend.worker.messages import Example, ModelSpec, SegmentTask
from backend.worker.model_process import CAVSAM, ModelProcess
from cavsam.weights.sources import ModelSources
from research import synth
from research.benchmarks.pipeline import children, peak_memory
from tools import brush
from tools.backend_server import backend

CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image"><Label value="Object"/>'
    '</BrushLabels><KeyPointLabels name="point" toName="image" smart="true"><Label value="Object"/></KeyPointLabels>'
    "</View>"
)


def main() -> int:
    """Click on pictures, first with an idle model process, then with one that works on a target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5, help="pictures to click on (default: 5)")
    parser.add_argument("--clicks", type=int, default=4, help="clicks on each (default: 4)")
    parser.add_argument("--size", type=int, default=1024, help="side of the pictures (default: 1024)")
    options = parser.parse_args()
    name = synth.classes("cells", "dev")[0]
    seeds = [synth.seed_of("dev", number) for number in range(2 * options.pictures + 1)]
    pictures = [synth.generate("cells", (name,), seed=seed, size=options.size) for seed in seeds]
    # the images are in the tasks themselves: Label Studio is not needed
    settings = {"LABEL_STUDIO_URL": "http://127.0.0.1:9", "LABEL_STUDIO_API_KEY": "none"}
    with tempfile.TemporaryDirectory() as folder, backend(Path(folder), settings=settings) as server:
        began = time.perf_counter()
        body = {"project": "1.0", "schema": CONFIG, "hostname": "", "access_token": ""}
        requests.post(f"{server.url}/setup", json=body, timeout=30).raise_for_status()
        click(server.url, 1, pictures[-1], 0)
        print(f"from /setup to the first answer, the process being started  {time.perf_counter() - began:6.2f} s")
        half = options.pictures
        report("model idle", server.url, pictures[:half], 2, options.clicks)
        nano = ModelSources.named("nano")
        process = ModelProcess(
            ModelSpec(
                CAVSAM,
                {"sources": vars(nano), "recipe": nano.recipe(mode="full").to_dict(), "device": "auto"},
                "WARNING",
            )
        )
        working = threading.Event()
        work = threading.Thread(target=keep_busy, args=(process, Path(folder), pictures[-1], name, working))
        work.start()
        working.wait()
        report("model working on a target", server.url, pictures[half : 2 * half], 2 + half, options.clicks)
        still = work.is_alive()
        process.stop()
        work.join()
        print("" if still else "(the model process had finished before the last click)")
        sizes = [peak_memory(pid) for pid in children(server.process.pid)]
        print(f"peak memory of the backend's processes: {', '.join(f'{size:.0f} MB' for size in sorted(sizes))}")
    return 0


def report(title: str, url: str, pictures: list[Any], first_task: int, clicks: int) -> None:
    """Click on some pictures and print how long the answers took."""
    seconds = [
        [click(url, first_task + number, picture, index) for index in range(clicks)]
        for number, picture in enumerate(pictures)
    ]
    for what, times in (
        ("first click on a picture", [row[0] for row in seconds]),
        ("later clicks on it", [one for row in seconds for one in row[1:]]),
    ):
        print(f"{title}: {what:<26} median {np.median(times):6.2f} s, most {max(times):6.2f} s ({len(times)})")


def click(url: str, task: int, picture: Any, index: int) -> float:
    """Seconds for one click on an object; every other click says that it is not there."""
    (mask,) = picture.masks.values()
    rows, columns = np.nonzero(mask)
    place = (index * 7919) % len(rows)
    height, width = mask.shape
    value = {"x": 100 * float(columns[place]) / width, "y": 100 * float(rows[place]) / height}
    region = {
        "id": f"c{index}",
        "type": "keypointlabels",
        "from_name": "point",
        "to_name": "image",
        "is_positive": index % 2 == 0,
        "value": value | {"keypointlabels": ["Object"]},
    }
    stream = io.BytesIO()
    Image.fromarray(picture.image).save(stream, "PNG")
    address = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    body = {
        "tasks": [{"id": task, "data": {"image": address}}],
        "project": "1.0",
        "label_config": CONFIG,
        "params": {"context": {"result": [region]}},
    }
    sent = json.dumps(body)
    began = time.perf_counter()
    answer = requests.post(f"{url}/predict", data=sent, headers={"Content-Type": "application/json"}, timeout=100)
    seconds = time.perf_counter() - began
    answer.raise_for_status()
    return seconds


def keep_busy(process: ModelProcess, folder: Path, picture: Any, name: str, working: threading.Event) -> None:
    """Have a model process of the whole method adapt to a reference and segment, until it is stopped."""
    path = folder / "busy.png"
    Image.fromarray(picture.image).save(path)
    xml = CONFIG.replace("Object", name)
    drawn = brush.regions(picture.masks, from_name="tag", to_name="image")
    regions = examine({"id": 1, "task": 1, "result": drawn}, parse_label_config(xml)).regions
    job = SegmentTask("busy", 0, (Example(1, regions, {"image": str(path)}),), {"image": str(path)})
    try:
        while True:
            process.run(job, lambda *_: working.set())
    except ModelProcessStopped:
        pass
    finally:
        working.set()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
