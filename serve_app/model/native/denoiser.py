"""The latent denoiser: predicts the flow velocity of a batch of videos, whatever step each of them is at.

Two levels: a few factorised convolutions at the latents' own resolution keep edges sharp, and at half of it, in time
too, where there are an eighth as many tokens, blocks with all the attention do the thinking. The prompt speaks twice:
word by word through cross-attention, and as a whole through its last token, which conditions every norm like the
timestep does. Every row of a batch is computed independently, so a job's answer does not depend on who shares its pass:
to rounding where rows share products, to the bit where they do not (`batch_invariant`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from serve_app.core import VideoSpec
from serve_app.model.model import Prepared
from serve_app.model.native.blocks import ConvBlock, VideoBlock, video_positions
from serve_app.model.native.condition import Condition, Prompts, last_tokens
from serve_app.model.native.config import DenoiserConfig, NativeConfig
from serve_app.model.native.lanes import in_lanes
from serve_app.model.rows import by_itself, each_alone, laid_out_alike, worth_sharing
from serve_app.model.sampler import FlowMatchEulerSampler, Sampler


class DenoiserNet(nn.Module):
    """The network itself; latent height and width must be even, any number of frames will do."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        outer, inner = config.outer_channels, config.inner_channels
        self.stride = config.frame_stride
        folded = config.frame_stride * 4 * outer
        self.condition = Condition(config)
        self.project_in = nn.Linear(config.latent_channels, outer)
        self.entry = nn.ModuleList(ConvBlock(config) for _ in range(config.outer_blocks))
        self.down = nn.Linear(folded, inner)
        self.trunk = nn.ModuleList(VideoBlock(config) for _ in range(config.inner_blocks))
        self.up = nn.Linear(inner, folded)
        self.merge = nn.Linear(2 * outer, outer)
        self.exit = nn.ModuleList(ConvBlock(config) for _ in range(config.outer_blocks))
        self.norm = nn.LayerNorm(outer)
        self.project_out = nn.Linear(outer, config.latent_channels)

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Return the velocity, latents' shape [b, c, f, h, w]; context [b, k, context_dim], mask [b, k]."""
        return self.denoise(latents, timesteps, self.prepare(context, mask))

    def prepare(self, context: Tensor, mask: Tensor) -> Prompts:
        """Return what all passes need of the prompts, context [b, k, context_dim] with mask [b, k]."""
        pooled = last_tokens(context, mask)
        return Prompts(
            whole=self.condition.prompt(pooled),
            whole_at=self.condition.prompt_at(pooled),
            key_value=torch.stack([block.cross.key_value(context) for block in self._trunk()], dim=2),
            mask=mask,
        )

    def denoise(self, latents: Tensor, timesteps: Tensor, prompts: Prompts) -> Tensor:
        """Return the velocity, latents' shape [b, c, f, h, w]; timesteps [b]; `prepare` made the prompts."""
        frames = latents.shape[2]
        outer, inner = self.condition(timesteps, prompts, (frames, -(-frames // self.stride)))
        shared = self.condition.outer(outer)
        x = self.project_in(rearrange(latents, "b c f h w -> b f h w c")).to(self.norm.weight)
        positions = _positions_of(x)
        for block in self.entry:
            x = block(x, outer, shared, positions)
        thought = self._think(x, inner, prompts)
        x = self.merge(torch.cat([x, thought.to(x.dtype)], dim=-1)).to(x.dtype)
        for block in self.exit:
            x = block(x, outer, shared, positions)
        return cast(Tensor, rearrange(self.project_out(self.norm(x)), "b f h w c -> b c f h w"))

    def _think(self, x: Tensor, condition: Tensor, prompts: Prompts) -> Tensor:
        frames = x.shape[1]
        missing = -frames % self.stride
        x = torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1) if missing else x
        x = self.down(rearrange(x, f"b (f s) (h p) (w q) c -> {_FOLDED}", s=self.stride, p=2, q=2)).to(x.dtype)
        positions = _positions_of(x)
        shared = self.condition.inner(condition)
        for block, key_value in zip(self._trunk(), prompts.key_value.unbind(dim=2), strict=True):
            x = block(x, condition, shared, positions, key_value, prompts.mask)
        unfolded = rearrange(self.up(x), f"{_FOLDED} -> b (f s) (h p) (w q) c", s=self.stride, p=2, q=2)
        return cast(Tensor, unfolded[:, :frames])

    def _trunk(self) -> list[VideoBlock]:
        return [cast(VideoBlock, block) for block in self.trunk]


_FOLDED = "b f h w (s p q c)"


def _positions_of(x: Tensor) -> Tensor:
    _, frames, height, width, channels = x.shape
    return video_positions(frames, height, width, channels, x.device).to(x.dtype)


def _computed_in(dtype: torch.dtype, device: str) -> torch.dtype:
    """Return float32 for bfloat16 on a CPU without instructions for it, which would take many times as long."""
    slow = dtype is torch.bfloat16 and torch.device(device).type == "cpu" and not torch.cpu._is_avx512_bf16_supported()
    return torch.float32 if slow else dtype


class NativeDenoiser:
    """The network as the engine's Denoiser, on one device.

    It computes in the preset's dtype, or in float32 where a CPU cannot do that well: then pixels differ by rounding, as
    they do between a CPU and a GPU. batch_invariant: a row's bytes depend on nothing but the row.
    """

    def __init__(self, net: DenoiserNet, config: NativeConfig, device: str, *, batch_invariant: bool = False) -> None:
        self._dtype = _computed_in(getattr(torch, config.denoiser_dtype or config.dtype), device)
        self._net = net.to(device, self._dtype).eval().requires_grad_(False)
        self._config = config
        self._device = torch.device(device)
        self._weights = sum(weight.numel() for weight in net.parameters())
        self._batch_invariant = batch_invariant

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._device

    @property
    def sampler_shift(self) -> float:
        """The timestep shift the preset is sampled with."""
        return self._config.sampler_shift

    @property
    def context_dim(self) -> int:
        """The width of the text encoder's context."""
        return self._config.denoiser.context_dim

    def sampler(self, num_inference_steps: int) -> Sampler:
        """Return Euler steps of the shifted schedule."""
        return FlowMatchEulerSampler(num_inference_steps, self.sampler_shift)

    def latent_shape(self, spec: VideoSpec) -> tuple[int, int, int, int]:
        """Return [channels, frames, height, width]: the autoencoder works frame by frame, the denoiser at its size."""
        config = self._config
        height, width = (config.height, config.width) if config.one_size else (spec.height, spec.width)
        downscale = config.autoencoder.downscale
        return config.denoiser.latent_channels, spec.num_frames, height // downscale, width // downscale

    @torch.inference_mode()
    def prepare(self, prompt_embeds: Tensor) -> Prompts:
        """Return one prompt's keys and values in every block, and what it says as a whole."""
        context = prompt_embeds[None].to(self._device, self._dtype)
        mask = torch.ones(context.shape[:2], dtype=torch.bool, device=self._device)
        if not self._batch_invariant:
            return self._net.prepare(context, mask)
        context = laid_out_alike(context)
        return by_itself(lambda: self._net.prepare(context, mask), self._device)

    def predict(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[Prepared]) -> Tensor:
        """Predict the velocity in float32, all on this device."""
        known = cast(Sequence[Prompts], prompts)
        if self._batch_invariant:
            return self._each_alone(latents, timesteps, known)

        def compute(rows: slice) -> Tensor:
            together = Prompts.together(known[rows])
            return self._net.denoise(latents[rows].to(self._dtype), timesteps[rows], together).float()

        return in_lanes(compute, len(known), self._device)

    def _each_alone(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[Prompts]) -> Tensor:
        def compute(row: int) -> Tensor:
            own, timestep = (laid_out_alike(each[row : row + 1]) for each in (latents, timesteps))
            return self._net.denoise(own.to(self._dtype), timestep, prompts[row]).float()

        in_pieces = worth_sharing(self._weights, latents[0, 0].numel())
        return torch.cat(each_alone(compute, len(prompts), self._device, in_pieces=in_pieces))
