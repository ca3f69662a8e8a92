"""Where a part's weights come from: an `identity` for its fingerprint, and `fill` to put them into a module.

A checkpoint is a safetensors file with the parts' names before the dots; its identity is its digest. Seeded weights
are drawn on the CPU, so that every device and every replica holds the same ones: tests and timings need no training.
Importing this module imports no torch.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn


class Weights(Protocol):
    """A source of weights for the named parts of one model."""

    @property
    def identity(self) -> str:
        """What a fingerprint says of these weights; cheap, and equal only for equal weights."""
        ...

    def fill(self, module: nn.Module, part: str) -> None:
        """Overwrite every parameter of `module`, a CPU module freshly built as `part`."""
        ...


@dataclass(frozen=True, slots=True)
class SeededWeights:
    """Random weights from a seed: matrices ~ N(0, 1/fan_in), biases 0, norm gains 1.

    No gate starts at zero, unlike in training (adaLN-zero): every layer, cross-attention included, shows in the video.
    """

    seed: int

    @property
    def identity(self) -> str:
        """The seed and torch's public version, whose generator turns it into numbers."""
        return f"seeded:{self.seed}:torch-{version('torch').partition('+')[0]}"

    def fill(self, module: nn.Module, part: str) -> None:
        """Draw the parameters in the order of `named_parameters`; torch's global generator is not used."""
        import torch

        digest = hashlib.sha256(f"{self.seed}:{part}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1:
                    fan_in = parameter[0].numel()
                    parameter.normal_(0.0, fan_in**-0.5, generator=generator)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)


@dataclass(frozen=True)
class Checkpoint:
    """One safetensors file (https://huggingface.co/docs/safetensors), any floating dtype."""

    path: Path

    @functools.cached_property
    def identity(self) -> str:
        """The SHA-256 of the file, read once a process."""
        with self.path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    def has(self, part: str) -> bool:
        """Whether there is anything for `part`."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return any(name.startswith(f"{part}.") for name in file.keys())  # noqa: SIM118 - no mapping

    def fill(self, module: nn.Module, part: str) -> None:
        """Copy `part`'s tensors; RuntimeError where names or shapes are not the module's.

        A BatchNorm's count of batches may be absent, as torch allows for a state without versions.
        """
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{part}.")]  # noqa: SIM118 - no mapping
            module.load_state_dict({name.removeprefix(f"{part}."): file.get_tensor(name) for name in names})
