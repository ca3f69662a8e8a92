"""What a server may trade for memory or time when it runs a Wan checkpoint, and what of that a fingerprint must say.

All of it is off unless asked for: the plain form is the one that equals WanPipeline. What changes pixels, be it by a
rounding, is in the fingerprint of the part that it changes, and says nothing there while it is off, so that nobody's
cache is emptied by an option that is not used. No torch in here, because routers make fingerprints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantization = Literal["int8", "fp8"]
"""How the weights of a transformer's blocks are kept; they are computed with in the model's own dtype."""

QUANTIZATION_REVISION = 1
COMPILING_REVISION = 1
TILING_REVISION = 1
"""Bumped by hand when an option comes to compute something else."""


@dataclass(frozen=True, slots=True)
class Speed:
    """A server's choice.

    quantization: keep the blocks' linear layers in one byte a weight. torch_compile: fuse what is between their matrix
    products. vae_tiling: decode large frames in overlapping tiles of 256 pixels.
    """

    quantization: Quantization | None = None
    torch_compile: bool = False
    vae_tiling: bool = False

    def of_denoiser(self) -> dict[str, object]:
        """Return what the model's fingerprint says of it."""
        facts: dict[str, object] = {}
        if self.quantization is not None:
            facts["quantization"] = [self.quantization, QUANTIZATION_REVISION]
        if self.torch_compile:
            facts["torch_compile"] = COMPILING_REVISION
        return facts

    def of_decoder(self) -> dict[str, object]:
        """Return what the decoder's fingerprint says of it."""
        return {"vae_tiling": TILING_REVISION} if self.vae_tiling else {}

    @property
    def asked_for(self) -> tuple[str, ...]:
        """The settings that are not off."""
        return tuple(name for name in self.__slots__ if getattr(self, name))

    @property
    def words(self) -> tuple[str, ...]:
        """What a card's description says of it."""
        said = {
            f"weights in {self.quantization}": self.quantization is not None,
            "compiled": self.torch_compile,
            "decoded in tiles": self.vae_tiling,
        }
        return tuple(words for words, true in said.items() if true)


PLAIN = Speed()
