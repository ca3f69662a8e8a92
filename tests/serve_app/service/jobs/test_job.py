"""The job record: its bytes, across releases, and that what it shows of a render only grows."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import JobStatus, Outcome, Priority, Urgency
from serve_app.service.jobs.job import Job
from tests.serve_app.service.rig import NOW, a_job


def test_a_record_survives_its_json() -> None:
    """Every state of a job reads back from its bytes as it was, whatever the prompt holds."""
    job = a_job(urgency=Urgency(Priority.BATCH, NOW + 60.5))
    for state in (
        job,
        a_job(),
        job.started("hit").at_step(3, 12),
        job.completed(Outcome.JOINED, "hit", NOW + 5),
        job.failed("render_failed", "no", NOW + 5),
    ):
        assert Job.from_json(state.to_json()) == state


def test_a_record_of_an_earlier_release() -> None:
    """A record from before jobs had corrections, an urgency and steps is read, with the defaults of all."""
    old = json.loads(a_job().to_json())
    for name in ("urgency", "corrected", "step", "total_steps"):
        del old[name]
    assert Job.from_json(json.dumps(old).encode()) == a_job()


def test_a_record_of_a_later_release() -> None:
    """While replicas are updated one by one, a field that only the new ones know is passed over."""
    new = json.loads(a_job().to_json()) | {"colour": "red"}
    assert Job.from_json(json.dumps(new).encode()) == a_job()


@given(st.lists(st.tuples(st.integers(0, 12), st.just(12)), min_size=1))
def test_progress_never_falls(steps: list[tuple[int, int]]) -> None:
    """Whatever steps are told in whatever order, step and percent show the furthest, and 100 is not said early."""
    job = a_job().started("miss")
    seen = [job := job.at_step(*each) for each in steps]
    assert [each.step for each in seen] == [max(step for step, _ in steps[: n + 1]) for n in range(len(steps))]
    percents = [each.progress for each in seen]
    assert percents == sorted(percents)
    assert percents[-1] <= 99
    assert {each.status for each in seen} == {JobStatus.IN_PROGRESS}
