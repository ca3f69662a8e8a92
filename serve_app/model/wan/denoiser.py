"""Wan's transformers as the engine's Denoiser: one pass over jobs at different steps, prompts and guidance scales.

The classes are diffusers'. Two things differ from WanPipeline's use of them and not in what is computed: conditional
and unconditional rows share a pass, and a text-to-video row has one timestep for all its tokens, so it is given as one
number. `expand_timesteps` would repeat it for every token and build the modulation of each (600 MB at 480p x 81).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from diffusers import WanTransformer3DModel
from torch import Tensor

from serve_app.core import VideoSpec
from serve_app.model.model import Prepared
from serve_app.model.sampler import Sampler
from serve_app.model.wan.checkpoint import WanCheckpoint
from serve_app.model.wan.loading import load
from serve_app.model.wan.samplers import samplers_of
from serve_app.model.wan.tokenizer import MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Grid:
    """How many latents a video has."""

    channels: int
    spatial: int
    temporal: int

    def latent_shape(self, spec: VideoSpec) -> tuple[int, int, int, int]:
        """Return [channels, frames, height, width]; the first frame has a latent of its own."""
        frames = (spec.num_frames - 1) // self.temporal + 1
        return self.channels, frames, spec.height // self.spatial, spec.width // self.spatial


class WanDenoiser:
    """One or two transformers on one device; with two, the second sees timesteps below `boundary`."""

    def __init__(
        self,
        nets: Sequence[WanTransformer3DModel],
        boundary: float | None,
        grid: Grid,
        samplers: Callable[[int], Sampler],
        device: str,
    ) -> None:
        self._nets = nets
        self._boundary = boundary
        self._grid = grid
        self._samplers = samplers
        self._device = torch.device(device)

    @classmethod
    def load(cls, checkpoint: WanCheckpoint, dtype: torch.dtype, device: str) -> WanDenoiser:
        """Load a checkpoint's transformers; NotFound when their weights do not fit."""
        nets = [
            load(WanTransformer3DModel, checkpoint.folder / part, dtype, device) for part in checkpoint.transformers
        ]
        scheduler, ratio = checkpoint.config("scheduler"), checkpoint.boundary_ratio
        boundary = None if ratio is None else ratio * scheduler.get("num_train_timesteps", 1000)
        grid = Grid(
            nets[0].config.in_channels, checkpoint.vae_scale_factor_spatial, checkpoint.vae_scale_factor_temporal
        )
        return cls(nets, boundary, grid, samplers_of(scheduler), device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._device

    @property
    def context_dim(self) -> int:
        """The width of the text encoder's embeddings."""
        return int(self._nets[0].config.text_dim)

    def sampler(self, num_inference_steps: int) -> Sampler:
        """Return the checkpoint's sampler for so many steps."""
        return self._samplers(num_inference_steps)

    def latent_shape(self, spec: VideoSpec) -> tuple[int, int, int, int]:
        """Return [channels, frames, height, width] of one job."""
        return self._grid.latent_shape(spec)

    @torch.inference_mode()
    def prepare(self, prompt_embeds: Tensor) -> Tensor:
        """Return the embeddings as the transformer wants them: zeros up to the pipeline's 512 tokens."""
        padding = MAX_TOKENS - len(prompt_embeds)
        return F.pad(prompt_embeds.to(self._device, self._nets[0].dtype), (0, 0, 0, padding))

    @torch.inference_mode()
    def predict(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[Prepared]) -> Tensor:
        """Predict the velocity in float32, all on this device."""
        context = torch.stack([cast(Tensor, prompt) for prompt in prompts])
        if self._boundary is None:
            return _velocity(self._nets[0], latents, timesteps, context)
        predicted = torch.empty_like(latents)
        for net, rows in zip(self._nets, self._stages(timesteps), strict=True):
            if rows:
                predicted[rows] = _velocity(net, latents[rows], timesteps[rows], context[rows])
        return predicted

    def _stages(self, timesteps: Tensor) -> tuple[list[int], list[int]]:
        """Return the rows of either transformer; the one read from the device, where nothing runs yet in a pass."""
        early = [bool(each) for each in (timesteps >= cast(float, self._boundary)).tolist()]
        rows = range(len(early))
        return [row for row in rows if early[row]], [row for row in rows if not early[row]]


def _velocity(net: WanTransformer3DModel, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    (velocity,) = net(
        hidden_states=latents.to(net.dtype),
        timestep=timesteps,
        encoder_hidden_states=context,
        return_dict=False,
    )
    return cast(Tensor, velocity.float())
