"""One checkpoint file: under the published names, without the hub, and clear about what it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from cavsam.diffusion import LatentDiffusion
from cavsam.errors import ModelError
from cavsam.weights.loading import load_diffusion
from cavsam.weights.single_file import SD2, load_single_file
from cavsam.weights.sources import ModelSources
from research.original_names import original_checkpoint
from tests.support.tiny_models import Touch, save_diffusion

CPU = torch.device("cpu")


@pytest.fixture
def original(diffusion: LatentDiffusion) -> dict[str, Tensor]:
    """The tiny model's tensors under the published names."""
    unet, vae, text_encoder = (part.state_dict() for part in (diffusion.unet, diffusion.vae, diffusion.text_encoder))
    tensors = original_checkpoint(unet, vae, text_encoder, diffusion.unet.config.layers_per_block)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@pytest.fixture
def config(diffusion: LatentDiffusion, tmp_path: Path) -> Path:
    """The tiny model's configuration, without weights."""
    folder = tmp_path / "config"
    save_diffusion(diffusion, folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        (folder / name).write_text((SD2 / name).read_text())
    return folder


def write(tensors: dict[str, Tensor], file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors, "global_step": 3}, file)
    return file


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["v2-1_512-ema-pruned.safetensors", "512-base-ema.ckpt"])
def test_a_file_of_the_published_names_loads(
    diffusion: LatentDiffusion, original: dict[str, Tensor], config: Path, tmp_path: Path, name: str
) -> None:
    parts = load_single_file(write(original, tmp_path / name), config)
    for part in ("vae", "unet", "text_encoder"):
        loaded, expected = parts[part].state_dict(), getattr(diffusion, part).state_dict()
        assert loaded.keys() == expected.keys()
        for key, tensor in loaded.items():
            assert torch.equal(tensor, expected[key]), f"{part}.{key}"
    assert parts["tokenizer"]("a cell").input_ids == diffusion.tokenizer("a cell").input_ids
    assert parts["scheduler"].config.prediction_type == "epsilon"


def test_the_published_names_are_those_of_the_authors(original: dict[str, Tensor]) -> None:
    """A name of each kind, as they stand in the published checkpoints."""
    for name, shape in {
        "model.diffusion_model.time_embed.2.weight": (64, 64),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (16, 16),
        "model.diffusion_model.input_blocks.2.0.op.weight": (16, 16, 3, 3),
        "model.diffusion_model.input_blocks.3.0.in_layers.2.weight": (32, 16, 3, 3),
        "model.diffusion_model.middle_block.1.proj_in.bias": (32,),
        "model.diffusion_model.output_blocks.1.1.conv.weight": (32, 32, 3, 3),
        "model.diffusion_model.out.2.weight": (4, 16, 3, 3),
        "first_stage_model.encoder.down.0.block.0.norm1.weight": (8,),
        "first_stage_model.encoder.mid.attn_1.q.weight": (8, 8, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.bias": (8,),
        "first_stage_model.decoder.norm_out.weight": (8,),
        "first_stage_model.post_quant_conv.weight": (4, 4, 1, 1),
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": (48, 16),
        "cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.bias": (32,),
        "cond_stage_model.model.positional_embedding": (16, 16),
        "cond_stage_model.model.ln_final.weight": (16,),
    }.items():
        assert original[name].shape == shape, name


def test_the_configuration_is_that_of_stable_diffusion_2() -> None:
    """The parameters are counted, without memory, against the published numbers."""
    with torch.device("meta"):
        counted = {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD2, subfolder="unet")),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(SD2, subfolder="vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(SD2, subfolder="text_encoder")),
        }
    numbers = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in counted.items()}
    assert numbers == {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}


@pytest.mark.parametrize(
    ("name", "parameterization", "expected"),
    [
        ("v2-1_512-ema-pruned.safetensors", None, "epsilon"),
        ("v2-1_768-ema-pruned.safetensors", None, "v_prediction"),
        ("mine.safetensors", "v", "v_prediction"),
        ("mine.safetensors", "eps", "epsilon"),
        ("mine.safetensors", None, None),
    ],
)
def test_what_the_unet_predicts_is_told_by_the_file(
    original: dict[str, Tensor], config: Path, tmp_path: Path, name: str, parameterization: str | None, expected: str
) -> None:
    file = write(original, tmp_path / name)
    if parameterization:
        settings = {"model": {"params": {"parameterization": parameterization}}}
        file.with_suffix(".yaml").write_text(json.dumps(settings))
    if expected is None:
        with pytest.raises(ModelError, match="put 512 or 768 into its name"):
            load_single_file(file, config)
    else:
        assert load_single_file(file, config)["scheduler"].config.prediction_type == expected


def test_the_tokenizer_is_clip_s(original: dict[str, Tensor], config: Path, tmp_path: Path) -> None:
    """Read from the merges that are shipped; the numbers of these words are those of CLIP's published vocabulary."""
    for file in (config / "tokenizer").iterdir():
        file.unlink()
    (config / "tokenizer" / "merges.txt").write_text((SD2 / "tokenizer" / "merges.txt").read_text())
    tokenizer = load_single_file(write(original, tmp_path / "512.safetensors"), config)["tokenizer"]
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A  Dog", padding="max_length", max_length=6).input_ids == [49406, 320, 1929, 49407, 0, 0]
    assert len(tokenizer) == 49408
    assert tokenizer.decode(tokenizer("über-é").input_ids, skip_special_tokens=True).replace(" ", "") == "über-é"


def test_what_cannot_be_loaded_is_said_in_one_sentence(original: dict[str, Tensor], tmp_path: Path) -> None:
    inner = "model.diffusion_model.input_blocks.0.0.weight"
    cases = {
        "an adapter": {"lora_unet.down.weight": torch.zeros(2, 2)},
        "Stable Diffusion XL": original | {"conditioner.embedders.0.transformer.x": torch.zeros(1)},
        "9 input channels": original | {inner: torch.zeros(16, 9, 3, 3)},
        "without the text encoder": {name: tensor for name, tensor in original.items() if "cond_stage" not in name},
    }
    for message, tensors in cases.items():
        with pytest.raises(ModelError, match=message) as caught:
            load_diffusion(ModelSources(diffusion=str(write(tensors, tmp_path / "512.safetensors"))), CPU)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_runs_no_code(original: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": original, "callbacks": Touch(tmp_path / "touched")}, tmp_path / "512.ckpt")
    (tmp_path / "512.safetensors").write_bytes(b"nothing")
    for name in ("512.ckpt", "512.safetensors"):
        with pytest.raises(ModelError, match=r"use the model's \.safetensors file"):
            load_diffusion(ModelSources(diffusion=str(tmp_path / name)), CPU)
    assert not (tmp_path / "touched").exists()
