"""Episodes of SynthFSS, each a function of its number."""

from __future__ import annotations

import numpy as np

from cavsam.evaluation.episodes import Episode
from cavsam.types import Reference
from research import synth
from research.synth import Split

SIZE = 256
ABSENT_PART = 0.1  # of the targets do not show the object
SEEDS_PER_EPISODE = 16  # room for 15 references and the target
EPISODES_PER_DOMAIN = 500_000
FIRST_SEED = 1_000_000  # of a split; those below are left to trials and to the training's own evaluation


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
    truth = np.zeros(target.image.shape[:2], dtype=bool) if absent else target.masks[name]
    references = []
    for seed in seeds[1:]:
        scene = synth.generate(domain, [name], seed=seed, size=SIZE)
        references.append(Reference(scene.image, {name: scene.masks[name]}))
    return Episode(domain, index, name, tuple(references), target.image, truth)
