"""Does batching steps serve better than batching whole requests, or than one job after another?

    python benchmarks/engine.py

Poisson arrivals of jobs of 4, 8, 16 and 50 steps, of two shapes, with guidance and without, as often each, at 0.5, 0.8
and 1.2 times what the step engine was measured to do: the same trace to each of the three in turn, another one going
first at every load, with the demo's weights and as many threads (`engine_systems.py`). Then 4-step jobs among 50-step
ones alone; the same three on 64 GPUs, simulated under the real scheduler (`engine_simulation.py`); and how long the
scheduler takes to decide (`engine_decisions.py`). All this is with `batch_invariant` on, as it is on
CPUs; what that costs, alone and eight at once, stands beside it (`engine_invariance.py`). A job's latency counts from
when it should have come until it is answered. Throughput (`jobs/s`) is the work done while jobs came, in jobs of
average work; `to the end` is all jobs by the time from the first arrival to the last answer. Locally every job is
decoded, beside the passes by the step engine and before the answers by the others; in the simulation nobody decodes.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import engine_decisions
import engine_invariance
import engine_simulation
from engine_simulation import GPUS, MAX_JOBS
from engine_systems import Parts, Steps, play, serving, step_engine
from engine_traffic import (
    ENGINES,
    LOADS,
    LONG,
    SHORT,
    STEP_ENGINE,
    WHOLE_REQUESTS,
    Arrival,
    Comparison,
    Kind,
    Latencies,
    kinds,
    trace,
)
from form import Goal, Result, Row, main

from serve_app.engine.pass_times import PassTimes, Shape

SHORT_P95, MEAN, THROUGHPUT, DECISION_MS = 0.35, 0.7, 0.97, 1.0
NUM_FRAMES = (16, 8)
BEHIND = f"{SHORT} behind {LONG} steps"
DEMO, SIMULATED = "demo, CPU", f"{GPUS} GPUs, simulated"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured; `seconds` of work in each cell, however thinly it comes: few jobs decide by chance."""

    seconds: float
    loads: Sequence[float]
    behind: bool
    simulated_jobs: int
    decisions: int
    invariance_rounds: int


FULL = Extent(38.0, LOADS, True, 12_000, 20_000, 7)
QUICK = Extent(3.0, (0.8,), False, 2_000, 2_000, 2)


@dataclass(frozen=True, slots=True)
class Cell:
    """One trace and what the three made of it."""

    where: str
    traffic: str
    jobs: int
    found: Comparison


@dataclass(slots=True)
class Local:
    """This machine: the model, what is known of its passes, and how late the step engine's event loop was."""

    parts: Parts
    threads: int
    pace: PassTimes = field(default_factory=lambda: PassTimes(2 * MAX_JOBS))
    lags: list[dict[str, Any]] = field(default_factory=list)

    @property
    def shapes(self) -> list[Shape]:
        """The latents' shapes of the two clips."""
        return [self.parts.shape(num_frames) for num_frames in NUM_FRAMES]

    async def measure(self, extent: Extent) -> tuple[list[Cell], float]:
        """Return the cells and the jobs per second that the loads are shares of."""
        await self._measure_passes()
        mix = kinds(self.shapes)
        capacity = await self._capacity(mix)
        cells = [
            await self._cell(f"load {load}", mix, load, capacity, extent, turn)
            for turn, load in enumerate(extent.loads)
        ]
        if extent.behind:
            pair = kinds(self.shapes, (SHORT, LONG))
            slower = capacity * _steps(mix) / _steps(pair)
            cells.append(await self._cell(BEHIND, pair, 0.8, slower, extent, turn=len(cells)))
        return cells, capacity

    async def _measure_passes(self) -> None:
        engine = step_engine(self.parts, self.pace, self.threads)
        await engine.start()
        await engine.measure(self.shapes)
        await engine.stop()

    async def _capacity(self, mix: Sequence[Kind]) -> float:
        """Return the jobs per second of the step engine with all kinds of jobs there at once, once each."""
        everything = [Arrival(number, 0.0, kind) for number, kind in enumerate(mix)]
        async with serving(STEP_ENGINE, self.parts, self.pace, self.threads) as server:
            return Latencies.of(await play(server, everything)).to_the_end

    async def _cell(
        self, traffic: str, mix: Sequence[Kind], load: float, capacity: float, extent: Extent, turn: int
    ) -> Cell:
        arrivals = trace(mix, round(extent.seconds * capacity), load * capacity, seed=turn)
        first = turn % len(ENGINES)
        found = {}
        for engine in (*ENGINES[first:], *ENGINES[:first]):
            async with serving(engine, self.parts, self.pace, self.threads) as server:
                found[engine] = Latencies.of(await play(server, arrivals))
                if isinstance(server, Steps):
                    self.lags.append(server.engine.stats())
        return Cell(DEMO, traffic, len(arrivals), {engine: found[engine] for engine in ENGINES})


def measure(quick: bool) -> Result:
    return asyncio.run(found(QUICK if quick else FULL))


async def found(extent: Extent) -> Result:
    """Measure here, then simulate, then time decisions."""
    local = Local(Parts(), len(os.sched_getaffinity(0)))
    cells, capacity = await local.measure(extent)
    on_gpus = simulated(extent.simulated_jobs)
    cells += on_gpus
    decisions = engine_decisions.measure(extent.decisions)
    facts: Row = {
        "capacity of this machine, jobs/s": capacity,
        "threads": local.threads,
        "most rows in a pass": ", ".join(f"{shape[1]} frames: {local.pace.limit(shape)}" for shape in local.shapes),
        "event loop lag under load, ms, p50": 1000 * statistics.median(lag["loop_lag_p50"] for lag in local.lags),
        "event loop lag under load, ms, largest": 1000 * max(lag["loop_lag_max"] for lag in local.lags),
        f"decision with {engine_decisions.QUEUED} jobs queued, ms, largest": decisions.largest,
    }
    facts |= engine_invariance.measure(local.threads, extent.invariance_rounds)
    for load, cell in zip(LOADS, on_gpus, strict=True):
        mean = engine_simulation.by_serves_rule(load, extent.simulated_jobs)
        facts[f"simulated, {cell.traffic}: mean over whole requests, were our jobs placed by Serve's rule too"] = (
            mean / cell.found[WHOLE_REQUESTS].mean
        )
    return Result([row for cell in cells for row in rows(cell)], [*goals(cells), *decision_goals(decisions)], facts)


def simulated(jobs: int) -> list[Cell]:
    """Return the three loads on the simulated GPUs."""
    return [Cell(SIMULATED, f"load {load}", jobs, engine_simulation.compare(load, jobs)) for load in LOADS]


def rows(cell: Cell) -> list[Row]:
    """Return a line per engine."""
    return [
        {
            "where": cell.where,
            "traffic": cell.traffic,
            "engine": engine,
            "jobs": cell.jobs,
            "mean s": each.mean,
            "p50 s": each.p50,
            "p95 s": each.p95,
            "first step p50 s": each.first_step_p50,
            "first step p95 s": each.first_step_p95,
            "4 steps p50 s": each.short_p50,
            "4 steps p95 s": each.short_p95,
            "jobs/s": each.throughput,
            "to the end": each.to_the_end,
        }
        for engine, each in cell.found.items()
    ]


def goals(cells: Sequence[Cell]) -> list[Goal]:
    """Judge every cell; where 4-step jobs stand behind 50-step ones only by what happens to them."""
    judged = []
    for cell in cells:
        at = f"{cell.where}, {cell.traffic}"
        mine, whole = cell.found[STEP_ENGINE], cell.found[WHOLE_REQUESTS]
        best = max(each.throughput for each in cell.found.values())
        judged.append(
            Goal.at_most(f"{at}: p95 of 4 steps over whole requests", mine.short_p95 / whole.short_p95, SHORT_P95)
        )
        if cell.traffic != BEHIND:
            judged += [
                Goal.at_most(f"{at}: mean over whole requests", mine.mean / whole.mean, MEAN),
                Goal.at_least(f"{at}: throughput over the best", mine.throughput / best, THROUGHPUT),
            ]
    return judged


def decision_goals(decisions: engine_decisions.Decisions) -> list[Goal]:
    return [
        Goal.at_most("milliseconds of a decision, mean", decisions.mean, DECISION_MS),
        Goal.at_most("milliseconds of a decision, p99", decisions.p99, DECISION_MS),
    ]


def _steps(mix: Sequence[Kind]) -> float:
    return statistics.mean(kind.steps for kind in mix)


def draw(axes: Any, result: Result) -> None:
    """Draw the mean latency of each engine in every cell as a bar, with p95 of 4-step jobs as a dot in it."""
    cells = list(dict.fromkeys((row["where"], row["traffic"]) for row in result.rows))
    for place, engine in enumerate(ENGINES):
        lines = [row for row in result.rows if row["engine"] == engine]
        where = [cells.index((row["where"], row["traffic"])) + 0.27 * (place - 1) for row in lines]
        axes.bar(where, [row["mean s"] for row in lines], 0.25, label=engine)
        axes.plot(where, [row["4 steps p95 s"] for row in lines], "k_", markersize=11, markeredgewidth=2)
    axes.set_xticks(range(len(cells)), [f"{traffic}\n{where}" for where, traffic in cells], fontsize=7)
    axes.set_yscale("log")
    axes.set(
        ylabel="seconds (bar: mean of all; line: p95 of 4-step jobs)",
        title="Steps in batches, jobs in turn, requests in batches",
    )
    axes.legend()


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
