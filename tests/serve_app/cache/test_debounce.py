"""Once per interval and key, in bounded memory."""

from __future__ import annotations

from serve_app.cache.debounce import Debounce


def test_a_key_is_due_once_per_interval(clock) -> None:
    """The second call within the interval is not due, the first after it is; keys do not disturb each other."""
    debounce = Debounce(60, clock=clock)
    assert debounce.due("a")
    assert debounce.due("b")
    clock.advance(59)
    assert not debounce.due("a")
    clock.advance(1)
    assert debounce.due("a")


def test_memory_is_bounded(clock) -> None:
    """Only the latest keys are remembered, and one that fell out is due again."""
    debounce = Debounce(60, capacity=10, clock=clock)
    assert sum(debounce.due(str(n)) for n in range(1000)) == 1000
    assert len(debounce) == 10
    assert not debounce.due("999")
    assert debounce.due("0")


def test_a_forgotten_key_is_due_at_once(clock) -> None:
    """Forgetting takes the wait away."""
    debounce = Debounce(60, clock=clock)
    debounce.due("a")
    debounce.forget("a")
    assert debounce.due("a")
