"""The one place where seeds and classes are divided into training, development and test.

Every scene, clip and episode of SynthFSS is a function of one integer seed. The ranges below do not meet, so
nothing seen in training or used for choosing a hyperparameter can come back in a reported figure. The test
split is for reporting only.
"""

from __future__ import annotations

from typing import Literal, get_args

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

SEEDS: dict[Split, range] = {
    "train": range(1_000_000_000),
    "dev": range(1_000_000_000, 1_100_000_000),
    "test": range(2_000_000_000, 2_100_000_000),
}

# Of the 180 classes of the domain "textures", in an order shuffled with CLASS_ORDER_SEED.
CLASS_ORDER_SEED = 20250807
CLASS_COUNTS: dict[Split, int] = {"train": 120, "dev": 30, "test": 30}


def seed_of(split: Split, index: int) -> int:
    """The `index`-th seed of a split. Raises ValueError for an unknown split or an index outside it."""
    if split not in SEEDS:
        raise ValueError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
    seeds = SEEDS[split]
    if not 0 <= index < len(seeds):
        raise ValueError(f"Seed number {index} is outside the {split} split (0 to {len(seeds) - 1}).")
    return seeds[index]
