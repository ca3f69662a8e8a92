"""Every number of the native architecture, frozen: what decides a pixel is here and therefore in a fingerprint.

The presets are plain data, so that a router can read a card and make keys without importing torch. The revisions are
bumped by hand when code changes what a part computes; golden tests fail when that is forgotten, and a release that
computes the same keeps its caches. Revision 3 computes the numbers of 2, each row by itself: last bits differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.core import Judged

DENOISER_REVISION = 4
TEXT_ENCODER_REVISION = 3
DECODER_REVISION = 3


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """A CLIP text transformer; a hidden size other than `context_dim` gets a linear projection."""

    vocab_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6
    max_tokens: int = 256
    context_dim: int = 768
    hidden_act: str = "quick_gelu"


@dataclass(frozen=True, slots=True)
class DenoiserConfig:
    """A two-level latent video network: convolutions at full latent resolution, all attention at half of it."""

    latent_channels: int = 8
    outer_channels: int = 64
    outer_blocks: int = 2
    inner_channels: int = 192
    inner_blocks: int = 5
    inner_convolution: bool = False
    """Whether the inner blocks convolve too."""
    frame_stride: int = 2
    """How many frames one token of the inner level spans; its height and width are always 2 latents."""
    joint_attention: bool = True
    """One attention over space and time together, or one over each."""
    num_heads: int = 6
    mlp_ratio: int = 4
    modulation_rank: int = 32
    context_dim: int = 768


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """A per-frame autoencoder: `patch` pixels a side become channels, then `channels` inwards, halving between them."""

    latent_channels: int = 8
    patch: int = 2
    channels: tuple[int, ...] = (48, 96, 128)

    @property
    def downscale(self) -> int:
        """Pixels per latent, along width and height."""
        return self.patch << (len(self.channels) - 1)


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """One preset: its three parts, the dtype of the weights, the sampler's timestep shift, the size it is made for.

    denoiser_dtype: what the denoiser computes in, where the device can (`NativeDenoiser`); None: the weights' own.
    one_size: it was trained at width x height alone. A clip of another size is that one, scaled by the engine.
    """

    name: str
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    dtype: str = "float32"
    denoiser_dtype: str | None = None
    sampler_shift: float = 3.0
    width: int = 64
    height: int = 64
    one_size: bool = True

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> NativeConfig:
        """Return what `asdict` (and JSON, which has no tuples) made `facts` of; TypeError or KeyError for others."""
        parts = {
            "text_encoder": TextEncoderConfig(**facts["text_encoder"]),
            "denoiser": DenoiserConfig(**facts["denoiser"]),
            "autoencoder": AutoencoderConfig(
                **{**facts["autoencoder"], "channels": tuple(facts["autoencoder"]["channels"])}
            ),
        }
        return cls(**{**facts, **parts})


DEMO = NativeConfig(name="demo", denoiser_dtype="bfloat16")
DEMO_SIZES = ((48, 48), (64, 64), (96, 96), (128, 128))
"""Width and height of what a model of one size offers: the one place that says so."""
DEMO_JUDGED = Judged(num_frames=(8, 24), num_inference_steps=(4, 30), guidance_scale=(1.0, 5.0))
"""As the demo's model card tells it."""

# Sixteen pixels a latent, like Wan2.2-TI2V-5B's autoencoder: at eight, every pass has four times the tokens.
FIVE_B = NativeConfig(
    name="5b",
    text_encoder=TextEncoderConfig(
        hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12, max_tokens=77, vocab_size=49_408
    ),
    denoiser=DenoiserConfig(
        latent_channels=48,
        outer_channels=768,
        outer_blocks=3,
        inner_channels=3072,
        inner_blocks=16,
        inner_convolution=True,
        joint_attention=False,
        num_heads=24,
    ),
    autoencoder=AutoencoderConfig(latent_channels=48, patch=2, channels=(128, 256, 512, 512)),
    dtype="bfloat16",
    width=640,
    height=480,
    one_size=False,
)
