import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.engine.scheduler import BatchScheduler

jobs_of_shapes = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), min_size=1, max_size=20)


def run(scheduler: BatchScheduler, most: int = 10_000) -> list[tuple[str, ...]]:
    """Advance until idle; return the batches."""
    batches = []
    while batch := scheduler.next_batch():
        batches.append(batch)
        assert len(batches) <= most
        for job_id in batch:
            scheduler.advance(job_id)
    return batches


def test_jobs_of_one_shape_advance_together() -> None:
    """Two jobs share passes until the shorter one leaves after its last step."""
    scheduler = BatchScheduler(max_batch_size=4)
    scheduler.add("short", "64x64", 1)
    scheduler.add("long", "64x64", 3)
    assert run(scheduler) == [("short", "long"), ("long",), ("long",)]


def test_a_job_joins_at_the_next_step_boundary() -> None:
    """A job added between two passes takes part in the second one."""
    scheduler = BatchScheduler(max_batch_size=4)
    scheduler.add("first", "64x64", 2)
    assert scheduler.next_batch() == ("first",)
    scheduler.add("second", "64x64", 1)
    assert not scheduler.advance("first")
    assert scheduler.next_batch() == ("first", "second")


def test_shapes_take_turns_in_the_order_of_arrival() -> None:
    """One pass each in turn: a long job of one shape delays a short one of another by one pass, not by its length."""
    scheduler = BatchScheduler(max_batch_size=4)
    scheduler.add("large", "128x128", 3)
    scheduler.add("small", "32x32", 1)
    assert run(scheduler) == [("large",), ("small",), ("large",), ("large",)]


def test_a_full_batch_takes_the_oldest_and_the_next_one_moves_up() -> None:
    """Beyond max_batch_size jobs wait in order, and a free slot goes to the one that waited longest."""
    scheduler = BatchScheduler(max_batch_size=2)
    for job_id, steps in (("a", 2), ("b", 1), ("c", 1), ("d", 1)):
        scheduler.add(job_id, "64x64", steps)
    assert run(scheduler) == [("a", "b"), ("a", "c"), ("d",)]


def test_a_removed_job_frees_its_slot() -> None:
    """Removing a running job lets the next one in; removing one that is gone or done returns False."""
    scheduler = BatchScheduler(max_batch_size=1)
    scheduler.add("a", "64x64", 5)
    scheduler.add("b", "64x64", 1)
    assert scheduler.next_batch() == ("a",)
    assert scheduler.remove("a")
    assert not scheduler.remove("a")
    assert run(scheduler) == [("b",)]
    assert not scheduler.remove("b")


def test_impossible_jobs_are_refused() -> None:
    """An id that is queued, a job without steps and an empty batch size are ValueErrors."""
    scheduler = BatchScheduler(max_batch_size=1)
    scheduler.add("a", "64x64", 1)
    with pytest.raises(ValueError, match="queued already"):
        scheduler.add("a", "32x32", 1)
    with pytest.raises(ValueError, match="num_steps"):
        scheduler.add("b", "64x64", 0)
    with pytest.raises(ValueError, match="max_batch_size"):
        BatchScheduler(max_batch_size=0)


@settings(deadline=None)
@given(jobs_of_shapes, st.integers(1, 5))
def test_every_job_gets_exactly_its_steps(jobs: list[tuple[str, int]], max_batch_size: int) -> None:
    """Whatever arrives, each job advances as often as it has steps, in batches of one shape and of bounded size."""
    scheduler = BatchScheduler(max_batch_size)
    for i, (shape, steps) in enumerate(jobs):
        scheduler.add(str(i), shape, steps)
    assert scheduler.backlog_steps == sum(steps for _, steps in jobs)
    batches = run(scheduler)
    for i, (_, steps) in enumerate(jobs):
        assert sum(str(i) in batch for batch in batches) == steps
    for batch in batches:
        assert len({jobs[int(job_id)][0] for job_id in batch}) == 1
        assert len(set(batch)) == len(batch) <= max_batch_size
    assert (len(scheduler), scheduler.backlog_steps) == (0, 0)


@settings(deadline=None)
@given(jobs_of_shapes, st.integers(1, 5))
def test_no_shape_starves(jobs: list[tuple[str, int]], max_batch_size: int) -> None:
    """While a shape has jobs, its next pass is at most as many passes away as there are shapes."""
    scheduler = BatchScheduler(max_batch_size)
    for i, (shape, steps) in enumerate(jobs):
        scheduler.add(str(i), shape, steps)
    order = [jobs[int(batch[0])][0] for batch in run(scheduler)]
    for shape in set(order):
        passes = [i for i, each in enumerate(order) if each == shape]
        assert passes[0] < 3
        assert all(later - earlier <= 3 for earlier, later in itertools.pairwise(passes))
