"""Model families behind three Protocols: TextEncoder, Denoiser, Decoder.

The engine uses the parts, never a whole pipeline object, because pipelines keep call state on `self` and a
step engine has many jobs in flight. Importing this module imports no torch: routers read ModelCards and count
tokens, only the actors that compute load weights. `families` finds a family by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from serve_app.core import Frames, ModelCard, Picture, VideoSpec

if TYPE_CHECKING:
    import torch

    from serve_app.model.sampler import Sampler

Prepared: TypeAlias = object
"""What a Denoiser makes of one prompt before the first step; only the denoiser that made it can read it."""


class TextEncoder(Protocol):
    """Prompts to context vectors."""

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Return one float32 CPU tensor [num_tokens, context_dim] per prompt, trimmed to its real tokens."""
        ...


class Denoiser(Protocol):
    """One forward pass of the diffusion model over jobs of one shape, whatever step each is at."""

    @property
    def device(self) -> torch.device:
        """Where `predict` takes and gives its tensors."""
        ...

    @property
    def context_dim(self) -> int:
        """The width of a prompt's embedding."""
        ...

    def sampler(self, num_inference_steps: int) -> Sampler:
        """Return what this model is sampled with; cheap, and called on the event loop."""
        ...

    def latent_shape(self, spec: VideoSpec) -> tuple[int, int, int, int]:
        """Return [channels, latent_frames, latent_height, latent_width] of one job."""
        ...

    def prepare(self, prompt_embeds: torch.Tensor) -> Prepared:
        """Compute once per job what every step needs of its prompt: [num_tokens, context_dim], on any device."""
        ...

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prompts: Sequence[Prepared]) -> torch.Tensor:
        """Predict the flow velocity for a batch, in float32 of latents' shape; the host waits for nothing.

        latents: [batch, channels, frames, height, width]; timesteps: [batch], as this model's sampler gives them, or
        [batch, frames] where a batch member's first frame is given, which has the timestep 0 (image-to-video alone);
        prompts: one prepared prompt per batch member, lengths may differ. All are on `device`, and so is the result.
        """
        ...


class Decoder(Protocol):
    """Latents to pixels."""

    def decode(self, latents: torch.Tensor) -> Frames:
        """Decode one job's latents [channels, frames, height, width] to uint8 RGB [num_frames, H, W, 3].

        The engine hands over float16, fresh or stored; latents may be on any device.
        """
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """Pixels to latents: what the Decoder of a model that takes an image is besides."""

    def encode_image(self, pixels: Picture) -> torch.Tensor:
        """Encode uint8 RGB [height, width, 3] to float32 latents [channels, 1, h, w] of a video's first frame."""
        ...


class Family(Protocol):
    """One model by name: its card, and its three parts on demand."""

    @property
    def card(self) -> ModelCard:
        """What the model accepts and its fingerprints; cheap, no weights are read."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Count the tokens the text encoder would see, specials included; cheap, no torch."""
        ...

    def load_text_encoder(self, device: str) -> TextEncoder:
        """Load the text encoder onto `device`."""
        ...

    def load_denoiser(self, device: str) -> Denoiser:
        """Load the denoiser onto `device`."""
        ...

    def load_decoder(self, device: str) -> Decoder:
        """Load the latent decoder onto `device`."""
        ...
