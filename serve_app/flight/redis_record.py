"""Flight records in Redis: each call is one script, one round trip; what holders tell comes over one connection.

Messages only wake: one that is lost costs a waiter a second, because every waiter looks at the record at least that
often. Names are HMACs under the deployment secret; the value's is the name it has in L2, so that the script that looks
for a flight finds the finished video.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from serve_app.cache.redis.bloom import BloomFilter
from serve_app.cache.redis.heartbeat_age import Elapsed, Silence
from serve_app.cache.redis.pubsub import Subscriptions
from serve_app.cache.redis.redis import RedisTier, too_full
from serve_app.cache.redis.script import Script, milliseconds, now_of
from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.core import Urgency
from serve_app.errors import TierError
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

_BOARD = Script("flight_join_or_lead", "keep", "bloom")
_BEAT, _LEAVE = Script("flight_beat"), Script("flight_leave")
_END = Script("flight_end", "memory", "room")
_TOO_FULL = 2
_FIELDS = ("token", "state", "step", "total", "embedding", "detail")


class RedisFlightRecords:
    """FlightRecords over an L2; `redis` belongs to the caller, which closes it.

    linger_seconds: how long a flight goes on after its last waiter left. bloom: the filter that tells a leader whether
    L3 may have the video. clock: for tests, Unix seconds instead of the server's own time, which only new tokens are
    made of. monotonic: this process' own, which leases are measured by.
    """

    def __init__(
        self,
        redis: RedisTier,
        *,
        secret: bytes,
        linger_seconds: float,
        bloom: BloomFilter | None = None,
        lease_seconds: float = LEASE_SECONDS,
        waiter_seconds: float = WAITER_SECONDS,
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._secret = secret
        self._bloom = bloom
        self._linger = milliseconds(linger_seconds)
        self._lease_seconds = lease_seconds
        self._lease = milliseconds(lease_seconds)
        self._waiter = milliseconds(waiter_seconds)
        self._record = milliseconds(RECORD_SECONDS)
        self._clock = clock
        self._silence = Silence(monotonic)
        self._elapsed = Elapsed(lease_seconds, monotonic)
        self._circuit = redis.circuit
        self._subscriptions = Subscriptions(redis.new_client, lambda: self._circuit.answers)

    @property
    def max_value_bytes(self) -> int:
        """The largest frame that L2 takes."""
        return self._redis.max_value_bytes

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
        """Look at the flight, lead it when no process does; raises TierError."""
        silent = self._silence.version(key, self._lease_seconds)
        deadline = "" if urgency.deadline is None else str(milliseconds(urgency.deadline))
        name = self._name(key)
        args = (
            now_of(self._clock), waiter, given_up or "", self._lease, max(self._record, self._waiter),
            self._redis.keep_for(), rank(urgency.priority), deadline, "1" if lead else "", name,
            b"" if silent is None else cast(bytes, silent), not_before,
        )  # fmt: skip
        keys = self._keys(key) + ([] if self._bloom is None else self._bloom.keys(name))
        kind, *rest = await self._run(_BOARD, keys, args)
        if kind == b"joined":
            *fields, version = rest
            return Joined(_status(fields), self._lease_seconds - self._silence.saw(key, version))
        if kind != b"idle":
            self._silence.forget(key)
        return self._leading(name, *rest) if kind == b"leading" else _boarded(kind, rest)

    async def beat(self, key: str, token: int, status: FlightStatus) -> Beat:
        """Extend the lease and tell progress; raises TierError."""
        _, record, _, channel = self._names(key)
        elapsed, began = self._elapsed.since((key, token))
        args = (
            now_of(self._clock), token, self._lease, self._record, self._linger,
            status.state.value, status.step, status.total, status.embedding, channel, milliseconds(elapsed),
        )  # fmt: skip
        verdict, *wanted = await self._run(_BEAT, [record], args)
        self._elapsed.mark((key, token), began)
        return Beat(HolderStatus(verdict.decode()), _urgency(*wanted) if wanted else None)

    async def complete(
        self, key: str, token: int, frame: bytes | None, detail: str, *, ttl: float | None = None
    ) -> bool:
        """Write the value and end the flight; False when fenced off. Raises TierError; TierFull: nothing is done."""
        return await self._end(key, token, FlightState.LANDED, detail, frame or b"", ttl)

    async def fail(self, key: str, token: int, detail: str) -> bool:
        """End the flight with an error; False when fenced off. Raises TierError."""
        return await self._end(key, token, FlightState.FAILED, detail, b"")

    async def leave(self, key: str, waiter: str, *, at_once: bool = False) -> bool:
        """Stop waiting; True when no waiter is left. Raises TierError."""
        _, record, waiters, _ = self._names(key)
        args = (waiter, "1" if at_once else "", self._waiter)
        return bool(await self._run(_LEAVE, [record, waiters], args))

    async def look(self, key: str) -> FlightStatus | None:
        """Return what the record says; raises TierError."""
        _, record, _, _ = self._names(key)
        with self._circuit.attempt():
            fields = await self._redis.fields(record, _FIELDS)
        return None if fields[0] is None else _status(fields)

    def watch(self, key: str, hear: Hear) -> Callable[[], None]:
        """Hear what holders tell of `key` until the returned function is called."""
        *_, channel = self._names(key)
        return self._subscriptions.subscribe(
            channel, lambda data: hear(_status([part.encode() for part in json.loads(data)]))
        )

    async def aclose(self) -> None:
        """Stop hearing."""
        await self._subscriptions.aclose()

    async def _end(
        self, key: str, token: int, state: FlightState, detail: str, frame: bytes, ttl: float | None = None
    ) -> bool:
        *_, channel = self._names(key)
        kept, reserve = self._redis.keep_for(ttl), self._redis.reserve
        args = (token, state.value, detail, frame, kept, self._record, channel, reserve)
        with self._circuit.storing() if frame else self._circuit.attempt():
            ended = await self._redis.run(_END, self._keys(key), args)
        if ended == _TOO_FULL:
            raise too_full()
        return bool(ended)

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | float]) -> Any:
        with self._circuit.attempt():
            return await self._redis.run(script, keys, args)

    def _keys(self, key: str) -> list[str]:
        return list(self._names(key)[:3])

    def _names(self, key: str) -> tuple[str, str, str, str]:
        """Return what the value, the record, the waiters and the channel are called: in a cluster, all in one slot."""
        name = self._name(key)
        value, record, waiters, channel = (redis_name(name, of) for of in ("value", "flight", "waiters", "news"))
        return value, record, waiters, channel

    def _name(self, key: str) -> str:
        return storage_name(self._secret, "video", key)

    def _leading(self, name: str, token: bytes, found: bytes) -> Leading:
        return Leading(int(token), self._bloom is None or self._bloom.answer(name, found) is not False)


def _boarded(kind: bytes, rest: Sequence[bytes]) -> JoinResult:
    match kind:
        case b"value":
            frame, *fields = rest
            return Found(frame, _status(fields) if fields else None)
        case b"ended":
            return Ended(_status(rest))
        case b"idle":
            return Idle()
    raise TierError(f"Redis: an answer that no script of ours gives: {kind!r}")


def _status(fields: Sequence[bytes | None]) -> FlightStatus:
    token, state, step, total, embedding, detail = (b"" if field is None else field for field in fields)
    return FlightStatus(
        int(token), FlightState(state.decode()), int(step), int(total), embedding.decode(), detail.decode()
    )


def _urgency(priority: bytes, deadline: bytes) -> Urgency | None:
    if not priority:
        return None
    return Urgency(priority_of(int(priority)), int(deadline) / 1000 if deadline else None)
