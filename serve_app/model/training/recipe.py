"""Every number of the demo's training, and the shortened form that tests run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.model.native.config import DEMO, AutoencoderConfig, DenoiserConfig, NativeConfig, TextEncoderConfig

SMALLEST_BATCH = 4
"""Of one worker: whole frames are a quarter of the autoencoder's batch."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """One stage's length and optimiser; `batch` is shared among the workers."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 200
    decay: int = 0
    """Over how many steps, at the end, the learning rate falls to 0."""
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    muon: bool = False
    """Whether Muon moves the hidden matrices, in AdamW's place."""

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: rising, holding, falling."""
        rise = (step + 1) / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.decay, 1)
        return self.learning_rate * min(1.0, rise, fall)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training run."""

    seed: int = 1
    captions: int = 20_000
    """How many captions the tokenizer learns from, beside the dictionary."""

    autoencoder: Schedule = Schedule(steps=3000, batch=64, learning_rate=1e-3, decay=800, ema_decay=0.995)
    latent_noise: float = 0.1
    """The posterior's deviation, beside latents of unit variance."""
    crop: int = 32
    crop_share: float = 0.7
    """How often the autoencoder sees crops around edges instead of whole frames."""

    text_encoder: Schedule = Schedule(steps=700, batch=64, learning_rate=1e-3, decay=300, weight_decay=0.01)

    clips: Mapping[int, int] = field(default_factory=lambda: {16: 12288, 8: 512, 12: 512, 20: 512, 24: 512})
    """How many clips of how many frames are drawn and encoded before the denoiser's training."""
    denoiser: Schedule = Schedule(
        steps=9000, batch=48, learning_rate=1e-3, warmup=300, decay=3000, weight_decay=0.01, ema_decay=0.999, muon=True
    )
    noise_mean: float = 0.8
    noise_deviation: float = 1.2
    """Of the logits of the noise levels that the denoiser is trained at: most are where shapes are decided."""
    caption_dropout: float = 0.12
    """How often the prompt is empty, which is what guidance compares with."""

    @property
    def most_workers(self) -> int:
        """How many workers a batch of any stage feeds."""
        return min(each.batch for each in (self.autoencoder, self.text_encoder, self.denoiser)) // SMALLEST_BATCH


SHORT_MODEL = NativeConfig(
    name="short",
    text_encoder=TextEncoderConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_layers=1, num_heads=2, context_dim=64
    ),
    denoiser=DenoiserConfig(
        outer_channels=16, outer_blocks=1, inner_channels=64, inner_blocks=1, num_heads=2, context_dim=64
    ),
    autoencoder=AutoencoderConfig(channels=(8, 16, 16)),
)
"""The demo's classes with a hundredth of its weights, for tests of the training itself."""

SHORT = Recipe(
    captions=300,
    autoencoder=Schedule(steps=50, batch=32, learning_rate=3e-3, warmup=5, decay=10, ema_decay=0.9),
    text_encoder=Schedule(steps=40, batch=32, learning_rate=3e-3, warmup=5, decay=10, weight_decay=0.01, ema_decay=0.9),
    clips={16: 64, 8: 32},
    denoiser=Schedule(
        steps=60, batch=8, learning_rate=3e-3, warmup=5, decay=10, weight_decay=0.01, ema_decay=0.9, muon=True
    ),
)
"""Seconds instead of hours: every stage's loss falls, and the videos show next to nothing."""

RECIPES: Mapping[str, tuple[NativeConfig, Recipe]] = {"full": (DEMO, Recipe()), "short": (SHORT_MODEL, SHORT)}
"""What `encore train --recipe` offers: a model and its recipe by name."""
