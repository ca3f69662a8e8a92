"""The flight record as plain Python: the table of serve_app/flight/record.py, and the oracle its Lua is tested against.

`FlightModel` is what one Redis holds of flights; each method is one script, one atomic step. Times in it are whole
milliseconds, as in Lua. `MemoryFlightRecords` is one process' view of it: FlightRecords over a link that a simulation
may make slow, broken or deaf. Nothing here knows Redis.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

from serve_app.cache.redis.heartbeat_age import Elapsed, Silence
from serve_app.cache.redis.redis import WEEK
from serve_app.core import Urgency
from serve_app.flight.record import (
    LEASE_SECONDS,
    RECORD_SECONDS,
    WAITER_SECONDS,
    Beat,
    Ended,
    FlightState,
    FlightStatus,
    Found,
    Hear,
    HolderStatus,
    Idle,
    Joined,
    JoinResult,
    Leading,
    priority_of,
    rank,
)

T = TypeVar("T")


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


@dataclass
class Record:
    """One flight; `until` grows with each heartbeat, `age` is for how long its holders have been at work.

    `abandoned` is the age since when nobody waits (0: for ever, -1: since the next heartbeat).
    """

    token: int
    state: FlightState
    step: int = 0
    total: int = 0
    embedding: str = ""
    detail: str = ""
    until: int = 0
    age: int = 0
    abandoned: int | None = None
    priority: int | None = None
    deadline: int | None = None

    @property
    def version(self) -> bytes:
        """What an observer remembers."""
        return f"{self.token}:{self.until}".encode()

    def news(self) -> FlightStatus:
        return FlightStatus(self.token, self.state, self.step, self.total, self.embedding, self.detail)

    def wanted(self) -> Urgency | None:
        if self.priority is None:
            return None
        return Urgency(priority_of(self.priority), None if self.deadline is None else self.deadline / 1000)

    def hurry(self, urgency: Urgency) -> None:
        """The most urgent of all who wait decides."""
        self.priority = min(rank(urgency.priority), 9 if self.priority is None else self.priority)
        if urgency.deadline is not None:
            deadline = milliseconds(urgency.deadline)
            self.deadline = deadline if self.deadline is None else min(deadline, self.deadline)


@dataclass
class FlightModel:
    """All values, records and waiters by key; `lives` says for how long each was last told to be kept."""

    linger_seconds: float = 30.0
    lease_seconds: float = LEASE_SECONDS
    waiter_seconds: float = WAITER_SECONDS
    publish: Callable[[str, FlightStatus], None] = lambda key, news: None
    values: dict[str, bytes] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    waiters: dict[str, dict[str, int]] = field(default_factory=dict)
    lives: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def join_or_lead(
        self,
        now: int,
        key: str,
        waiter: str,
        urgency: Urgency,
        given_up: int | None,
        lead: bool = True,
        silent: bytes | None = None,
        not_before: int = 0,
    ) -> JoinResult:
        """Value, flight to follow, end of the flight this waiter was on, or the lease, in this order."""
        record = self.records.get(key)
        if key in self.values:
            self._keep("value", key, now, WEEK)
            self._forget(key, waiter)
            return Found(self.values[key], record.news() if record else None)
        if record is not None and record.state.is_active and record.version != silent and record.token != given_up:
            self._wait_here(now, key, waiter, urgency, record)
            return Joined(record.news())
        if (
            record is not None
            and record.state in (FlightState.LANDED, FlightState.FAILED)
            and self._forget(key, waiter)
        ):
            return Ended(record.news())
        if not lead:
            if record is None or record.state.is_active:
                self._wait_here(now, key, waiter, urgency, record)
            return Idle()
        token = max(now * 1000, (record.token if record else 0) + 1, not_before)
        self.waiters[key] = dict.fromkeys(self.waiting(key), 0)
        self.records[key] = record = Record(token, FlightState.WAITING, until=now + milliseconds(self.lease_seconds))
        self._keep("record", key, now, self.lease_seconds + self._kept())
        self._wait_here(now, key, waiter, urgency, record)
        return Leading(token)

    def beat(self, now: int, key: str, token: int, news: FlightStatus, elapsed: int = 0) -> Beat:
        """Only the token on record is held; without a record whoever beats takes its place."""
        record = self.records.get(key)
        if record is not None and record.token != token:
            return Beat(HolderStatus.LOST)
        if record is not None and not record.state.is_active:
            return Beat(HolderStatus.CANCELLED if record.state is FlightState.CANCELLED else HolderStatus.HELD)
        age = elapsed + (0 if record is None else record.age)
        if record is not None and self._is_due(record, age):
            record.state = FlightState.CANCELLED
            self.publish(key, FlightStatus(token, FlightState.CANCELLED, news.step, news.total, news.embedding))
            return Beat(HolderStatus.CANCELLED)
        is_new = record is None or (record.state, record.step) != (news.state, news.step)
        if record is None:
            self.records[key] = record = Record(token, news.state)
        record.state, record.step, record.total = news.state, news.step, news.total
        record.embedding, record.detail, record.age = news.embedding, "", age
        record.until = max(now + milliseconds(self.lease_seconds), record.until + 1)
        if record.abandoned == -1:
            record.abandoned = max(1, age)
        self._keep("record", key, now, self.lease_seconds + RECORD_SECONDS)
        if is_new:
            self.publish(key, FlightStatus(token, news.state, news.step, news.total, news.embedding))
        return Beat(HolderStatus.HELD, record.wanted())

    def end(self, now: int, key: str, token: int, state: FlightState, detail: str, frame: bytes | None) -> bool:
        """The holder of the token on record writes; everybody else is fenced off."""
        record = self.records.get(key)
        if record is not None and record.token != token:
            return False
        if frame is not None:
            self.values[key] = frame
            self._keep("value", key, now, WEEK)
        if record is None:
            self.records[key] = record = Record(token, state)
        record.state, record.detail, record.abandoned = state, detail, None
        self._keep("record", key, now, RECORD_SECONDS)
        self._keep("waiters", key, now, RECORD_SECONDS)
        self.publish(key, record.news())
        return True

    def leave(self, now: int, key: str, waiter: str, at_once: bool) -> bool:
        """The last one to leave a flight in the air abandons it."""
        self._forget(key, waiter)
        record = self.records.get(key)
        age = (record.age if record else 0) - milliseconds(self.waiter_seconds)
        for silent in [who for who, at in self.waiting(key).items() if at <= age]:
            self._forget(key, silent)
        if self.waiting(key) or record is None or not record.state.is_active:
            return False
        if at_once:
            record.abandoned = 0
        elif record.abandoned is None:
            record.abandoned = -1
        return True

    def waiting(self, key: str) -> dict[str, int]:
        """Who waits for `key`, with the time of the last heartbeat."""
        return self.waiters.get(key, {})

    def expire(self, now: int) -> None:
        """Drop what Redis would have dropped by `now`."""
        for (kind, key), (since, life) in list(self.lives.items()):
            if since + life <= now:
                del self.lives[kind, key]
                {"value": self.values, "record": self.records, "waiters": self.waiters}[kind].pop(key, None)

    def flush(self) -> None:
        """Forget everything, as a Redis without persistence does when it restarts."""
        for table in (self.values, self.records, self.waiters, self.lives):
            table.clear()

    def _is_due(self, record: Record, age: int) -> bool:
        if record.abandoned is None or record.abandoned == 0:
            return record.abandoned == 0
        since = max(1, age) if record.abandoned == -1 else record.abandoned
        return age - since >= milliseconds(self.linger_seconds)

    def _wait_here(self, now: int, key: str, waiter: str, urgency: Urgency, record: Record | None) -> None:
        self.waiters.setdefault(key, {})[waiter] = record.age if record else 0
        self._keep("waiters", key, now, self._kept())
        if record is not None:
            record.abandoned = None
            record.hurry(urgency)

    def _forget(self, key: str, waiter: str) -> bool:
        was_there = self.waiting(key).pop(waiter, None) is not None
        if not self.waiting(key):
            self.waiters.pop(key, None)
        return was_there

    def _kept(self) -> float:
        return max(RECORD_SECONDS, self.waiter_seconds)

    def _keep(self, kind: str, key: str, now: int, seconds: float) -> None:
        self.lives[kind, key] = (now, milliseconds(seconds))


class Link:
    """The way from one process to the records and back: here it takes no time and never breaks."""

    async def call(self, step: Callable[[], T]) -> T:
        """Run one atomic step on the server; raises TierError when it cannot be reached or its answer is lost."""
        return step()

    def hear(self, hear: Hear, news: FlightStatus) -> None:
        """Bring a message to this process, or lose it."""
        hear(news)


@dataclass
class Air:
    """Who hears what; one for all processes of a model."""

    ears: dict[str, list[tuple[Link, Hear]]] = field(default_factory=dict)

    def publish(self, key: str, news: FlightStatus) -> None:
        for link, hear in list(self.ears.get(key, ())):
            link.hear(hear, news)


class MemoryFlightRecords:
    """FlightRecords over a FlightModel; `clock` is the server's, in seconds, `monotonic` the process' own."""

    max_value_bytes = 64 << 20

    def __init__(
        self,
        model: FlightModel,
        air: Air,
        clock: Callable[[], float],
        link: Link | None = None,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        self.model = model
        self._silence = Silence(monotonic or clock)
        self._elapsed = Elapsed(model.lease_seconds, monotonic or clock)
        self._air = air
        self._clock = clock
        self._link = link or Link()
        model.publish = air.publish

    async def aclose(self) -> None:
        """Nothing to close."""

    async def join_or_lead(
        self,
        key: str,
        waiter: str,
        urgency: Urgency,
        *,
        given_up: int | None = None,
        lead: bool = True,
        not_before: int = 0,
    ) -> JoinResult:
        silent = cast(bytes | None, self._silence.version(key, self.model.lease_seconds))

        def step(now: int) -> tuple[JoinResult, bytes]:
            join_result = self.model.join_or_lead(now, key, waiter, urgency, given_up, lead, silent, not_before)
            return join_result, self.model.records[key].version if isinstance(join_result, Joined) else b""

        join_result, version = await self._call(step)
        if isinstance(join_result, Joined):
            return Joined(join_result.status, self.model.lease_seconds - self._silence.saw(key, version))
        if not isinstance(join_result, Idle):
            self._silence.forget(key)
        return join_result

    async def beat(self, key: str, token: int, news: FlightStatus) -> Beat:
        elapsed, began = self._elapsed.since((key, token))
        beat = await self._call(lambda now: self.model.beat(now, key, token, news, milliseconds(elapsed)))
        self._elapsed.mark((key, token), began)
        return beat

    async def complete(
        self, key: str, token: int, frame: bytes | None, detail: str, *, ttl: float | None = None
    ) -> bool:
        return await self._call(lambda now: self.model.end(now, key, token, FlightState.LANDED, detail, frame))

    async def fail(self, key: str, token: int, detail: str) -> bool:
        return await self._call(lambda now: self.model.end(now, key, token, FlightState.FAILED, detail, None))

    async def leave(self, key: str, waiter: str, *, at_once: bool = False) -> bool:
        return await self._call(lambda now: self.model.leave(now, key, waiter, at_once))

    async def look(self, key: str) -> FlightStatus | None:
        return await self._call(lambda now: self.model.records[key].news() if key in self.model.records else None)

    def watch(self, key: str, hear: Hear) -> Callable[[], None]:
        ears = self._air.ears.setdefault(key, [])
        ear = (self._link, hear)
        ears.append(ear)

        def stop() -> None:
            if ear in ears:
                ears.remove(ear)

        return stop

    def _call(self, step: Callable[[int], T]) -> Awaitable[T]:
        def at_now() -> T:
            now = math.floor(self._clock() * 1000)
            self.model.expire(now)
            return step(now)

        return self._link.call(at_now)
