"""A backbone of true shape with random weights: its features make the regions, and say what the fingerprint says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model

from cavsam import AdaptedReference, CavSam, Recipe, Reference
from cavsam.backbone import DEVIATION, MEAN, PatchTransformer
from cavsam.candidates.linear import backbone_linear_logits
from cavsam.errors import ModelError
from cavsam.features import iou, without_overlap
from cavsam.scoring.calibration import Calibration
from cavsam.tracking import Tracker
from cavsam.video import masks_square, picture_square
from cavsam.weights.loading import load_backbone
from cavsam.weights.sources import ModelSources, are_here, features_digest, fingerprint
from tests.support.candidates import ALL_KNOWN
from tests.support.tiny_models import blob_picture

CPU = torch.device("cpu")
RECIPE = Recipe(mode="ttga", ttga_steps=2, region_fallback=True, min_separation=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of dinov2-small's shape, but for its depth and its pictures of 5 x 5 patches."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=2, image_size=70, patch_size=14, mlp_ratio=4
    )
    path = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(config).eval().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def backbone(folder: Path) -> PatchTransformer:
    return load_backbone(ModelSources(features=str(folder)), CPU)


@pytest.fixture
def reference(rng: np.random.Generator) -> Reference:
    return blob_picture(rng, 120, 160)


def test_the_cells_are_the_patches_in_the_order_of_the_picture(backbone: PatchTransformer) -> None:
    images = torch.rand(2, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    features = backbone(images)
    assert features.shape == (2, 384, 5, 5)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    with torch.no_grad():
        tokens = backbone.model(pixel_values=(images - mean) / deviation).last_hidden_state
    for row, column in ((0, 0), (1, 3), (4, 4)):  # the first token is the picture's own
        torch.testing.assert_close(features[1, :, row, column], tokens[1, 1 + 5 * row + column])


def test_any_square_is_scaled_to_the_backbones_own(backbone: PatchTransformer) -> None:
    small = torch.rand(1, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(small, scale_factor=3, mode="nearest")
    assert F.cosine_similarity(backbone(small), backbone(large)).min() > 0.9


def test_regions_are_made_of_its_features_and_every_candidate_says_how_it_agrees(
    tracker: Tracker, backbone: PatchTransformer, reference: Reference, rng: np.random.Generator
) -> None:
    target = blob_picture(rng, 90, 130).image
    own, other = (CavSam(tracker, None, RECIPE, calibration=ALL_KNOWN, backbone=b) for b in (None, backbone))
    (without,), (found,) = (list(model.segment(model.adapt([reference]), [target])) for model in (own, other))
    size, labels = tracker.image_size, tuple(reference.masks)
    squares = torch.stack([picture_square(image, size, CPU) for image in (reference.image, target)])
    logits = backbone_linear_logits(backbone(squares), masks_square(reference.masks, labels, size)[None])
    marked = without_overlap(logits)
    for index, label in enumerate(labels):
        tracked, region = found.candidates[label]
        assert (tracked.kind, region.kind) == ("ttga", "activation")
        assert np.array_equal(tracked.mask, without.candidates[label][0].mask)
        assert not np.array_equal(region.mask, without.candidates[label][1].mask)
        mask = torch.from_numpy(tracked.mask)
        assert region.cues["agreement"] == pytest.approx(iou(torch.from_numpy(region.mask), mask))
        assert tracked.cues["agreement"] == pytest.approx(iou(mask, marked[index]))
        assert "agreement" not in without.candidates[label][0].cues


def test_regions_are_uncalibrated_unless_the_backbone_was_fitted_with(backbone: PatchTransformer) -> None:
    known = Calibration(ALL_KNOWN.overlap, ALL_KNOWN.presence, "", Recipe().to_dict())
    beside = known.beside(backbone.digest)
    assert [known.holds(kind, Recipe()) for kind in ("concat", "linear", "activation")] == [True] * 3
    assert [beside.holds(kind, Recipe()) for kind in ("concat", "linear", "activation")] == [True, False, False]
    fitted = Calibration(known.overlap, known.presence, "", known.recipe, features=backbone.digest)
    assert fitted.beside(backbone.digest).holds("linear", Recipe())
    assert not fitted.beside("").holds("linear", Recipe())


def test_its_features_survive_the_disk(
    tracker: Tracker, backbone: PatchTransformer, reference: Reference, tmp_path: Path
) -> None:
    model = CavSam(tracker, None, RECIPE, calibration=ALL_KNOWN, backbone=backbone)
    adapted = model.adapt([reference])
    adapted.save(tmp_path / "a.safetensors")
    again = AdaptedReference.load(tmp_path / "a.safetensors")
    assert adapted.features is not None
    assert again.features is not None
    assert torch.equal(again.features, adapted.features)
    (first,), (second,) = (list(model.segment(one, [reference.image])) for one in (adapted, again))
    assert first.scores == second.scores


def test_it_is_part_of_the_fingerprint_by_its_content(folder: Path, tmp_path: Path) -> None:
    nano = ModelSources.named("nano")
    with_it = nano.replace(features=str(folder))
    assert (with_it.name, with_it.preset) == ("nano", "bundled")
    assert are_here(with_it)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in folder.iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    moved = nano.replace(features=str(elsewhere))
    assert fingerprint(moved, Recipe()) == fingerprint(with_it, Recipe()) != fingerprint(nano, Recipe())
    assert features_digest(moved) == features_digest(with_it)
    config = elsewhere / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-06', '"layer_norm_eps": 1e-05'))
    assert fingerprint(moved, Recipe()) != fingerprint(with_it, Recipe())


@pytest.mark.usefixtures("offline")
def test_what_is_no_backbone_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    cases = {
        str(tmp_path / "absent"): "no backbone",
        "someone/model": "cavsam download",
        str(tmp_path): "must hold config.json and model.safetensors",
    }
    for source, message in cases.items():
        with pytest.raises(ModelError, match=message) as caught:
            load_backbone(ModelSources(features=source), CPU)
        assert "\n" not in str(caught.value)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((folder / "config.json").read_text())
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be loaded as a vision transformer"):
        load_backbone(ModelSources(features=str(broken)), CPU)
