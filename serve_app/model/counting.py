"""What a pass computes and holds, counted on meta tensors by the very classes that serve; nothing is allocated.

FLOPs are those of the matrix products and convolutions (a multiplication and an addition are two), by torch's own
counter. Activations are the storages alive at one time, op by op as eager torch makes them; a caching allocator's
fragments and cuDNN's workspaces come on top.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from serve_app.model.roofline import Cost


def between(ends: Mapping[int, Cost], batch: int) -> Cost:
    """Return the cost of a number of rows (or latents) on the straight line through two that were counted."""
    if batch in ends:
        return ends[batch]
    few, many = min(ends), max(ends)
    pairs = zip(astuple(ends[few]), astuple(ends[many]), strict=True)
    return Cost(*(low + (high - low) * (batch - few) // (many - few) for low, high in pairs))


def cost(run: Callable[[], object], net: nn.Module) -> Cost:
    """Count what `run` does with `net`, both on the meta device."""
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
        self._bytes = 0
        self.peak_bytes = self.moved_bytes = self.attention_flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        taken, made = _tensors((args, kwargs)), _tensors(out)
        for tensor in made:
            self._watch(tensor)
        self.peak_bytes = max(self.peak_bytes, self._bytes)
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
            self._bytes += self._alive[place]
            weakref.finalize(storage, self._forget, place)

    def _forget(self, place: int) -> None:
        self._bytes -= self._alive.pop(place)

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        return id(tensor.untyped_storage()) in self._weight_ids


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
