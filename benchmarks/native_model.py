"""How long does the demo model take for a clip, and how near is that to what this machine can multiply?

    python benchmarks/native_model.py

A clip of 16 frames with guidance, at 4, 8, 16 and 30 steps, alone and eight at a time, through the engine's own steps
(`engine.denoising`) and the decoder; nothing is cached. The floor is the same number of FLOPs as plain matrix products
of the trunk's shape, float32, on as many threads, measured in turns with the clips; torch counts the FLOPs on the same
passes. Seconds are the best of several rounds, because the machine may be busy with other work; medians
stand beside them.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from form import Goal, Result, Row, main
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from serve_app.core import VideoSpec
from serve_app.engine.denoising import Trajectory, advance
from serve_app.model.families import load_family

PROMPTS = (
    "a small red circle moving left on a white background",
    "a large blue star spinning on a black background",
    "a green heart growing against a gray backdrop",
    "a tiny pink square bouncing on a navy background",
    "一个大的黄色三角形在白色背景上向上移动",
    "a large orange cross standing still on sand",
    "a small purple heart moving down on a sky blue background",
    "灰色背景,小的青色圆形,缩小",
)
ALONE, TOGETHER = 0.8, 0.35


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: object, **__: object) -> int:
    return int(sdpa_flop_count(q, k, v))


# The counter has no formula of its own for the form of attention that torch uses on a CPU.
_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


class Model:
    """The demo's parts on the CPU."""

    def __init__(self) -> None:
        family = load_family("native/demo")
        self.card = family.card
        self.denoiser = family.load_denoiser("cpu")
        self.decoder = family.load_decoder("cpu")
        self.embeds = family.load_text_encoder("cpu").encode(["", *PROMPTS])

    def render(self, clips: int, steps: int) -> None:
        """Make `clips` clips in one batch and throw them away."""
        batch = [self._start(i, steps) for i in range(clips)]
        for _ in range(steps):
            batch = advance(self.denoiser, batch)
        for trajectory in batch:
            self.decoder.decode(trajectory.final_latents())

    def _start(self, i: int, steps: int) -> Trajectory:
        card = self.card
        spec = VideoSpec(
            model=card.name,
            prompt=PROMPTS[i],
            negative_prompt="",
            seed=i,
            width=card.width.default,
            height=card.height.default,
            num_frames=16,
            fps=card.fps.default,
            num_inference_steps=steps,
            guidance_scale=card.guidance_scale.default,
        )
        return Trajectory.of(self.denoiser, spec, self.embeds[1 + i], self.embeds[0])


def measure(quick: bool) -> Result:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = Model()
    rounds = 1 if quick else 7
    cases = [(clips, steps) for clips in (1, 8) for steps in ((16,) if quick else (4, 8, 16, 30))]
    rows = [_row(model, clips, steps, rounds if steps <= 16 else rounds // 2) for clips, steps in cases]
    best = {(row["clips"], row["steps"]): float(row["s a clip"]) for row in rows}
    goals = [
        Goal.at_most("seconds for one clip, 16 steps", best[1, 16], ALONE),
        Goal.at_most("seconds a clip, eight at a time, 16 steps", best[8, 16], TOGETHER),
    ]
    return Result(rows, goals, {"threads": torch.get_num_threads(), "guidance": model.card.guidance_scale.default})


def _row(model: Model, clips: int, steps: int, rounds: int) -> Row:
    flops = _flops(model, clips, steps)
    taken, floor = [], []
    for _ in range(rounds):
        taken.append(_seconds(lambda: model.render(clips, steps)))
        floor.append(_floor(flops))
    return {
        "clips": clips,
        "steps": steps,
        "s a clip": min(taken) / clips,
        "median": statistics.median(taken) / clips,
        "GFLOP a clip": flops / clips / 1e9,
        "floor s a clip": min(floor) / clips,
        "x floor": min(taken) / min(floor),
    }


def _flops(model: Model, clips: int, steps: int) -> int:
    """Count one step and two, for each further one costs the same.

    One thread, because the counter does not see what lanes compute in threads of their own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, two = _counted(model, clips, 1), _counted(model, clips, 2)
    finally:
        torch.set_num_threads(threads)
    return one + (steps - 1) * (two - one)


def _counted(model: Model, clips: int, steps: int) -> int:
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        model.render(clips, steps)
    return counter.get_total_flops()


def _floor(flops: int) -> float:
    """Return the seconds that `flops` take as products of [2048, 192] and [192, 768], timed over at least 0.2 s."""
    a, b = torch.randn(2048, 192), torch.randn(192, 768)
    each = 2 * a.shape[0] * b.numel()
    count = max(64, int(20e9 / each))
    with torch.inference_mode():
        return _seconds(lambda: [a @ b for _ in range(count)]) * flops / (each * count)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def draw(axes: Any, result: Result) -> None:
    """Seconds a clip over steps, alone and together, with the floor dotted."""
    for clips in (1, 8):
        rows = [row for row in result.rows if row["clips"] == clips]
        steps = [row["steps"] for row in rows]
        (line,) = axes.plot(steps, [row["s a clip"] for row in rows], marker="o", label=f"{clips} at a time")
        axes.plot(steps, [row["floor s a clip"] for row in rows], linestyle=":", color=line.get_color())
    axes.set_xlabel("steps")
    axes.set_ylabel("seconds a clip (dotted: the same FLOPs as matrix products)")
    axes.legend()


if __name__ == "__main__":
    sys.exit(main(__doc__, measure, draw))
