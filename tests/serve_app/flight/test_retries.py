"""How often a flight tries again: each cause has a count of its own, and each count an end."""

from __future__ import annotations

import pytest

from serve_app.errors import FingerprintMismatch, RenderCrashed, ReplicaDied, Unavailable
from serve_app.flight.attempts import LONGEST_BACKOFF, MemoryAttempts
from serve_app.flight.retries import CANCELS, MISMATCHES, Retries, unavailable
from tests.serve_app.conftest import Clock

DIED = ReplicaDied("It died.")


class Away(MemoryAttempts):
    """Attempts whose record cannot be reached."""

    async def settle(self, key: str, *, at_least: int = 0, died: bool = True) -> int:
        raise Unavailable("away")


async def test_the_last_attempt_is_refused_with_what_to_do() -> None:
    """After so many deaths the error names their number, when to try again, and the setting."""
    attempts = MemoryAttempts()
    retries = Retries("k", attempts, 2)
    await attempts.begin("k", "a")
    assert await retries.settle(0) == 1
    await attempts.begin("k", "b")
    with pytest.raises(RenderCrashed, match=r"2 times.*60 minutes.*max_attempts") as refused:
        await retries.settle(0)
    assert (refused.value.code, refused.value.status) == ("render_crashed", 500)


async def test_without_a_record_what_was_seen_bounds_the_attempts() -> None:
    """While attempts cannot be reached a router counts the deaths it saw, of renders whose steps had begun."""
    retries = Retries("k", Away(), 3)
    await retries.failed(DIED, unrecorded=True)
    assert await retries.settle(0) == 0
    for number in (1, 2):
        retries.progressed()
        await retries.failed(DIED, unrecorded=False)
        assert await retries.settle(0) == number
    retries.progressed()
    await retries.failed(DIED, unrecorded=False)
    with pytest.raises(RenderCrashed):
        await retries.settle(0)


async def test_what_a_jobs_record_counts_is_counted() -> None:
    """Deaths that only a waiting job's record knows of count like those that were seen here."""
    with pytest.raises(RenderCrashed):
        await Retries("k", MemoryAttempts(), 3).settle(3)


async def test_an_attempt_that_was_given_up_is_no_death() -> None:
    """An open attempt is forgiven when the flight gave it up for a newer one; the next open one counts."""
    attempts = MemoryAttempts()
    retries = Retries("k", attempts, 9)
    await attempts.begin("k", "a")
    retries.forgive()
    assert await retries.settle(0) == 0
    await attempts.begin("k", "b")
    assert await retries.settle(0) == 1


async def test_a_video_forgets_the_deaths() -> None:
    """After a video the deaths of its earlier attempts are forgotten on record, also those that no replica recorded."""
    attempts = MemoryAttempts()
    retries = Retries("k", attempts, 9)
    retries.progressed()
    await retries.failed(DIED, unrecorded=True)
    assert await retries.settle(0) == 1
    await retries.succeeded()
    assert await Retries("k", attempts, 9).settle(0) == 0


async def test_failures_in_a_row_wait_ever_longer_and_progress_ends_the_row() -> None:
    """The first failure is repeated at once, later ones after 1, 2, 4, 8, 8 s; a step that was made starts anew."""
    clock = Clock()
    retries = Retries("k", MemoryAttempts(), 9, clock)
    pauses, waited = [], []
    for _ in range(6):
        waited.append(await retries.failed(Unavailable("no replica"), unrecorded=False))
        pauses.append(retries.pause(0))
        clock.now += 10
    assert pauses == [0, 1, 2, 4, 8, LONGEST_BACKOFF]
    assert waited == [0, 10, 20, 30, 40, 50]
    retries.progressed()
    assert retries.pause(0) == 0
    assert await retries.failed(Unavailable("no replica"), unrecorded=False) == 0
    assert retries.pause(3) == 4  # deaths wait too
    assert retries.tries == 7


async def test_replicas_with_other_weights_are_asked_so_often() -> None:
    """During a rolling update a render meets old replicas; after MISMATCHES refusals in all it fails with that."""
    retries = Retries("k", MemoryAttempts(), 9)
    error = FingerprintMismatch("other weights", retry_after=1)
    for _ in range(MISMATCHES):
        await retries.failed(error, unrecorded=False)
    with pytest.raises(FingerprintMismatch):
        await retries.failed(error, unrecorded=False)


@pytest.mark.parametrize(("may_repeat", "most"), [(True, CANCELS), (False, 1)])
async def test_cancellations_under_waiters_are_bounded(may_repeat: bool, most: int) -> None:
    """A flight on record may lose its lease a few times; one without a record is tried once more."""
    retries = Retries("k", MemoryAttempts(), 9)
    assert [retries.cancelled(may_repeat=may_repeat) for _ in range(most + 1)] == [True] * most + [False]


def test_the_error_for_callers_that_hold_a_connection() -> None:
    """It says for how long no replica answered, and when to come back."""
    error = unavailable(30.4)
    assert (error.retry_after, "for 30 s" in error.message) == (10, True)
