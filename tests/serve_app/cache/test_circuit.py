"""Both breakers of one server: who opens which, and that neither mistakes the other's word for the server's."""

from __future__ import annotations

from contextlib import suppress

import pytest

from serve_app.cache.breaker import BreakerState
from serve_app.cache.circuit import Circuit
from serve_app.errors import TierError, TierLeftAlone, TierRefused
from serve_app.telemetry import BreakerTurned


@pytest.fixture
def circuit(recorder, clock) -> Circuit:
    return Circuit("l2", recorder, failures=3, retry_after=5.0, clock=clock)


def store(circuit: Circuit, error: Exception | None = None) -> None:
    with suppress(TierError), circuit.storing():
        if error is not None:
            raise error


def ask(circuit: Circuit, error: Exception | None = None) -> None:
    with suppress(TierError), circuit.attempt():
        if error is not None:
            raise error


DOWN, FULL = TierError("down"), TierRefused("full")


def test_refusals_leave_it_readable(circuit: Circuit, recorder) -> None:
    """Three refusals open storing alone, with successful reads in between too; a refusal shows that it answers."""
    ask(circuit, DOWN), ask(circuit, DOWN), store(circuit, FULL)
    for _ in range(2):
        ask(circuit), store(circuit, FULL)
    assert (circuit.reachable, circuit.takes_values, circuit.answers) == (True, False, True)
    assert circuit.stats() == {"breaker": "closed", "store_breaker": "open"}
    with pytest.raises(TierLeftAlone), circuit.storing():
        raise AssertionError
    assert recorder.events == [BreakerTurned("l2", "store", "open")]


def test_silence_stops_both(circuit: Circuit) -> None:
    """What does not answer is asked nothing, and writes that got no answer say nothing of room."""
    for _ in range(3):
        store(circuit, DOWN)
    assert circuit.stats() == {"breaker": "open", "store_breaker": "closed"}
    assert not circuit.takes_values
    with pytest.raises(TierLeftAlone), circuit.storing():
        raise AssertionError


def test_being_left_alone_is_nobodys_failure(circuit: Circuit, clock) -> None:
    """However often a store is not asked because the other breaker is open, neither of them moves."""
    for _ in range(3):
        store(circuit, FULL)
    for _ in range(10):
        store(circuit)
    assert circuit.reach.state is BreakerState.CLOSED
    for _ in range(3):
        ask(circuit, DOWN)
    clock.advance(5.0)  # both may be tried now
    circuit.store.trip()
    for _ in range(3):
        store(circuit)  # not asked, so it was no trial either
    assert circuit.reach.state is BreakerState.HALF_OPEN
    ask(circuit)
    assert circuit.answers
    assert not circuit.takes_values


def test_one_stored_value_heals_all(circuit: Circuit, clock, recorder) -> None:
    """A trial that stores closes both, and each turn was told once."""
    for _ in range(3):
        store(circuit, FULL), ask(circuit, DOWN)
    for _ in range(3):
        ask(circuit, DOWN)
    assert not circuit.reachable
    clock.advance(5.0)
    store(circuit)
    assert circuit.closed
    assert [(turn.asked, turn.state) for turn in recorder.events] == [
        ("store", "open"), ("reach", "open"), ("store", "closed"), ("reach", "closed"),
    ]  # fmt: skip
