"""Episodes of SynthFSS: K references and one target of a class, each a function of its number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cavsam import synth
from cavsam.synth import Split, SynthImage

SIZE = 256
ABSENT_PART = 0.1  # of the targets do not show the object
SEEDS_PER_EPISODE = 16  # room for 15 references and the target
EPISODES_PER_DOMAIN = 500_000
FIRST_SEED = 1_000_000  # of a split; those below are left to trials and to the training's own evaluation


@dataclass(frozen=True)
class Episode:
    """One task: segment `class_name` in the target after the references.

    The target's mask is missing (`absent`) in about one episode of ten.
    """

    domain: str
    index: int
    class_name: str
    references: tuple[SynthImage, ...]
    target: SynthImage

    @property
    def absent(self) -> bool:
        """Whether the target does not show the object."""
        return self.class_name not in self.target.masks

    @property
    def truth(self) -> np.ndarray:
        """The target's mask, bool (H, W), empty where the object is absent."""
        if self.absent:
            return np.zeros(self.target.image.shape[:2], dtype=bool)
        return self.target.masks[self.class_name]


def episode(domain: str, split: Split, shots: int, index: int) -> Episode:
    """Episode number `index` of a domain; the target does not depend on the number of shots.

    Classes come in turn, so that each is asked for equally often.
    """
    if not 1 <= shots < SEEDS_PER_EPISODE:
        raise ValueError(f"An episode has 1 to {SEEDS_PER_EPISODE - 1} references, not {shots}.")
    names = synth.classes(domain, split)
    if not names:
        raise ValueError(f"The domain {domain!r} has no classes in the split {split!r}.")
    name = names[index % len(names)]
    first = FIRST_SEED + (synth.DOMAINS.index(domain) * EPISODES_PER_DOMAIN + index) * SEEDS_PER_EPISODE
    seeds = [synth.seed_of(split, first + number) for number in range(shots + 1)]
    absent = np.random.default_rng([seeds[0], 77]).random() < ABSENT_PART
    target = synth.generate(domain, [] if absent else [name], seed=seeds[0], size=SIZE, avoid=[name] if absent else [])
    references = tuple(synth.generate(domain, [name], seed=seed, size=SIZE) for seed in seeds[1:])
    return Episode(domain, index, name, references, target)
