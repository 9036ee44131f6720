"""What a computation costs whatever the machine: floating-point operations, launches, bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Counted(TorchDispatchMode):
    """Counts what runs inside the context.

    Attributes:
        launches: operations that compute something, views left out: on a GPU each is a kernel or more.
        bytes: of all their inputs and outputs, as if nothing stayed in a cache.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.bytes = 0
        self._flops = FlopCounterMode(display=False)

    @property
    def flops(self) -> int:
        """Floating-point operations of products and convolutions, as torch counts them."""
        return self._flops.get_total_flops()

    def __enter__(self) -> Any:
        self._flops.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._flops.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        written = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        if not _is_view(func, read, written):
            self.launches += 1
            self.bytes += sum(one.numel() * one.element_size() for one in (*read, *written))
        return out


def _is_view(func: Any, read: list[Tensor], written: list[Tensor]) -> bool:
    """Whether an operation only looks at memory in another way, or at nothing."""
    aliases = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
    return aliases or not written or func.namespace == "prim" or (not read and func is torch.ops.aten.detach.default)
