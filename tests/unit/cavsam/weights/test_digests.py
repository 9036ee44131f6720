"""Weights count by their content, which is read once, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cavsam.diffusion import LatentDiffusion
from cavsam.errors import ModelError
from cavsam.recipe import Recipe
from cavsam.weights.digests import KEPT, KEPT_FROM, content_digest
from cavsam.weights.sources import ModelSources, are_here, fingerprint, frames_fingerprint
from tests.support.tiny_models import save_diffusion

SAM2, DIFFUSION = "facebook/sam2.1-hiera-tiny", "someone/model"
PAIR = ModelSources(sam2=SAM2, diffusion=DIFFUSION)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def put_into_cache(folder: Path, cache: Path, hub_id: str, commit: str = "1" * 40) -> Path:
    """Lay a folder out as the hub's client does: large files as blobs of their SHA-256, links in a snapshot."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    for file in (file for file in folder.rglob("*") if file.is_file()):
        content = file.read_bytes()
        large = file.suffix in (".safetensors", ".pt", ".bin")
        name = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
        blob = repository / "blobs" / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = repository / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return repository


@pytest.fixture
def local(diffusion: LatentDiffusion, tmp_path: Path) -> tuple[Path, Path]:
    """Local folders of a SAM2 checkpoint and of a diffusion model."""
    sam2, folder = tmp_path / "sam2", tmp_path / "diffusion"
    sam2.mkdir()
    (sam2 / "sam2.1_hiera_tiny.pt").write_bytes(b"weights of SAM2" * 100)
    save_diffusion(diffusion, folder)
    return sam2, folder


def large_file(path: Path, content: bytes = b"first") -> Path:
    """A file whose digest is kept; nearly all of it is a hole, which takes no disk."""
    path.write_bytes(content)
    os.truncate(path, KEPT_FROM)
    return path


def test_weights_of_the_hub_count_by_content_once_they_are_here(cache: Path, local: tuple[Path, Path]) -> None:
    sam2, diffusion = local
    folders = ModelSources(sam2=str(sam2), diffusion=str(diffusion))
    by_name = fingerprint(PAIR, Recipe())
    assert not are_here(PAIR)
    put_into_cache(sam2, cache, SAM2)
    put_into_cache(diffusion, cache, DIFFUSION)
    assert are_here(PAIR)
    assert fingerprint(PAIR, Recipe()) == fingerprint(folders, Recipe()) != by_name
    assert frames_fingerprint(PAIR, Recipe()) == frames_fingerprint(folders, Recipe())


def test_another_revision_is_another_model_and_an_equal_one_is_not(cache: Path, local: tuple[Path, Path]) -> None:
    sam2, diffusion = local
    put_into_cache(sam2, cache, SAM2)
    put_into_cache(diffusion, cache, DIFFUSION)
    first = fingerprint(PAIR, Recipe())
    put_into_cache(sam2, cache, SAM2, "2" * 40)
    assert fingerprint(PAIR, Recipe()) == first
    (sam2 / "sam2.1_hiera_tiny.pt").write_bytes(b"other weights" * 100)
    put_into_cache(sam2, cache, SAM2, "3" * 40)
    assert fingerprint(PAIR, Recipe()) != first
    assert fingerprint(PAIR.replace(sam2_revision="2" * 40), Recipe()) == first


def test_what_nothing_is_read_from_does_not_count(cache: Path, local: tuple[Path, Path]) -> None:
    _, diffusion = local
    sources = PAIR.replace(diffusion=str(diffusion))
    first = fingerprint(sources, Recipe())
    for unread in ("README.md", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"):
        (diffusion / unread).write_bytes(b"never read")
        assert fingerprint(sources, Recipe()) == first
    config = diffusion / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert fingerprint(sources, Recipe()) != first


def test_a_model_that_was_fetched_in_part_is_not_here(cache: Path, local: tuple[Path, Path]) -> None:
    sam2, diffusion = local
    next((diffusion / "unet").glob("*.safetensors")).unlink()
    put_into_cache(sam2, cache, SAM2)
    before = fingerprint(PAIR, Recipe())
    put_into_cache(diffusion, cache, DIFFUSION)
    assert not are_here(PAIR)
    assert fingerprint(PAIR, Recipe()) == before


def test_a_blob_of_the_hub_is_not_read(cache: Path, local: tuple[Path, Path]) -> None:
    repository = put_into_cache(local[0], cache, SAM2)
    (link,) = repository.glob("snapshots/*/*.pt")
    named = link.resolve().name
    link.resolve().write_bytes(b"what the name does not say")
    assert content_digest(link) == named


def test_a_large_file_is_read_once_and_again_when_it_changes(tmp_path: Path) -> None:
    file = large_file(tmp_path / "weights.safetensors")
    moment = file.stat().st_mtime_ns
    first = content_digest(file)
    assert first == hashlib.sha256(file.read_bytes()).hexdigest()
    with file.open("r+b") as stream:
        stream.write(b"other")
    os.utime(file, ns=(moment, moment))
    assert content_digest(file) == first  # as its size and moment say: it was not read again
    os.utime(file, ns=(moment, moment + 1))
    assert content_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest() != first


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"weights.safetensors": 3}', '{"weights.safetensors": [1, 2, "x"]}', "\0"]
)
def test_a_damaged_record_is_written_anew(tmp_path: Path, damage: str) -> None:
    file = large_file(tmp_path / "weights.safetensors")
    first = content_digest(file)
    good = (tmp_path / KEPT).read_text()
    (tmp_path / KEPT).write_text(damage)
    assert content_digest(file) == first
    assert (tmp_path / KEPT).read_text() == good


def test_a_folder_that_cannot_be_written_does_not_fail(tmp_path: Path) -> None:
    file = large_file(tmp_path / "weights.safetensors")
    (tmp_path / KEPT).mkdir()  # whoever may write everywhere cannot write this either
    assert content_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == [KEPT, file.name]


def test_small_files_leave_no_record(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert content_digest(tmp_path / "config.json") == hashlib.sha256(b"{}").hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(ModelError, match="link cannot be read"):
        content_digest(tmp_path / "link")
