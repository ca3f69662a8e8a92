"""The family `native`: this project's own architecture, as a card and three parts on demand.

The card, its fingerprints and token counting need no torch, because routers use them; torch and transformers are
imported by the `load_*` methods, in the actors that compute. The demo's checkpoint folder lies beside this file:
`encore train` made it, and any other folder it makes loads the same way.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.core import FloatRange, IntRange, Judged, ModelCard
from serve_app.errors import NotFound
from serve_app.model import batch_invariant as invariance
from serve_app.model.fingerprint import fingerprint
from serve_app.model.native import tokenizer as tokenizers
from serve_app.model.native.config import (
    DECODER_REVISION,
    DEMO,
    DEMO_JUDGED,
    DEMO_SIZES,
    DENOISER_REVISION,
    TEXT_ENCODER_REVISION,
    NativeConfig,
)
from serve_app.model.native.prompt_notice import prompt_notice
from serve_app.model.native.tokenizer import Tokenizer
from serve_app.model.native.weights import Checkpoint, Weights

if TYPE_CHECKING:
    from serve_app.model.model import Decoder, Denoiser, Family, TextEncoder


WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoint"
"""Where in its own folder a run of `encore train` puts what it made."""


@functools.cache
def demo(batch_invariant: bool | None = None) -> Family:
    """Return `native/demo`, one instance per process and choice."""
    family = from_checkpoint(DEMO, Path(__file__).parent / "demo", batch_invariant)
    return replace(family, judged=DEMO_JUDGED)


def from_checkpoint(config: NativeConfig, folder: Path, batch_invariant: bool | None = None) -> NativeFamily:
    """Return the family of a folder that `encore train` wrote; NotFound when it is none."""
    weights, tokenizer = folder / WEIGHTS_FILE, folder / tokenizers.FILE
    if not (weights.is_file() and tokenizer.is_file()):
        raise NotFound(f"{folder} is not a checkpoint: it needs {WEIGHTS_FILE} and {tokenizers.FILE}.")
    sizes = DEMO_SIZES if config.one_size else None
    return NativeFamily(config, Checkpoint(weights), Tokenizer(tokenizer), batch_invariant, sizes)


def from_folder(folder: Path, batch_invariant: bool | None = None) -> NativeFamily:
    """Return the family of a checkpoint folder, or of a run's that holds one, with the sizes it says itself.

    Its card's name is `native/` and the folder's name, the run's where there is one. NotFound when it is none.
    """
    inner = folder / CHECKPOINT_FOLDER
    folder = (inner if (inner / WEIGHTS_FILE).is_file() else folder).absolute()
    named = folder.parent if folder.name == CHECKPOINT_FOLDER else folder
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", named.name) or "checkpoint"
    return from_checkpoint(replace(_config(folder / CONFIG_FILE), name=name), folder, batch_invariant)


def _config(path: Path) -> NativeConfig:
    if not path.exists():
        return DEMO
    try:
        return NativeConfig.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NotFound(f"{path} does not describe a model of this version: {error}.") from error


@dataclass(frozen=True)
class NativeFamily:
    """One preset with its weights and its tokenizer, as a Family; `batch_invariant` is as the setting says, or None.

    sizes, judged: as the card has them. Every such model is trained on one world, so every card tells its words.
    """

    config: NativeConfig
    weights: Weights
    tokenizer: Tokenizer
    batch_invariant: bool | None = None
    sizes: tuple[tuple[int, int], ...] | None = None
    judged: Judged | None = None

    @functools.cached_property
    def card(self) -> ModelCard:
        """The grid of the preset; fingerprints of what this preset and these weights compute."""
        widths, heights = zip(*(self.sizes or ((32, 32), (128, 128))), strict=True)
        return ModelCard(
            name=f"native/{self.config.name}",
            family="native",
            description="Moving shapes at 64x64 pixels, scaled to others: 8 million weights, for laptops and tests.",
            model_fingerprint=self._model_fingerprint(),
            text_encoder_fingerprint=self._text_encoder_fingerprint(),
            decoder_fingerprint=self._decoder_fingerprint(),
            width=IntRange(minimum=min(widths), maximum=max(widths), default=64, step=16),
            height=IntRange(minimum=min(heights), maximum=max(heights), default=64, step=16),
            num_frames=IntRange(minimum=8, maximum=24, default=16),
            fps=IntRange(minimum=1, maximum=30, default=16),
            num_inference_steps=IntRange(minimum=1, maximum=50, default=16),
            guidance_scale=FloatRange(minimum=1.0, maximum=15.0, default=2.0),
            max_prompt_tokens=self.config.text_encoder.max_tokens,
            aliases=(f"encore-{self.config.name}",),
            created=1_795_305_600,
            sizes=self.sizes,
            made_at=(self.config.width, self.config.height) if self.config.one_size else None,
            judged=self.judged,
            prompt_notice=prompt_notice,
        )

    def count_tokens(self, prompt: str) -> int:
        """Count the prompt's tokens and the two specials."""
        return self.tokenizer.count_tokens(prompt)

    def load_text_encoder(self, device: str) -> TextEncoder:
        """Build the CLIP text encoder on `device`; imports transformers."""
        import torch

        from serve_app.model.native.text_encoder import NativeTextEncoder, TextEncoderNet

        net = TextEncoderNet(self.config.text_encoder)
        self.weights.fill(net, "text_encoder")
        dtype = getattr(torch, self.config.dtype)
        return NativeTextEncoder(
            net,
            self.tokenizer,
            self.config.text_encoder.max_tokens,
            dtype,
            device,
            batch_invariant=self._is_invariant(device),
        )

    def load_denoiser(self, device: str) -> Denoiser:
        """Build the denoiser on `device`."""
        from serve_app.model.native.denoiser import DenoiserNet, NativeDenoiser

        net = DenoiserNet(self.config.denoiser)
        self.weights.fill(net, "denoiser")
        return NativeDenoiser(net, self.config, device, batch_invariant=self._is_invariant(device))

    def load_decoder(self, device: str) -> Decoder:
        """Build the per-frame decoder on `device`."""
        import torch

        from serve_app.model.native.autoencoder import FrameDecoder, NativeDecoder

        net = FrameDecoder(self.config.autoencoder)
        self.weights.fill(net, "decoder")
        dtype = getattr(torch, self.config.dtype)
        return NativeDecoder(net, dtype, device, batch_invariant=self._is_invariant(device))

    def _is_invariant(self, device: str) -> bool:
        return bool(invariance.is_on(self.batch_invariant, device))

    def _model_fingerprint(self) -> str:
        return fingerprint(
            revision=DENOISER_REVISION,
            config=asdict(self.config.denoiser),
            weights=self.weights.identity,
            dtype=self.config.denoiser_dtype or self.config.dtype,
            sampler={"name": "flow-match-euler", "shift": self.config.sampler_shift},
            **invariance.of_fingerprint(self.batch_invariant),
        )

    def _text_encoder_fingerprint(self) -> str:
        return fingerprint(
            revision=TEXT_ENCODER_REVISION,
            config=asdict(self.config.text_encoder),
            weights=self.weights.identity,
            dtype=self.config.dtype,
            tokenizer=self.tokenizer.identity,
            **invariance.of_fingerprint(self.batch_invariant),
        )

    def _decoder_fingerprint(self) -> str:
        return fingerprint(
            revision=DECODER_REVISION,
            config=asdict(self.config.autoencoder),
            weights=self.weights.identity,
            dtype=self.config.dtype,
            **invariance.of_fingerprint(self.batch_invariant),
        )
