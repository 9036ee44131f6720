"""Everything computed once per reference set, and its file format."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cavsam.alignment import Alignment
from cavsam.errors import CavSamError, InvalidReference
from cavsam.lora import LoraBank
from cavsam.observe.run import Run
from cavsam.transition import Endpoint, Transition

FORMAT = "cavsam-adapted-reference-3"


@dataclass(frozen=True)
class AdaptedReference:
    """K references, adapted; segmenting a target computes none of this again.

    Attributes:
        labels: names of the objects, in the order of the label axis below.
        masks: bool (K, labels, S, S).
        trunk: SAM2 backbone features of the references, each level (K, C, h, w).
        pictures: of the references, small, see `appearance.pictures_of`.
        descriptors: float (K, C), unit-length mean feature of each reference, to find the one most like a target.
        prompt: text that the diffusion model is given.
        alignment: the tuned neck and the prototypes; None in the modes without TTGA.
        endpoints: adapter and inverted latent of each reference; empty in the modes without DBST, and in `auto` as long
            as no target has asked for frames.
        fingerprint: of the models and the recipe that made this.
        timings: step -> seconds.
        shots: how many of the references serve a target, those most like it; 0 for all.
        features: of the references from a backbone, float (K, C, h, w); None without one.
        images: of the references, uint8 (H, W, 3), to make the endpoints of; empty if they are there, or never needed.
    """

    labels: tuple[str, ...]
    masks: Tensor
    trunk: list[Tensor]
    pictures: Tensor
    descriptors: Tensor
    prompt: str
    alignment: Alignment | None
    endpoints: list[Endpoint]
    fingerprint: str
    timings: dict[str, float]
    shots: int = 0
    features: Tensor | None = None
    images: tuple[NDArray[np.uint8], ...] = ()

    def prepared(self, transition: Transition, run: Run) -> list[Endpoint]:
        """Give the endpoints; made once, when a target first asks for frames, and the same whenever that is."""
        if self.images and not self.endpoints:
            self.endpoints.extend(transition.prepare(self.images, self.prompt, run))
        return self.endpoints

    def order(self, descriptor: Tensor) -> list[int]:
        """List the references that serve a target, in the order of its video: the one most like it is the last.

        If none of the nearest `shots` shows a label, the most alike that does is there too.

        Args:
            descriptor: of the target, float (C,), unit length.
        """
        ranked: list[int] = (self.descriptors @ descriptor).argsort(descending=True, stable=True).tolist()
        chosen = ranked[: self.shots or None]
        shown = self.masks.flatten(2).any(dim=2)  # (K, labels)
        for label in range(len(self.labels)):
            if not shown[chosen, label].any():
                chosen.append(next(index for index in ranked if shown[index, label]))
        return [index for index in sorted(chosen) if index != ranked[0]] + [ranked[0]]

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, or nothing.

        Raises:
            CavSamError: the file cannot be written.
        """
        tensors, described = self._parts()
        stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        metadata = {"format": FORMAT, "described": described, "sha256": _digest(described, stored)}
        partial = Path(f"{path}.{os.getpid()}.partial")
        try:
            save_file(stored, partial, metadata=metadata)
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            raise CavSamError(
                f"The adapted reference cannot be written to {path} ({error}); "
                "name a file in a folder that is there, is yours and has room."
            ) from error
        finally:
            with contextlib.suppress(OSError):  # there is none, or no place where one could be
                partial.unlink()

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> AdaptedReference:
        """Read what `save` wrote; raises `InvalidReference` when the file is not one of ours or is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise InvalidReference(
                        f"{path} does not hold an adapted reference of this version; adapt the reference again."
                    )
                # copies, whose memory is aligned as that of any tensor: kernels round by alignment
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise InvalidReference(f"{path} cannot be read ({error}); adapt the reference again.") from error
        if metadata.get("sha256") != _digest(metadata.get("described", ""), tensors):
            raise InvalidReference(f"{path} is damaged; adapt the reference again.")
        return cls._joined({name: tensor.to(device) for name, tensor in tensors.items()}, metadata["described"])

    def _parts(self) -> tuple[dict[str, Tensor], str]:
        """Take it apart into tensors by name, and a JSON text for the rest."""
        tensors = {"masks": self.masks, "pictures": self.pictures, "descriptors": self.descriptors}
        tensors |= {f"trunk.{level}": tensor for level, tensor in enumerate(self.trunk)}
        if self.features is not None:
            tensors["features"] = self.features
        if self.alignment:
            tensors["prototypes"] = self.alignment.prototypes
            if self.alignment.background is not None:
                tensors["background"] = self.alignment.background
            tensors |= {f"neck.{name}": tensor for name, tensor in self.alignment.neck.items()}
        for index, end in enumerate(self.endpoints):
            tensors |= {f"end{index}.latent": end.latent, f"end{index}.embedding": end.embedding}
            tensors |= {f"end{index}.down.{name}": tensor for name, tensor in end.adapter.down.items()}
            tensors |= {f"end{index}.up.{name}": tensor for name, tensor in end.adapter.up.items()}
        if not self.endpoints:
            tensors |= {f"image{index}": torch.from_numpy(image) for index, image in enumerate(self.images)}
        described = json.dumps(
            {
                "labels": self.labels,
                "levels": len(self.trunk),
                "prompt": self.prompt,
                "fingerprint": self.fingerprint,
                "timings": self.timings,
                "shots": self.shots,
                "alignment_losses": self.alignment.losses if self.alignment else None,
                "images": 0 if self.endpoints else len(self.images),
                "endpoint_losses": [end.losses for end in self.endpoints],
            }
        )
        return tensors, described

    @classmethod
    def _joined(cls, tensors: dict[str, Tensor], text: str) -> AdaptedReference:
        """Put together what `_parts` took apart."""
        described = json.loads(text)
        aligned = None
        if described["alignment_losses"] is not None:
            aligned = Alignment(
                _below("neck.", tensors),
                tensors["prototypes"],
                described["alignment_losses"],
                tensors.get("background"),
            )
        endpoints = [
            Endpoint(
                LoraBank(_below(f"end{index}.down.", tensors), _below(f"end{index}.up.", tensors)),
                tensors[f"end{index}.latent"],
                tensors[f"end{index}.embedding"],
                losses,
            )
            for index, losses in enumerate(described["endpoint_losses"])
        ]
        return cls(
            tuple(described["labels"]),
            tensors["masks"],
            [tensors[f"trunk.{level}"] for level in range(described["levels"])],
            tensors["pictures"],
            tensors["descriptors"],
            described["prompt"],
            aligned,
            endpoints,
            described["fingerprint"],
            described["timings"],
            described["shots"],
            tensors.get("features"),
            tuple(tensors[f"image{index}"].cpu().numpy() for index in range(described.get("images", 0))),
        )


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(described: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash with SHA-256 all that a file holds; `tensors` are contiguous and on the CPU."""
    digest = hashlib.sha256(described.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
