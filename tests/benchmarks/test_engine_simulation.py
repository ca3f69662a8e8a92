"""The simulated GPUs: the real scheduler under a counted clock, and what it is compared with."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # where Python looks when it runs a program there

import engine_decisions
import engine_simulation as simulation
from engine_traffic import (
    ENGINES,
    SEQUENTIAL,
    STEP_ENGINE,
    WHOLE_REQUESTS,
    Arrival,
    Kind,
    Latencies,
    Served,
    kinds,
    trace,
)

LARGE, SMALL = simulation.SHAPES
DEVICE = simulation.Device(fixed=1.0, per_token=0.0, full=0)
"""Every pass takes a second, whatever it holds."""


def arrivals(*jobs: tuple[float, int]) -> list[Arrival]:
    return [Arrival(number, at, Kind(steps, SMALL, guided=False)) for number, (at, steps) in enumerate(jobs)]


def answered(engine: str, *jobs: tuple[float, int]) -> dict[int, tuple[float, float]]:
    served = simulation.play(engine, arrivals(*jobs), DEVICE, gpus=1)
    return {each.arrival.number: (each.first_step, each.answered) for each in served}


def test_a_late_short_job_joins_stands_in_line_or_waits_for_the_batch() -> None:
    """Beside a 6-step job the step engine answers a 2-step one at once, sequential after it, a batch takes neither."""
    jobs = (0.0, 6), (0.5, 2)
    assert answered(STEP_ENGINE, *jobs) == {0: (1, 6), 1: (2, 3)}
    assert answered(SEQUENTIAL, *jobs) == {0: (1, 6), 1: (7, 8)}
    assert answered(WHOLE_REQUESTS, *jobs) == {0: (1, 6), 1: (7, 8)}


def test_members_of_a_batch_are_answered_together() -> None:
    """What came while the GPU was busy is one batch: all its first steps are one pass, its answers the longest's."""
    assert answered(WHOLE_REQUESTS, (0.0, 1), (0.2, 5), (0.4, 2)) == {0: (1, 1), 1: (2, 6), 2: (2, 6)}


def test_a_batch_has_one_shape_and_no_more_than_is_allowed() -> None:
    """The first that waits decides the shape; what does not fit is passed by what does, and order is kept."""
    wanted = [Kind(4, SMALL, True), Kind(4, LARGE, False), Kind(4, SMALL, True), Kind(8, SMALL, False)]
    waiting = [Arrival(number, 0.0, kind) for number, kind in enumerate(wanted)]

    def numbers(max_jobs: int, max_rows: int) -> list[int]:
        return [each.number for each in simulation.whole_batch(waiting, max_jobs, lambda shape: max_rows)]

    assert numbers(4, 8) == [0, 2, 3]
    assert numbers(2, 8) == [0, 2]
    assert numbers(4, 3) == [0, 3]
    assert numbers(4, 1) == [0]


def test_replicas_take_no_more_than_their_room_and_the_queue_is_by_due() -> None:
    """With room for one job, the short job that came last passes the long one that waits."""
    placement = simulation.Placement(room=1)
    served = simulation.play(STEP_ENGINE, arrivals((0, 3), (0.1, 50), (0.2, 2)), DEVICE, 1, placement=placement)
    assert [(each.arrival.number, each.answered) for each in served] == [(0, 3), (2, 5), (1, 55)]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_job_is_answered_once_and_in_possible_time(engine: str) -> None:
    """No job is lost, none is answered sooner than alone on a GPU, and the same run gives the same numbers."""
    device = simulation.Device()
    jobs = trace(kinds(simulation.SHAPES), 160, per_second=4.0, seed=1)
    served = simulation.play(engine, jobs, device, gpus=6)
    assert sorted(each.arrival.number for each in served) == list(range(len(jobs)))
    for each in served:
        kind = each.arrival.kind
        alone = device.seconds(kind.shape, kind.rows)
        assert each.first_step - each.arrival.at >= alone - 1e-9
        assert each.latency >= kind.steps * alone - 1e-6
    assert simulation.play(engine, jobs, device, gpus=6) == served


def test_more_rows_cost_nothing_until_the_device_is_full() -> None:
    """A pass of the smaller shape is as quick with two rows, and the engine's own rule finds how many pay."""
    device = simulation.Device()
    assert device.seconds(SMALL, 1) == device.seconds(SMALL, 2) < device.seconds(SMALL, 8)
    assert device.seconds(LARGE, 2) > 1.9 * device.seconds(LARGE, 1)
    assert (device.pace().limit(LARGE), device.pace().limit(SMALL)) == (1, 4)


def test_the_step_engine_is_ahead_in_the_simulation() -> None:
    """On 64 GPUs near capacity short jobs wait a third as long at most, and all jobs are answered sooner."""
    found = simulation.compare(0.8, 2000)
    mine, whole = found[STEP_ENGINE], found[WHOLE_REQUESTS]
    assert mine.short_p95 <= 0.35 * whole.short_p95
    assert mine.mean <= 0.7 * whole.mean


def test_traffic_has_every_kind_equally_often_at_the_rate_asked_for() -> None:
    """A trace is whole rounds of the kinds in time order, as long as its rate says, and its seed makes it."""
    mix = kinds(simulation.SHAPES)
    jobs = trace(mix, 160, per_second=2.0, seed=3)
    assert len(mix) == len(set(mix)) == 16
    assert [[each.kind for each in jobs].count(kind) for kind in mix] == [10] * 16
    assert 70 < jobs[-1].at <= 80
    assert all(a.at <= b.at for a, b in itertools.pairwise(jobs))
    assert jobs == trace(mix, 160, per_second=2.0, seed=3) != trace(mix, 160, per_second=2.0, seed=4)


def test_latencies_count_from_the_arrival_and_rates_are_of_work_and_of_jobs() -> None:
    """Means and percentiles are of all jobs and of the 4-step ones; throughput is steps while jobs came."""
    jobs = arrivals((1, 4), (2, 50), (3, 4))
    long = [8.0, *range(20, 69)]
    found = Latencies.of(
        [Served(jobs[0], (2, 2.5, 3, 3.5), 4), Served(jobs[1], long, 71), Served(jobs[2], (4, 5, 6, 7), 8)]
    )
    assert (found.mean, found.p50, found.short_mean, found.short_p50) == (77 / 3, 5, 4, 4)
    assert found.short_p95 == pytest.approx(4.9)
    assert (found.first_step_p50, found.to_the_end) == (1, 3 / 70)
    assert found.throughput == pytest.approx(3 / ((4 + 50 + 4) / 3) / 2)  # three steps in two seconds


def test_decisions_are_timed_with_the_queue_full() -> None:
    """Each timed decision advances a batch, and the queue is as long after it as before."""
    queue = engine_decisions.Queue(500)
    assert 1 <= queue.decide() <= 8
    queue.refill(500)
    assert len(queue.scheduler) == 500
    found = engine_decisions.measure(50, queued=500)
    assert 0 < found.mean <= found.largest
    assert found.p99 <= found.largest
