"""Pictures as a browser shows them, made here in every odd format."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cavsam.errors import ImageError
from cavsam.images import read_image, read_mask, resize_mask, write_mask


@pytest.fixture
def colours(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def test_every_kind_of_source_gives_the_same_picture(colours: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(colours).save(path)
    for source in (path, str(path), path.read_bytes(), Image.open(path), colours):
        np.testing.assert_array_equal(read_image(source), colours)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(colours: np.ndarray, orientation: int) -> None:
    """Stored so that a viewer turns it upright: the inverse of each EXIF operation, written with numpy."""
    stored = {
        1: colours,
        2: colours[:, ::-1],
        3: colours[::-1, ::-1],
        4: colours[::-1],
        5: colours.transpose(1, 0, 2),
        6: np.rot90(colours, 1),
        7: colours[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(colours, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(read_image(data), colours)
    np.testing.assert_array_equal(read_mask(data), colours.max(axis=2) > 127)


def test_transparency_lies_on_white(colours: np.ndarray) -> None:
    alpha = np.full((5, 7, 1), 255, dtype=np.uint8)
    alpha[0], alpha[1] = 0, 128
    result = read_image(encoded(Image.fromarray(np.concatenate([colours, alpha], axis=2))))
    np.testing.assert_array_equal(result[0], 255)
    np.testing.assert_array_equal(result[2:], colours[2:])
    blend = colours[1] * (128 / 255) + 255 * (127 / 255)
    np.testing.assert_allclose(result[1], blend, atol=1)
    array = read_image(np.concatenate([colours, alpha], axis=2))
    np.testing.assert_array_equal(array, result)


def test_sixteen_bit_grey_keeps_its_high_byte(rng: np.random.Generator) -> None:
    values = rng.integers(0, 65536, (5, 7), dtype=np.uint16)
    result = read_image(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(result, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_image(values), result)


def test_palette_and_grey_become_rgb(colours: np.ndarray) -> None:
    palette = Image.fromarray(colours).quantize(256)
    np.testing.assert_array_equal(read_image(encoded(palette)), np.asarray(palette.convert("RGB")))
    grey = colours[..., 0]
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(grey))), np.repeat(grey[..., None], 3, axis=2))
    one_bit = Image.fromarray(grey > 100)
    np.testing.assert_array_equal(read_image(encoded(one_bit))[..., 0], np.where(grey > 100, 255, 0))


def test_palette_transparency_lies_on_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    result = read_image(encoded(picture, transparency=0))
    np.testing.assert_array_equal(result, [[[255, 255, 255], [200, 100, 50]]])


def test_cmyk_and_jpeg(colours: np.ndarray) -> None:
    assert read_image(encoded(Image.fromarray(colours).convert("CMYK"), "JPEG")).shape == (5, 7, 3)


@pytest.mark.parametrize("top", [1, 255])
def test_masks_of_ones_and_of_255(rng: np.random.Generator, top: int) -> None:
    truth = rng.random((6, 9)) > 0.5
    values = truth.astype(np.uint8) * top
    for source in (values, encoded(Image.fromarray(values)), np.repeat(values[..., None], 3, axis=2), truth):
        np.testing.assert_array_equal(read_mask(source), truth)


def test_sixteen_bit_masks(rng: np.random.Generator) -> None:
    truth = rng.random((6, 9)) > 0.5
    for top in (1, 300, 65535):
        np.testing.assert_array_equal(read_mask(encoded(Image.fromarray((truth * top).astype(np.uint16)))), truth)


def test_anti_aliased_and_transparent_masks() -> None:
    edge = np.array([[0, 100, 128, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(read_mask(encoded(Image.fromarray(edge))), [[False, False, True, True]])
    rgba = np.full((1, 2, 4), 255, dtype=np.uint8)
    rgba[0, 0, 3] = 0
    np.testing.assert_array_equal(read_mask(encoded(Image.fromarray(rgba))), [[False, True]])


def test_bool_masks_with_channels() -> None:
    assert read_mask(np.ones((3, 4, 4), dtype=bool)).all()
    assert not read_mask(np.zeros((3, 4, 4), dtype=bool)).any()


def test_written_mask_reads_back(rng: np.random.Generator, tmp_path: Path) -> None:
    truth = rng.random((6, 9)) > 0.5
    write_mask(truth, tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as stored:
        assert (stored.mode, set(np.unique(np.asarray(stored)))) == ("L", {0, 255})
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), truth)


def test_mask_shrinks_by_majority() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[:4, :3] = True
    expected = [[True, True, False, False], [True, True, False, False], [False] * 4, [False] * 4]
    np.testing.assert_array_equal(resize_mask(mask, (4, 4)), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/picture.png", "no file"),
        (b"not a picture", "not a picture"),
        (b"", "not a picture"),
        (np.zeros((2, 2, 5), dtype=np.uint8), r"\(2, 2, 5\)"),
        (np.zeros((0, 2), dtype=np.uint8), r"\(0, 2\)"),
        (np.full((2, 2), 7.0), "0 to 1"),
        (np.zeros((2, 2), dtype=complex), "complex"),
    ],
)
def test_what_cannot_be_read_says_so(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image(source)


def test_a_truncated_file_and_a_folder_say_so(colours: np.ndarray, tmp_path: Path) -> None:
    big = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    for reader in (read_image, read_mask):
        with pytest.raises(ImageError, match="broken"):
            reader(big[: len(big) // 2])
        with pytest.raises(ImageError, match="broken"):
            reader(Image.open(io.BytesIO(big[: len(big) // 2])))
        with pytest.raises(ImageError, match="folder"):
            reader(tmp_path)


def test_damaged_exif_does_not_hide_the_picture(colours: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(Image.fromarray(np.kron(colours, np.ones((8, 8, 1), dtype=np.uint8))), "JPEG", exif=exif))
    start = data.index(b"Exif") + 6
    readable = 0
    for offset in range(8, 24):  # every byte of the one directory entry
        damaged = bytearray(data)
        damaged[start + offset] ^= 0x5A
        readable += sorted(read_image(bytes(damaged)).shape) == [3, 40, 56]
    assert readable == 16


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_noise_in_a_file_never_escapes_as_another_error(rng: np.random.Generator, kind: str) -> None:
    whole = encoded(Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)), kind)
    for _ in range(150):
        data = np.frombuffer(whole, dtype=np.uint8).copy()
        data[rng.integers(0, min(len(data), 200), 3)] = rng.integers(0, 256, 3)
        for reader in (read_image, read_mask):
            with contextlib.suppress(ImageError):
                assert reader(data.tobytes()).ndim in (2, 3)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA"])
def test_a_format_that_nobody_needs_is_not_even_opened(colours: np.ndarray, kind: str) -> None:
    """PIL hands EPS to Ghostscript, which runs programs."""
    with pytest.raises(ImageError, match=r"is not a picture that can be read\.$"):
        read_image(encoded(Image.fromarray(colours), kind))
