"""Are factorised convolutions three times as quick as full 3-D ones?

The denoiser's own FactorisedConv (spatial 1x3x3, SiLU, temporal 3x1x1) against one Conv3d 3x3x3 with as many channels,
on a guided clip [2, frames, height, width, channels] as the denoiser has it. Each side is timed in two layouts,
channels last (free views) and channels first (copies in and out, which count), and runs in whichever is quicker for
it. `ratio` is the full convolution's time over the factorised one's: the median over rounds that time everything in
turn, with quartiles. `bare` is the same without copies and SiLU. With a CUDA device all is measured there too, in fp16
and at the 5b preset's sizes.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from einops import rearrange
from form import Goal, Result, Row, main
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from serve_app.model.native.blocks import FactorisedConv

CLAIM = 3.0
BATCH = 2  # a guided clip
LAYOUTS = ("channels last", "channels first")
SHAPES = {  # frames, height, width, channels
    "cpu": [(16, 8, 8, 64), (8, 4, 4, 192), (16, 16, 16, 96), (8, 32, 32, 64), (16, 32, 32, 128)],
    "cuda": [(16, 8, 8, 64), (8, 32, 32, 64), (16, 30, 40, 768), (24, 30, 40, 768), (12, 15, 20, 3072)],
}
QUICK_SHAPES = 3
Shape = tuple[int, int, int, int]
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Contest:
    """Both convolutions at one shape; every callable gives what it computed, in any layout."""

    x: Tensor
    factorised: FactorisedConv
    full: nn.Conv3d

    @classmethod
    def of(cls, shape: Shape, device: str) -> Contest:
        torch.manual_seed(0)
        dtype = torch.float16 if device == "cuda" else torch.float32
        dim = shape[-1]
        made = (torch.randn(BATCH, *shape), FactorisedConv(dim), nn.Conv3d(dim, dim, 3, padding=1))
        x, factorised, full = (each.to(device, dtype) for each in made)
        return cls(x, factorised, full)

    def in_block(self, layout: str) -> tuple[Call, Call]:
        """Return (full, factorised), from the denoiser's layout back to it."""
        if layout == "channels last":
            factorised, full = self._channels_last()
            return (
                lambda: rearrange(full(rearrange(self.x, "b f h w c -> b c f h w")), "b c f h w -> b f h w c"),
                lambda: factorised(self.x),
            )

        def full_first() -> Tensor:
            y = self.full(rearrange(self.x, "b f h w c -> b c f h w").contiguous())
            return rearrange(y, "b c f h w -> b f h w c").contiguous()

        def factorised_first() -> Tensor:
            y = self.factorised.spatial(rearrange(self.x, "b f h w c -> (b f) c h w").contiguous())
            y = rearrange(F.silu(y), "(b f) c h w -> b c f (h w)", b=BATCH).contiguous()
            height = self.x.shape[2]
            return rearrange(self.factorised.temporal(y), "b c f (h w) -> b f h w c", h=height).contiguous()

        return full_first, factorised_first

    def bare(self, layout: str) -> tuple[Call, Call]:
        """Return (full, factorised) on inputs that lie right already: convolutions and nothing else."""
        last = layout == "channels last"
        factorised, full = self._channels_last() if last else (self.factorised, self.full)
        keep = Tensor.detach if last else Tensor.contiguous
        x = keep(rearrange(self.x, "b f h w c -> b c f h w"))
        frames = keep(rearrange(self.x, "b f h w c -> (b f) c h w"))
        columns = keep(rearrange(self.x, "b f h w c -> b c f (h w)"))

        def both() -> Tensor:
            factorised.spatial(frames)
            return factorised.temporal(columns)

        return lambda: full(x), both

    def _channels_last(self) -> tuple[FactorisedConv, nn.Conv3d]:
        """Return copies whose weights lie channels last too."""
        return (
            copy.deepcopy(self.factorised).to(memory_format=torch.channels_last),
            copy.deepcopy(self.full).to(memory_format=torch.channels_last_3d),
        )


@torch.inference_mode()
def measure(quick: bool) -> Result:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows = [
        _row(shape, device, quick) for device in devices for shape in SHAPES[device][: QUICK_SHAPES if quick else None]
    ]
    goals = []
    for device in devices:
        ratio = statistics.median(float(row["ratio"]) for row in rows if row["device"] == device)
        goals.append(Goal.at_least(f"times as quick as a full one, median of shapes, {device}", ratio, CLAIM))
    facts: Row = {"FLOPs, full over factorised": _flop_ratio(), "threads": torch.get_num_threads()}
    if "cuda" in devices:
        facts["cuda"] = torch.cuda.get_device_name()
    return Result(rows, goals, facts)


def _row(shape: Shape, device: str, quick: bool) -> Row:
    contest = Contest.of(shape, device)
    _check(contest)
    (full, full_layout), (factorised, factorised_layout), ratios = _compare(contest.in_block, device, quick)
    bare = statistics.median(_compare(contest.bare, device, quick)[2])
    low, ratio, high = statistics.quantiles(ratios, n=4)
    return {
        "device": device,
        "frames x height x width x channels": "x".join(map(str, shape)),
        "full in": full_layout,
        "factorised in": factorised_layout,
        "full ms": full,
        "factorised ms": factorised,
        "ratio": ratio,
        "quartile 1": low,
        "quartile 3": high,
        "bare": bare,
    }


def _check(contest: Contest) -> None:
    """Fail unless both layouts of both convolutions compute the same."""
    last, first = (contest.in_block(layout) for layout in LAYOUTS)
    tolerance = 2e-2 if contest.x.dtype == torch.float16 else 1e-4
    for one, other in zip(last, first, strict=True):
        torch.testing.assert_close(one(), other(), atol=tolerance, rtol=tolerance)


def _compare(
    calls: Callable[[str], tuple[Call, Call]], device: str, quick: bool
) -> tuple[tuple[float, str], tuple[float, str], list[float]]:
    """Return (ms, layout) of the full and of the factorised convolution, and their ratios round by round."""
    contestants = [(layout, side, call) for layout in LAYOUTS for side, call in enumerate(calls(layout))]
    shortest = min(_milliseconds(call, 1, device) for _, _, call in contestants for _ in range(2))
    repeats = max(1, min(50, round((2 if quick else 20) / shortest)))
    times: dict[tuple[str, int], list[float]] = {(layout, side): [] for layout, side, _ in contestants}
    for _ in range(5 if quick else 25):
        for layout, side, call in contestants:
            times[layout, side].append(_milliseconds(call, repeats, device))
    medians = {place: statistics.median(found) for place, found in times.items()}
    full, factorised = (min(LAYOUTS, key=lambda layout, side=side: medians[layout, side]) for side in (0, 1))
    ratios = [one / other for one, other in zip(times[full, 0], times[factorised, 1], strict=True)]
    return (medians[full, 0], full), (medians[factorised, 1], factorised), ratios


def _milliseconds(call: Call, repeats: int, device: str) -> float:
    """Return the time of one call, of several one after the other."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - began) * 1_000 / repeats


def _flop_ratio() -> float:
    counted = []
    for side in Contest.of((4, 4, 4, 8), "cpu").in_block("channels last"):
        with FlopCounterMode(display=False) as counter:
            side()
        counted.append(counter.get_total_flops())
    return counted[0] / counted[1]


def draw(axes: Any, result: Result) -> None:
    names = [f"{row['device']} {row['frames x height x width x channels']}" for row in result.rows]
    ratios = [float(row["ratio"]) for row in result.rows]
    spread = [
        [ratio - float(row["quartile 1"]) for ratio, row in zip(ratios, result.rows, strict=True)],
        [float(row["quartile 3"]) - ratio for ratio, row in zip(ratios, result.rows, strict=True)],
    ]
    axes.bar(names, ratios, yerr=spread, capsize=4, color="tab:blue")
    axes.axhline(float(result.facts["FLOPs, full over factorised"]), color="tab:grey", linestyle=":", label="FLOPs")
    axes.axhline(CLAIM, color="tab:red", linestyle="--", label="claimed")
    axes.tick_params(axis="x", labelrotation=20)
    axes.set_ylabel("times as quick as a full 3-D convolution")
    axes.legend()


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
