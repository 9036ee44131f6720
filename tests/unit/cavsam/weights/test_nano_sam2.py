"""The bundled SAM2-nano: built by the ordinary loaders, of SAM2's structure, small, and able to track."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from cavsam.tracking import Prompt
from cavsam.weights.loading import SAM2_PACKAGE, load_tracker
from cavsam.weights.sources import NANO, ModelSources
from research import synth

FOLDER = NANO / "sam2"
SIZES = {
    "embed_dim",
    "stages",
    "global_att_blocks",
    "window_spec",
    "window_pos_embed_bkg_spatial_size",
    "num_pos_feats",
    "d_model",
    "backbone_channel_list",
    "dim_feedforward",
    "dropout",
    "feat_sizes",
    "embedding_dim",
    "kv_in_dim",
    "num_layers",
    "in_dim",
    "out_dim",
    "dim",
    "image_size",
}


def flattened(node, path=()):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from flattened(value, (*path, key))
    else:
        yield path, node


def test_only_sizes_differ_from_the_released_configuration():
    nano = OmegaConf.to_container(OmegaConf.load(FOLDER / "sam2_nano.yaml").model)
    released = OmegaConf.to_container(OmegaConf.load(SAM2_PACKAGE / "configs/sam2.1/sam2.1_hiera_t.yaml").model)
    ours = {path: value for path, value in flattened(nano) if path[-1] not in SIZES}
    theirs = {path: value for path, value in flattened(released) if path[-1] not in SIZES}
    assert ours == theirs


def test_the_weights_are_small_and_half_precision():
    weights = FOLDER / "sam2_nano.safetensors"
    with safe_open(weights, "pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float16}  # noqa: SIM118
    assert sum(file.stat().st_size for file in Path(NANO).rglob("*.safetensors")) <= 20e6


@pytest.fixture(scope="module")
def tracker():
    return load_tracker(ModelSources.named("nano"), torch.device("cpu"))


def test_it_follows_an_object_through_smooth_clips(tracker):
    ious = []
    names = synth.classes("textures", "dev")
    for index in range(8):
        clip = synth.clip(names[index], seed=synth.seed_of("dev", 500 + index), length=3, absent=False)
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 255
        prompt = Prompt(frame=0, label=0, mask=torch.from_numpy(clip.masks[0]))
        track = tracker.track(tracker.trunk(frames), [prompt], 1, read=2)
        found, truth = (track.logits[0] > 0).numpy(), clip.masks[2]
        if truth.any():
            ious.append((found & truth).sum() / (found | truth).sum())
    assert np.mean(ious) > 0.6


def test_its_object_score_is_lower_where_the_object_is_gone(tracker):
    names = synth.classes("textures", "dev")
    scores: dict[bool, list[float]] = {True: [], False: []}
    for index in range(40):
        clip = synth.clip(names[index % len(names)], seed=synth.seed_of("dev", 600 + index), length=3)
        shown = bool(clip.masks[2].any())
        if shown and len(scores[True]) > 6:
            continue
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 255
        prompt = Prompt(frame=0, label=0, mask=torch.from_numpy(clip.masks[0]))
        track = tracker.track(tracker.trunk(frames), [prompt], 1, read=2)
        scores[shown].append(float(track.object_scores[0]))
    assert len(scores[False]) >= 3
    assert np.median(scores[True]) > np.median(scores[False])
