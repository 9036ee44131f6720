"""TTGA, test-time geometric alignment (method, TTGA 1-3): what is learned from the references.

SAM2's neck is tuned so that the references' prototypes mark the object on changed copies of the references and back.
What the tuned neck and its prototypes then prompt is in `pseudo_labels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cavsam.errors import NumericalError
from cavsam.features import activation, grid_of, otsu, prototypes, unlabelled
from cavsam.recipe import Recipe
from cavsam.tracking import Tracker


@dataclass(frozen=True)
class Alignment:
    """A neck tuned to the references, and their prototypes under it.

    Attributes:
        neck: parameters of the tuned neck by name; the model itself is not changed.
        prototypes: float (labels, C), unit length, under the tuned neck.
        losses: of each optimiser step.
        background: float (1, C), unit length, the prototype of what bears no label; None with foreground only.
    """

    neck: dict[str, Tensor]
    prototypes: Tensor
    losses: list[float]
    background: Tensor | None = None

    @torch.no_grad()
    def activations(self, tracker: Tracker, trunk: Sequence[Tensor], recipe: Recipe) -> Tensor:
        """Compute the activation of every frame and label under the tuned neck: float (N, labels, h, w)."""
        features = tracker.features(trunk, recipe.activation_stride, self.neck)
        return activation(features, self.prototypes, self.background)


def align(
    tracker: Tracker,
    images: Tensor,
    masks: Tensor,
    trunk: Sequence[Tensor],
    recipe: Recipe,
    progress: Callable[[int, int], None] | None = None,
) -> Alignment:
    """Tune the neck by augmentative cyclic consistency on the references.

    Args:
        tracker: SAM2, whose neck is copied.
        images: the K references, float (K, 3, S, S) in 0..1.
        masks: float (K, labels, S, S) of 0 and 1; a label may be missing on some references, not on all.
        trunk: `tracker.trunk(images)`.
        recipe: steps, learning rate and reading of the loss.
        progress: called with (done, steps).

    Raises:
        NumericalError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(recipe.seed + 2)
    weights = {name: w.detach().clone().requires_grad_(True) for name, w in tracker.neck_weights.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=recipe.ttga_lr, weight_decay=recipe.ttga_weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, recipe.ttga_steps))
    losses = []
    with torch.enable_grad():
        for step in range(recipe.ttga_steps):
            chosen = int(torch.randint(len(images), (), generator=generator))
            augmented, augmented_masks = augment(images[chosen], masks[chosen], generator)
            changed = tracker.trunk(augmented[None])
            loss = cyclic_loss(tracker, trunk, masks, changed, augmented_masks[None], weights, recipe)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if progress:
                progress(step + 1, recipe.ttga_steps)
    if not all(map(math.isfinite, losses)):
        raise NumericalError("Aligning to the reference gave a loss that is not finite; lower ttga_lr.")
    neck = {name: w.detach() for name, w in weights.items()}
    with torch.no_grad():
        features = tracker.features(trunk, recipe.activation_stride, neck)
        return Alignment(neck, prototypes(features, masks), losses, background_prototype(features, masks, recipe))


def cyclic_loss(
    tracker: Tracker,
    trunk: Sequence[Tensor],
    masks: Tensor,
    augmented_trunk: Sequence[Tensor],
    augmented_masks: Tensor,
    weights: dict[str, Tensor],
    recipe: Recipe,
) -> Tensor:
    """Compute L_aug + L_cyc, averaged over the labels (method, TTGA 3): a scalar with gradients to `weights`.

    Args:
        tracker: SAM2.
        trunk: backbone features of the K references.
        masks: of the K references, float (K, labels, S, S).
        augmented_trunk: backbone features of one augmented reference.
        augmented_masks: of the augmented reference, float (1, labels, S, S).
        weights: of the neck that is tuned.
        recipe: the reading of the loss.
    """
    features = tracker.features(trunk, recipe.activation_stride, weights)
    augmented = tracker.features(augmented_trunk, recipe.activation_stride, weights)
    background = background_prototype(features, masks, recipe)
    forward = activation(augmented, prototypes(features, masks), background)  # (1, labels, h, w)
    if recipe.cycle_mask == "predicted":
        returning = torch.stack([(one > otsu(one)).float() for one in forward[0].detach()])[None]
    else:
        returning = augmented_masks
    rest = background_prototype(augmented, returning, recipe)
    backward = activation(features, prototypes(augmented, returning), rest)  # (K, labels, h, w)
    loss = _bce(forward, augmented_masks, recipe.temperature)
    # a label that the augmented reference does not show cannot find the references again
    shown = augmented_masks.flatten(2).any(dim=2)[0]
    if shown.any():
        loss = loss + _bce(backward[:, shown], masks[:, shown], recipe.temperature)
    return loss


def background_prototype(features: Tensor, masks: Tensor, recipe: Recipe) -> Tensor | None:
    """Pool what no label covers: (1, C), unit length; None if the recipe compares with no background.

    Args:
        features: (N, C, h, w).
        masks: float (N, labels, H, W) in 0..1.
        recipe: whose `activation` decides.
    """
    return prototypes(features, unlabelled(features, masks)) if recipe.activation == "contrast" else None


def _bce(similarity: Tensor, masks: Tensor, temperature: float) -> Tensor:
    target = F.adaptive_avg_pool2d(masks, grid_of(similarity))
    return F.binary_cross_entropy_with_logits(similarity / temperature, target)


def augment(image: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change a reference at random in geometry and colours, in the same geometry for image and masks.

    What the affine brings in from outside the picture is the picture mirrored, masks included.

    Args:
        image: float (3, S, S) in 0..1.
        masks: float (labels, S, S) of 0 and 1.

    Returns:
        The same shapes; the masks stay 0 and 1.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    angle, scale = uniform(-math.pi / 6, math.pi / 6), uniform(0.7, 1.4)
    shear, flip = uniform(-0.15, 0.15), 1.0 if uniform(0, 1) < 0.5 else -1.0
    shift_x, shift_y = uniform(-0.15, 0.15), uniform(-0.15, 0.15)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = torch.tensor(
        [[flip * cos, flip * (shear * cos - sin), shift_x], [sin, shear * sin + cos, shift_y]],
        device=image.device,
    )
    grid = F.affine_grid(matrix[None], [1, 1, *image.shape[-2:]], align_corners=False)
    moved = F.grid_sample(image[None], grid, padding_mode="reflection", align_corners=False)[0]
    moved_masks = F.grid_sample(masks[None], grid, padding_mode="reflection", align_corners=False)[0]

    brightness, contrast, saturation = uniform(0.7, 1.3), uniform(0.7, 1.3), uniform(0.6, 1.4)
    tint = torch.tensor([uniform(0.9, 1.1) for _ in range(3)], device=image.device).view(3, 1, 1)
    moved = moved * brightness * tint
    moved = (moved - moved.mean()) * contrast + moved.mean()
    grey = moved.mean(dim=0, keepdim=True)
    moved = grey + (moved - grey) * saturation
    return moved.clamp(0, 1), (moved_masks > 0.5).float()
