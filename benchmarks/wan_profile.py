"""Where the time of one of our videos goes, and what this machine's matrix products could do at best.

torch's own profiler attributes each op's own time to the part that called it (text encoder, denoiser, sampler, decoder)
and, in the denoiser, to linear layers, attention and what lies between. FLOPs are counted by torch on the same passes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from wan_sides import Encore

from serve_app.core import VideoSpec
from serve_app.engine.denoising import Trajectory, advance

PARTS = ("text encoder", "denoiser", "sampler", "decoder")
LINEAR, ATTENTION, BETWEEN = "denoiser: linear layers", "denoiser: attention", "denoiser: between them"
_LINEAR = ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear", "mkldnn", "aten::convolution")
_ATTENTION = ("aten::_scaled_dot_product", "aten::scaled_dot_product")


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: object, **__: object) -> int:
    return int(sdpa_flop_count(q, k, v))


_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds by place, of which the profiler's own are part; and the FLOP/s of the denoiser's linear layers."""

    seconds: dict[str, float]
    linear_flops_per_second: float

    def shares(self) -> dict[str, float]:
        """Return every place's share of the whole."""
        whole = sum(self.seconds.values())
        return {place: each / whole for place, each in self.seconds.items()}


def profiled(ours: Encore, asked: VideoSpec) -> Profile:
    """Make a video in this thread, with as many torch threads as it has, and say where its time went."""
    # The profiler hears this thread alone: rows side by side are computed in it, and are the same work.
    parts = (ours.text_encoder, ours.denoiser, ours.decoder)
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(patch.object(part, "_batch_invariant", False))
        _make(ours, asked)  # warm
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            _make(ours, asked)
    seconds = dict.fromkeys((LINEAR, ATTENTION, BETWEEN, "text encoder", "sampler", "decoder", "rest"), 0.0)
    for event in profiler.events():
        seconds[_place(event)] += event.self_cpu_time_total / 1e6
    return Profile(seconds, _linear_flops(ours, asked) / seconds[LINEAR])


def matmul_peak(seconds: float = 0.5) -> float:
    """Return the FLOP/s of float32 products of [2048, 2048] matrices, the best of those made in so many seconds."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = 0.0
    until = time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < until:
            began = time.perf_counter()
            a @ b
            best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best


def _make(ours: Encore, asked: VideoSpec) -> None:
    with record_function("text encoder"):
        embeds = ours.text_encoder.encode([asked.prompt, asked.negative_prompt])
    job = Trajectory.of(ours.denoiser, asked, *embeds)
    for _ in range(asked.num_inference_steps):
        (job,) = advance(_Labelled(ours.denoiser), [job])  # type: ignore[arg-type]
    with record_function("decoder"):
        ours.decoder.decode(job.final_latents())


class _Labelled:
    """A denoiser whose calls the profiler sees; what a step does beside them is the sampler's."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser
        self.device = denoiser.device

    def prepare(self, prompt_embeds: torch.Tensor) -> object:
        with record_function("denoiser"):
            return self._denoiser.prepare(prompt_embeds)

    def predict(self, *given: Any) -> torch.Tensor:
        with record_function("denoiser"):
            predicted: torch.Tensor = self._denoiser.predict(*given)
        return predicted


def _place(event: Any) -> str:
    names = []
    parent: Any = event
    while parent is not None:
        names.append(parent.name)
        parent = parent.cpu_parent
    part = next((name for name in names if name in PARTS), None)
    if part == "denoiser":
        if any(name.startswith(_ATTENTION) for name in names):
            return ATTENTION
        return LINEAR if any(name.startswith(_LINEAR) for name in names) else BETWEEN
    if part is None:
        return "sampler" if any(name.startswith("aten::") for name in names) else "rest"
    return part


def _linear_flops(ours: Encore, asked: VideoSpec) -> int:
    """Count the FLOPs of all that the denoiser does for a video, attention aside."""
    job = Trajectory.of(ours.denoiser, asked, *ours.text_encoder.encode([asked.prompt, asked.negative_prompt]))
    # In this thread: the counter does not hear of others, and rows by themselves are the same work.
    with (
        patch.object(ours.denoiser, "_batch_invariant", False),
        FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter,
    ):
        for _ in range(asked.num_inference_steps):
            (job,) = advance(ours.denoiser, [job])
    counts = counter.get_flop_counts()["Global"]
    return sum(count for op, count in counts.items() if "scaled_dot_product" not in str(op))
