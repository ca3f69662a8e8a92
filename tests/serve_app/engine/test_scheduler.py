"""The batching policy: who advances, who waits, and that nobody waits forever."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import Priority
from serve_app.engine.scheduler import PATIENCE, STRETCH, Backlog, BatchScheduler, due


def scheduler(max_jobs: int = 3, max_rows: int = 99, step_seconds: float = 0.0) -> BatchScheduler[str]:
    return BatchScheduler(max_jobs, lambda shape: max_rows, step_seconds=lambda shape, rows: step_seconds)


def run_pass(jobs: BatchScheduler[str], now: float = 0.0) -> tuple[str, ...]:
    """Advance one batch; return its jobs."""
    batch = jobs.next_batch(now)
    for job_id in batch:
        jobs.advance(job_id)
    return batch


def test_jobs_of_one_shape_share_a_pass_at_different_steps() -> None:
    """A newcomer takes its first step beside one in the middle of its own, and each leaves after its last."""
    jobs = scheduler()
    jobs.add("long", "a", 4)
    assert run_pass(jobs) == ("long",)
    jobs.add("short", "a", 2)
    assert [run_pass(jobs) for _ in range(4)] == [("long", "short"), ("long", "short"), ("long",), ()]
    assert len(jobs) == 0


def test_the_earliest_due_goes_first() -> None:
    """With one place, order of arrival counts only between equals."""
    jobs = scheduler(max_jobs=1)
    for job_id, when in (("b", 2.0), ("a", 1.0), ("c", 2.0)):
        jobs.add(job_id, "a", 1, asked_at=when)
    assert [run_pass(jobs) for _ in range(3)] == [("a",), ("b",), ("c",)]


def test_urgent_work_takes_the_next_step_and_gives_the_place_back() -> None:
    """What runs stops between two steps for what is due earlier, and goes on from where it was."""
    jobs = scheduler(max_jobs=1)
    jobs.add("first", "a", 3, asked_at=10)
    run_pass(jobs)
    jobs.add("urgent", "a", 2, asked_at=1)
    assert [run_pass(jobs) for _ in range(4)] == [("urgent",), ("urgent",), ("first",), ("first",)]
    assert len(jobs) == 0


def test_a_head_of_another_shape_blocks_nobody() -> None:
    """Jobs behind it that fit the pass take part in it; the head gets its own pass when it is due first."""
    jobs = scheduler()
    jobs.add("a1", "a", 2, asked_at=1)
    jobs.add("b1", "b", 1, asked_at=2)
    jobs.add("a2", "a", 1, asked_at=3)
    assert [run_pass(jobs) for _ in range(3)] == [("a1", "a2"), ("a1",), ("b1",)]


def test_rows_bound_a_pass_and_smaller_jobs_fill_it() -> None:
    """A guided job takes two rows; one that does not fit is passed by one that does, and a lone one always runs."""
    jobs = scheduler(max_jobs=4, max_rows=3)
    for job_id, rows in (("a", 2), ("b", 2), ("c", 1), ("d", 1)):
        jobs.add(job_id, "s", 1, rows=rows)
    assert [run_pass(jobs) for _ in range(2)] == [("a", "c"), ("b", "d")]
    narrow = scheduler(max_rows=1)
    narrow.add("wide", "s", 1, rows=2)
    assert run_pass(narrow) == ("wide",)


def test_the_limit_is_asked_for_each_pass() -> None:
    """When memory ran out the very next pass is smaller."""
    limit = [4]
    jobs: BatchScheduler[str] = BatchScheduler(8, lambda shape: limit[0])
    for i in range(8):
        jobs.add(str(i), "s", 2)
    assert len(run_pass(jobs)) == 4
    limit[0] = 2
    assert len(run_pass(jobs)) == 2


def test_warm_ups_ride_with_their_own_kind() -> None:
    """A warm-up gives way at the next step and takes no part in a pass of others, unless it is overdue."""
    jobs = scheduler()
    jobs.add("w1", "s", 2, deadline=100, priority=Priority.WARM_UP)
    jobs.add("w2", "s", 2, deadline=100, priority=Priority.WARM_UP)
    assert run_pass(jobs) == ("w1", "w2")
    jobs.add("now", "s", 1, asked_at=5)
    assert [run_pass(jobs) for _ in range(2)] == [("now",), ("w1", "w2")]
    jobs.add("old", "s", 1, deadline=1, priority=Priority.WARM_UP)
    jobs.add("now", "s", 1, asked_at=5)
    assert run_pass(jobs) == ("old", "now")


def test_the_fullest_pass_goes_first_while_there_is_time() -> None:
    """With a pass' worth of jobs here, who is due first waits for company as long as it can, and no longer."""
    jobs = scheduler(max_jobs=3, step_seconds=1)
    jobs.add("alone", "a", 2, asked_at=20 - 2 * STRETCH)
    jobs.add("b1", "b", 3, asked_at=100 - 3 * STRETCH)
    assert run_pass(jobs) == ("alone",)  # fewer jobs than one pass takes: nothing is gained by waiting
    jobs.add("b2", "b", 3, asked_at=100 - 3 * STRETCH)
    jobs.add("b3", "b", 3, asked_at=100 - 3 * STRETCH)
    assert run_pass(jobs, now=17) == ("b1", "b2", "b3")
    assert run_pass(jobs, now=18) == ("alone",)


@pytest.mark.parametrize(("power", "shared"), [(0.9, False), (0.5, True), (0.0, True)])
def test_company_must_pay_while_few_are_here(power: float, shared: bool) -> None:
    """Two alone on a device share passes when two rows take less than 1.5 times as long as one: the mean is best so."""
    jobs: BatchScheduler[str] = BatchScheduler(4, lambda shape: 9, lambda shape, rows: rows**power)
    for job_id in ("a", "b"):
        jobs.add(job_id, "s", 5)
    assert run_pass(jobs) == (("a", "b") if shared else ("a",))


def test_company_pays_sooner_when_more_wait() -> None:
    """What is saved is saved for all who wait, of any shape; with a pass' worth of jobs every pass is filled."""
    jobs: BatchScheduler[str] = BatchScheduler(5, lambda shape: 9, lambda shape, rows: rows**0.7)
    jobs.add("a", "s", 9)
    jobs.add("b", "s", 9)
    assert run_pass(jobs) == ("a",)
    jobs.add("c", "t", 9)
    assert run_pass(jobs) == ("a", "b")
    dear: BatchScheduler[str] = BatchScheduler(3, lambda shape: 9, lambda shape, rows: float(rows))
    for job_id in "abc":
        dear.add(job_id, "s", 9)
    assert run_pass(dear) == ("a", "b", "c")


def test_of_passes_as_full_the_earliest_due_goes() -> None:
    """Fullness decides only where it differs: a lone row that fills its device is a full pass."""
    limits = {"large": 1, "small": 4}
    jobs: BatchScheduler[str] = BatchScheduler(4, limits.__getitem__)
    for job_id, shape, when in (("l", "large", 1), ("s1", "small", 2), ("s2", "small", 2)):
        jobs.add(job_id, shape, 9, asked_at=when)
    jobs.add("s3", "small", 9, asked_at=3, rows=2)
    assert run_pass(jobs, now=-1) == ("l",)
    jobs.remove("l")
    jobs.add("l", "large", 9, asked_at=5)
    assert run_pass(jobs, now=-1) == ("s1", "s2", "s3")
    jobs.remove("s3")
    jobs.add("t", "small", 9, asked_at=9)
    assert run_pass(jobs, now=-1) == ("l",)


@pytest.mark.parametrize("later", [Priority.BATCH, Priority.WARM_UP])
def test_less_urgent_work_is_no_reason_to_wait(later: Priority) -> None:
    """However full a pass of batch work or warm-ups would be, an interactive job takes the next one."""
    jobs = scheduler(max_jobs=2, step_seconds=1)
    for job_id in ("x", "y"):
        jobs.add(job_id, "full", 5, priority=later)
    jobs.add("now", "other", 1)
    assert run_pass(jobs) == ("now",)
    jobs.add("now", "other", 1)
    jobs.promote("x", 0)
    assert run_pass(jobs) == ("x", "y") if later is Priority.BATCH else ("now",)


def test_promote_moves_forward_only() -> None:
    """Somebody in a hurry joins a job: it is due earlier, keeps its steps, and never gets later."""
    jobs = scheduler(max_jobs=1)
    jobs.add("a", "s", 2, asked_at=1)
    jobs.add("b", "s", 1, deadline=9, priority=Priority.WARM_UP)
    assert jobs.promote("b", 0.5)
    assert jobs.promote("a", 50)
    assert not jobs.promote("nobody", 0)
    jobs.add("c", "s", 1, asked_at=2)
    assert [run_pass(jobs) for _ in range(4)] == [("b",), ("a",), ("a",), ("c",)]


def test_due_orders_priorities_lengths_and_deadlines() -> None:
    """Short before long, interactive before batch before warm-up, a near deadline before all; waiting beats all."""
    assert due(0, 1, Priority.INTERACTIVE) < due(0, 5, Priority.INTERACTIVE)
    assert due(0, 1, Priority.INTERACTIVE) < due(0, 1, Priority.BATCH) < due(0, 1, Priority.WARM_UP)
    assert due(0, 100, Priority.WARM_UP, deadline=3) == 3
    assert due(0, 1, Priority.INTERACTIVE, deadline=1e9) == STRETCH
    for priority in Priority:
        assert due(0, 10, priority) < due(PATIENCE[priority] + STRETCH * 10 + 1, 0, Priority.INTERACTIVE)


def test_the_backlog_counts_rows_and_steps_by_shape() -> None:
    """What autoscaling will ask: it falls by a pass' rows, and a removed job takes its share along."""
    jobs = scheduler()
    jobs.add("a", "s", 4, rows=2)
    jobs.add("b", "t", 3)
    assert jobs.backlog == {"s": Backlog(1, 8), "t": Backlog(1, 3)}
    run_pass(jobs)
    assert jobs.backlog == {"s": Backlog(1, 6), "t": Backlog(1, 3)}
    assert jobs.remove("a")
    assert not jobs.remove("a")
    assert jobs.backlog == {"t": Backlog(1, 3)}


def test_nonsense_is_refused() -> None:
    """Ids are unique while they are in, and there must be something to do."""
    jobs = scheduler()
    jobs.add("a", "s", 1)
    with pytest.raises(ValueError, match="queued already"):
        jobs.add("a", "s", 1)
    for steps, rows in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            jobs.add("b", "s", steps, rows=rows)
    with pytest.raises(ValueError, match="max_jobs"):
        scheduler(max_jobs=0)
    with pytest.raises(KeyError):
        jobs.advance("b")
    assert scheduler().next_batch(0) == ()


JOBS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 6), st.integers(1, 2), st.sampled_from(list(Priority))),
    min_size=1,
    max_size=25,
)


@given(JOBS, st.integers(1, 4), st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_job_gets_exactly_its_steps(
    plan: list[tuple[str, int, int, Priority]], max_jobs: int, max_rows: int, rng: random.Random
) -> None:
    """Whatever comes whenever: a pass has one shape and keeps its bounds, nobody gets a step too many or is left."""
    jobs = scheduler(max_jobs, max_rows, step_seconds=1)
    todo = {str(i): each for i, each in enumerate(plan)}
    waiting, given_steps, clock = list(todo), dict.fromkeys(todo, 0), 0.0
    while waiting or len(jobs):
        clock += 1
        if waiting and (not len(jobs) or rng.random() < 0.5):
            job_id = waiting.pop()
            shape, steps, rows, priority = todo[job_id]
            jobs.add(job_id, shape, steps, asked_at=clock, rows=rows, priority=priority)
        batch = run_pass(jobs, clock)
        for job_id in batch:
            given_steps[job_id] += 1
        assert 1 <= len(batch) <= max_jobs
        assert len(batch) == len(set(batch))
        assert len({todo[job_id][0] for job_id in batch}) == 1
        assert len(batch) == 1 or sum(todo[job_id][2] for job_id in batch) <= max_rows
    assert given_steps == {job_id: each[1] for job_id, each in todo.items()}


@pytest.mark.parametrize("shape", ["s", "lonely"])
@pytest.mark.parametrize("priority", Priority)
def test_nobody_starves(priority: Priority, shape: str) -> None:
    """Under an endless stream of short interactive jobs that alone would fill every pass, any job is done in time."""
    jobs = scheduler(max_jobs=2, step_seconds=1)
    steps, clock, came, done = 20, 0, 0, 0
    jobs.add("old", shape, steps, priority=priority)
    while done < steps:
        for _ in range(2):
            came += 1
            jobs.add(f"new{came}", "s", 1, asked_at=clock)
        clock += 1
        done += "old" in run_pass(jobs, clock)
        assert clock < PATIENCE[priority] + (STRETCH + 2) * steps


PACES = st.lists(st.sampled_from([0.0, 0.01, 0.1, 1.0, 7.0, 300.0]), min_size=1, max_size=8)


@given(JOBS, st.integers(1, 4), st.integers(1, 5), PACES, st.integers(0, 1 << 16))
def test_equal_jobs_go_in_the_order_they_came(
    plan: list[tuple[str, int, int, Priority]], max_jobs: int, max_rows: int, paces: list[float], seed: int
) -> None:
    """Whatever steps turn out to take meanwhile, no job takes a step before an equal one that came first is done.

    Beside it in the same pass it may: equal are jobs of one shape, as many rows and steps, and one priority.
    """
    pace = [paces[0]]
    jobs: BatchScheduler[str] = BatchScheduler(
        max_jobs, lambda shape: max_rows, lambda shape, rows: pace[0] * rows**0.9, lambda shape, rows: pace[0] * rows
    )
    todo = {f"{number:03}": each for number, each in enumerate(plan)}
    rng = random.Random(seed)
    waiting, here, clock = list(todo)[::-1], set[str](), 0.0
    while waiting or here:
        clock += rng.choice((0.0, 0.1, 50.0))
        pace[0] = rng.choice(paces)
        for _ in range(rng.randrange(4)):
            if waiting:
                job_id = waiting.pop()
                shape, steps, rows, priority = todo[job_id]
                jobs.add(job_id, shape, steps, asked_at=clock, rows=rows, priority=priority)
                here.add(job_id)
        batch = jobs.next_batch(clock)
        for job_id in batch:
            passed = [other for other in here if todo[other] == todo[job_id] and other < job_id]
            assert set(passed) <= set(batch)
        for job_id in batch:
            if jobs.advance(job_id):
                here.remove(job_id)


@given(PACES, st.integers(0, 1 << 16), st.sampled_from(list(Priority)), st.sampled_from(["s", "t"]))
def test_nobody_starves_whatever_steps_take(paces: list[float], seed: int, priority: Priority, shape: str) -> None:
    """At any estimates a job is done soon after all that come are due later than it, by the longest estimate."""
    rng = random.Random(seed)
    pace, steps, clock, came, done = [paces[0]], 5, 0, 0, 0
    jobs: BatchScheduler[str] = BatchScheduler(2, lambda shape: 9, step_seconds=lambda shape, rows: pace[0])
    jobs.add("old", shape, steps, priority=priority)
    while done < steps:
        pace[0] = rng.choice(paces)
        for _ in range(2):
            came += 1
            jobs.add(f"new{came}", "s", 1, asked_at=clock)
        clock += 10
        done += "old" in run_pass(jobs, clock)
        assert clock < PATIENCE[priority] + STRETCH * steps * max(paces) + 10 * steps + 100


def test_a_job_that_was_expected_to_take_long_is_not_passed_by_later_ones() -> None:
    """The first estimate of a cold device was a hundred times too long: 20 equal later jobs still go after the first.

    It had been judged once, when it came, and so waited with one step left until all of them were done.
    """
    seconds = [30.0]
    jobs: BatchScheduler[str] = BatchScheduler(1, lambda shape: 9, step_seconds=lambda shape, rows: seconds[0])
    jobs.add("first", "s", 50, asked_at=0)
    for _ in range(49):
        assert run_pass(jobs, 0) == ("first",)
    seconds[0] = 0.3
    for number in range(20):
        jobs.add(f"later{number:02}", "s", 50, asked_at=1 + number)
    assert run_pass(jobs, 30) == ("first",)
    assert [run_pass(jobs, 30 + step)[0] for step in range(1000)] == [
        f"later{number:02}" for number in range(20) for _ in range(50)
    ]
