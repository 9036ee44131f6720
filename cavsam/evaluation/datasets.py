"""Readers of data sets as they lie on disk, and seeded episode lists over them.

Each reader walks a folder and lists its objects: an image, its mask and the class. docs/paper-protocol.md says where
the CD-FSS benchmark's sets (and SUIM) are had and how they have to lie; docs/benchmark.md describes a plain folder.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cavsam.errors import CavSamError
from cavsam.evaluation.episodes import Episode
from cavsam.images import image_size, read_image, read_mask
from cavsam.types import Reference

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
SMALLEST = 1e-3  # part of an image below which a class of a colour-coded mask is not asked for

Colour = tuple[int, int, int]
DEEPGLOBE_COLOURS: dict[str, Colour] = {
    "urban": (0, 255, 255),
    "agriculture": (255, 255, 0),
    "rangeland": (255, 0, 255),
    "forest": (0, 255, 0),
    "water": (0, 0, 255),
    "barren": (255, 255, 255),
}
SUIM_COLOURS: dict[str, Colour] = {
    "human diver": (0, 0, 255),
    "aquatic plant": (0, 255, 0),
    "wreck": (0, 255, 255),
    "robot": (255, 0, 0),
    "reef": (255, 0, 255),
    "fish": (255, 255, 0),
    "sea floor": (255, 255, 255),
}


@dataclass(frozen=True)
class Sample:
    """One object: paths relative to the set's folder; `colour` picks the class in a colour-coded mask.

    The domain is empty in a set of one domain; the mask is empty if the image is known not to show the class.
    """

    image: str
    mask: str
    class_name: str
    colour: Colour | None = None
    domain: str = ""


def read_sample(root: Path, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read an image, uint8 (H, W, 3), and its mask, bool (H, W); raises `CavSamError` if that is not possible."""
    image = read_image(root / sample.image)
    if not sample.mask:
        return image, np.zeros(image.shape[:2], dtype=bool)
    if sample.colour is None:
        mask = read_mask(root / sample.mask)
    else:
        mask = _of_colour(read_image(root / sample.mask), sample.colour)
    if mask.shape != image.shape[:2]:
        raise CavSamError(f"{sample.mask} is not of the size of {sample.image}; fetch the set again.")
    return image, mask


def read_deepglobe(root: Path) -> list[Sample]:
    """`<class>/test/origin/*.jpg` with `<class>/test/groundtruth/*.png` (as PATNet cuts it), or the download itself:
    `*_sat.jpg` with colour-coded `*_mask.png`.
    """
    cut = []
    for folder in _folders(root):
        for image in _images(folder / "test" / "origin"):
            mask = _beside(folder / "test" / "groundtruth", image.stem)
            cut.append(Sample(_relative(image, root), _relative(mask, root), folder.name))
    if cut:
        return cut
    pairs = [
        (image, image.with_name(image.stem.removesuffix("_sat") + "_mask.png")) for image in root.rglob("*_sat.jpg")
    ]
    return _colour_coded(root, sorted(pairs), DEEPGLOBE_COLOURS)


def read_isic(root: Path) -> list[Sample]:
    """`ISIC2018_Task1-2_Training_Input/` with `ISIC2018_Task1_Training_GroundTruth/*_segmentation.png`.

    Images in numbered folders below (as PATNet sorts them) are of that class, others of the class "lesion".
    """
    images, masks = root / "ISIC2018_Task1-2_Training_Input", root / "ISIC2018_Task1_Training_GroundTruth"
    found = []
    for folder in [images, *_folders(images)]:
        name = "lesion" if folder == images else f"lesion {folder.name}"
        for image in _images(folder):
            mask = masks / f"{image.stem}_segmentation.png"
            found.append(Sample(_relative(image, root), _relative(mask, root), name))
    return found


def read_chest(root: Path) -> list[Sample]:
    """`CXR_png/*.png` with `masks/<name>.png` or `masks/<name>_mask.png`; images without a mask are left out."""
    found = []
    for image in _images(root / "CXR_png"):
        for name in (image.stem, f"{image.stem}_mask"):
            if (root / "masks" / f"{name}.png").is_file():
                found.append(Sample(_relative(image, root), f"masks/{name}.png", "lung"))
                break
    return found


def read_fss1000(root: Path) -> list[Sample]:
    """`<class>/<number>.jpg` with `<class>/<number>.png`; `classes.txt`, where it is there, names the classes used."""
    listed = root / "classes.txt"
    chosen = set(listed.read_text(encoding="utf-8").splitlines()) if listed.is_file() else None
    return [
        Sample(_relative(image, root), _relative(image.with_suffix(".png"), root), folder.name)
        for folder in _folders(root)
        if chosen is None or folder.name in chosen
        for image in _images(folder)
        if image.suffix != ".png"
    ]


def read_suim(root: Path) -> list[Sample]:
    """`TEST/images/*.jpg` with colour-coded `TEST/masks/*.bmp`."""
    pairs = [(image, root / "TEST" / "masks" / f"{image.stem}.bmp") for image in _images(root / "TEST" / "images")]
    return _colour_coded(root, pairs, SUIM_COLOURS)


def read_folder(root: Path) -> list[Sample]:
    """`CLASS/images` with `CLASS/masks`, or `DOMAIN/CLASS/images` with `DOMAIN/CLASS/masks`: a mask has its picture's
    name, with any suffix, and its size.

    Samples of a class come in the order of their names, in which numbers count as numbers: neighbours in a video or a
    volume are neighbours in the list. Without domains the folder's own name is the domain.

    Raises:
        CavSamError: a class has no masks or no pictures, or a picture has no mask or one of another size.
    """
    found = []
    for entry in _folders(root):
        if (entry / "images").is_dir() or (entry / "masks").is_dir():
            found += _class_samples(root, entry, root.resolve().name)
        else:
            for folder in _folders(entry):
                if (folder / "images").is_dir() or (folder / "masks").is_dir():
                    found += _class_samples(root, folder, entry.name)
    return found


def _class_samples(root: Path, folder: Path, domain: str) -> list[Sample]:
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            raise CavSamError(f"{folder} has no folder {part}; a class needs both images and masks.")
    images = sorted(_images(folder / "images"), key=lambda path: _natural(path.name))
    if not images:
        raise CavSamError(f"{folder / 'images'} holds no picture; put some there or remove the class.")
    masks = {mask.stem: mask for mask in _images(folder / "masks")}
    samples = []
    for image in images:
        mask = masks.get(image.stem)
        if mask is None:
            raise CavSamError(
                f"{image} has no mask; put {image.stem}.png into {folder / 'masks'} or remove the picture."
            )
        if image_size(image) != image_size(mask):
            raise CavSamError(f"{mask} and its picture differ in size; save the mask in the picture's size.")
        samples.append(Sample(_relative(image, root), _relative(mask, root), folder.name, domain=domain))
    return samples


def _natural(name: str) -> list[tuple[int, str]]:
    """Make a key that sorts 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


READERS: dict[str, Callable[[Path], list[Sample]]] = {
    "deepglobe": read_deepglobe,
    "isic": read_isic,
    "chest": read_chest,
    "fss1000": read_fss1000,
    "suim": read_suim,
    "folder": read_folder,
}


def read_dataset(name: str, root: Path) -> list[Sample]:
    """Read every object of the set `name` under `root`, in a fixed order.

    Raises:
        CavSamError: nothing lies there as it should, or a mask is missing.
    """
    if not root.is_dir():
        raise CavSamError(f"There is no folder {root}; give the folder that holds the set {name}.")
    samples = READERS[name](root)
    if name != "folder":
        samples.sort(key=lambda sample: (sample.class_name, sample.image))
    if not samples:
        expected = " ".join((READERS[name].__doc__ or "").split())
        raise CavSamError(f"{root} holds nothing of the set {name}. Expected: {expected}")
    for sample in samples:
        if not (root / sample.mask).is_file():
            raise CavSamError(f"The mask {root / sample.mask} is missing; fetch the set again.")
    return samples


@dataclass(frozen=True)
class ListedEpisode:
    """An episode of a list: what is asked, and on which files."""

    index: int
    target: Sample
    references: tuple[Sample, ...]


def draw_episodes(samples: Sequence[Sample], shots: int, count: int | None, seed: int) -> list[ListedEpisode]:
    """Draw a seeded list of episodes: each object is the target once, with references from other images of its class.

    If `count` is given, only the first of a shuffled order are targets.

    Raises:
        CavSamError: a class has too few images for its references.
    """
    rng = np.random.default_rng(seed)
    of_class = defaultdict(list)
    for sample in samples:
        of_class[sample.class_name].append(sample)
    order = rng.permutation(len(samples))[:count]
    episodes = []
    for index, number in enumerate(order):
        target = samples[number]
        others = [sample for sample in of_class[target.class_name] if sample.image != target.image]
        if len(others) < shots:
            raise CavSamError(f"The class {target.class_name!r} has too few images for {shots} references.")
        drawn = rng.choice(len(others), size=shots, replace=False)
        episodes.append(ListedEpisode(index, target, tuple(others[i] for i in drawn)))
    return episodes


def draw_far_episodes(
    root: Path,
    samples: Sequence[Sample],
    shots: int,
    per_class: int | None,
    seed: int,
    per_domain: int | None = None,
) -> list[ListedEpisode]:
    """Draw a seeded list whose references are far from their target, for classes whose neighbours look alike.

    Each picture of a class is the target once, or `per_class` of them. Its references are drawn from those pictures
    that show the object and lie at least a third of the class's list away. If those are too few, the farthest others
    are taken too. The classes take turns, so that an interrupted run has some of each. A class's own episodes depend
    neither on the other classes nor, but for how many there are, on `per_class` and `per_domain`.

    Args:
        root: the set's folder, for the masks.
        samples: each class's in an order in which neighbours are alike, as `read_folder` gives them.
        shots: references per episode.
        per_class: targets of each class; None for all.
        seed: of every draw.
        per_domain: targets of each domain at most, its classes in turn; None for no bound.

    Raises:
        CavSamError: a class has too few pictures for its references.
    """
    classes = defaultdict(list)
    for sample in samples:
        classes[sample.domain, sample.class_name].append(sample)
    shown = {sample: bool(read_mask(root / sample.mask).any()) for sample in samples}
    drawn = []
    for (domain, name), own in classes.items():
        rng = np.random.default_rng([seed, zlib.crc32(f"{domain}/{name}".encode())])
        targets = rng.permutation(len(own))[:per_class]
        for turn, target in enumerate(targets):
            far = (len(own) + 2) // 3
            others = [i for i in rng.permutation(len(own)) if i != target and shown[own[i]]]
            others.sort(key=lambda i: -min(far, abs(i - target)))  # stable: those far enough stay shuffled
            if len(others) < shots:
                raise CavSamError(
                    f"The class {name!r} of {domain!r} has too few pictures for {shots} references and a target; it "
                    f"needs {shots + 1} that show the object."
                )
            drawn.append((turn, own[target], tuple(own[i] for i in others[:shots])))
    return _in_turns(drawn, per_domain)


def draw_absent_episodes(
    root: Path,
    samples: Sequence[Sample],
    shots: int,
    per_class: int,
    seed: int,
    per_domain: int | None = None,
) -> list[ListedEpisode]:
    """Draw a seeded list of targets that do not show their class: pictures of other domains.

    Nobody looked at these pictures for the class. So classes with a word of their names in common lend each other no
    picture (`car` and `car-shadow`); that of a street may still show the sky.

    Args:
        root: the set's folder, for the masks.
        samples: as `read_folder` gives them.
        shots: references per episode, drawn from all pictures that show the class.
        per_class: targets of each class.
        seed: of every draw.
        per_domain: targets of each domain at most, its classes in turn; None for no bound.

    Raises:
        CavSamError: there are no pictures of other domains, or a class has too few references.
    """
    classes = defaultdict(list)
    for sample in samples:
        classes[sample.domain, sample.class_name].append(sample)
    drawn = []
    for (domain, name), own in classes.items():
        rng = np.random.default_rng([seed, zlib.crc32(f"{domain}/{name}/absent".encode())])
        others: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if sample.domain != domain and not _words(name) & _words(sample.class_name):
                others[sample.domain].append(sample)
        shown = [sample for sample in own if read_mask(root / sample.mask).any()]
        if not others:
            raise CavSamError(f"No other domain has a picture without {name!r}; targets that lack it come from there.")
        if len(shown) < shots:
            raise CavSamError(f"The class {name!r} of {domain!r} has too few pictures for {shots} references.")
        for turn in range(per_class):
            lender = others[str(rng.choice(sorted(others)))]  # a domain counts as much as another, whatever its size
            lent = lender[rng.integers(len(lender))]
            references = tuple(shown[i] for i in rng.choice(len(shown), size=shots, replace=False))
            drawn.append((turn, Sample(lent.image, "", name, domain=domain), references))
    return _in_turns(drawn, per_domain)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", name.lower()))


def _in_turns(drawn: list[tuple[int, Sample, tuple[Sample, ...]]], per_domain: int | None) -> list[ListedEpisode]:
    """Order (turn, target, references) by the turn, and keep `per_domain` of each domain."""
    kept = []
    of_domain: dict[str, int] = defaultdict(int)
    for _, target, references in sorted(drawn, key=lambda entry: entry[0]):
        of_domain[target.domain] += 1
        if per_domain is None or of_domain[target.domain] <= per_domain:
            kept.append((target, references))
    return [ListedEpisode(index, target, references) for index, (target, references) in enumerate(kept)]


def list_text(episodes: Sequence[ListedEpisode]) -> str:
    """Write episodes as text: one per line, as JSON."""
    lines = [
        json.dumps({"target": vars(episode.target), "references": [vars(sample) for sample in episode.references]})
        for episode in episodes
    ]
    return "\n".join(lines) + "\n"


def write_list(path: Path, episodes: Sequence[ListedEpisode]) -> None:
    """Write `list_text`; `read_list` gives the same back."""
    partial = path.with_suffix(".partial")
    partial.write_text(list_text(episodes), encoding="utf-8")
    os.replace(partial, path)


def read_list(path: Path) -> list[ListedEpisode]:
    """Read a list that `write_list` wrote; raises `CavSamError` if it is not one."""
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            ListedEpisode(index, _sample(entry["target"]), tuple(_sample(sample) for sample in entry["references"]))
            for index, entry in enumerate(entries)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CavSamError(f"{path} is not a list of episodes ({error}); leave --list out to draw one.") from error


def load_episode(name: str, root: Path, listed: ListedEpisode) -> Episode:
    """Read the files of a listed episode; raises `CavSamError` if one cannot be read."""
    class_name = listed.target.class_name
    references = []
    for sample in listed.references:
        image, mask = read_sample(root, sample)
        references.append(Reference(image, {class_name: mask}))
    image, truth = read_sample(root, listed.target)
    return Episode(listed.target.domain or name, listed.index, class_name, tuple(references), image, truth)


def _sample(entry: dict) -> Sample:
    colour = entry["colour"]
    colour = tuple(colour) if colour else None
    return Sample(entry["image"], entry["mask"], entry["class_name"], colour, entry.get("domain", ""))


def _colour_coded(root: Path, pairs: Sequence[tuple[Path, Path]], colours: dict[str, Colour]) -> list[Sample]:
    """Make a sample for each class that covers enough of an image."""
    found = []
    for image, mask in pairs:
        if not mask.is_file():
            raise CavSamError(f"The mask {mask} is missing; fetch the set again.")
        pixels = read_image(mask)
        for name, colour in colours.items():
            if _of_colour(pixels, colour).mean() >= SMALLEST:
                found.append(Sample(_relative(image, root), _relative(mask, root), name, colour))
    return found


def _of_colour(pixels: NDArray[np.uint8], colour: Colour) -> NDArray[np.bool_]:
    """Find the pixels of a colour whose channels are 0 or 255, with the tolerance that lossy files need."""
    return ((pixels > 127) == (np.array(colour) > 127)).all(axis=2)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _beside(folder: Path, stem: str) -> Path:
    """Name the file of a stem in `folder`, whatever its suffix; a .png if there is none."""
    return next(iter(sorted(folder.glob(f"{stem}.*"))), folder / f"{stem}.png")


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
