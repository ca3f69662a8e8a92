"""The three ways to serve, with the demo's weights, and how the benchmark judges them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # where Python looks when it runs a program there

import engine as benchmark
import engine_systems as systems
from engine_traffic import ENGINES, SEQUENTIAL, STEP_ENGINE, WHOLE_REQUESTS, Arrival, Kind, Latencies, Served

from benchmarks.form import Result
from serve_app.engine.pass_times import PassTimes


@pytest.fixture(scope="module")
def parts() -> systems.Parts:
    return systems.Parts()


@pytest.fixture
def decoded(parts: systems.Parts, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    kept: list[torch.Tensor] = []
    decode = parts.decoder.decode
    monkeypatch.setattr(parts.decoder, "decode", lambda latents: (kept.append(latents), decode(latents))[1])
    return kept


@pytest.mark.parametrize("engine", ENGINES)
async def test_every_engine_renders_every_job(engine: str, parts: systems.Parts, decoded: list[torch.Tensor]) -> None:
    """All jobs are denoised, decoded and answered, whoever serves, and none before its first step."""
    shape = parts.shape(8)
    jobs = [Arrival(number, 0.0, Kind(1 + number % 2, shape, guided=number == 0)) for number in range(3)]
    async with systems.serving(engine, parts, PassTimes(8), 1) as server:
        served = await systems.play(server, jobs)
    assert sorted(each.arrival.number for each in served) == [0, 1, 2]
    assert [tuple(latents.shape) for latents in decoded] == [shape] * 3
    assert [len(each.steps) for each in sorted(served, key=lambda each: each.arrival.number)] == [1, 2, 1]
    assert all(0 < each.first_step <= each.steps[-1] <= each.answered for each in served)


async def test_a_batch_is_answered_when_all_of_it_is_decoded(parts: systems.Parts, decoded: list[torch.Tensor]) -> None:
    """A 1-step job beside a 3-step one gets its answer when both videos are there, as with `@serve.batch`."""
    jobs = [Arrival(number, 0.0, Kind(1 + 2 * number, parts.shape(8), guided=False)) for number in range(2)]
    there: list[int] = []

    async def one(arrival: Arrival) -> None:
        await server.render(arrival, lambda: None)
        there.append(len(decoded))

    async with systems.serving(WHOLE_REQUESTS, parts, PassTimes(8), 1) as server:
        await asyncio.gather(*map(one, jobs))
    assert there == [2, 2]


async def test_all_engines_make_the_same_latents(parts: systems.Parts, decoded: list[torch.Tensor]) -> None:
    """The three serve the same model: one job ends in the same latents in each."""
    job = Arrival(0, 0.0, Kind(2, parts.shape(8), guided=True))
    for engine in ENGINES:
        async with systems.serving(engine, parts, PassTimes(8), 1) as server:
            await systems.play(server, [job])
    first, *others = decoded
    assert len(others) == 2
    assert all(torch.equal(first, other) for other in others)


def cell(traffic: str, step: float, whole: float) -> benchmark.Cell:
    def latencies(seconds: float) -> Latencies:
        jobs = [Arrival(number, float(number), Kind(4, (1,), guided=False)) for number in range(2)]
        return Latencies.of([Served(job, [job.at + 0.5] * 4, job.at + seconds) for job in jobs])

    found = {STEP_ENGINE: latencies(step), SEQUENTIAL: latencies(10.0), WHOLE_REQUESTS: latencies(whole)}
    return benchmark.Cell(benchmark.DEMO, traffic, 1, found)


def test_goals_are_ratios_to_whole_requests_and_to_the_best() -> None:
    """p95 of 4 steps and the mean are judged over whole requests, throughput over the best; 4 behind 50 by p95 only."""
    met, missed = cell("load 0.8", 1.0, 4.0), cell("load 1.2", 3.0, 4.0)
    slower = replace(met, found={**met.found, WHOLE_REQUESTS: replace(met.found[WHOLE_REQUESTS], throughput=2.0)})
    assert [(goal.value, goal.met) for goal in benchmark.goals([met])] == [(0.25, True), (0.25, True), (1.0, True)]
    assert [(goal.value, goal.met) for goal in benchmark.goals([missed])] == [(0.75, False), (0.75, False), (1.0, True)]
    assert [goal.met for goal in benchmark.goals([slower])] == [True, True, False]
    assert [goal.value for goal in benchmark.goals([cell(benchmark.BEHIND, 1.0, 4.0)])] == [0.25]


def test_the_table_has_a_line_per_engine_and_draws(tmp_path: Path) -> None:
    """Each cell gives a line for each engine, and the picture is made of those."""
    from matplotlib import pyplot

    cells = [cell("load 0.8", 1.0, 4.0), cell("load 1.2", 3.0, 4.0)]
    table = [row for each in cells for row in benchmark.rows(each)]
    assert [row["engine"] for row in table] == [*ENGINES, *ENGINES]
    figure, axes = pyplot.subplots()
    benchmark.draw(axes, Result(table, []))
    assert sorted(bar.get_height() for bar in axes.patches) == sorted(row["mean s"] for row in table)
    pyplot.close(figure)
