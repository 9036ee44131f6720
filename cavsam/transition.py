"""DBST, diffusion-based semantic transition: the frames between a reference and a target (method, DBST 1-4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cavsam import lora
from cavsam.diffusion import LatentDiffusion
from cavsam.errors import NumericalError
from cavsam.memory import in_batches
from cavsam.observe.run import Run
from cavsam.recipe import Recipe
from cavsam.video import picture_square

PARALLEL = 1e-4
"""Sine of the angle below which two latents count as parallel and slerp gives way to linear interpolation."""


@dataclass(frozen=True)
class Endpoint:
    """One end of a transition: an image as the diffusion model sees it.

    Attributes:
        adapter: bank of one adapter fitted to the image.
        latent: float (C, h, w), the image's DDIM-inverted latent z^T under its adapter.
        embedding: float (tokens, width) of the prompt.
        losses: of each step of the fit.
    """

    adapter: lora.LoraBank
    latent: Tensor
    embedding: Tensor
    losses: list[float]


@dataclass(frozen=True)
class FittedImage:
    """An image with its adapter, not yet inverted.

    Attributes:
        adapter: bank of one adapter fitted to the image.
        latent: float (1, C, h, w), the image's own latent z^0.
        embedding: float (1, tokens, width) of the prompt.
        losses: of each step of the fit.
    """

    adapter: lora.LoraBank
    latent: Tensor
    embedding: Tensor
    losses: list[float]


@dataclass(frozen=True)
class Frames:
    """The frames of one transition.

    Attributes:
        images: float (n, 3, D, D) in 0..1, from the reference's side to the target's.
        losses: of the fit of the target's adapter; empty if none was fitted.
    """

    images: Tensor
    losses: list[float]


class Transition(Protocol):
    """Where the frames between references and targets come from."""

    def prepare(self, references: Sequence[NDArray[np.uint8]], prompt: str, run: Run) -> list[Endpoint]:
        """Do once what depends on the references, uint8 (H, W, 3), and on the text only."""

    def between(
        self, ends: Sequence[Endpoint], references: Sequence[int], target: NDArray[np.uint8], prompt: str, run: Run
    ) -> Iterator[Frames]:
        """Make frames to a target, uint8 (H, W, 3), from each of some references, one after another.

        Args:
            ends: of all references, from `prepare`.
            references: numbers of those to begin at.
            target: the image where the frames lead.
            prompt: the text that `prepare` was given.
            run: told of each step.
        """


@dataclass(frozen=True)
class DiffusionTransition:
    """DBST with a diffusion model.

    Attributes:
        model: generates the frames.
        recipe: how it is adapted, and how many frames it generates.
    """

    model: LatentDiffusion
    recipe: Recipe

    def prepare(self, references: Sequence[NDArray[np.uint8]], prompt: str, run: Run) -> list[Endpoint]:
        """Fit adapters to images, uint8 (H, W, 3), in one batch, and invert each image under its own."""
        size = self.recipe.diffusion_size or self.model.native_size
        squares = torch.stack([picture_square(image, size, self.model.device) for image in references])
        with run.step("lora"):
            fitted = fit_images(self.model, squares, prompt, self.recipe, run.within("lora"))
        with run.step("invert"):
            return [invert(self.model, one, self.recipe) for one in fitted]

    def between(
        self, ends: Sequence[Endpoint], references: Sequence[int], target: NDArray[np.uint8], prompt: str, run: Run
    ) -> Iterator[Frames]:
        """Generate frames from each of some references to a target, whose adapter is fitted once; see `Transition`."""
        (end,) = self.prepare([target], prompt, run)
        for reference in references:
            with run.step("generate"):
                images = frames_between(self.model, ends[reference], end, self.recipe)
            yield Frames(images, end.losses)

    def generate(self, reference: NDArray[np.uint8], target: NDArray[np.uint8], prompt: str) -> Tensor:
        """Generate the frames between two images, uint8 (H, W, 3): float (frames, 3, D, D) in 0..1."""
        first, second = self.prepare([reference, target], prompt, Run())
        return frames_between(self.model, first, second, self.recipe)


def fit_images(
    model: LatentDiffusion,
    images: Tensor,
    prompt: str,
    recipe: Recipe,
    progress: Callable[[int, int], None] | None = None,
) -> list[FittedImage]:
    """Encode `images`, float (n, 3, D, D) in 0..1, and fit an adapter to each, all in one batch (method, DBST 1)."""
    embedding = model.embed([prompt])

    def fit(chosen: slice) -> list[FittedImage]:
        latents = model.encode(images[chosen])
        embeddings = embedding.expand(len(latents), -1, -1)
        bank, losses = model.fit_loras(latents, embeddings, recipe, progress)
        return [
            FittedImage(adapter, latents[i : i + 1], embeddings[i : i + 1], losses[i])
            for i, adapter in enumerate(bank.single())
        ]

    # an adapter is the same whatever shares its batch
    return [fitted for batch in in_batches(fit, len(images), len(images)) for fitted in batch]


def invert(model: LatentDiffusion, fitted: FittedImage, recipe: Recipe) -> Endpoint:
    """Follow the image back to noise under its own adapter (method, DBST 2).

    Raises:
        NumericalError: the fit or the inversion gave values that are not finite.
    """
    lora.check_losses(fitted.losses)
    with lora.attached(model.unet, fitted.adapter, torch.ones(1, 1, device=model.device)):
        inverted = model.invert(fitted.latent, fitted.embedding, recipe.ddim_steps)
    if not inverted.isfinite().all():
        raise NumericalError("DDIM inversion gave values that are not finite; try precision float32.")
    return Endpoint(fitted.adapter, inverted[0], fitted.embedding[0], fitted.losses)


def frames_between(model: LatentDiffusion, reference: Endpoint, target: Endpoint, recipe: Recipe) -> Tensor:
    """Generate frames from the reference's side to the target's: float (frames, 3, D, D) in 0..1."""
    alphas = torch.linspace(recipe.alpha_min, recipe.alpha_max, recipe.frames, device=model.device)
    bank = lora.LoraBank.joined([reference.adapter, target.adapter])

    def generate(chosen: slice) -> Tensor:
        alpha = alphas[chosen]
        latents = torch.stack([interpolate_latents(reference.latent, target.latent, float(a)) for a in alpha])
        embeddings = torch.lerp(reference.embedding[None], target.embedding[None], alpha[:, None, None])
        weights = torch.stack([1 - alpha, alpha], dim=1)
        with lora.attached(model.unet, bank, weights, recipe.lora_mix):
            return model.decode(model.denoise(latents, embeddings, recipe.ddim_steps))

    video = torch.cat(in_batches(generate, recipe.frames, recipe.frame_batch))
    if not video.isfinite().all():
        raise NumericalError("The generated frames are not finite; try precision float32.")
    return video


def interpolate_latents(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Interpolate two latents (C, h, w) by slerp, then AdaIN to the interpolated statistics (method, DBST 3)."""
    return adain(slerp(first, second, alpha), first, second, alpha)


def slerp(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Interpolate on the sphere, along the angle between the two whole tensors.

    The interpolation is linear if the angle is so near 0 or pi that the sphere gives no direction.
    """
    # in double precision, which not every device has
    a, b = first.flatten().cpu().double(), second.flatten().cpu().double()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
    angle = torch.acos(cosine.clamp(-1, 1))
    if torch.sin(angle) < PARALLEL:
        return torch.lerp(first, second, alpha)
    weights = torch.sin(torch.stack([(1 - alpha) * angle, alpha * angle])) / torch.sin(angle)
    return float(weights[0]) * first + float(weights[1]) * second


def adain(latent: Tensor, first: Tensor, second: Tensor, alpha: float, eps: float = 1e-6) -> Tensor:
    """Give each channel of `latent` (C, h, w) the linearly interpolated mean and deviation of the two ends."""
    mean = torch.lerp(_mean(first), _mean(second), alpha)
    deviation = torch.lerp(_deviation(first), _deviation(second), alpha)
    return (latent - _mean(latent)) / (_deviation(latent) + eps) * deviation + mean


def _mean(latent: Tensor) -> Tensor:
    return latent.mean(dim=(-2, -1), keepdim=True)


def _deviation(latent: Tensor) -> Tensor:
    return latent.std(dim=(-2, -1), keepdim=True)
