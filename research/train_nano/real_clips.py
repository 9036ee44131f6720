"""Training clips made from real videos in which every frame has a mask.

A folder of videos is `SEQUENCE/{images,masks}/NAME`, the names in the order of time, a mask non-zero on the object. A
clip is made in one of the ways below, and shows one object that is marked in its first frame; where another one can be
marked at no cost, it is a second target of the clip:

    video     frames of one sequence, forwards or backwards, at any stride, seen through a moving or jumping window
    pasted    an object cut out of its frames and moved over the frames of another sequence, at times behind another
              or in several copies that count as one object of several parts
    still     one frame, warped smoothly
    stuff     one frame, warped or looked at in several places; the target is whatever has the colours of one spot
    morph     a frame that turns into another one, warped and cross-faded, as a diffusion transition does it
    repeat    a frame, then another one of the same sequence again and again

A clip is a function of the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # (T, size, size, 3)
Masks = NDArray[np.bool_]  # (targets, T, size, size)
Shot = tuple[NDArray[np.uint8], NDArray[np.float32]]  # (size, size, 3), coverage (size, size) or (size, size, targets)
Matrix = NDArray[np.float64]  # (3, 3), output pixels to pixels of the source

LONGEST_SIDE = 448  # of the frames that are kept in memory
SMALLEST = 0.002  # part of the picture that the object covers at least in a clip's first frame
TRIES = 20
TARGETS = 2  # of a clip at most
ODDS = {"video": 0.37, "pasted": 0.22, "still": 0.05, "stuff": 0.11, "morph": 0.15, "repeat": 0.1}
SEVERAL = 0.25  # part of the pasted clips with two to four copies of the object


@dataclass(frozen=True)
class Video:
    """name: the sequence's. frames: uint8 (N, H, W, 3). masks: bool (N, H, W), each with some of the object or none."""

    name: str
    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]

    @property
    def shown(self) -> NDArray[np.int64]:
        """Numbers of the frames that show enough of the object to be a clip's first."""
        return np.flatnonzero(self.masks.mean((1, 2)) >= SMALLEST)


def load_videos(folder: Path, longest: int = LONGEST_SIDE) -> list[Video]:
    """Read all sequences of a folder, the longer side at most `longest` pixels.

    Raises:
        FileNotFoundError: The folder has no sequence, or a frame has no mask.
    """
    videos = []
    for place in sorted(path.parent for path in folder.glob("*/images")):
        frames, masks = [], []
        for image_path in sorted((place / "images").iterdir()):
            mask_path = place / "masks" / f"{image_path.stem}.png"
            image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
            mask = cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE)
            if image is None or mask is None:
                raise FileNotFoundError(f"{image_path} or its mask {mask_path} cannot be read; every frame needs both.")
            scale = min(1.0, longest / max(image.shape[:2]))
            width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
            frames.append(cv2.resize(image[..., ::-1], (width, height), interpolation=cv2.INTER_AREA))
            masks.append(cv2.resize(255 * (mask > 0).astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA))
        videos.append(Video(place.name, np.stack(frames), np.stack(masks) > 127))
    videos = [video for video in videos if len(video.shown)]
    if not videos:
        raise FileNotFoundError(f"{folder} has no SEQUENCE/images with masks of an object beside it.")
    return videos


# ------------------------------------------------------------------------------------------------ views


@dataclass(frozen=True)
class View:
    """A window into a picture: its centre and its width and height as parts of the picture's, turned by an angle.

    centre: x, y and extent: width, height, in parts of the picture's sides. angle: radians. mirrored: left to right.
    """

    centre: tuple[float, float]
    extent: tuple[float, float]
    angle: float
    mirrored: bool

    def matrix(self, shape: tuple[int, int], size: int) -> Matrix:
        """From the pixels of a (size, size) output to those of a picture of (height, width) `shape`."""
        height, width = shape
        turn = np.array([[np.cos(self.angle), -np.sin(self.angle)], [np.sin(self.angle), np.cos(self.angle)]])
        scale = np.diag([self.extent[0] * width / size, self.extent[1] * height / size])
        linear = scale @ turn @ np.diag([-1.0 if self.mirrored else 1.0, 1.0])
        middle = np.array([self.centre[0] * width, self.centre[1] * height])
        result = np.eye(3)
        result[:2, :2] = linear
        result[:2, 2] = middle - linear @ np.full(2, size / 2)
        return result


def whole(mirrored: bool = False) -> View:
    return View((0.5, 0.5), (1.0, 1.0), 0.0, mirrored)


def random_view(rng: np.random.Generator, mask: NDArray[np.bool_], mirrored: bool) -> View:
    """A window of 40 to 115% of a picture that shows some of the object in (H, W) `mask`, where it has any."""
    extent = float(np.exp(rng.uniform(np.log(0.4), np.log(1.15))))
    stretch = float(np.exp(rng.normal(0, 0.15)))
    ys, xs = np.nonzero(mask)
    if len(ys):
        pick = int(rng.integers(len(ys)))
        target = np.array([xs[pick] / mask.shape[1], ys[pick] / mask.shape[0]])
    else:
        target = rng.uniform(0.3, 0.7, 2)
    centre = target + rng.uniform(-0.4, 0.4, 2) * extent
    centre = np.clip(centre, extent / 2, 1 - extent / 2) if extent < 1 else np.clip(centre, 0.4, 0.6)
    angle = float(rng.normal(0, 0.12)) if rng.random() < 0.5 else 0.0
    return View((float(centre[0]), float(centre[1])), (extent * stretch, extent / stretch), angle, mirrored)


def between(first: View, last: View, part: float) -> View:
    """The window `part` of the way from one to another; whether it is mirrored is the first one's."""
    mix = [
        (1 - part) * np.array([*a.centre, *np.log(a.extent), a.angle]) for a, part in ((first, part), (last, 1 - part))
    ]
    x, y, width, height, angle = mix[0] + mix[1]
    return View((x, y), (float(np.exp(width)), float(np.exp(height))), angle, first.mirrored)


def smooth_field(rng: np.random.Generator, size: int, amplitude: float) -> NDArray[np.float32]:
    """A smooth random displacement in pixels of the output: float32 (size, size, 2), deviation about `amplitude`."""
    cells = int(rng.integers(3, 7))
    coarse = rng.normal(0, amplitude, (cells, cells, 2)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def look(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    matrix: Matrix,
    size: int,
    field: NDArray[np.float32] | None = None,
    border: int = cv2.BORDER_REFLECT_101,
) -> Shot:
    """What a window shows: uint8 (size, size, 3) and the mask's coverage, float32 (size, size) in 0..1.

    mask: (H, W), or (H, W, K) for the coverage of K masks, (size, size, K). field: added to the output's pixels before
    they go through `matrix`. border: what lies beyond the picture.
    """
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    if field is not None:
        xs, ys = xs + field[..., 0], ys + field[..., 1]
    (a, b, c), (d, e, f) = matrix[:2].astype(np.float32)
    across, down = a * xs + b * ys + c, d * xs + e * ys + f
    seen = cv2.remap(image, across, down, cv2.INTER_LINEAR, borderMode=border)
    cover = cv2.remap(mask.astype(np.float32), across, down, cv2.INTER_LINEAR, borderMode=border)
    return seen, cover


def _path(rng: np.random.Generator, length: int) -> NDArray[np.float64]:
    """How far each of `length` frames is along a way from 0 to 1: at an even or an uneven pace."""
    part = np.linspace(0, 1, length)
    return part ** float(np.exp(rng.normal(0, 0.3)))


# ------------------------------------------------------------------------------------------------ clips


def clip(
    rng: np.random.Generator, videos: list[Video], length: int, size: int, kind: str | None = None
) -> tuple[Frames, Masks]:
    """A clip of `length` frames, and the masks of one or two targets that its first frame shows.

    kind: one of ODDS; None draws one.
    """
    kind = kind or str(rng.choice(list(ODDS), p=list(ODDS.values())))
    make = {"video": video, "pasted": pasted, "still": still, "stuff": stuff, "morph": morph, "repeat": repeat}[kind]
    for _ in range(TRIES):
        frames, masks = make(rng, videos, length, size)
        shown = masks[:, 0].mean((1, 2)) >= SMALLEST
        if shown[0]:
            others = rng.permutation(np.flatnonzero(shown[1:]) + 1)
            return frames, masks[[0, *others[: TARGETS - 1]]]
    return _as_it_is(rng, videos, length, size)


def _as_it_is(rng: np.random.Generator, videos: list[Video], length: int, size: int) -> tuple[Frames, Masks]:
    """Neighbouring whole frames of one sequence."""
    chosen = _choose(rng, videos)
    start = int(rng.choice(chosen.shown))
    numbers = np.minimum(start + np.arange(length), len(chosen.frames) - 1)
    return _stack(
        [look(chosen.frames[n], chosen.masks[n], whole().matrix(chosen.masks.shape[1:], size), size) for n in numbers]
    )


def _choose(rng: np.random.Generator, videos: list[Video]) -> Video:
    return videos[int(rng.integers(len(videos)))]


def _stack(shots: list[Shot]) -> tuple[Frames, Masks]:
    covers = np.stack([np.atleast_3d(cover) for _, cover in shots])
    return np.stack([image for image, _ in shots]), np.ascontiguousarray(covers.transpose(3, 0, 1, 2) > 0.5)


def _times(rng: np.random.Generator, chosen: Video, length: int) -> NDArray[np.int64]:
    """Numbers of `length` frames of a sequence at one stride, in either direction, the first showing the object."""
    count = len(chosen.frames)
    farthest = max(1, (count - 1) // max(1, length - 1))
    stride = min(farthest, 1 + int(rng.exponential(3 if length > 2 else 12)))
    span = stride * (length - 1)
    starts = [n for n in chosen.shown if n + span < count]
    if not starts:
        return np.clip(int(rng.choice(chosen.shown)) + np.arange(length), 0, count - 1)
    times = int(rng.choice(starts)) + stride * np.arange(length)
    backwards = times[::-1]
    return backwards if rng.random() < 0.5 and backwards[0] in chosen.shown else times


def video(rng: np.random.Generator, videos: list[Video], length: int, size: int) -> tuple[Frames, Masks]:
    """Frames of one sequence; in some clips a frame of another sequence comes in between, without the object."""
    chosen = _choose(rng, videos)
    times = _times(rng, chosen, length)
    mirrored = bool(rng.random() < 0.5)
    first = random_view(rng, chosen.masks[times[0]], mirrored)
    mode = rng.choice(["whole", "still window", "moving window", "jumping window"], p=[0.3, 0.2, 0.3, 0.2])
    last = random_view(rng, chosen.masks[times[-1]], mirrored) if mode == "moving window" else first
    way = _path(rng, length)
    intruder = int(rng.integers(1, length)) if rng.random() < 0.06 and len(videos) > 1 else -1
    shots = []
    for t, time in enumerate(times):
        source, number = chosen, int(time)
        if mode == "whole":
            view = whole(mirrored)
        elif mode == "jumping window" and t:
            turned = mirrored if rng.random() < 0.7 else not mirrored
            view = random_view(rng, chosen.masks[number], turned)
        else:
            view = between(first, last, float(way[t]))
        if t == intruder:
            source = _choose(rng, [other for other in videos if other is not chosen])
            number = int(rng.integers(len(source.frames)))
        image, cover = look(
            source.frames[number], source.masks[number], view.matrix(source.masks.shape[1:], size), size
        )
        shots.append((image, np.zeros_like(cover) if t == intruder else cover))
    return _stack(shots)


def still(rng: np.random.Generator, videos: list[Video], length: int, size: int) -> tuple[Frames, Masks]:
    """One frame, seen through a moving window and through a warp that grows."""
    chosen = _choose(rng, videos)
    number = int(rng.choice(chosen.shown))
    image, mask = chosen.frames[number], chosen.masks[number]
    return _warped(rng, image, np.dstack([mask, lookalikes(rng, image)]), length, size)


def stuff(rng: np.random.Generator, videos: list[Video], length: int, size: int) -> tuple[Frames, Masks]:
    """One frame, in which everything that looks like one spot is the target, warped or in windows of their own."""
    chosen = _choose(rng, videos)
    number = int(rng.integers(len(chosen.frames)))
    image, mask = chosen.frames[number], lookalikes(rng, chosen.frames[number])
    masks = np.dstack([mask, chosen.masks[number] if rng.random() < 0.5 else lookalikes(rng, image)])
    if rng.random() < 0.5:
        return _warped(rng, image, masks, length, size)
    shots = []
    again = rng.random() < 0.3
    for t in range(length):
        if t > 1 and again:
            shots.append(shots[1])
            continue
        matrix = random_view(rng, mask, bool(rng.random() < 0.5)).matrix(mask.shape, size)
        shots.append(look(image, masks, matrix, size, smooth_field(rng, size, float(rng.uniform(0, 0.03)) * size)))
    return _stack(shots)


def lookalikes(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pixels of a picture whose colours, blurred a little, are near those of one spot; at times its piece alone."""
    height, width = image.shape[:2]
    blurred = cv2.GaussianBlur(image, (0, 0), float(np.exp(rng.uniform(np.log(1.2), np.log(5.0)))))
    colours = cv2.cvtColor(blurred, cv2.COLOR_RGB2LAB).astype(np.float32)
    colours[..., 0] *= float(rng.uniform(0.4, 1.0))  # light counts less than hue, more or less so
    y, x = int(rng.integers(height)), int(rng.integers(width))
    distance = np.linalg.norm(colours - colours[y, x], axis=2)
    mask = (distance <= np.quantile(distance, rng.uniform(0.04, 0.35))).astype(np.uint8)
    mask = cv2.medianBlur(mask, 2 * int(rng.integers(2, 5)) + 1)
    if rng.random() < 0.35:
        _, pieces = cv2.connectedComponents(mask)
        mask = (pieces == pieces[y, x]) & (mask > 0)
    return mask.astype(bool)


def _warped(
    rng: np.random.Generator, image: NDArray[np.uint8], masks: NDArray[np.bool_], length: int, size: int
) -> tuple[Frames, Masks]:
    """A picture with (H, W, targets) masks, seen through a moving window and a warp that grows."""
    mask = masks[..., 0]
    mirrored = bool(rng.random() < 0.5)
    first, last = (random_view(rng, mask, mirrored) for _ in range(2))
    fields = [smooth_field(rng, size, float(rng.uniform(0, 0.035)) * size) for _ in range(2)]
    shots = []
    for part in _path(rng, length):
        matrix = between(first, last, float(part)).matrix(mask.shape, size)
        field = np.float32(1 - part) * fields[0] + np.float32(part) * fields[1]
        shots.append(look(image, masks, matrix, size, field))
    return _stack(shots)


@dataclass(frozen=True)
class _Flight:
    """An object cut out of its frames on its way over a picture.

    places: (T, 2) where the middle of the object is, in pixels of the output; scales: (T,) output over source pixels.
    """

    source: Video
    times: NDArray[np.int64]
    places: NDArray[np.float64]
    scales: NDArray[np.float64]
    angles: NDArray[np.float64]
    mirrored: bool
    field: NDArray[np.float32]

    def shot(self, t: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The object's frame as it lies at time t, and where the object covers what is below it."""
        mask = self.source.masks[self.times[t]]
        ys, xs = np.nonzero(mask)
        middle = np.array([(xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2]) if len(ys) else np.zeros(2)
        turn = np.array(
            [[np.cos(self.angles[t]), -np.sin(self.angles[t])], [np.sin(self.angles[t]), np.cos(self.angles[t])]]
        )
        linear = turn @ np.diag([-1.0 if self.mirrored else 1.0, 1.0]) / self.scales[t]
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        matrix[:2, 2] = middle - linear @ self.places[t]
        border = cv2.BORDER_CONSTANT
        return look(self.source.frames[self.times[t]], mask, matrix, size, self.field, border)


def _flight(rng: np.random.Generator, source: Video, length: int, size: int, far: bool, copies: int = 1) -> _Flight:
    """A way over the picture: smooth or with jumps; the more copies there are, the smaller each."""
    times = _times(rng, source, length) if rng.random() < 0.7 else np.full(length, int(rng.choice(source.shown)))
    ys, xs = np.nonzero(source.masks[times[0]])
    side = max(np.ptp(xs), np.ptp(ys)) + 1
    scale = size * float(np.exp(rng.uniform(np.log(0.15), np.log(0.75)))) / np.sqrt(copies) / side
    start = rng.uniform(0.2, 0.8, 2) * size
    if far:
        places = np.concatenate([start[None], rng.uniform(0.05, 0.95, (length - 1, 2)) * size])
        scales = scale * np.exp(np.concatenate([[0.0], rng.normal(0, 0.25, length - 1)]))
        angles = np.concatenate([[0.0], rng.normal(0, 0.3, length - 1)])
    else:
        step = rng.normal(0, 0.06, 2) * size
        shake = rng.normal(0, 0.01, (length, 2)) * size
        places = start + np.arange(length)[:, None] * step + shake
        scales = scale * np.exp(np.arange(length) * rng.normal(0, 0.04))
        angles = np.arange(length) * rng.normal(0, 0.06)
    field = smooth_field(rng, size, float(rng.uniform(0, 0.02)) * size)
    return _Flight(source, times, places, scales, angles, bool(rng.random() < 0.5), field)


def pasted(rng: np.random.Generator, videos: list[Video], length: int, size: int) -> tuple[Frames, Masks]:
    """An object moved over the frames of another sequence; in some clips another object hides it, or it is gone."""
    target = _choose(rng, videos)
    ground = _choose(rng, [v for v in videos if v is not target] or videos)
    ground_times = _times(rng, ground, length) if rng.random() < 0.6 else np.full(length, rng.choice(ground.shown))
    view = random_view(rng, np.zeros(ground.masks.shape[1:], dtype=bool), bool(rng.random() < 0.5))
    far = bool(rng.random() < 0.4)
    copies = int(rng.integers(2, 5)) if rng.random() < SEVERAL else 1
    flights = [_flight(rng, target, length, size, far, copies) for _ in range(copies)]
    other = None
    if rng.random() < 0.35 and len(videos) > 1:
        other = _flight(rng, _choose(rng, [v for v in videos if v is not target]), length, size, far)
    other_from = int(rng.integers(2))  # its first frame
    gone = int(rng.integers(1, length)) if rng.random() < 0.12 else -1
    shots = []
    for t in range(length):
        number = int(ground_times[t])
        matrix = view.matrix(ground.masks.shape[1:], size)
        image, lowest = look(ground.frames[number], ground.masks[number], matrix, size)
        cover, top = np.zeros_like(lowest), np.zeros_like(lowest)
        if t != gone:
            for flight in flights:
                image, above = _over(image, *flight.shot(t, size))
                cover = np.maximum(cover, above)
        if other is not None and t >= other_from:
            image, top = _over(image, *other.shot(t, size))
        shots.append((image, np.dstack([cover * (1 - top), lowest * (1 - cover) * (1 - top), top])))
    return _stack(shots)


def _over(
    below: NDArray[np.uint8], image: NDArray[np.uint8], cover: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Lay the covered part of one picture over another, its border a little soft."""
    alpha = cv2.GaussianBlur(cover, (0, 0), 0.7)[..., None]
    return (below + alpha * (image.astype(np.float32) - below) + 0.5).astype(np.uint8), cover


def _pair(rng: np.random.Generator, videos: list[Video], size: int) -> tuple[Shot, ...]:
    """Two frames of one sequence, as a rule far apart, each through a window of its own."""
    chosen = _choose(rng, videos)
    numbers = rng.choice(chosen.shown, 2)
    turned = bool(rng.random() < 0.5)
    shots = []
    for k, number in enumerate(numbers):
        mirrored = turned if k == 0 or rng.random() < 0.75 else not turned
        view = whole(mirrored) if rng.random() < 0.4 else random_view(rng, chosen.masks[number], mirrored)
        shots.append(look(chosen.frames[number], chosen.masks[number], view.matrix(chosen.masks.shape[1:], size), size))
    return tuple(shots)


def repeat(rng: np.random.Generator, videos: list[Video], length: int, size: int) -> tuple[Frames, Masks]:
    """A frame, then another one of the same sequence again and again."""
    first, second = _pair(rng, videos, size)
    return _stack([first] + [second] * (length - 1))


def morph(rng: np.random.Generator, videos: list[Video], length: int, size: int) -> tuple[Frames, Masks]:
    """One frame that turns into another: of the same sequence, or of another one, whose object then is the target.

    The pictures are cross-faded while each is warped so that the objects' boxes meet, or as they lie where the objects
    overlap. The object's border is in between those of the two objects. The last frames are the second picture itself.
    """
    first, second = _pair(rng, videos, size)
    if rng.random() < 0.35:
        second = _pair(rng, videos, size)[1]
    solid = [cover > 0.5 for _, cover in (first, second)]
    if not solid[0].any() or not solid[1].any() or length < 3:
        return _stack([first] + [second] * (length - 1))
    boxes = [_box(mask) for mask in solid]
    overlap = (solid[0] & solid[1]).sum() / (solid[0] | solid[1]).sum()
    warped = overlap < 0.25 or rng.random() < 0.6
    ends = int(rng.integers(1, max(2, length // 3) + 1))
    parts = np.concatenate([np.linspace(0, 1, length - ends + 1), np.ones(ends - 1)])
    sharpness = float(rng.uniform(0.5, 1.6))  # of the change from one picture to the other, in the middle of the way
    softness = float(rng.uniform(0, 2.0)) if rng.random() < 0.6 else 0.0
    shots = [first]
    for part in parts[1:]:
        if part == 1:
            shots.append(second)
            continue
        if warped:
            box = (1 - part) * boxes[0] + part * boxes[1]
            shown = [
                look(image, mask, _box_to_box(box, own), size)
                for (image, _), mask, own in zip((first, second), solid, boxes, strict=True)
            ]
        else:
            shown = [first, second]
        odds = (part / (1 - part)) ** sharpness
        weight = np.float32(odds / (1 + odds))
        image = (1 - weight) * shown[0][0].astype(np.float32) + weight * shown[1][0]
        if softness:
            image = cv2.GaussianBlur(image, (0, 0), 0.3 + softness * 4 * part * (1 - part))
        depth = (1 - weight) * signed_distance(shown[0][1] > 0.5) + weight * signed_distance(shown[1][1] > 0.5)
        shots.append(((image + 0.5).astype(np.uint8), (depth > 0).astype(np.float32)))
    return _stack(shots)


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Middle x, y and width, height of an object, at least 8 pixels wide and high."""
    ys, xs = np.nonzero(mask)
    low, high = np.array([xs.min(), ys.min()]), np.array([xs.max(), ys.max()]) + 1
    return np.concatenate([(low + high) / 2, np.maximum(high - low, 8)])


def _box_to_box(output: NDArray[np.float64], source: NDArray[np.float64]) -> Matrix:
    """From output pixels to source pixels so that one box lies over the other; sides change by at most 2.5."""
    scale = np.clip(source[2:] / output[2:], 0.4, 2.5)
    matrix = np.eye(3)
    matrix[:2, :2] = np.diag(scale)
    matrix[:2, 2] = source[:2] - scale * output[:2]
    return matrix


def signed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance to the object's border in pixels, negative outside it."""
    inside = mask.astype(np.uint8)
    if not inside.any():
        return np.full(mask.shape, -float(max(mask.shape)), dtype=np.float32)
    return cv2.distanceTransform(inside, cv2.DIST_L2, 3) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3)
