"""Baselines beside the method: what a few lines on a library find on the target, from the same references."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cavsam.evaluation.episodes import Episode
from cavsam.images import Mask

if TYPE_CHECKING:
    from cavsam.tracking import Tracker

LONGER_SIDE = 512
"""Pixels to which the longer side of a picture is reduced before its pixels are classified."""


def colour_contrast(episode: Episode, tracker: Tracker) -> Mask:
    """Find the pixels whose colour (CIELAB) is nearer to the object's mean than the background's, by Otsu's method."""
    from skimage.color import rgb2lab
    from skimage.filters import threshold_otsu

    colours = np.concatenate([rgb2lab(reference.image).reshape(-1, 3) for reference in episode.references])
    inside = np.concatenate([reference.masks[episode.class_name].ravel() for reference in episode.references])
    if inside.all():
        return np.ones_like(episode.truth)
    pixels = rgb2lab(episode.image)
    object_distance, background_distance = (
        np.linalg.norm(pixels - colours[part].mean(axis=0), axis=2) for part in (inside, ~inside)
    )
    contrast = background_distance - object_distance
    found: Mask = contrast > threshold_otsu(contrast)
    return found


def pixel_forest(episode: Episode, tracker: Tracker) -> Mask:
    """Classify pixels by a random forest on features at several scales, as in ilastik or scikit-image's own example."""
    from sklearn.ensemble import RandomForestClassifier

    features = np.concatenate([_pixel_features(reference.image) for reference in episode.references])
    inside = np.concatenate([_reduced(reference.masks[episode.class_name]).ravel() for reference in episode.references])
    forest = RandomForestClassifier(n_estimators=50, max_depth=10, max_samples=0.05, n_jobs=1, random_state=0)
    forest.fit(features, inside)
    found = forest.predict(_pixel_features(episode.image))
    height, width = episode.truth.shape
    square = Image.fromarray(found.reshape(_reduced(episode.truth).shape))
    return np.asarray(square.resize((width, height), Image.Resampling.NEAREST))


def reference_box(episode: Episode, tracker: Tracker) -> Mask:
    """Let SAM2 segment in the reference's box, laid on the target in proportion to its size."""
    from cavsam.interactive import Refiner

    reference = episode.references[0]
    mask = reference.masks[episode.class_name]
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    down, across = np.array(episode.truth.shape) / np.array(mask.shape)
    box = (columns[0] * across, rows[0] * down, (columns[-1] + 1) * across, (rows[-1] + 1) * down)
    refiner = Refiner(tracker)
    found, _ = refiner.refine(refiner.encode(episode.image), [], [box])
    return found


BASELINES: dict[str, Callable[[Episode, Tracker], Mask]] = {
    "contrast": colour_contrast,
    "forest": pixel_forest,
    "box": reference_box,
}
"""By name: functions of an episode and of SAM2 that give the target's mask, bool (H, W)."""


def _reduced(picture: NDArray) -> NDArray:
    """Reduce a picture (H, W, 3) or mask (H, W) until its longer side is at most `LONGER_SIDE`."""
    height, width = picture.shape[:2]
    scale = min(1.0, LONGER_SIDE / max(height, width))
    if scale == 1.0:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kind = Image.Resampling.NEAREST if picture.dtype == np.bool_ else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize(size, kind))


def _pixel_features(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Measure intensity, edges and texture at the scales 0.5 to 16 pixels, float32 (pixels, features)."""
    from skimage.feature import multiscale_basic_features

    features = multiscale_basic_features(_reduced(image), sigma_max=16, workers=1, channel_axis=2)
    return features.reshape(-1, features.shape[2])
