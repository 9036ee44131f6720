"""The drawing process's own side: makes small pictures for the status page.

Pictures and masks come from whoever may import tasks or annotate, and may be as large as they like. So they are decoded
in a process of their own, with bounded memory, that may end at any time without harm; the web process decodes none.
"""

from __future__ import annotations

import base64
import io
import resource
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from backend.labelstudio.masks import reference_masks
from backend.labelstudio.regions import Region
from backend.worker.messages import DrawThumbnail, Failed, Thumbnail
from cavsam.errors import ImageError, InvalidReference
from cavsam.images import read_image
from cavsam.types import Progress

SIDE = 240
"""Pixels of a thumbnail's longer side."""
OPACITY = 0.6
QUALITY = 90
PALETTE = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#bfef45", "#f032e6")
"""Colours of labels that have none in the configuration."""

RGB = tuple[int, int, int]


def open_drawing(options: Mapping[str, Any]) -> None:
    """Bound the memory of this process, by the option `memory` in bytes; there is no model to open."""
    limit = int(options["memory"])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Drawing:
    """Does the jobs of the drawing process."""

    def __init__(self, nothing: None):
        """Take what `open_drawing` gave."""

    def run(self, job: DrawThumbnail, progress: Progress) -> Thumbnail | Failed:
        """Draw one thumbnail; a picture that is none, or too large, fails in words."""
        try:
            if job.small:
                picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(job.small))))
            else:
                picture = shrunk(read_image(job.image))
            if job.regions:
                picture = overlaid(picture, masks_of(job.regions, job.to_name), colours_of(job.backgrounds))
        except ImageError as error:
            return Failed(str(error))
        except MemoryError:
            return Failed(f"{job.image or 'The masks'}: too large for a small picture of it.")
        return Thumbnail(base64.b64encode(jpeg(picture)).decode())


def masks_of(regions: Iterable[Region], to_name: str) -> dict[str, NDArray[np.bool_]]:
    """The masks of regions on one image by label, each bool (H, W); empty if they draw nothing."""
    drawn = [region for region in regions if region.to_name == to_name]
    if not drawn:
        return {}
    try:
        masks = reference_masks(drawn, to_name, drawn[0].size)
    except InvalidReference:
        return {}
    united: dict[str, NDArray[np.bool_]] = {}
    for slot, mask in masks.items():
        united[slot.label] = united[slot.label] | mask if slot.label in united else mask
    return united


def overlaid(
    picture: NDArray[np.uint8], masks: Mapping[str, NDArray[np.bool_]], colours: Mapping[str, RGB]
) -> NDArray[np.uint8]:
    """A picture uint8 (h, w, 3) under masks of any size, each in its label's colour; later ones lie on top."""
    height, width = picture.shape[:2]
    result: NDArray[np.float32] = picture.astype(np.float32)
    for number, (label, mask) in enumerate(masks.items()):
        area = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        cover = np.asarray(area, np.float32)[..., None] / 255 * OPACITY
        colour = np.array(colours.get(label, _colour(number)), np.float32)
        result = (result * (1 - cover) + colour * cover).astype(np.float32)
    return result.round().astype(np.uint8)


def colours_of(backgrounds: Mapping[str, str]) -> dict[str, RGB]:
    """The colours of labels, given as the configuration writes them, or one of ours for each that has none."""
    return {name: _colour(number, text) for number, (name, text) in enumerate(backgrounds.items())}


def _colour(number: int, wanted: str = "") -> RGB:
    try:
        red, green, blue, *_ = ImageColor.getrgb(wanted or PALETTE[number % len(PALETTE)])
    except ValueError:  # a browser may know it, PIL does not
        return _colour(number)
    return red, green, blue


def shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture with at most `SIDE` pixels along its longer side."""
    small = Image.fromarray(picture)
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """The bytes of a JPEG file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return stream.getvalue()
