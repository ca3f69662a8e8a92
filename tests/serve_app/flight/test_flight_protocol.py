"""The Lua scripts of the flight record against their specification: any history gives the same answers and records.

Hypothesis writes the histories: several waiters, holders with right and stale tokens, jumps of the clock in both
directions, values and records that vanish. Redis counts its own expiries in real time, which no test waits for: here
they are explicit deletions, and what is compared is how long a thing was told to be kept.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from serve_app.cache.redis.heartbeat_age import Elapsed, Silence
from serve_app.cache.redis.redis import RedisTier
from serve_app.core import Priority, Urgency
from serve_app.flight.record import LEASE_SECONDS, FlightState, FlightStatus, Leading
from serve_app.flight.redis_record import RedisFlightRecords
from tests.conftest import ValkeyServer
from tests.serve_app.flight.flight_model import FlightModel, Record, milliseconds

RUNS = int(os.environ.get("ENCORE_FLIGHT_RUNS", "100"))
LINGER = 7.0
WAITER = 3.0
SLACK_MS = 20_000
"""How much real time one history may take before the lives of its keys are no longer comparable."""

keys = st.sampled_from(["a", "b"])
waiters = st.sampled_from(["w1", "w2", "w3"])
urgencies = st.builds(Urgency, st.sampled_from(Priority), st.sampled_from([None, 1234.5, 99.0]))
details = st.sampled_from(["", '{"error": "\\u4e0d / \\" 1"}', "détail"])
seconds = st.sampled_from([0.001, 0.5, WAITER, LEASE_SECONDS - 0.001, LEASE_SECONDS, LINGER, LEASE_SECONDS + LINGER])


class Histories(RuleBasedStateMachine):
    """Every rule does one thing to both, and compares what they say and what they told their listeners."""

    tokens = Bundle("tokens")

    def __init__(self, url: str) -> None:
        super().__init__()
        self.now = 1_800_000_000.0
        self.ticks = 0.0
        self.loop = asyncio.new_event_loop()
        patience = {"connect_timeout": 30, "socket_timeout": 30, "deadline": 60}  # a busy machine is no finding
        self.tier = RedisTier(url, jitter=0, **patience)
        self.flights = RedisFlightRecords(
            self.tier, secret=b"s", linger_seconds=LINGER, waiter_seconds=WAITER, clock=lambda: self.now
        )
        self.flights._silence = Silence(lambda: self.ticks, longest_gap=100.0)
        self.flights._elapsed = Elapsed(LEASE_SECONDS, lambda: self.ticks)
        self.said: list[tuple[str, FlightStatus]] = []
        self.model = FlightModel(
            linger_seconds=LINGER,
            waiter_seconds=WAITER,
            publish=lambda key, news: self.said.append((key, news)),
        )
        self.server = redis.Redis(unix_socket_path=url.removeprefix("unix://"), decode_responses=True)
        self.server.flushall()
        self.names = {key: self.flights._names(key) for key in ("a", "b")}
        self.wire = self.server.pubsub(ignore_subscribe_messages=True)
        self.wire.subscribe("mark", *(names[3] for names in self.names.values()))

    def teardown(self) -> None:
        async def close() -> None:
            await self.flights.aclose()
            await self.tier.close()

        self.loop.run_until_complete(close())
        self.loop.close()
        self.wire.close()
        self.server.close()

    def both(self, method: str, expected: Any, *args: Any, **named: Any) -> Any:
        answer = self.loop.run_until_complete(getattr(self.flights, method)(*args, **named))
        assert answer == expected
        return answer

    @property
    def milliseconds(self) -> int:
        return milliseconds(self.now)

    @rule(
        target=tokens,
        key=keys,
        waiter=waiters,
        urgency=urgencies,
        given_up=st.none() | tokens,
        lead=st.booleans(),
        not_before=st.sampled_from([0, 0, 1_800_000_060_000_001]),
    )
    def join_or_lead(
        self, key: str, waiter: str, urgency: Urgency, given_up: int | None, lead: bool, not_before: int
    ) -> Any:
        silent = self.flights._silence.version(key, LEASE_SECONDS)
        expected = self.model.join_or_lead(
            self.milliseconds,
            key,
            waiter,
            urgency,
            given_up,
            lead,
            silent,
            not_before,  # type: ignore[arg-type]
        )
        answer = self.both(
            "join_or_lead", expected, key, waiter, urgency, given_up=given_up, lead=lead, not_before=not_before
        )
        return answer.token if isinstance(answer, Leading) else multiple()

    @rule(
        key=keys,
        token=tokens,
        state=st.sampled_from([FlightState.WAITING, FlightState.RENDERING]),
        step=st.integers(0, 3),
    )
    def beat(self, key: str, token: int, state: FlightState, step: int) -> None:
        news = FlightStatus(token, state, step, 4, "miss" if step else "")
        elapsed, _ = self.flights._elapsed.since((key, token))
        expected = self.model.beat(self.milliseconds, key, token, news, milliseconds(elapsed))
        self.both("beat", expected, key, token, news)

    @rule(key=keys, token=tokens, detail=details, frame=st.sampled_from([None, b"\x00\xff\r\n"]))
    def complete(self, key: str, token: int, detail: str, frame: bytes | None) -> None:
        expected = self.model.end(self.milliseconds, key, token, FlightState.LANDED, detail, frame)
        self.both("complete", expected, key, token, frame, detail)

    @rule(key=keys, token=tokens, detail=details)
    def fail(self, key: str, token: int, detail: str) -> None:
        expected = self.model.end(self.milliseconds, key, token, FlightState.FAILED, detail, None)
        self.both("fail", expected, key, token, detail)

    @rule(key=keys, waiter=waiters, at_once=st.booleans())
    def leave(self, key: str, waiter: str, at_once: bool) -> None:
        expected = self.model.leave(self.milliseconds, key, waiter, at_once)
        self.both("leave", expected, key, waiter, at_once=at_once)

    @rule(key=keys)
    def look(self, key: str) -> None:
        record = self.model.records.get(key)
        self.both("look", None if record is None else record.news(), key)

    @rule(by=seconds)
    def time_passes(self, by: float) -> None:
        self.now += by
        self.ticks += by

    @rule(by=seconds | st.just(900.0), forward=st.booleans())
    def clock_steps(self, by: float, forward: bool) -> None:
        self.now += by if forward else -by

    @rule(key=keys)
    def value_goes(self, key: str) -> None:
        self.model.values.pop(key, None)
        self.server.delete(self.names[key][0])

    @rule(key=keys)
    def record_expires(self, key: str) -> None:
        self.model.records.pop(key, None)
        self.server.delete(self.names[key][1])

    @rule(key=keys)
    def waiters_expire(self, key: str) -> None:
        self.model.waiters.pop(key, None)
        self.server.delete(self.names[key][2])

    @rule()
    def server_forgets_all(self) -> None:
        self.model.flush()
        self.server.flushall()
        self.server.script_flush()

    @invariant()
    def same_records_lives_and_messages(self) -> None:
        pipeline = self.server.pipeline(transaction=False)
        for value, record, waiting, _ in self.names.values():
            pipeline.hgetall(record).zrange(waiting, 0, -1, withscores=True)
            pipeline.pttl(value).pttl(record).pttl(waiting)
        pipeline.publish("mark", "")
        held = iter(pipeline.execute())
        for key in self.names:
            assert _as_record(next(held)) == self.model.records.get(key)
            assert dict(next(held)) == self.model.waiting(key)
            self.kept_for_as_long(key, dict(zip(("value", "record", "waiters"), held, strict=False)))
        self.same_messages()

    def kept_for_as_long(self, key: str, left: dict[str, int]) -> None:
        tables: dict[str, dict[str, Any]] = {
            "value": self.model.values,
            "record": self.model.records,
            "waiters": self.model.waiters,
        }
        for kind, table in tables.items():
            if key in table:
                assert 0 <= self.model.lives[kind, key][1] - left[kind] < SLACK_MS, (kind, key)
            else:
                assert left[kind] == -2, (kind, key)

    def same_messages(self) -> None:
        heard: list[tuple[str, list[str]]] = []
        while (message := self.wire.get_message(timeout=30)) is None or message["channel"] != "mark":
            if message is not None:
                key = next(key for key, names in self.names.items() if names[3] == message["channel"])
                heard.append((key, json.loads(message["data"])))
        told = [
            (key, [str(news.token), news.state.value, str(news.step), str(news.total), news.embedding, news.detail])
            for key, news in self.said
        ]
        self.said.clear()
        assert heard == told


def _as_record(fields: dict[str, str]) -> Record | None:
    if not fields:
        return None
    numbers = ("token", "step", "total", "until", "age", "abandoned", "priority", "deadline")
    fields = {name: "-1" if (name, text) == ("abandoned", "now") else text for name, text in fields.items()}
    typed: dict[str, Any] = {name: int(text) if name in numbers else text for name, text in fields.items()}
    return Record(**(typed | {"state": FlightState(fields["state"])}))


def test_the_scripts_do_what_the_specification_says(valkey_server: ValkeyServer) -> None:
    """Over random calls RedisFlightRecords and the plain-Python table agree on answers, records, lives and messages."""
    run_state_machine_as_test(
        lambda: Histories(valkey_server.url),
        settings=settings(
            max_examples=RUNS, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow], deadline=None
        ),
    )
