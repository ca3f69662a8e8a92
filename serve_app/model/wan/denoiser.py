"""Wan's transformers as the engine's Denoiser: one pass over jobs at different steps, prompts and guidance scales.

Conditional and unconditional rows share a pass (side by side, or with `batch_invariant` each by itself), and with two
transformers (Wan2.2-A14B) each row goes to the one that its timestep is for. `expand_timesteps` needs nothing here: in
text-to-video it repeats one timestep for every token. In image-to-video it says that the first latent frame is given,
by a timestep of 0, and then timesteps come frame by frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from serve_app.core import VideoSpec
from serve_app.model.model import Prepared
from serve_app.model.rows import by_itself, each_alone, laid_out_alike
from serve_app.model.sampler import Sampler
from serve_app.model.wan.checkpoint.checkpoint import WanCheckpoint
from serve_app.model.wan.checkpoint.loading import load
from serve_app.model.wan.compiling import compiled
from serve_app.model.wan.quantization import quantize
from serve_app.model.wan.samplers import samplers_of
from serve_app.model.wan.speed import PLAIN, Speed
from serve_app.model.wan.transformer import Block, Text, prepare, run_block, turns_of, velocity

KEPT = 16
"""Shapes whose rotary tables are kept; one of 832x480x81 takes 4 MB."""


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
    """One or two transformers on one device; with two, the second sees timesteps below `boundary`.

    batch_invariant: a row's bytes depend on nothing but the row.
    """

    def __init__(
        self,
        nets: Sequence[WanTransformer3DModel],
        boundary: float | None,
        grid: Grid,
        samplers: Callable[[int], Sampler],
        device: str,
        block: Block = run_block,
        *,
        batch_invariant: bool = False,
    ) -> None:
        self._nets = nets
        self._block = block
        self._boundary = boundary
        self._grid = grid
        self._samplers = samplers
        self._device = torch.device(device)
        self._batch_invariant = batch_invariant
        self._tables: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def load(
        cls,
        checkpoint: WanCheckpoint,
        dtype: torch.dtype,
        device: str,
        speed: Speed = PLAIN,
        *,
        batch_invariant: bool = False,
    ) -> WanDenoiser:
        """Load a checkpoint's transformers; NotFound when their weights do not fit, InvalidRequest as `compiled`."""
        nets = [_transformer(checkpoint.folder / part, dtype, device, speed) for part in checkpoint.transformers]
        scheduler, ratio = checkpoint.config("scheduler"), checkpoint.boundary_ratio
        boundary = None if ratio is None else ratio * scheduler.get("num_train_timesteps", 1000)
        grid = Grid(
            nets[0].config.in_channels, checkpoint.vae_scale_factor_spatial, checkpoint.vae_scale_factor_temporal
        )
        block = compiled(nets[0], takes_image=checkpoint.takes_image) if speed.torch_compile else run_block
        return cls(nets, boundary, grid, samplers_of(scheduler), device, block, batch_invariant=batch_invariant)

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
    def prepare(self, prompt_embeds: Tensor) -> tuple[Text, ...]:
        """Return one prompt's keys and values in every block of each transformer."""
        if not self._batch_invariant:
            return tuple(prepare(net, prompt_embeds) for net in self._nets)
        embeds = laid_out_alike(prompt_embeds)
        return by_itself(lambda: tuple(prepare(net, embeds) for net in self._nets), self._device, in_pieces=True)

    @torch.inference_mode()
    def predict(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[Prepared]) -> Tensor:
        """Predict the velocity in float32, all on this device."""
        texts = cast(Sequence[tuple[Text, ...]], prompts)
        turns = self._turns(tuple(latents.shape[2:]))
        if self._batch_invariant:
            return self._each_alone(latents, timesteps, texts, turns)
        if self._boundary is None:
            return velocity(self._nets[0], latents, timesteps, [text for (text,) in texts], turns, self._block)
        predicted = torch.empty_like(latents)
        for stage, rows in enumerate(self._stages(timesteps)):
            if rows:
                own = [texts[row][stage] for row in rows]
                predicted[rows] = velocity(self._nets[stage], latents[rows], timesteps[rows], own, turns, self._block)
        return predicted

    def _each_alone(
        self, latents: Tensor, timesteps: Tensor, texts: Sequence[tuple[Text, ...]], turns: Tensor
    ) -> Tensor:
        early, _ = (range(len(texts)), ()) if self._boundary is None else self._stages(timesteps)

        def compute(row: int) -> Tensor:
            stage = 0 if row in early else 1
            own, timestep = laid_out_alike(latents[row : row + 1]), _own_timestep(timesteps[row : row + 1])
            return velocity(self._nets[stage], own, timestep, [texts[row][stage]], turns, self._block)

        return torch.cat(each_alone(compute, len(texts), self._device, in_pieces=True))

    def _stages(self, timesteps: Tensor) -> tuple[list[int], list[int]]:
        """Return the rows of either transformer; the one read from the device, where nothing runs yet in a pass."""
        early = [bool(each) for each in (timesteps >= cast(float, self._boundary)).tolist()]
        rows = range(len(early))
        return [row for row in rows if early[row]], [row for row in rows if not early[row]]

    def _turns(self, size: tuple[int, ...]) -> Tensor:
        """Return the positions' table for latents of so many frames, height and width; made once."""
        if size not in self._tables:
            if len(self._tables) == KEPT:
                self._tables.pop(next(iter(self._tables)))
            self._tables[size] = turns_of(self._nets[0], torch.empty((1, 1, *size), device="meta"))
        return self._tables[size]


def _own_timestep(timestep: Tensor) -> Tensor:
    """Return one row's timestep as it has it alone: frame by frame [1, f] only where its own first frame is given."""
    first = timestep.flatten()[:1]
    return laid_out_alike(first if bool((timestep == first).all()) else timestep)


def _transformer(folder: Path, dtype: torch.dtype, device: str, speed: Speed) -> WanTransformer3DModel:
    """Load one; quantised on the CPU, so that the device never holds its weights in full."""
    if speed.quantization is None:
        return cast(WanTransformer3DModel, load(WanTransformer3DModel, folder, dtype, device))
    net = load(WanTransformer3DModel, folder, dtype, "cpu")
    quantize(net, speed.quantization)
    return cast(WanTransformer3DModel, net.to(device))
