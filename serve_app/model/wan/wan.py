"""The family `wan`: Wan's text-to-video checkpoints in diffusers' layout, as a card and three parts on demand.

The card, its fingerprints and token counting need no torch, because routers use them; torch, transformers and diffusers
are imported by the `load_*` methods, in the actors that compute. Parts compute what WanPipeline computes from the same
folder, seed and prompt (tests hold them to it); what the checkpoint does not say, its frame rate for one, is here.

Prompts keep their case: UMT5 reads "US" and "us", "Turkey" and "turkey" as different words, letters to be drawn are
part of a prompt, and the captions Wan learnt from are written like any prose, so folding case would show its model
texts unlike those, to merge requests that differ in nothing else. All other rules hold. No default negative prompt is
in a diffusers checkpoint (Wan's own, in Chinese, is in the code of its repository), so there is none here: who serves
one names it in the setting `negative_prompt`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.core import FloatRange, IntRange, ModelCard, PromptRules
from serve_app.errors import NotFound
from serve_app.model import batch_invariant as invariance
from serve_app.model.fingerprint import fingerprint
from serve_app.model.wan.checkpoint.checkpoint import WanCheckpoint, read
from serve_app.model.wan.checkpoint.digests import Digests, default_file
from serve_app.model.wan.checkpoint.published import PUBLISHED, Dtype
from serve_app.model.wan.speed import PLAIN, Speed
from serve_app.model.wan.tokenizer import MAX_TOKENS, WanTokenizer

if TYPE_CHECKING:
    from serve_app.model.model import Decoder, Denoiser, TextEncoder

DENOISER_REVISION = 1
TEXT_ENCODER_REVISION = 1
DECODER_REVISION = 1
IMAGE_ENCODER_REVISION = 1
"""Bumped by hand when code, ours or diffusers', changes what a part computes; golden tests notice."""

DTYPE: Dtype = "bfloat16"
"""What Wan publishes its transformers and text encoders to be run in. The decoder's is float32, always."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PARTS = ["*.json", "*.safetensors", "*.model"]


def named(
    name: str,
    checkpoint: Path | str | None = None,
    dtype: Dtype | None = None,
    speed: Speed = PLAIN,
    batch_invariant: bool | None = None,
    revision: str | None = None,
) -> WanFamily:
    """Return a published model from a folder or a Hub id, by default its own; NotFound when that cannot be served.

    revision: the branch, tag or commit on the Hub. Fingerprints are of the files that it has, not of its name.
    """
    source = PUBLISHED[name] if checkpoint is None else checkpoint
    folder = source if isinstance(source, Path) else _snapshot(source, revision)
    return WanFamily(name, read(folder), dtype or DTYPE, speed, batch_invariant)


def from_folder(
    folder: Path, dtype: Dtype | None = None, speed: Speed = PLAIN, batch_invariant: bool | None = None
) -> WanFamily:
    """Return the family of a checkpoint folder, named `wan/` and the folder's name; NotFound when it is none."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name) or "checkpoint"
    return WanFamily(f"wan/{name}", read(folder.absolute()), dtype or DTYPE, speed, batch_invariant)


def _snapshot(repository: str, revision: str | None) -> Path:
    """Return a revision of a repository of the Hub, by default the newest, downloaded where it is not here yet."""
    if not _HUB_ID.fullmatch(repository):
        raise NotFound(f"'{repository}' is neither a checkpoint's folder nor a Hub id.", param="checkpoint")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_PARTS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = "" if revision is None else f" at revision '{revision}'"
        message = f"Checkpoint {repository}{at} is neither a folder nor to be had from the Hugging Face Hub: {error}"
        raise NotFound(message, param="checkpoint") from error


@dataclass(frozen=True)
class WanFamily:
    """One checkpoint as a Family; `dtype` is the transformers' and the text encoder's.

    batch_invariant: as the setting says, or None.
    """

    name: str
    checkpoint: WanCheckpoint
    dtype: Dtype
    speed: Speed = PLAIN
    batch_invariant: bool | None = None

    @functools.cached_property
    def card(self) -> ModelCard:
        """The checkpoint's grid and WanPipeline's defaults; the first time, weights are read to be hashed."""
        step = self.checkpoint.pixel_step
        longest = 1280 - 1280 % step
        temporal = self.checkpoint.vae_scale_factor_temporal
        return ModelCard(
            name=self.name,
            family="wan",
            description=f"Wan {self._task}, computed in {', '.join((self.dtype, *self.speed.words))}.",
            model_fingerprint=self._model_fingerprint(),
            text_encoder_fingerprint=self._text_encoder_fingerprint(),
            decoder_fingerprint=self._decoder_fingerprint(),
            image_encoder_fingerprint=self._image_encoder_fingerprint() if self.checkpoint.takes_image else None,
            width=IntRange(minimum=2 * step, maximum=longest, default=832 - 832 % step, step=step),
            height=IntRange(minimum=2 * step, maximum=longest, default=480 - 480 % step, step=step),
            num_frames=IntRange(
                minimum=1 + temporal, maximum=1 + 30 * temporal, default=1 + 20 * temporal, step=temporal
            ),
            fps=IntRange(minimum=1, maximum=30, default=24 if self.checkpoint.vae_scale_factor_spatial == 16 else 16),
            num_inference_steps=IntRange(minimum=1, maximum=100, default=50),
            guidance_scale=FloatRange(minimum=1.0, maximum=15.0, default=5.0),
            max_prompt_tokens=MAX_TOKENS,
            prompt_rules=PromptRules(fold_case=False),
            created=1_753_660_800,
        )

    @functools.cached_property
    def tokenizer(self) -> WanTokenizer:
        """The checkpoint's tokenizer, without torch."""
        return WanTokenizer(self.checkpoint.folder / "tokenizer" / "tokenizer.json")

    def count_tokens(self, prompt: str) -> int:
        """Count the tokens of the prompt as the pipeline cleans it, and the one at its end."""
        return self.tokenizer.count_tokens(prompt)

    def load_text_encoder(self, device: str) -> TextEncoder:
        """Load UMT5 onto `device`; imports transformers."""
        import torch

        from serve_app.model.wan.text_encoder import WanTextEncoder

        dtype = getattr(torch, self.dtype)
        on = invariance.is_on(self.batch_invariant, device)
        return WanTextEncoder.load(self.checkpoint.folder, dtype, device, batch_invariant=bool(on))

    def load_denoiser(self, device: str) -> Denoiser:
        """Load the transformers onto `device`; imports diffusers. InvalidRequest when they cannot be compiled here."""
        import torch

        from serve_app.model.wan.denoiser import WanDenoiser

        on = invariance.is_on(self.batch_invariant, device, torch_compile=self.speed.torch_compile)
        dtype = getattr(torch, self.dtype)
        return WanDenoiser.load(self.checkpoint, dtype, device, self.speed, batch_invariant=bool(on))

    def load_decoder(self, device: str) -> Decoder:
        """Load the autoencoder onto `device`; imports diffusers."""
        from serve_app.model.wan.decoder import WanDecoder

        on, tiling = invariance.is_on(self.batch_invariant, device), self.speed.vae_tiling
        return WanDecoder.load(self.checkpoint.folder, device, tiling=tiling, batch_invariant=bool(on))

    def _model_fingerprint(self) -> str:
        return fingerprint(
            revision=DENOISER_REVISION,
            dtype=self.dtype,
            sampler=dict(self.checkpoint.config("scheduler")),
            boundary_ratio=self.checkpoint.boundary_ratio,
            **self.speed.of_denoiser(),
            **invariance.of_fingerprint(self.batch_invariant),
            **{part: self._described(part) for part in self.checkpoint.transformers},
        )

    def _text_encoder_fingerprint(self) -> str:
        return fingerprint(
            revision=TEXT_ENCODER_REVISION,
            dtype=self.dtype,
            tokenizer=self.tokenizer.identity,
            text_encoder=self._described("text_encoder"),
            **invariance.of_fingerprint(self.batch_invariant),
        )

    def _decoder_fingerprint(self) -> str:
        return fingerprint(
            revision=DECODER_REVISION,
            vae=self._described("vae"),
            **self.speed.of_decoder(),
            **invariance.of_fingerprint(self.batch_invariant),
        )

    def _image_encoder_fingerprint(self) -> str:
        return fingerprint(
            image_encoder_revision=IMAGE_ENCODER_REVISION,
            vae=self._described("vae"),
            **invariance.of_fingerprint(self.batch_invariant),
        )

    @property
    def _task(self) -> str:
        return "text- and image-to-video" if self.checkpoint.takes_image else "text-to-video"

    def _described(self, part: str) -> dict[str, object]:
        weights = self.checkpoint.identity(part, Digests(default_file()))
        return {"config": dict(self.checkpoint.config(part)), "weights": weights}
