"""Texts that are equal only where the values are equal bit for bit, and their digests."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch


def digest(content: bytes | str) -> str:
    """The first 80 bits of SHA-256, as hex."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:20]


def plain(value: Any) -> Any:
    """JSON-ready: arrays and tensors by type, shape and digest, floats as Python writes them (which is exact)."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        content = value.flatten().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} {digest(content)}"
    if isinstance(value, np.ndarray):
        some = f" {int(value.sum())} true" if value.dtype == np.bool_ else ""
        return f"{value.dtype} {list(value.shape)}{some} {digest(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def text_of(value: Any) -> str:
    """One line; the order of a dictionary's names counts only where it is that of the labels."""
    return json.dumps(plain(value), sort_keys=True)
