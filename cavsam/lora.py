"""A bank of LoRA adapters on the attention projections of a diffusion UNet, and how it is fitted to images.

Each adapted linear layer holds n adapters; each sample of a batch carries its own mixture of them. Fitting n images at
once and denoising a whole transition in one batch are then the same operation with different mixture weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cavsam.errors import NumericalError
from cavsam.recipe import LoraMix

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class LoraBank:
    """n adapters for each adapted layer: `delta W_n = up_n @ down_n`.

    Attributes:
        down: layer name -> float32 (n, rank, in), the matrices A.
        up: layer name -> float32 (n, out, rank), the matrices B.
    """

    down: dict[str, Tensor]
    up: dict[str, Tensor]

    def __len__(self) -> int:
        return next(iter(self.down.values())).shape[0]

    def parameters(self) -> list[Tensor]:
        """Every tensor of the bank, in a fixed order."""
        return [*self.down.values(), *self.up.values()]

    def detached(self) -> LoraBank:
        """Copy the values without gradients."""
        return LoraBank(
            {name: t.detach() for name, t in self.down.items()},
            {name: t.detach() for name, t in self.up.items()},
        )

    def single(self) -> list[LoraBank]:
        """Part it into one bank for each adapter."""
        return [
            LoraBank(
                {name: tensor[n : n + 1].clone() for name, tensor in self.down.items()},
                {name: tensor[n : n + 1].clone() for name, tensor in self.up.items()},
            )
            for n in range(len(self))
        ]

    @classmethod
    def joined(cls, banks: Sequence[LoraBank]) -> LoraBank:
        """Join the adapters of all `banks`, in order."""
        return cls(
            {name: torch.cat([bank.down[name] for bank in banks]) for name in banks[0].down},
            {name: torch.cat([bank.up[name] for bank in banks]) for name in banks[0].up},
        )


def attention_projections(unet: nn.Module) -> dict[str, nn.Linear]:
    """List the linear layers that get adapters, by name: to_q, to_k, to_v and to_out.0 of every attention block."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{p}" for p in PROJECTIONS))
    }


def new_bank(unet: nn.Module, count: int, rank: int, seed: int) -> LoraBank:
    """`count` fresh adapters that all start from the same random A (deviation 1/rank) and B = 0."""
    generator = torch.Generator().manual_seed(seed)
    down, up = {}, {}
    for name, layer in attention_projections(unet).items():
        device = layer.weight.device
        first = torch.randn(1, rank, layer.in_features, generator=generator) / rank
        down[name] = first.repeat(count, 1, 1).to(device)
        up[name] = torch.zeros(count, layer.out_features, rank, device=device)
    return LoraBank(down, up)


@contextmanager
def attached(unet: nn.Module, bank: LoraBank, weights: Tensor, mix: LoraMix = "delta") -> Iterator[None]:
    """Let sample b of each batch of `unet` use the adapters mixed with `weights[b]`, inside the context.

    Args:
        unet: the model; its weights are not touched, and on leaving it is as before.
        bank: n adapters.
        weights: float (batch, n) mixture weights.
        mix: `delta` adds `sum_n w_n B_n A_n x`; `factor` adds `(sum_n w_n B_n)(sum_n w_n A_n) x`.
    """
    handles = []
    try:
        for name, layer in attention_projections(unet).items():
            hook = _adapter_hook(bank.down[name], bank.up[name], weights, mix)
            handles.append(layer.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


_Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


@contextmanager
def each_with_its_own(unet: nn.Module, bank: LoraBank) -> Iterator[None]:
    """Let sample n of each batch of `unet` use adapter n alone, inside the context.

    No number of one sample enters another's, as it would with a weight of zero: zero times NaN is NaN.
    """

    def hook(down: Tensor, up: Tensor) -> _Hook:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]  # (n, tokens, in)
            return output + x @ down.to(x.dtype).mT @ up.to(x.dtype).mT

        return add

    handles = []
    try:
        for name, layer in attention_projections(unet).items():
            handles.append(layer.register_forward_hook(hook(bank.down[name], bank.up[name])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adapter_hook(down: Tensor, up: Tensor, weights: Tensor, mix: LoraMix) -> _Hook:
    count, rank, _ = down.shape

    def add_delta(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]  # (batch, tokens, in)
        w = weights.to(x.dtype)
        if mix == "factor":
            mixed_down = torch.einsum("bn,nri->bri", weights, down).to(x.dtype)
            mixed_up = torch.einsum("bn,nor->bor", weights, up).to(x.dtype)
            return output + x @ mixed_down.mT @ mixed_up.mT
        # all adapters side by side: two plain products, whatever n is
        hidden = x @ down.reshape(count * rank, -1).to(x.dtype).T
        hidden = hidden * w.repeat_interleave(rank, dim=1)[:, None, :]
        return output + hidden @ up.permute(0, 2, 1).reshape(count * rank, -1).to(x.dtype)

    return add_delta


def fit(
    unet: nn.Module,
    predict_loss: Callable[[Tensor, Tensor], Tensor],
    latent_shape: Sequence[int],
    count: int,
    *,
    rank: int,
    steps: int,
    lr: float,
    weight_decay: float,
    train_timesteps: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LoraBank, list[list[float]]]:
    """Fit one adapter per image, all in one batch (method, DBST 1).

    The timestep and the noise of a step are drawn once and shared by all images, and the losses are summed, so each
    adapter ends exactly where a fit of its image alone would end, whatever shares the batch: also beside an image
    whose loss is not finite, which spoils its own adapter only.

    Args:
        unet: the model; frozen while the adapters are fitted, and left as it was.
        predict_loss: (timestep int64 (), noise (1, *latent_shape)) -> one loss per image, (count,).
        latent_shape: (channels, height, width) of one latent.
        count: number of images.
        rank, steps, lr, weight_decay: see `Recipe`.
        train_timesteps: length of the model's noise schedule.
        seed: of the initial A, the timesteps and the noise.
        progress: called with (done, steps).

    Returns:
        The bank of `count` adapters, and for each image the loss of each step; see `check_losses`.
    """
    bank = new_bank(unet, count, rank, seed)
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.AdamW(bank.parameters(), lr=lr, weight_decay=weight_decay)
    losses: list[Tensor] = []  # read at the end: a step need not wait for the device
    with _frozen(unet), torch.enable_grad():
        for tensor in bank.parameters():
            tensor.requires_grad_(True)
        with each_with_its_own(unet, bank):
            for step in range(steps):
                timestep = torch.randint(train_timesteps, (), generator=generator).to(device)
                noise = torch.randn(1, *latent_shape, generator=generator).to(device)
                loss = predict_loss(timestep, noise)
                optimizer.zero_grad(set_to_none=True)
                loss.sum().backward()
                optimizer.step()
                losses.append(loss.detach())
                if progress:
                    progress(step + 1, steps)
    return bank.detached(), torch.stack(losses, dim=1).tolist() if losses else [[] for _ in range(count)]


def check_losses(losses: Sequence[float]) -> None:
    """Refuse the adapter of an image by the losses of its fit; raises `NumericalError` if one is not finite."""
    if not all(map(math.isfinite, losses)):
        raise NumericalError("Fitting the LoRA gave a loss that is not finite; lower lora_lr or use float32.")


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Let no parameter of `module` take gradients inside the context."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.requires_grad_(False)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def per_sample_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error of each sample: (batch, ...) twice -> (batch,)."""
    return F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
