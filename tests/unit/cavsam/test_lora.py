"""The LoRA bank against merged weights and against single fits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cavsam import lora
from cavsam.diffusion import LatentDiffusion
from cavsam.errors import NumericalError
from cavsam.recipe import Recipe
from cavsam.transition import fit_images, invert


def random_bank(unet: nn.Module, count: int, seed: int = 0) -> lora.LoraBank:
    """Adapters whose B is not zero, as after a fit."""
    bank = lora.new_bank(unet, count, rank=4, seed=seed)
    generator = torch.Generator().manual_seed(seed + 100)
    # independent A per adapter as well, so that a mix-up of adapters shows
    down = {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in bank.down.items()}
    up = {name: torch.randn(t.shape, generator=generator) * 0.2 for name, t in bank.up.items()}
    return lora.LoraBank(down, up)


def inputs(model: LatentDiffusion, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, 4, 8, 8, generator=generator), torch.randn(batch, 16, 16, generator=generator)


def test_every_attention_projection_is_adapted(diffusion: LatentDiffusion) -> None:
    names = set(lora.attention_projections(diffusion.unet))
    blocks = [name for name, module in diffusion.unet.named_modules() if type(module).__name__ == "Attention"]
    assert blocks
    assert names == {f"{block}.{projection}" for block in blocks for projection in lora.PROJECTIONS}


@pytest.mark.parametrize("mix", ["delta", "factor"])
def test_mixed_bank_equals_merged_weights(diffusion: LatentDiffusion, mix: lora.LoraMix) -> None:
    """Each sample of a batch sees W + sum w B A (or the mixed factors), as if its weights had been merged."""
    bank = random_bank(diffusion.unet, 3)
    weights = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.3, 0.6]])
    latents, embeddings = inputs(diffusion, 2)
    with torch.no_grad(), lora.attached(diffusion.unet, bank, weights, mix):
        mixed = diffusion.predict(latents, 500, embeddings)
    for sample in range(2):
        merged = copy.deepcopy(diffusion.unet)
        for name, layer in lora.attention_projections(merged).items():
            down, up, w = bank.down[name].double(), bank.up[name].double(), weights[sample].double()
            if mix == "delta":
                delta = torch.einsum("n,nor,nri->oi", w, up, down)
            else:
                delta = torch.einsum("n,nor->or", w, up) @ torch.einsum("n,nri->ri", w, down)
            layer.weight.data += delta.float()
        with torch.no_grad():
            expected = merged(latents[sample : sample + 1], 500, embeddings[sample : sample + 1]).sample
        torch.testing.assert_close(mixed[sample : sample + 1], expected, atol=1e-4, rtol=1e-4)


def test_the_two_mixes_differ_between_the_ends(diffusion: LatentDiffusion) -> None:
    bank = random_bank(diffusion.unet, 2)
    latents, embeddings = inputs(diffusion, 1)
    results = []
    for mix in ("delta", "factor"):
        with torch.no_grad(), lora.attached(diffusion.unet, bank, torch.tensor([[0.5, 0.5]]), mix):
            results.append(diffusion.predict(latents, 500, embeddings))
    assert not torch.allclose(results[0], results[1], atol=1e-4)


def test_detached_unet_is_as_before(diffusion: LatentDiffusion) -> None:
    latents, embeddings = inputs(diffusion, 1)

    def interrupted() -> None:
        with lora.attached(diffusion.unet, random_bank(diffusion.unet, 1), torch.ones(1, 1)):
            assert not torch.equal(diffusion.predict(latents, 10, embeddings), before)
            raise ZeroDivisionError

    with torch.no_grad():
        before = diffusion.predict(latents, 10, embeddings)
        with pytest.raises(ZeroDivisionError):
            interrupted()
        assert torch.equal(diffusion.predict(latents, 10, embeddings), before)


@pytest.mark.parametrize("count", [2, 3])
def test_a_batch_of_fits_equals_single_fits(diffusion: LatentDiffusion, count: int) -> None:
    recipe = Recipe(lora_steps=5, lora_rank=4, lora_lr=1e-3)
    latents, embeddings = inputs(diffusion, count)
    together, _ = diffusion.fit_loras(latents, embeddings, recipe)
    start = lora.new_bank(diffusion.unet, 1, 4, recipe.seed)
    for image in range(count):
        alone, _ = diffusion.fit_loras(latents[image : image + 1], embeddings[image : image + 1], recipe)
        for name in alone.down:
            assert not torch.equal(alone.down[name], start.down[name])  # it did learn
            torch.testing.assert_close(together.down[name][image], alone.down[name][0], atol=2e-4, rtol=1e-3)
            torch.testing.assert_close(together.up[name][image], alone.up[name][0], atol=2e-4, rtol=1e-3)


def test_fitting_is_reproducible_and_lowers_the_loss(diffusion: LatentDiffusion) -> None:
    recipe = Recipe(lora_steps=40, lora_rank=8, lora_lr=5e-3)
    latents, embeddings = inputs(diffusion, 1)
    flags = [parameter.requires_grad for parameter in diffusion.unet.parameters()]
    bank, (losses,) = diffusion.fit_loras(latents, embeddings, recipe)
    again, (losses_again,) = diffusion.fit_loras(latents, embeddings, recipe)
    assert losses == losses_again
    assert all(torch.equal(bank.up[name], again.up[name]) for name in bank.up)
    assert sum(losses[-15:]) < sum(losses[:15])
    assert flags == [parameter.requires_grad for parameter in diffusion.unet.parameters()]
    assert not any(tensor.requires_grad for tensor in bank.parameters())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bad_image_spoils_its_own_adapter_only(diffusion: LatentDiffusion, value: float) -> None:
    recipe = Recipe(lora_steps=8, lora_rank=4, lora_lr=1e-3)
    latents, embeddings = inputs(diffusion, 3)
    spoilt = latents.clone()
    spoilt[1, 0, 3, 4] = value
    good, good_losses = diffusion.fit_loras(latents, embeddings, recipe)
    found, losses = diffusion.fit_loras(spoilt, embeddings, recipe)
    for image in (0, 2):
        assert losses[image] == good_losses[image]
        for name in good.down:
            assert torch.equal(found.down[name][image], good.down[name][image])
            assert torch.equal(found.up[name][image], good.up[name][image])
        lora.check_losses(losses[image])
    with pytest.raises(NumericalError, match="lora_lr"):
        lora.check_losses(losses[1])


def test_a_bad_image_is_an_error_of_its_own(diffusion: LatentDiffusion) -> None:
    recipe = Recipe(lora_steps=2, lora_rank=2, ddim_steps=2)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images[1] = torch.nan
    first, bad, last = fit_images(diffusion, images, "cell", recipe)
    for one in (first, last):
        assert invert(diffusion, one, recipe).latent.isfinite().all()
    with pytest.raises(NumericalError, match="lora_lr"):
        invert(diffusion, bad, recipe)


def test_joined_banks_keep_their_order(diffusion: LatentDiffusion) -> None:
    banks = [random_bank(diffusion.unet, 1, seed) for seed in (1, 2)]
    joined = lora.LoraBank.joined(banks)
    assert len(joined) == 2
    for index, bank in enumerate(banks):
        assert all(torch.equal(joined.up[name][index], bank.up[name][0]) for name in bank.up)
