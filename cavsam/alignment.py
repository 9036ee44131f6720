"""TTGA, test-time geometric alignment (method, TTGA 1-4).

SAM2's neck is tuned to the reference, whose prototype then prompts the frames in the middle of the pseudo video.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cavsam.errors import NumericalError
from cavsam.recipe import ActivationThreshold, Recipe
from cavsam.tracking import Prompt, Tracker

BINS = 256


@dataclass(frozen=True)
class Alignment:
    """What the reference taught.

    Attributes:
        neck: parameters of the tuned neck by name; the model itself is not changed.
        prototypes: float (labels, C), unit length, under the tuned neck.
        losses: of each optimiser step.
        background: float (n, C), unit length, prototypes of what bears no label; None with foreground only.
    """

    neck: dict[str, Tensor]
    prototypes: Tensor
    losses: list[float]
    background: Tensor | None = None


@dataclass(frozen=True)
class PseudoLabel:
    """What was decided about one label on one frame that its activation might prompt.

    Attributes:
        frame, label: where.
        threshold: of the activation, see `threshold_of`.
        separation: see `separation`.
        cycle_iou: see `cycle_iou`; None where an earlier condition already failed.
        mask: bool (S, S), the activation above its threshold, without what other labels claim.
        refused: why it prompts nothing, in words; empty when it does.
    """

    frame: int
    label: int
    threshold: float
    separation: float
    cycle_iou: float | None
    mask: Tensor
    refused: str


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
        images: the K references, float (K, 3, S, S) in 0..1.
        masks: float (K, labels, S, S) of 0 and 1; a label may be missing on some references, not on all.
        trunk: `tracker.trunk(images)`.
        progress: called with (done, steps).

    Raises:
        NumericalError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(recipe.seed + 2)
    weights = {name: w.detach().clone().requires_grad_(True) for name, w in tracker.neck_weights.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=recipe.ttga_lr, weight_decay=recipe.ttga_weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, recipe.ttga_steps))
    regions = background_regions(tracker.features(trunk, recipe.activation_stride), masks, recipe)
    losses = []
    with torch.enable_grad():
        for step in range(recipe.ttga_steps):
            chosen = int(torch.randint(len(images), (), generator=generator))
            augmented, augmented_masks = augment(images[chosen], masks[chosen], generator)
            loss = cyclic_loss(
                tracker, trunk, masks, tracker.trunk(augmented[None]), augmented_masks[None], weights, recipe, regions
            )
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
        background = None if regions is None else prototypes(features, regions)
        return Alignment(neck, prototypes(features, masks), losses, background)


def cyclic_loss(
    tracker: Tracker,
    trunk: Sequence[Tensor],
    masks: Tensor,
    augmented_trunk: Sequence[Tensor],
    augmented_masks: Tensor,
    weights: dict[str, Tensor],
    recipe: Recipe,
    regions: Tensor | None = None,
) -> Tensor:
    """L_aug + L_cyc, averaged over the labels (method, TTGA 3); a scalar with gradients to `weights`.

    Args:
        trunk, masks: of the K references; masks float (K, labels, S, S).
        augmented_trunk, augmented_masks: of one augmented reference; masks float (1, labels, S, S).
        regions: of the references' background, see `background_regions`; None with foreground only.
    """
    features = tracker.features(trunk, recipe.activation_stride, weights)
    augmented = tracker.features(augmented_trunk, recipe.activation_stride, weights)
    background = None if regions is None else prototypes(features, regions)
    forward = activation(augmented, prototypes(features, masks), background)  # (1, labels, h, w)
    if recipe.cycle_mask == "predicted":
        way_back = torch.stack([binarise(a, recipe.activation_threshold).float() for a in forward[0].detach()])[None]
    else:
        way_back = augmented_masks
    rest = None
    if background is not None:
        rest = prototypes(augmented, _parted(_unlabelled(augmented, way_back), augmented, background))
    backward = activation(features, prototypes(augmented, way_back), rest)  # (K, labels, h, w)
    # a label that the augmented reference does not show has no way back
    shown = augmented_masks.flatten(2).any(dim=2)[0]
    loss = _bce(forward, augmented_masks, recipe.temperature)
    if shown.any():
        loss = loss + _bce(backward[:, shown], masks[:, shown], recipe.temperature)
    return loss


def _grid(features: Tensor) -> tuple[int, int]:
    return features.shape[-2], features.shape[-1]


def _bce(similarity: Tensor, masks: Tensor, temperature: float) -> Tensor:
    target = F.adaptive_avg_pool2d(masks, _grid(similarity))
    return F.binary_cross_entropy_with_logits(similarity / temperature, target)


def prototypes(features: Tensor, masks: Tensor) -> Tensor:
    """Masked average pooling over all images together (method, TTGA 1).

    Args:
        features: (N, C, h, w).
        masks: float (N, labels, H, W) in 0..1, averaged down to (h, w).

    Returns:
        (labels, C), unit length; zero for a label whose masks are all empty.
    """
    small = F.adaptive_avg_pool2d(masks, _grid(features))
    pooled = torch.einsum("nchw,nlhw->lc", features, small)
    # the mean and the sum have one direction, and only the direction counts for the cosine
    return F.normalize(pooled, dim=1)


def activation(features: Tensor, unit_prototypes: Tensor, background: Tensor | None = None) -> Tensor:
    """How much every feature is like every label.

    Args:
        features: (N, C, h, w).
        unit_prototypes: (labels, C).
        background: (n, C) of unit length, or None.

    Returns:
        (N, labels, h, w): the cosine with the label's prototype, -1..1; with `background`, that minus the highest
        cosine with any other prototype, the background's and the other labels', -2..2.
    """
    unit = F.normalize(features, dim=1)
    own = torch.einsum("nchw,lc->nlhw", unit, unit_prototypes)
    if background is None:
        return own
    everything = torch.cat([own, torch.einsum("nchw,lc->nlhw", unit, background)], dim=1)
    first, second = everything.topk(2, dim=1).values.split(1, dim=1)
    return own - torch.where(own == first, second, first)


def background_regions(features: Tensor, masks: Tensor, recipe: Recipe) -> Tensor | None:
    """The references' pixels of no label, in `recipe.background_prototypes` parts of like features.

    Args:
        features: of the references under the original neck, (K, C, h, w).
        masks: float (K, labels, S, S) of 0 and 1.

    Returns:
        float (K, n, h, w) in 0..1; None where the recipe compares with no background.
    """
    if recipe.activation == "foreground":
        return None
    rest = _unlabelled(features, masks)
    if recipe.background_prototypes == 1:
        return rest
    cells = F.normalize(features, dim=1).movedim(1, -1)[rest[:, 0] > 0.5]  # (M, C)
    if len(cells) < recipe.background_prototypes:
        return rest
    return _parted(rest, features, _kmeans(cells, recipe.background_prototypes))


def _unlabelled(features: Tensor, masks: Tensor) -> Tensor:
    """Share of each cell that no label covers, (N, 1, h, w), of masks (N, labels, H, W)."""
    return F.adaptive_avg_pool2d(1 - masks.amax(dim=1, keepdim=True), _grid(features))


def _parted(weights: Tensor, features: Tensor, centres: Tensor) -> Tensor:
    """`weights` (N, 1, h, w), each cell in the channel of the centre (n, C) that it is most like: (N, n, h, w)."""
    nearest = activation(features.detach(), centres.detach()).argmax(dim=1)
    return weights * F.one_hot(nearest, len(centres)).movedim(-1, 1)


def _kmeans(cells: Tensor, count: int, rounds: int = 10) -> Tensor:
    """Centres (count, C) of unit vectors (M, C) by cosine; begins at the mean and where no centre is near."""
    centres = F.normalize(cells.mean(dim=0, keepdim=True), dim=1)
    while len(centres) < count:
        farthest = (cells @ centres.T).amax(dim=1).argmin()
        centres = torch.cat([centres, cells[farthest][None]])
    for _ in range(rounds):
        members = F.one_hot((cells @ centres.T).argmax(dim=1), count).to(cells.dtype)
        means = F.normalize(members.T @ cells, dim=1)
        # a centre that lost all its cells stays where it was
        centres = torch.where(members.any(dim=0)[:, None], means, centres)
    return centres


def otsu(values: Tensor) -> float:
    """Otsu's threshold of `values`: those above it are foreground. A constant input gives its value.

    Raises:
        NumericalError: a value is not finite.
    """
    flat = values.detach().flatten().cpu().double()
    low, high = flat.min(), flat.max()
    if not (low.isfinite() and high.isfinite()):
        raise NumericalError("The activation is not finite; lower ttga_lr or use precision float32.")
    if high - low < 1e-12:
        return float(low)
    counts = torch.histc(flat, bins=BINS, min=float(low), max=float(high))
    centres = low + (torch.arange(BINS, dtype=torch.double) + 0.5) * (high - low) / BINS
    below = counts.cumsum(0)
    above = counts.flip(0).cumsum(0).flip(0)
    mean_below = (counts * centres).cumsum(0) / below.clamp_min(1)
    mean_above = ((counts * centres).flip(0).cumsum(0) / above.flip(0).clamp_min(1)).flip(0)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[int(between.argmax())])


def separation(values: Tensor, threshold: float) -> float:
    """How clearly `threshold` parts `values` into two modes: Ashman's D, the distance of the two means in deviations.

    Unlike Otsu's own criterion it does not depend on how large the foreground is. One normal mode cut in the middle
    gives 2.6, a uniform spread 3.5. 0 where one side is empty, infinity where both sides are constant.
    """
    flat = values.detach().flatten().cpu().double()
    above, below = flat[flat > threshold], flat[flat <= threshold]
    if not len(above) or not len(below):
        return 0.0
    spread = ((above.var(correction=0) + below.var(correction=0)) / 2).sqrt()
    distance = above.mean() - below.mean()
    return float(distance / spread) if spread > 0 else math.inf


def threshold_of(similarity: Tensor, kind: ActivationThreshold) -> float:
    """What parts an activation (h, w) into foreground and background: its own Otsu threshold, or 0.

    Raises:
        NumericalError: a value is not finite.
    """
    own = otsu(similarity)
    return own if kind == "otsu" else 0.0


def binarise(similarity: Tensor, kind: ActivationThreshold = "otsu") -> Tensor:
    """Where an activation (h, w) lies above its threshold: bool (h, w)."""
    return similarity > threshold_of(similarity, kind)


def pseudo_prompts(
    tracker: Tracker,
    trunk: Sequence[Tensor],
    reference_masks: Tensor,
    alignment: Alignment,
    frames: Sequence[int],
    recipe: Recipe,
    kind: str,
    watch: Callable[[PseudoLabel], None] | None = None,
) -> tuple[list[Prompt], Tensor]:
    """Prompts for generated frames, or the target, from their binarised activations (method, TTGA 4).

    A cell that several labels claim goes to the highest activation. A frame gets no prompt for a label whose activation
    marks nothing or everything, is not clearly bimodal, or does not find its way back to the references: a wrong
    prompt hurts more than a missing one.

    Args:
        trunk: features of all frames of the video, the K references first.
        reference_masks: bool (K, labels, S, S), in the order of the video.
        frames: indices of the frames that may be prompted.
        kind: of the prompts: "mask", "box" or "point", the peak of the activation.
        watch: called with each decision.

    Returns:
        The prompts, and the activations of `frames`, float (len(frames), labels, h, w).
    """
    chosen = torch.as_tensor([*range(len(reference_masks)), *frames], dtype=torch.long, device=trunk[0].device)
    with torch.no_grad():
        features = tracker.features([level[chosen] for level in trunk], recipe.activation_stride, alignment.neck)
    known, generated = features.split([len(reference_masks), len(frames)])
    maps = activation(generated, alignment.prototypes, alignment.background)
    size = (tracker.image_size, tracker.image_size)
    full = F.interpolate(maps, size=size, mode="bilinear", align_corners=False) if len(frames) else maps
    prompts = []
    for position, frame in enumerate(frames):
        for label in range(maps.shape[1]):
            threshold = threshold_of(maps[position, label], recipe.activation_threshold)
            parted = separation(maps[position, label], threshold)
            mask = (full[position, label] > threshold) & (full[position].argmax(dim=0) == label)
            found_again, refused = None, ""
            if parted < recipe.min_separation:
                refused = f"not clearly bimodal: separation {parted:.2f} < {recipe.min_separation:g}"
            elif mask.all() or not mask.any():
                refused = "the activation marks everything" if mask.any() else "the activation marks nothing"
            else:
                found_again = cycle_iou(known, reference_masks[:, label], generated[position], mask, recipe)
                if found_again < recipe.min_cycle_iou:
                    refused = f"the way back to the reference misses: IoU {found_again:.2f} < {recipe.min_cycle_iou:g}"
            if not refused:
                prompts.append(_pseudo_prompt(frame, label, mask, full[position, label], kind))
            if watch:
                watch(PseudoLabel(frame, label, threshold, parted, found_again, mask, refused))
    return prompts, maps


def _pseudo_prompt(frame: int, label: int, mask: Tensor, similarity: Tensor, kind: str) -> Prompt:
    """A prompt of `kind` for a mask, bool (S, S), of the similarity (S, S)."""
    if kind != "point":
        return Prompt.of(frame, label, mask, kind)
    peak = int(similarity.masked_fill(~mask, -math.inf).argmax())
    return Prompt(frame, label, point=(peak % mask.shape[1] + 0.5, peak // mask.shape[1] + 0.5))


@torch.no_grad()
def activations(tracker: Tracker, trunk: Sequence[Tensor], alignment: Alignment, recipe: Recipe) -> Tensor:
    """Activation of every frame and label under the tuned neck, float (N, labels, h, w); see `activation`."""
    features = tracker.features(trunk, recipe.activation_stride, alignment.neck)
    return activation(features, alignment.prototypes, alignment.background)


@torch.no_grad()
def activation_logits(tracker: Tracker, trunk: Sequence[Tensor], alignment: Alignment, recipe: Recipe) -> Tensor:
    """A frame's activation at SAM2's size less its threshold, float (labels, S, S): above 0 is the object.

    Args:
        trunk: features of the one frame.
    """
    maps = activations(tracker, trunk, alignment, recipe)
    thresholds = torch.tensor([threshold_of(one, recipe.activation_threshold) for one in maps[0]], device=maps.device)
    size = (tracker.image_size, tracker.image_size)
    full = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[0]
    return full - thresholds[:, None, None]


def covered_cells(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """The cells (..., h, w) of a grid that bool masks (..., S, S) cover.

    A cell counts where a mask covers at least half of what it covers of any cell: thin objects too.
    """
    coverage = F.adaptive_avg_pool2d(masks.float(), grid)
    return (coverage >= coverage.amax(dim=(-2, -1), keepdim=True) / 2) & (coverage > 0)


def cycle_iou(known: Tensor, reference_masks: Tensor, features: Tensor, mask: Tensor, recipe: Recipe) -> float:
    """How well a frame's pseudo-label, used as the reference, finds the true masks again.

    Args:
        known: features of the references, (K, C, h, w).
        reference_masks: bool (K, S, S) of one label.
        features: of the frame, (C, h, w).
        mask: the pseudo-label, bool (S, S).

    Returns:
        IoU on the feature grid, over the references that show the label.
    """
    shown = reference_masks.flatten(1).any(dim=1)
    marked = mask[None, None].float()
    rest = prototypes(features[None], 1 - marked) if recipe.activation == "contrast" else None
    back = activation(known[shown], prototypes(features[None], marked), rest)[:, 0]
    found = torch.stack([binarise(similarity, recipe.activation_threshold) for similarity in back])
    true = covered_cells(reference_masks[shown], _grid(back))
    return int((found & true).sum()) / int((found | true).sum())


def augment(image: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random affine and photometric change of a reference, the same affine for image and masks.

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
