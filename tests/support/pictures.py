"""Small scenes in which the same two objects move a little: easy on purpose: a wrong mask means a wrong path."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from tools.demo.pictures import Picture

LABELS = ("disc", "block")


def scene(index: int, *, height: int = 160, width: int = 200) -> Picture:
    """Scene number `index`: an orange disc on the left and a blue block on the right, over dull noise."""
    rng = np.random.default_rng(1000 + index)
    y, x = np.mgrid[:height, :width]
    shift_y, shift_x = rng.integers(-12, 13, size=(2, 2))
    disc = (y - 60 - shift_y[0]) ** 2 + (x - 60 - shift_x[0]) ** 2 < 32**2
    block = (abs(y - 100 - shift_y[1]) < 28) & (abs(x - 145 - shift_x[1]) < 24)
    image = np.repeat(rng.normal(120, 8, (height, width, 1)), 3, axis=2)
    image[disc] = [235, 140, 20]
    image[block] = [30, 60, 200]
    image += rng.normal(0, 4, image.shape)
    return Picture(f"scene-{index}.png", image.clip(0, 255).astype(np.uint8), {"disc": disc, "block": block})


def turned_jpeg(picture: Picture) -> bytes:
    """The picture as a phone stores it: lying on its side, with the EXIF tag that turns it upright."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to display
    stored: NDArray[np.uint8] = np.rot90(picture.image)
    Image.fromarray(np.ascontiguousarray(stored)).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def save(array: NDArray[np.uint8], path: Path) -> None:
    """Write an array as a picture, with the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_photographs(folder: Path) -> None:
    """Write photographs that the project did not make: the reference's left half, its object, and two targets."""
    photo = data.astronaut()
    Image.fromarray(photo[:300, 100:400]).save(folder / "reference.png")
    mask = np.zeros((300, 300), dtype=np.uint8)
    mask[20:200, 60:190] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(photo[:280, 150:370]).save(folder / "target.jpg", quality=95)
    (folder / "broken.png").write_bytes(b"no picture")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(data.chelsea()[:, ::-1].copy()).save(folder / "turned.jpg", exif=exif)
