"""The bundled SAM2-nano: of SAM2's structure, and small."""

from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from cavsam.weights.loading import SAM2_PACKAGE
from cavsam.weights.sources import NANO

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
