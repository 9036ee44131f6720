"""Interactive segmentation: clicks and boxes on one image, by which SAM2 corrects a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from cavsam.errors import NumericalError
from cavsam.features import otsu, separation
from cavsam.images import Mask
from cavsam.tracking import Tracker
from cavsam.video import picture_square

MASK_LOGIT = 10.0
"""Logit of a mask that is certain, as SAM2 itself writes one that it is given."""
NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = range(4)
"""SAM2's labels of points; a box is two of them."""


REACH = 1.5
"""A click is heard as far as so many times the distance to the nearest pixel that is already as it asks for,"""
WHOLE_REACH = 3.0
"""but so many times as far if all that it points at, a part of the mask or a hole in it, ends within that,"""
LEAST_REACH = 0.03
"""and at least so far, as a share of the picture's diagonal."""
DOT = 0.015
"""Radius of what a click changes where SAM2 disagrees with it, as a share of the picture's diagonal."""
TWO_COLOURS = 3.0
"""Separation of the colours of a part from which it is two things; a single normal mode gives 2.6."""
LEAST_COLOURED = 0.2
"""Share of a part that has to have the click's colour, or the colours are texture."""


@dataclass(frozen=True)
class Click:
    """A point in pixels of the image, on the object (`positive`) or off it."""

    x: float
    y: float
    positive: bool = True


Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels of the image around an object, the far edges exclusive."""


@dataclass(frozen=True)
class EncodedImage:
    """What SAM2's decoder needs of an image.

    Attributes:
        size: (H, W) of the image.
        embedding: float (1, C, S/16, S/16).
        fine: (1, C/8, S/4, S/4) and (1, C/4, S/8, S/8), or nothing if the model goes without.
        colours: of the image squashed to a square, a little blurred, uint8 (S, S, 3).
    """

    size: tuple[int, int]
    embedding: Tensor
    fine: list[Tensor]
    colours: NDArray[np.uint8]

    def colours_of(self, part: Mask) -> NDArray[np.float32]:
        """Look up the colours, float (N, 3), of the N pixels of a part (H, W)."""
        rows, columns = np.nonzero(part)
        (height, width), side = self.size, self.colours.shape[0]
        return self.colours[rows * side // height, columns * side // width].astype(np.float32)


class Refiner:
    """SAM2's prompt encoder and mask decoder over single images. Not for use by several threads at once."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> EncodedImage:
        """Encode an image uint8 (H, W, 3); the slow part, and the same for all clicks on it."""
        square = picture_square(image, self.tracker.image_size)
        features, levels = self.tracker.neck(self.tracker.trunk(square[None]))
        model = self.tracker.predictor
        fine: list[Tensor] = []
        with self.tracker.autocast():
            if model.use_high_res_features_in_sam:
                decoder = model.sam_mask_decoder
                fine = [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1])]
        if model.directly_add_no_mem_embed:  # an image has no memory of other frames, and SAM2 should know it
            features = features + model.no_mem_embed.view(1, -1, 1, 1)
        pixels = square.permute(1, 2, 0).cpu().numpy() * 255
        colours = ndimage.gaussian_filter(pixels, (1, 1, 0)).astype(np.uint8)
        return EncodedImage((image.shape[0], image.shape[1]), features, fine, colours)

    def refine(
        self, encoded: EncodedImage, clicks: Sequence[Click], boxes: Sequence[Box] = (), start: Mask | None = None
    ) -> tuple[Mask, float]:
        """Correct a mask near where it was clicked; everywhere else it stays as it was.

        The clicks are heard one after the other, so that leaving the last one out gives what was before it. An "add"
        click gains its own pixel and takes nothing away, any other frees its own and adds nothing, and neither changes
        what is far from it (see `neighbourhood`). A box is segmented by itself, with the clicks in it, and replaces
        what the mask had there. Without a mask, SAM2's answer to the first "add" click is the mask.

        Args:
            encoded: from `encode` of this object.
            clicks: at least one, or a box.
            boxes: each around an object.
            start: the mask to correct, bool (H, W).

        Returns:
            The mask, bool (H, W), possibly empty; and SAM2's own estimate of its IoU, 0..1.

        Raises:
            NumericalError: SAM2 gave values that are not finite.
        """
        if not clicks and not boxes:
            raise ValueError("there is neither a click nor a box")
        mask = np.zeros(encoded.size, np.bool_) if start is None else start.copy()
        scores = []
        for box in boxes:
            inside = [click for click in clicks if _holds(box, click)]
            found, score = self.decode(encoded, inside, box=box)
            window = _window(box, encoded.size)
            mask[window] = False
            mask |= found
            scores.append(score)
        outside = [click for click in clicks if not any(_holds(box, click) for box in boxes)]
        score = 0.0
        for number in range(len(outside)):
            mask, score = self._heard(encoded, outside[: number + 1], mask)
        scores += [score] if outside else []
        return mask, min(1.0, max(0.0, sum(scores) / len(scores)))

    def _heard(self, encoded: EncodedImage, clicks: Sequence[Click], mask: Mask) -> tuple[Mask, float]:
        """Change a mask (H, W) as the last of the clicks asks; returns it and SAM2's estimate of its IoU."""
        *_, click = clicks
        if not mask.any():
            if not click.positive:
                return mask, 0.0
            found, score = self.decode(encoded, clicks)
            return _with(found, click, _pointed(mask.shape, click)), score
        if mask[_pixel(click, mask.shape)] == click.positive:
            return mask, self.decode(encoded, clicks, start=mask)[1]
        near = neighbourhood(mask, clicks)
        answers = self._answers(encoded, clicks, mask)
        parts = [part for found, _ in answers if (part := _changed(mask, found, click, near)).any()]
        # SAM2 errs by taking too much rather than too little: the next click may ask for more
        pointed = _changed(mask, _pointed(mask.shape, click), click, near)
        part = _of_one_colour(encoded, min(parts, key=np.count_nonzero, default=pointed), click)
        return _with(mask, click, part), answers[0][1]

    def _answers(self, encoded: EncodedImage, clicks: Sequence[Click], mask: Mask) -> list[tuple[Mask, float]]:
        """Ask SAM2 in several ways what the object is: by mask and clicks, by the clicks, by what the last one hits."""
        *_, click = clicks
        hit, score = self.decode(encoded, [replace(click, positive=True)])
        return [
            self.decode(encoded, clicks, start=mask),
            self.decode(encoded, clicks),
            (hit if click.positive else ~hit, score),
        ]

    @torch.inference_mode()
    def decode(
        self, encoded: EncodedImage, clicks: Sequence[Click], *, box: Box | None = None, start: Mask | None = None
    ) -> tuple[Mask, float]:
        """Let SAM2 segment one object: its mask, bool (H, W), and its own estimate of the IoU.

        Args:
            encoded: from `encode` of this object.
            clicks: on the object and off it.
            box: around the object.
            start: a mask of the object that is to be corrected, bool (H, W).

        Raises:
            NumericalError: SAM2 gave values that are not finite.
        """
        model, device = self.tracker.predictor, self.tracker.device
        height, width = encoded.size
        points = [(click.x, click.y) for click in clicks]
        kinds = [POSITIVE if click.positive else NEGATIVE for click in clicks]
        if box is not None:
            points, kinds = [box[:2], box[2:], *points], [TOP_LEFT, BOTTOM_RIGHT, *kinds]
        scale = torch.tensor([self.tracker.image_size / width, self.tracker.image_size / height])
        coordinates = (torch.tensor(points, dtype=torch.float32) * scale)[None].to(device)
        with self.tracker.autocast():
            sparse, dense = model.sam_prompt_encoder(
                points=(coordinates, torch.tensor([kinds], dtype=torch.int32, device=device)),
                boxes=None,
                masks=None if start is None else self._mask_prompt(start),
            )
            logits, ious, _, _ = model.sam_mask_decoder(
                image_embeddings=encoded.embedding,
                image_pe=model.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=start is None and len(points) == 1,  # one click may mean a part or the whole
                repeat_image=False,
                high_res_features=encoded.fine or None,
            )
        best = int(ious[0].argmax())
        chosen, score = logits[:, best : best + 1].float().cpu(), float(ious[0, best])
        if not (chosen.isfinite().all() and np.isfinite(score)):
            raise NumericalError("SAM2 gave values that are not finite; try precision float32.")
        full = F.interpolate(chosen, size=encoded.size, mode="bilinear", align_corners=False)
        mask: Mask = (full[0, 0] > 0).numpy()
        return mask, score

    def _mask_prompt(self, mask: Mask) -> Tensor:
        """Turn a mask bool (H, W) into the logits (1, 1, S/4, S/4) that SAM2 takes for a prompt."""
        size = self.tracker.predictor.sam_prompt_encoder.mask_input_size
        share = F.interpolate(
            torch.from_numpy(mask)[None, None].float(), size=size, mode="bilinear", align_corners=False, antialias=True
        )
        return ((2 * share - 1) * MASK_LOGIT).to(self.tracker.device)


def neighbourhood(mask: Mask, clicks: Sequence[Click]) -> Mask:
    """Find the pixels, bool (H, W), of a mask (H, W) that the last of some clicks may change.

    What a click corrects reaches from it to where the mask is right, and not much farther. So it is a disc whose radius
    is `REACH` times the distance to the nearest pixel that is already as the click asks for. A part of the mask (or a
    hole in it) that ends within `WHOLE_REACH` times that distance belongs to it as a whole. A pixel that is nearer to
    an earlier click which asks for the opposite is left to that one.
    """
    *earlier, click = clicks
    distance = _distances(mask.shape, click)
    right = distance[mask == click.positive]
    least = LEAST_REACH * math.hypot(*mask.shape)
    nearest = float(right.min()) if right.size else math.inf
    # a part that ends farther away has a pixel right behind that distance: the rest of the picture need not be searched
    own = _part_at((mask != click.positive) & (distance <= WHOLE_REACH * nearest + 2), _pixel(click, mask.shape))
    near: Mask = distance <= max(REACH * nearest, least)
    if distance[own].max(initial=0.0) <= WHOLE_REACH * nearest:
        near |= own
    for other in earlier:
        if other.positive != click.positive and _pixel(other, mask.shape) != _pixel(click, mask.shape):
            near &= distance < _distances(mask.shape, other)
    return near


def _changed(mask: Mask, found: Mask, click: Click, near: Mask) -> Mask:
    """Find the connected part, bool (H, W), of what `found` changes that holds the click; empty if none does."""
    difference = near & ((found & ~mask) if click.positive else (mask & ~found))
    return _part_at(difference, _pixel(click, mask.shape))


def _part_at(region: Mask, pixel: tuple[int, int]) -> Mask:
    """Find the connected part of a region (H, W) that holds a pixel; empty if it lies beside the region."""
    part = np.zeros_like(region)
    if region[pixel]:
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        parts, _ = ndimage.label(region[window])
        part[window] = parts == parts[pixel[0] - rows[0], pixel[1] - columns[0]]
    return part


def _of_one_colour(encoded: EncodedImage, part: Mask, click: Click) -> Mask:
    """Leave of a part (H, W) only what has the click's colour, if its colours are clearly of two kinds."""
    disc = _distances(part.shape, click) <= max(2.0, DOT * math.hypot(*part.shape))
    if not (disc & part).any():
        return part
    around = np.median(encoded.colours_of(disc & part), axis=0)
    unlike = torch.from_numpy(np.linalg.norm(encoded.colours_of(part) - around, axis=1))
    threshold = otsu(unlike)
    if separation(unlike, threshold) < TWO_COLOURS:
        return part
    alike = np.zeros_like(part)
    alike[part] = (unlike <= threshold).numpy()
    kept = _part_at(ndimage.binary_closing(alike) & part, _pixel(click, part.shape))
    return kept if kept.sum() >= LEAST_COLOURED * part.sum() else part


def _with(mask: Mask, click: Click, part: Mask) -> Mask:
    """Add a part to a mask, or take it away, and the click's own pixel in any case."""
    result = mask | part if click.positive else mask & ~part
    result[_pixel(click, mask.shape)] = click.positive
    return result


def _pointed(size: tuple[int, ...], click: Click) -> Mask:
    """Give the least that a click can mean, bool (H, W): a small disc that is on the object, or off it."""
    disc: Mask = _distances(size, click) <= DOT * math.hypot(*size)
    return disc if click.positive else ~disc


def _distances(size: tuple[int, ...], click: Click) -> NDArray[np.float64]:
    """Distance in pixels of each pixel (H, W) from a click's."""
    row, column = _pixel(click, size)
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])[None]
    distances: NDArray[np.float64] = np.hypot(rows - row, columns - column)
    return distances


def _pixel(click: Click, size: tuple[int, ...]) -> tuple[int, int]:
    return min(max(int(click.y), 0), size[0] - 1), min(max(int(click.x), 0), size[1] - 1)


def _holds(box: Box, click: Click) -> bool:
    return box[0] <= click.x <= box[2] and box[1] <= click.y <= box[3]


def _window(box: Box, size: tuple[int, int]) -> tuple[slice, slice]:
    """Give the pixels of a box as rows and columns."""
    left, top = max(0, round(box[0])), max(0, round(box[1]))
    return slice(top, min(size[0], round(box[3]))), slice(left, min(size[1], round(box[2])))
