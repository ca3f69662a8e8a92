"""Model families behind three Protocols: TextEncoder, Denoiser, Decoder.

The engine uses the parts, never a whole pipeline object, because pipelines keep call state on `self` and a
step engine has many jobs in flight. Importing this module imports no torch: routers read ModelCards and count
tokens, only the actors that compute load weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from serve_app.core import Frames, ModelCard, Picture, VideoSpec
from serve_app.errors import InvalidRequest, NotFound
from serve_app.model.wan.checkpoint.checkpoint import INDEX_FILE
from serve_app.model.wan.checkpoint.published import PUBLISHED, Dtype
from serve_app.model.wan.speed import PLAIN, Speed

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


def load_family(
    name: str,
    *,
    checkpoint: str | None = None,
    revision: str | None = None,
    dtype: Dtype | None = None,
    speed: Speed = PLAIN,
    batch_invariant: bool | None = None,
) -> Family:
    """Return the family that serves `name`: a card's name or alias, or the path of a folder with a model in it.

    The folder is one that `encore train` made, or a Wan checkpoint in diffusers' layout. checkpoint: the folder or Hub
    id that a published model's weights are read from, by default its own Hub id. revision: the branch, tag or commit
    there. dtype: what a Wan model computes in. speed: what a Wan model trades for memory or time. batch_invariant:
    whether bytes depend on the request alone, on every device; None: on CPUs. InvalidRequest as well where it is asked
    for beside `torch_compile`.
    NotFound names the known models or says what is wrong with the folder; InvalidRequest for an option that the model
    does not have.
    """
    if batch_invariant and speed.torch_compile:
        message = (
            "Settings 'batch_invariant' and 'torch_compile' exclude each other: compiled sums depend on the batch."
        )
        raise InvalidRequest(message, param="batch_invariant")
    folder = checkpoint_path(checkpoint or name)
    if revision is not None and (folder is not None or name not in PUBLISHED):
        raise InvalidRequest("Setting 'revision' is for checkpoints from the Hugging Face Hub.", param="revision")
    if name in PUBLISHED:
        from serve_app.model.wan import wan

        return wan.named(name, folder or checkpoint, dtype, speed, batch_invariant, revision)
    if checkpoint is not None:
        raise InvalidRequest(f"Setting 'checkpoint' is for {', '.join(PUBLISHED)}; not for {name}.", param="checkpoint")
    if folder is not None and (folder / INDEX_FILE).is_file():
        from serve_app.model.wan import wan

        return wan.from_folder(folder, dtype, speed, batch_invariant)
    if dtype is not None:
        raise InvalidRequest(f"Setting 'dtype' is for Wan's models; {name} computes in its own.", param="dtype")
    for setting in speed.asked_for:
        raise InvalidRequest(f"Setting '{setting}' is for Wan's models; {name} has none such.", param=setting)
    return _native(name, folder, batch_invariant)


def checkpoint_path(name: str) -> Path | None:
    """Return the absolute folder that a model's name means: as in shells, a path has a slash (`./run`)."""
    if "/" not in name or name in _families():
        return None
    try:
        folder = Path(name).expanduser().absolute()
    except RuntimeError:  # ~somebody who does not exist
        return None
    return folder if folder.is_dir() else None


def _native(name: str, folder: Path | None, batch_invariant: bool | None) -> Family:
    if folder is not None:
        from serve_app.model.native.native import from_folder

        return from_folder(folder, batch_invariant)
    for known, make in _families().items():
        family = make(batch_invariant)
        if name in (known, *family.card.aliases):
            return family
    raise NotFound(f"There is no model '{name}'; known: {', '.join((*_families(), *PUBLISHED))}.", param="model")


def _families() -> dict[str, Callable[[bool | None], Family]]:
    from serve_app.model.native import native

    return {"native/demo": native.demo}
