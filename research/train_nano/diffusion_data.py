"""Training images of the nano diffusion model: SynthFSS "textures", training classes and training seeds only."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from research import synth

SIZE = 256


@dataclass(frozen=True)
class Example:
    """image: uint8 (256, 256, 3); prompt: name of the class that it shows."""

    image: NDArray[np.uint8]
    prompt: str


def example(seed: int, index: int) -> Example:
    """The `index`-th training image of a run with `seed`, a function of these two alone."""
    rng = np.random.default_rng([seed, index])
    names = synth.classes("textures", "train")
    prompt = names[int(rng.integers(len(names)))]
    scene_seed = synth.seed_of("train", int(rng.integers(len(synth.SEEDS["train"]))))
    return Example(synth.generate("textures", (prompt,), seed=scene_seed, size=SIZE).image, prompt)


class RollingPool:
    """The newest `capacity` images of a stream that advances by one image a step.

    Rendering an image costs about as much as a tenth of a training step, so each is used several times. What the
    pool holds at a step does not depend on where the run was interrupted.
    """

    def __init__(self, seed: int, step: int, *, first: int = 256, capacity: int = 2048) -> None:
        self.seed = seed
        self.next_index = first + step
        self.examples: deque[Example] = deque(maxlen=capacity)
        for index in range(max(0, self.next_index - capacity), self.next_index):
            self.examples.append(example(seed, index))

    def advance(self) -> None:
        """Take in the next image."""
        self.examples.append(example(self.seed, self.next_index))
        self.next_index += 1

    def draw(self, rng: np.random.Generator, count: int) -> list[Example]:
        """`count` of the images held, with replacement."""
        return [self.examples[int(i)] for i in rng.integers(len(self.examples), size=count)]


def crop(rng: np.random.Generator, image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A random square of `side` pixels, turned and flipped at random: uint8 (side, side, 3)."""
    top, left = rng.integers(0, np.array(image.shape[:2]) - side + 1)
    square = image[top : top + side, left : left + side]
    square = np.rot90(square, int(rng.integers(4)))
    return square[:, ::-1] if rng.random() < 0.5 else square


def recolour(rng: np.random.Generator, image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Other colours, contrast and sharpness for float32 (H, W, 3) in 0..1, so that looks beyond the textures' are met.

    Only generic changes: nothing is taken from the evaluation domains.
    """
    if rng.random() < 0.5:
        image = image[..., rng.permutation(3)]
    if rng.random() < 0.25:
        grey = image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        image = image + np.float32(rng.uniform(0.5, 1)) * (grey[..., None] - image)
    if rng.random() < 0.5:
        gain, centre = rng.uniform(0.4, 1.4), rng.uniform(0.2, 0.8)
        image = (image - centre) * np.float32(gain) + np.float32(centre + rng.normal(0, 0.1))
        image = np.clip(image, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.2:
        image = box_blur(image, int(rng.integers(1, 4)))
    return np.clip(image, 0, 1).astype(np.float32)


def box_blur(image: NDArray[np.floating], radius: int) -> NDArray[np.float32]:
    """Mean over (2 radius + 1) squared pixels, going round at the borders."""
    for axis in (0, 1):
        shifted = [np.roll(image, shift, axis) for shift in range(-radius, radius + 1)]
        image = np.sum(shifted, axis=0) / (2 * radius + 1)
    return image.astype(np.float32)
