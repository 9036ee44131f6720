"""Images and masks at the border: files, bytes, PIL images and arrays become numpy arrays, as a browser shows them."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cavsam.errors import ImageError

ImageSource = Any
"""A path (str or Path), encoded bytes, a PIL image, an array, or a torch tensor."""

Mask = NDArray[np.bool_]

ORIENTATION = 0x0112
"""The EXIF tag of how a camera was held."""
SIDEWAYS = (5, 6, 7, 8)
"""Its values with which width and height change places."""

FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "WEBP", "AVIF")
"""What is read, by PIL's names. Others have decoders that nobody needs here, and EPS would run Ghostscript."""

MAX_PIXELS = 170_000_000
"""Larger pictures are refused instead of filling the memory; PIL's own bound lies a little higher."""


def read_image(source: ImageSource) -> NDArray[np.uint8]:
    """Read a picture as a browser would show it.

    EXIF orientation is applied, transparency lies on white, 16-bit is scaled to 8 bits, palette and grey become RGB.

    Args:
        source: path, encoded bytes, PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): uint8, uint16,
            bool, or float in 0..1; or a torch tensor (H, W), (1, H, W), (3, H, W) or (4, H, W) of the same values.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ImageError: the source cannot be read as a picture.
    """
    source = _without_torch(source)
    if isinstance(source, np.ndarray):
        return _rgb_from_array(source)
    with _opened(source) as picture:
        return _rgb_from_pil(picture, _describe(source))


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of a picture file as `read_image` and `read_mask` give it, from its header alone.

    Raises:
        ImageError: the file cannot be read as a picture.
    """
    with _opened(path) as picture:
        sideways = picture.getexif().get(ORIENTATION) in SIDEWAYS
        return (picture.width, picture.height) if sideways else (picture.height, picture.width)


def is_one_picture(source: object) -> bool:
    """Tell whether `source` is a single picture, however held, rather than several; (N, H, W, 3) is several."""
    if isinstance(source, str | bytes | bytearray | memoryview | os.PathLike | io.IOBase | Image.Image):
        return True
    return getattr(source, "ndim", None) in (2, 3)  # array or tensor


def read_mask(source: ImageSource) -> Mask:
    """Read a mask; a pixel belongs to the object if it is brighter than mid-grey (and not transparent).

    A picture whose brightest value is below mid-grey (masks stored as 0 and 1, label maps) counts every pixel above 0.

    Args:
        source: as in `read_image`.

    Returns:
        bool (H, W).

    Raises:
        ImageError: the source cannot be read as a picture.
    """
    source = _without_torch(source)
    if isinstance(source, np.ndarray) and source.dtype == np.bool_ and source.ndim == 2:
        return source.copy()
    values = source if isinstance(source, np.ndarray) else _mask_values(source)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ImageError(f"A mask must be (H, W) or (H, W, channels), not {values.shape}.")
    if values.ndim == 2:
        values = values[..., None]
    brightness = values[..., :3].max(axis=-1) if values.shape[-1] >= 3 else values[..., 0]
    full = 1.0 if np.issubdtype(values.dtype, np.floating) else 65535 if brightness.max() > 255 else 255
    mask = brightness > (full / 2 if brightness.max() > full / 2 else 0)
    if values.shape[-1] == 4:
        mask &= values[..., 3] > full / 2
    return np.ascontiguousarray(mask)


def _without_torch(source: ImageSource) -> ImageSource:
    """Turn a torch tensor into an array with its channels last, without loading torch; anything else stays as it is."""
    if type(source).__module__.split(".")[0] != "torch":
        return source
    if source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[0] not in (1, 3, 4)):
        raise ImageError(f"A picture tensor must be (H, W) or (channels, H, W), not {tuple(source.shape)}.")
    values = source.detach().cpu()
    if values.is_floating_point():
        values = values.float()  # numpy knows no bfloat16
    return np.moveaxis(values.numpy(), 0, -1) if values.ndim == 3 else values.numpy()


def _mask_values(source: str | Path | bytes | Image.Image) -> NDArray[Any]:
    with _opened(source) as picture:
        try:
            upright = _upright(picture)
            wide = upright.mode.startswith("I") or upright.mode == "F"
            return np.asarray(upright if wide else upright.convert("RGBA"))
        except Exception as error:  # PIL's many decoders raise anything on a damaged file
            raise ImageError(f"The mask {_describe(source)} is broken ({error}); save it again.") from error


def write_mask(mask: Mask, path: Path) -> None:
    """Write bool (H, W) as an 8-bit grey PNG of 0 and 255."""
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Resize bool (H, W) to `size` = (height, width): area average, then at least half covered."""
    if mask.shape == size:
        return mask.copy()
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(resized) >= 128


def _opened(source: str | Path | bytes | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        try:
            return source.copy()  # the caller's picture stays open and unchanged
        except Exception as error:  # it may be a file that is only now read
            raise ImageError(f"The given picture is broken ({error}); save it again.") from error
    stream: Any = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    try:
        with warnings.catch_warnings():
            # PIL warns of large pictures at a lower bound than ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(stream, formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise ImageError(
                f"{_describe(source)} has {picture.width}x{picture.height} pixels; scale it below {MAX_PIXELS:,}."
            )
        return picture
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {_describe(source)}; check the path.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{_describe(source)} is a folder; name a picture in it.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{_describe(source)} has too many pixels; scale it below {MAX_PIXELS:,}.") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{_describe(source)} is not a picture that can be read.") from error
    except ImageError:
        raise
    except Exception as error:  # PIL's many decoders raise anything on a damaged file
        raise ImageError(f"{_describe(source)} is not a picture that can be read ({error}).") from error


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF: like a browser, show the picture as it is stored
        return picture


def _rgb_from_pil(picture: Image.Image, name: str) -> NDArray[np.uint8]:
    try:
        upright = _upright(picture)
        if upright.mode.startswith("I") or upright.mode == "F":
            grey = _wide_to_bytes(upright)
            return np.repeat(grey[..., None], 3, axis=-1)
        if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            return np.array(Image.alpha_composite(white, rgba).convert("RGB"))
        return np.array(upright.convert("RGB"))
    except Exception as error:  # PIL's many decoders raise anything on a damaged file
        raise ImageError(f"{name} is broken ({error}); save it again.") from error


def _wide_to_bytes(picture: Image.Image) -> NDArray[np.uint8]:
    """Reduce grey of a wide mode (I;16, I, F) to 8 bits: 16-bit values lose their low byte, as in a browser."""
    values = np.asarray(picture)
    if np.issubdtype(values.dtype, np.floating):
        top = 1.0 if np.nanmax(values, initial=0.0) <= 1.0 else 255.0
        return (np.nan_to_num(np.clip(values / top, 0, 1)) * 255 + 0.5).astype(np.uint8)
    sixteen = picture.mode.startswith("I;16") or values.max(initial=0) > 255
    return (np.clip(values.astype(np.int64), 0, 65535) >> (8 if sixteen else 0)).astype(np.uint8)


def _scaled_to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min(initial=0) < 0 or array.max(initial=0) > 1:
            raise ImageError("A float picture must hold finite values from 0 to 1.")
        return (array * 255 + 0.5).astype(np.uint8)
    raise ImageError(f"A picture array must be uint8, uint16, bool or float, not {array.dtype}.")


def _rgb_from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise ImageError(f"A picture array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}.")
    values = _scaled_to_bytes(array)
    if values.ndim == 2 or values.shape[2] == 1:
        return np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2)
    if values.shape[2] == 4:
        return _rgb_from_pil(Image.fromarray(np.ascontiguousarray(values), "RGBA"), "The array")
    return np.ascontiguousarray(values)


def _describe(source: object) -> str:
    return str(source) if isinstance(source, str | Path) else "the given picture"
