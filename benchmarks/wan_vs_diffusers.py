"""Is this project's Wan quicker than diffusers' WanPipeline, and is it the same?

    python benchmarks/wan_vs_diffusers.py

A random checkpoint of the published classes and proportions with more than 100 M weights (`wan_checkpoint.py`), float32
on the CPU, as many torch threads on both sides, both loaded in this process and run in turns (`wan_sides.py`). One
request at a time: all of it, with the prompts encoded already (the pipeline's reads 512 tokens a prompt, which weighs
more in a small model than in a large one), and at the 1,500 tokens that 480x640x17 has in the 5B. Then eight requests
at once, and eight that come as fast as the pipeline can answer: ours through the step engine, the pipeline one after
another. Memory is the most that a process of its own has held. The profile says where our time goes
(`wan_profile.py`). One request at a time is played in rounds, each side once and the other first every second time: its
seconds are the rounds' medians, its ratio is the median of the rounds' own, since a shared machine's speed drifts
between them. It takes some sixteen minutes on two cores, `--quick` three.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wan_checkpoint
from form import Goal, Result, Row, main
from wan_profile import LINEAR, matmul_peak, profiled
from wan_sides import OURS, THEIRS, Diffusers, Encore, Side, Size, peak_bytes, play, spec

SECONDS, LATENTS, WEIGHTS = 0.95, 1e-4, 100_000_000
SHORT, LONG = Size(256, 448, 17), Size(480, 640, 17)
ALONE = "one request"
KNOWN = "one request, prompts known"
REAL = "one request of 1,500 tokens, prompts known"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    rounds: int
    steps: int
    requests: int
    long: bool


FULL = Extent(rounds=5, steps=4, requests=8, long=True)
QUICK = Extent(rounds=1, steps=2, requests=2, long=False)


@dataclass(slots=True)
class Contest:
    """Both sides, loaded."""

    ours: Encore
    theirs: Diffusers
    extent: Extent

    async def rows(self) -> list[Row]:
        """Return all lines but those of memory."""
        for size in (SHORT, LONG) if self.extent.long else (SHORT,):
            for side in (self.ours, self.theirs):  # both warm, the prompt known, before anything counts
                await side.render(spec(size, 1), known=True)
        rows = [
            await self._alone(ALONE, SHORT, known=False),
            await self._alone(KNOWN, SHORT, known=True),
        ]
        if self.extent.long:
            rows.append(await self._alone(REAL, LONG, known=True))
        one = float(rows[0][THEIRS])
        for words, apart in (("at once", 0.0), ("spread out", one)):
            rows += await self._together(words, apart)
        return rows

    async def _alone(self, case: str, size: Size, *, known: bool) -> Row:
        steps = self.extent.steps
        taken: dict[str, list[float]] = {OURS: [], THEIRS: []}
        sides: list[tuple[str, Side]] = [(OURS, self.ours), (THEIRS, self.theirs)]
        for turn in range(self.extent.rounds):
            for name, side in sides if turn % 2 else reversed(sides):
                began = time.perf_counter()
                await side.render(spec(size, steps), known=known)
                taken[name].append(time.perf_counter() - began)
        ratios = [mine / others for mine, others in zip(taken[OURS], taken[THEIRS], strict=True)]
        row = _row(case, size, steps, "s", statistics.median(taken[OURS]), statistics.median(taken[THEIRS]))
        return row | {"ours / theirs": statistics.median(ratios)}

    async def _together(self, words: str, apart: float) -> list[Row]:
        jobs = [spec(SHORT, self.extent.steps, number) for number in range(self.extent.requests)]
        mine, others = await play(self.ours, jobs, apart), await play(self.theirs, jobs, apart)
        case = f"{len(jobs)} requests {words}"
        return [
            _row(f"{case}: mean latency", SHORT, self.extent.steps, "s", mine.mean, others.mean),
            _row(f"{case}: throughput", SHORT, self.extent.steps, "videos/s", mine.throughput, others.throughput),
        ]

    def apart(self) -> tuple[float, float, int]:
        """Return the largest difference of latents, what the largest latent is, and that of frames (of 255)."""
        asked = spec(SHORT, self.extent.steps, 3)
        mine, others = self.ours.latents(asked), self.theirs.latents(asked)
        frames = self.ours.decoder.decode(mine.half()).astype(int)
        pipeline = self.theirs.frames(asked)
        return (
            float((mine - others).abs().max()), float(others.abs().max()), int(np.abs(frames - pipeline).max())
        )  # fmt: skip


def measure(quick: bool) -> Result:
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="encore-wan-") as place:
        os.environ["XDG_CACHE_HOME"] = place  # digests of weights that are gone in a minute are not to be remembered
        return asyncio.run(_found(QUICK if quick else FULL, Path(place) / "checkpoint", threads))


async def _found(extent: Extent, folder: Path, threads: int) -> Result:
    weights = wan_checkpoint.save(folder)
    peaks = {side: peak_bytes(side, folder, SHORT, 1, threads)["peak"] / 1e6 for side in (OURS, THEIRS)}
    contest = Contest(Encore(folder, threads), Diffusers(folder, threads), extent)
    try:
        async with contest.ours.serving(SHORT):
            rows = await contest.rows()
            limit = contest.ours.engine.pace.limit(contest.ours.denoiser.latent_shape(spec(SHORT, 1)))
        rows.append(_row("peak memory of a process", SHORT, 1, "MB", peaks[OURS], peaks[THEIRS]))
        latents, largest, frames = contest.apart()
        seen, peak = profiled(contest.ours, spec(SHORT, extent.steps)), matmul_peak()
    finally:
        contest.theirs.shutdown()
    facts: Row = {
        "weights": weights,
        "threads": threads,
        "most rows in a pass": limit,
        "largest difference of latents": latents,
        "largest latent": largest,
        "largest difference of frames, of 255": frames,
        "matrix products of this machine, GFLOP/s": peak / 1e9,
        f"{LINEAR}, share of that": seen.linear_flops_per_second / peak,
    }
    facts |= {f"time in {place}, %": 100 * share for place, share in seen.shares().items()}
    return Result(rows, goals(rows, latents, weights), facts)


def goals(rows: Sequence[Row], latents: float, weights: int) -> list[Goal]:
    """Judge the seconds of single requests, and that both sides make the same."""
    judged = [
        Goal.at_most(f"{row['case']}: {OURS} over {THEIRS}", float(row["ours / theirs"]), SECONDS)
        for row in rows
        if row["case"] in (ALONE, KNOWN, REAL)
    ]
    return [
        *judged,
        Goal.at_most("largest difference of latents", latents, LATENTS),
        Goal.at_least("weights of the checkpoint", weights, WEIGHTS),
    ]


def _row(case: str, size: Size, steps: int, unit: str, ours: float, theirs: float) -> Row:
    return {
        "case": case, "size": str(size), "tokens": size.tokens, "steps": steps, "unit": unit, OURS: ours,
        THEIRS: theirs, "ours / theirs": ours / theirs,
    }  # fmt: skip


def draw(axes: Any, result: Result) -> None:
    """Draw each case's ratio as a bar; a line where both are the same."""
    cases = [str(row["case"]) for row in result.rows]
    axes.barh(cases, [row["ours / theirs"] for row in result.rows])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel=f"{OURS} / {THEIRS}", title="Wan, the same checkpoint, float32 on the CPU")


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
