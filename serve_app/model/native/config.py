"""Every number of the native architecture, frozen: what decides a pixel is here and therefore in a fingerprint.

The presets are plain data, so that a router can read a card and make keys without importing torch. The revisions are
bumped by hand when code changes what a part computes; golden tests fail when somebody forgets, and a release that
computes the same keeps its caches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DENOISER_REVISION = 1
TEXT_ENCODER_REVISION = 1
DECODER_REVISION = 1


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """A CLIP text transformer over bytes; a hidden size other than `context_dim` gets a linear projection."""

    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6
    max_tokens: int = 512
    context_dim: int = 768


@dataclass(frozen=True, slots=True)
class DenoiserConfig:
    """A two-level latent video network: convolutions at full latent resolution, all attention at half of it."""

    latent_channels: int = 8
    outer_channels: int = 96
    outer_blocks: int = 2
    inner_channels: int = 192
    inner_blocks: int = 4
    num_heads: int = 6
    mlp_ratio: int = 4
    context_dim: int = 768


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """A per-frame autoencoder; `channels` from the pixel level inwards, halving the size between neighbours."""

    latent_channels: int = 8
    channels: tuple[int, ...] = (32, 64, 96, 96)

    @property
    def downscale(self) -> int:
        """Pixels per latent, along width and height."""
        return 1 << (len(self.channels) - 1)


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """One preset: its three parts, the dtype of the weights and the sampler's timestep shift."""

    name: str
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    dtype: str = "float32"
    sampler_shift: float = 3.0


DEMO = NativeConfig(name="demo")

FIVE_B = NativeConfig(
    name="5b",
    text_encoder=TextEncoderConfig(hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12),
    denoiser=DenoiserConfig(
        latent_channels=16, outer_channels=768, outer_blocks=3, inner_channels=3072, inner_blocks=16, num_heads=24
    ),
    autoencoder=AutoencoderConfig(latent_channels=16, channels=(128, 256, 512, 512)),
    dtype="bfloat16",
)
