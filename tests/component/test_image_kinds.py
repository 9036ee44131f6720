"""Pictures of every kind go through the backend: each mask has the size, and lies on the object, that is displayed."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import requests
from PIL import Image

from backend.entities import Job
from backend.labelstudio.brush import decode_mask
from backend.worker.model_process import CAVSAM
from tests.support.backend import RunningBackend, wait_for
from tests.support.fake_label_studio import CAT, GROUND, FakeLabelStudio, brush, picture

StartBackend = Callable[..., RunningBackend]
BOX = (8, 30, 20, 50)
EXIF_ORIENTATION = 0x0112


def scene(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    image = np.full((height, width, 3), GROUND, np.uint8)
    image[box[0] : box[1], box[2] : box[3]] = CAT
    return image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def phone(shown: np.ndarray, orientation: int) -> bytes:
    """A JPEG that is stored turned, and says so, such that a viewer shows `shown`."""
    undone = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return saved(Image.fromarray(np.ascontiguousarray(undone(shown))), "JPEG", quality=95, exif=exif)


def grey(top: int, dtype: type) -> np.ndarray:
    """Brightness that is nearer to the cat's colour inside the box, to the ground's outside."""
    return np.where(scene(40, 50, (10, 30, 10, 30))[..., 0] == CAT[0], top, top // 16).astype(dtype)


def palette(transparent: bool) -> Image.Image:
    """Two colours of a palette; with `transparent` the ground is not painted at all, and so lies on white."""
    image = Image.new("P", (50, 40))
    image.putpalette([*GROUND, *CAT])
    image.putdata([int(value) for value in (scene(40, 50, (10, 30, 10, 30))[..., 0] == CAT[0]).ravel()])
    if transparent:
        image.info["transparency"] = 0
    return image


SMALL = scene(40, 50, (10, 30, 10, 30))
KINDS: dict[str, tuple[bytes, np.ndarray]] = {
    "one pixel": (saved(Image.fromarray(scene(1, 1, (0, 1, 0, 1))), "PNG"), scene(1, 1, (0, 1, 0, 1))),
    "one row": (saved(Image.fromarray(scene(1, 301, (0, 1, 50, 60))), "PNG"), scene(1, 301, (0, 1, 50, 60))),
    "one column": (saved(Image.fromarray(scene(203, 1, (7, 90, 0, 1))), "PNG"), scene(203, 1, (7, 90, 0, 1))),
    "odd": (
        saved(Image.fromarray(scene(37, 53, (5, 20, 7, 30))), "WEBP", lossless=True),
        scene(37, 53, (5, 20, 7, 30)),
    ),
    **{f"EXIF {turn}": (phone(scene(64, 96, BOX), turn), scene(64, 96, BOX)) for turn in range(2, 9)},
    "CMYK": (saved(Image.fromarray(SMALL).convert("CMYK"), "JPEG", quality=98), SMALL),
    "palette": (saved(palette(transparent=False), "PNG"), SMALL),
    "GIF": (saved(palette(transparent=False), "GIF"), SMALL),
    "16-bit PNG": (saved(Image.fromarray(grey(60000, np.uint16)), "PNG"), SMALL),
    "16-bit TIFF": (saved(Image.fromarray(grey(60000, np.uint16)), "TIFF"), SMALL),
    "grey": (saved(Image.fromarray(grey(235, np.uint8)), "PNG"), SMALL),
    "BMP": (saved(Image.fromarray(SMALL), "BMP"), SMALL),
    "opaque": (saved(Image.fromarray(SMALL).convert("RGBA"), "PNG"), SMALL),
}


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header promises more pixels than any memory holds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


NOISE = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
BROKEN = {
    "truncated": (saved(Image.fromarray(NOISE), "PNG")[:4000], "broken"),
    "text": (b"Please log in, said the text.", "not a picture"),
    "empty": (b"", "not a picture"),
    "bomb": (bomb(13_200, 13_200), "13200x13200 pixels; scale it below 170,000,000"),
    "larger bomb": (bomb(2**20, 2**20), "too many pixels; scale it below 170,000,000"),
}


def predict_all(
    label_studio: FakeLabelStudio, backend: RunningBackend, contents: dict[str, bytes]
) -> tuple[dict[str, list[dict]], dict[str, Job]]:
    """Annotate a first task; regions by name of what was predicted, jobs by name of what was not."""
    project = label_studio.add_project()
    first = label_studio.add_task(project, picture(BOX))
    tasks = {name: label_studio.add_task(project, content) for name, content in contents.items()}
    label_studio.connect(project, backend.url)
    label_studio.annotate(first, [brush(BOX, "cat")])

    def jobs() -> dict[int, Job]:
        return backend.service.store.jobs(project, backend.service.version_of(project)).all()

    def is_over() -> bool:
        return sum(job.state == "failed" or job.delivery == "delivered" for job in jobs().values()) == len(tasks)

    wait_for(is_over, "every task", 120)
    found = jobs()
    failed = {name: found[task] for name, task in tasks.items() if found[task].state == "failed"}
    return {name: label_studio.regions_of(task) for name, task in tasks.items() if name not in failed}, failed


def test_every_kind_of_picture(label_studio: FakeLabelStudio, start_backend: StartBackend):
    contents = {name: content for name, (content, _) in KINDS.items()} | {n: c for n, (c, _) in BROKEN.items()}
    predicted, failed = predict_all(label_studio, start_backend(), contents)
    assert set(failed) == set(BROKEN)
    for name, job in failed.items():
        assert BROKEN[name][1] in (job.error or ""), name
        assert (job.error or "").startswith(f"The image of task {job.task} "), name
        assert "/" not in (job.error or ""), name  # the path of our copy
    for name, (_, shown) in KINDS.items():
        (region,) = predicted[name]
        height, width = shown.shape[:2]
        assert (region["original_height"], region["original_width"]) == (height, width), name
        mask = decode_mask(region["value"]["rle"], height, width)
        wrong = mask ^ (shown == CAT).all(-1)
        assert wrong.mean() <= (0.02 if name.startswith(("EXIF", "CMYK")) else 0.0), name  # JPEG blurs the edge


def test_a_reference_whose_image_is_broken_is_named_by_its_task(
    label_studio: FakeLabelStudio, start_backend: StartBackend
):
    backend = start_backend()
    store = backend.service.store
    project = label_studio.add_project()
    broken, _ = label_studio.add_task(project, BROKEN["text"][0]), label_studio.add_task(project, picture(BOX))
    label_studio.annotate(broken, [brush(BOX, "cat")])
    label_studio.connect(project, backend.url)
    wait_for(lambda: any(not c.usable for c in store.annotations(project).judged()), "the refusal")
    (refused,) = store.annotations(project).judged()
    assert refused.reason == f"The image of task {broken} is not a picture that can be read."
    picture_of = requests.get(f"{backend.url}/api/projects/{project}/tasks/{broken}/image", timeout=30)
    assert picture_of.status_code == 404
    assert picture_of.json()["error"] == refused.reason


def test_what_is_transparent_lies_on_white(label_studio: FakeLabelStudio, start_backend: StartBackend):
    """White is nearer to the cat's colour than to the ground's: the unpainted ground counts as cat, seen or not."""
    predicted, _ = predict_all(label_studio, start_backend(), {"palette": saved(palette(transparent=True), "PNG")})
    (region,) = predicted["palette"]
    assert decode_mask(region["value"]["rle"], 40, 50).all()


def test_fifty_megapixels_fit_into_a_moderate_memory(label_studio: FakeLabelStudio, start_backend: StartBackend):
    """With the bundled SAM2, to which most of what works at the picture's own size belongs."""
    box = (1000, 4000, 2000, 6000)
    content = saved(Image.fromarray(scene(6120, 8170, box)), "JPEG", quality=80)
    backend = start_backend(segmenter=CAVSAM, mode="concat")
    predicted, _ = predict_all(label_studio, backend, {"large": content})
    (region,) = predicted["large"]
    assert (region["original_height"], region["original_width"]) == (6120, 8170)
    mask = decode_mask(region["value"]["rle"], 6120, 8170)
    truth = np.zeros_like(mask)
    truth[box[0] : box[1], box[2] : box[3]] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.7
    status = Path(f"/proc/{backend.service.model_process.pid}/status").read_text()
    assert int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) < 2_500_000
