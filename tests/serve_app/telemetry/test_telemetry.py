"""Telemetry: every observer hears every event, and none can hurt the emitter."""

from __future__ import annotations

import dataclasses
import logging
import typing

import pytest

from serve_app import telemetry
from serve_app.telemetry import EmbeddingServed, Event, StepRun, Telemetry

HIT, STEP = EmbeddingServed("hit"), StepRun(4, 0.25)


def test_observers_hear_events_in_order() -> None:
    """Every observer gets every event, in the order of emission."""
    first: list[Event] = []
    second: list[Event] = []
    door = Telemetry(first.append, second.append)
    door.emit(HIT)
    door.emit(STEP)
    assert first == second == [HIT, STEP]


def test_late_observer_hears_what_comes_after() -> None:
    """`listen` adds an observer for later events only."""
    heard: list[Event] = []
    door = Telemetry()
    door.emit(HIT)
    door.listen(heard.append)
    door.emit(STEP)
    assert heard == [STEP]


def test_failing_observer_is_logged_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    """An observer that raises neither reaches the emitter nor keeps the next observer from hearing."""
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("sink is down")

    with caplog.at_level(logging.ERROR):
        Telemetry(broken, heard.append).emit(HIT)
    assert heard == [HIT]
    assert "EmbeddingServed" in caplog.text
    assert "sink is down" in caplog.text


@pytest.mark.parametrize("kind", typing.get_args(Event))
def test_every_event_is_frozen_and_exported(kind: type) -> None:
    """Every member of the Event union is an immutable dataclass that the package exports."""
    assert dataclasses.is_dataclass(kind)
    assert getattr(telemetry, kind.__name__) is kind
    values = {"str": "x", "int": 1, "float": 1.0}
    event = kind(**{f.name: values[str(f.type)] for f in dataclasses.fields(kind)})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, dataclasses.fields(kind)[0].name, "y")


def test_no_event_has_a_place_for_prompt_text() -> None:
    """The only strings in events are names of tiers, kinds, results, outcomes, and of what a breaker is."""
    words = {f.name for kind in typing.get_args(Event) for f in dataclasses.fields(kind) if f.type == "str"}
    assert words == {"outcome", "tier", "kind", "result", "asked", "state"}
