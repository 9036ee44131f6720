"""The published names of a Stable Diffusion checkpoint's tensors, from diffusers' names.

diffusers reads the published names and does not write them. A file of them is needed to prove that such files load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
TEXT_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
TEXT_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def original_checkpoint(
    unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], text_encoder: Mapping[str, Tensor], layers_per_block: int
) -> dict[str, Tensor]:
    """Rename the tensors of a model's parts as Stable Diffusion 2.x was published, with an OpenCLIP text encoder.

    Args:
        unet: by diffusers' names.
        vae: the same.
        text_encoder: by transformers' names.
        layers_per_block: of the UNet.

    Returns:
        One dictionary. What a published file has besides, the text encoder's unused last layer, is not in it.
    """
    stages = 1 + max(int(name.split(".")[2]) for name in vae if name.startswith("decoder.up_blocks."))
    attended = {".".join(name.split(".")[:2]) for name in unet if ".attentions." in name}
    renamed = {UNET + _unet_name(name, layers_per_block, attended): tensor for name, tensor in unet.items()}
    for name, tensor in vae.items():
        # the attention of the published VAE is a convolution of one pixel
        square = "attentions" in name and tensor.ndim == 2
        renamed[VAE + _vae_name(name, stages)] = tensor[..., None, None] if square else tensor
    return renamed | _text(text_encoder)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name


def _unet_name(name: str, layers: int, attended: Iterable[str]) -> str:
    match = re.fullmatch(
        r"((?:down|up|mid)_block(?:s\.(\d+))?)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    )
    if match is None:
        return _renamed(name, UNET_ENDS)
    block, stage, kind, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        rest = _renamed(rest, RESNET)
    place = "1" if kind == "attentions" else "0"
    if block == "mid_block":
        return f"middle_block.{2 * number if kind == 'resnets' else 1}.{rest}"
    if block.startswith("down_blocks"):
        if kind == "downsamplers":
            return f"input_blocks.{(stage + 1) * (layers + 1)}.0.{rest.replace('conv', 'op', 1)}"
        return f"input_blocks.{stage * (layers + 1) + number + 1}.{place}.{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{stage * (layers + 1) + layers}.{2 if block in attended else 1}.{rest}"
    return f"output_blocks.{stage * (layers + 1) + number}.{place}.{rest}"


def _vae_name(name: str, stages: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    # the published decoder counts its stages from the largest picture
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{stages - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{stages - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if match := re.fullmatch(r"(.+)\.mid_block\.attentions\.0\.(.+)", name):
        name = f"{match[1]}.mid.attn_1.{_renamed(match[2], VAE_ATTENTION)}"
    return name


def _text(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items() if "position_ids" not in name}
    renamed = {}
    for name, tensor in ours.items():
        if name in TEXT_ENDS:
            renamed[TEXT + TEXT_ENDS[name]] = tensor
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            layer, part, kind = f"{TEXT}transformer.resblocks.{match[1]}.", match[2], match[3]
            if part == "self_attn.q_proj":
                three = [ours[f"encoder.layers.{match[1]}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
                renamed[f"{layer}attn.in_proj_{kind}"] = torch.cat(three)
            elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
                renamed[f"{layer}{_renamed(part, TEXT_LAYER)}.{kind}"] = tensor
    width = ours["embeddings.token_embedding.weight"].shape[1]
    return renamed | {f"{TEXT}text_projection": torch.eye(width), f"{TEXT}logit_scale": torch.tensor(0.0)}
