"""What a preset weighs and computes, counted on meta tensors by the very classes that serve; nothing is allocated.

FLOPs are those of the matrix products and convolutions (a multiplication and an addition are two), by torch's own
counter. Activations are the storages alive at one time, op by op as eager torch makes them; a caching allocator's
fragments and cuDNN's workspaces come on top. Attention counts written out, with its scores in memory: with attention
over space and time apart these are small, but it makes the peak an upper bound for a fused kernel.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from serve_app.model.native.autoencoder import FrameDecoder, FrameEncoder
from serve_app.model.native.blocks import video_positions
from serve_app.model.native.condition import moments
from serve_app.model.native.config import NativeConfig
from serve_app.model.native.denoiser import DenoiserNet
from serve_app.model.native.text_encoder import TextEncoderNet
from serve_app.model.roofline import Cost, Work

DTYPE = torch.float16


class Sizing:
    """The four networks of a preset on the meta device."""

    def __init__(self, config: NativeConfig) -> None:
        self.config = config
        with torch.device("meta"):
            self.parts: dict[str, nn.Module] = {
                "text_encoder": TextEncoderNet(config.text_encoder),
                "denoiser": DenoiserNet(config.denoiser),
                "encoder": FrameEncoder(config.autoencoder),
                "decoder": FrameDecoder(config.autoencoder),
            }
        for net in self.parts.values():
            net.to(DTYPE).eval().requires_grad_(False)

    def parameters(self) -> dict[str, int]:
        """Count the parameters of each part."""
        return {name: sum(each.numel() for each in net.parameters()) for name, net in self.parts.items()}

    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        """Return [channels, frames, height, width] of one clip's latents."""
        downscale = self.config.autoencoder.downscale
        channels = self.config.denoiser.latent_channels
        return channels, frames, self.config.height // downscale, self.config.width // downscale

    def tokens(self, frames: int) -> int:
        """Count the places of the denoiser's inner level for one clip."""
        _, _, height, width = self.latent_shape(frames)
        return -(-frames // self.config.denoiser.frame_stride) * (height // 2) * (width // 2)

    def denoise(self, frames: int, rows: int) -> Cost:
        """Count one pass over `rows` clips (a guided clip is two rows), each with a prompt of full length."""
        shape = self.latent_shape(frames)
        length = self.config.text_encoder.max_tokens
        video_positions.cache_clear()  # they lie in memory too, so the peak shall see them made
        moments.cache_clear()

        def run() -> None:
            context = torch.empty(rows, length, self.config.denoiser.context_dim, dtype=DTYPE)
            mask = torch.ones(rows, length, dtype=torch.bool)
            self.parts["denoiser"](torch.empty(rows, *shape, dtype=DTYPE), torch.empty(rows), context, mask)

        return _cost(run, self.parts["denoiser"])

    def decode(self, frames: int) -> Cost:
        """Count decoding one clip, all frames at once as the engine does."""
        channels, _, height, width = self.latent_shape(frames)
        latents = (frames, channels, height, width)
        return _cost(lambda: self.parts["decoder"](torch.empty(latents, dtype=DTYPE)), self.parts["decoder"])

    def encode_prompt(self) -> Cost:
        """Count encoding one prompt of full length."""
        tokens = (1, self.config.text_encoder.max_tokens)
        return _cost(
            lambda: self.parts["text_encoder"](torch.empty(tokens, dtype=torch.long)), self.parts["text_encoder"]
        )

    def works(self, frames: int, batches: Sequence[int]) -> list[Work]:
        """Return the guided batches of clips of one length.

        Only the smallest and the largest are counted: what a pass costs is a straight line over its rows.
        """
        few, many = min(batches), max(batches)
        ends = {batch: self.denoise(frames, 2 * batch) for batch in {few, many}}
        decode, encode_prompt, parameters = self.decode(frames), self.encode_prompt(), self.parameters()
        return [Work(frames, batch, _between(ends, batch), decode, encode_prompt, parameters) for batch in batches]


def _between(ends: Mapping[int, Cost], batch: int) -> Cost:
    if batch in ends:
        return ends[batch]
    few, many = min(ends), max(ends)
    pairs = zip(astuple(ends[few]), astuple(ends[many]), strict=True)
    return Cost(*(low + (high - low) * (batch - few) // (many - few) for low, high in pairs))


def _cost(run: Callable[[], object], net: nn.Module) -> Cost:
    activations = Activations(net)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter, activations:
        run()
    return Cost(
        flops=counter.get_total_flops(),
        attention_flops=activations.attention_flops,
        peak_bytes=activations.peak_bytes,
        moved_bytes=activations.moved_bytes,
    )


class Activations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own is untyped
    """Watches the storages that ops make under it, the weights of `net` aside.

    `peak_bytes` is the most that was alive after one op, `moved_bytes` what matrix products and convolutions with
    weights took and gave, `attention_flops` the FLOPs of those without.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = [each.untyped_storage() for each in net.state_dict().values()]
        self._weight_ids = {id(storage) for storage in self._weights}
        self._alive: dict[int, int] = {}
        self.peak_bytes = self.moved_bytes = self.attention_flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        taken, made = _tensors((args, kwargs)), _tensors(out)
        for tensor in made:
            self._watch(tensor)
        self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))
        if func.overloadpacket in flop_registry:
            if any(map(self._is_weight, taken)):
                activations = itertools.filterfalse(self._is_weight, (*taken, *made))
                self.moved_bytes += sum(tensor.nbytes for tensor in activations)
            else:
                self.attention_flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return out

    def _watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place = id(storage)
        if place not in self._alive and not self._is_weight(tensor):
            self._alive[place] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, place)

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        return id(tensor.untyped_storage()) in self._weight_ids


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
