"""The circuit breaker's three states, by a clock turned by hand."""

from __future__ import annotations

import asyncio

import pytest

from serve_app.cache.breaker import Breaker, BreakerState
from serve_app.errors import TierError


def fail(breaker: Breaker) -> None:
    with pytest.raises(OSError, match="down"), breaker.attempt():
        raise OSError("down")


def succeed(breaker: Breaker) -> None:
    with breaker.attempt():
        pass


@pytest.fixture
def breaker(clock) -> Breaker:
    return Breaker("l2", failures=3, retry_after=5.0, clock=clock)


def test_it_opens_after_consecutive_failures_only(breaker: Breaker) -> None:
    """A success in between starts the count again; the third failure in a row opens."""
    fail(breaker), fail(breaker), succeed(breaker), fail(breaker), fail(breaker)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker)
    assert breaker.state is BreakerState.OPEN


def test_while_open_nothing_is_attempted(breaker: Breaker) -> None:
    """An open breaker raises TierError and does not run the body."""
    fail(breaker), fail(breaker), fail(breaker)
    ran = False
    with pytest.raises(TierError), breaker.attempt():
        ran = True
    assert not ran


def test_one_trial_closes_it_again(breaker: Breaker, clock) -> None:
    """After the wait one success is enough to close it, and failures count from zero."""
    fail(breaker), fail(breaker), fail(breaker)
    clock.advance(5.0)
    assert breaker.state is BreakerState.HALF_OPEN
    succeed(breaker), fail(breaker), fail(breaker)
    assert breaker.state is BreakerState.CLOSED


def test_a_failed_trial_opens_it_for_another_while(breaker: Breaker, clock) -> None:
    """The trial's failure starts the wait anew."""
    fail(breaker), fail(breaker), fail(breaker)
    clock.advance(5.0)
    fail(breaker)
    clock.advance(4.9)
    assert breaker.state is BreakerState.OPEN


def test_only_one_trial_at_a_time(breaker: Breaker, clock) -> None:
    """While a trial runs, others are refused."""
    fail(breaker), fail(breaker), fail(breaker)
    clock.advance(5.0)
    with breaker.attempt(), pytest.raises(TierError), breaker.attempt():
        pass
    assert breaker.state is BreakerState.CLOSED


def test_slow_is_a_failure_too(clock) -> None:
    """An attempt that takes longer than `slow_after` counts as failed, a trial too, though its result was used."""
    breaker = Breaker("l2", slow_after=1.0, clock=clock)

    def ask(seconds: float) -> None:
        with breaker.attempt():
            clock.advance(seconds)

    ask(1.1), ask(1.1), ask(1.0), ask(1.1), ask(1.1)
    assert breaker.state is BreakerState.CLOSED
    ask(1.1)
    assert breaker.state is BreakerState.OPEN
    clock.advance(5.0)
    ask(1.1)
    assert breaker.state is BreakerState.OPEN
    clock.advance(5.0)
    ask(0.1)
    assert breaker.state is BreakerState.CLOSED


def test_somebody_elses_word(breaker: Breaker, clock) -> None:
    """`trip` opens at once, again for a whole while; `close` ends that."""
    breaker.trip()
    clock.advance(4.0)
    breaker.trip()
    clock.advance(4.0)
    assert breaker.state is BreakerState.OPEN
    breaker.close()
    assert breaker.state is BreakerState.CLOSED


def test_a_cancelled_trial_makes_room_for_the_next(breaker: Breaker, clock) -> None:
    """Cancellation says nothing about the tier: still half-open, and the next trial is let through."""
    fail(breaker), fail(breaker), fail(breaker)
    clock.advance(5.0)
    with pytest.raises(asyncio.CancelledError), breaker.attempt():
        raise asyncio.CancelledError
    assert breaker.state is BreakerState.HALF_OPEN
    succeed(breaker)
    assert breaker.state is BreakerState.CLOSED


def test_a_straggler_does_not_push_the_trial_away(breaker: Breaker, clock) -> None:
    """An attempt begun before the breaker opened and failing late does not start the wait anew."""
    straggler = breaker.attempt()
    straggler.__enter__()
    fail(breaker), fail(breaker), fail(breaker)
    clock.advance(4.0)
    late = OSError("late")
    assert straggler.__exit__(OSError, late, None) is False
    clock.advance(1.0)
    assert breaker.state is BreakerState.HALF_OPEN
