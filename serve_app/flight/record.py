"""The flight record: one computation per key in the whole cluster, kept in Redis by the processes that work on it.

A record names the holder of a flight by a fencing token, has a number that each heartbeat makes larger, and says how
far it is; beside it stands a sorted set of its waiters. All changes are Lua scripts (`scripts/flight_*.lua`), each one
atomic step:

    state     | at work               | join_or_lead (a waiter)  | beat (holder)     | last one leaves | end
    ----------|-----------------------|--------------------------|-------------------|-----------------|--------
    no record | no process            | lead: waiting, new token | takes its place   | -               | ended
    waiting   | a router, or a queue  | join                     | waiting/rendering | abandoned       | ended
    rendering | a Diffusion replica   | join                     | rendering         | abandoned       | ended
    (expired) | a dead or paused one  | lead: waiting, new token | lease runs again  | abandoned       | ended
    abandoned | as before, to linger  | join, wanted again       | cancelled if due  | -               | ended
    landed    | no process            | the value, or told once  | -                 | -               | ended
    failed    | no process            | told once; others lead   | -                 | -               | ended
    cancelled | no process            | lead: waiting, new token | cancelled         | -               | ended

`complete` makes it landed (the word in Redis), `fail` failed; a holder may still complete what it failed or was
cancelled at, if no process has begun anew. The holder is the process that shows the record's token; with another token
`beat` is `lost` and an end writes nothing, so that of all that ever worked on a key only the newest can write (a
fencing token as in M. Kleppmann, "How to do distributed locking", 2016). A waiter is in the set until it left or heard
the end, so each is told once. A dead router's waiters stop beating but never left: its renders go on.

No clock is compared with another one, so a step of one does no harm. A lease has expired for a process that has seen
the same number for its length by its own monotonic clock (`cache.redis.heartbeat_age`); how long a waiter has been
silent, and a flight without waiters, is measured in the time that the holder has been at work by its own. TTLs only
clear away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from serve_app.core import Priority, Urgency

LEASE_SECONDS = 5.0
"""A holder that was silent this long may be replaced."""
BEAT_SECONDS = LEASE_SECONDS / 3
POLL_SECONDS = 1.0
"""How often a waiter looks at the record when no message wakes it; each look is its heartbeat too."""
WAITER_SECONDS = 10.0
"""A waiter that was silent this long does not count any more when another one leaves."""
RECORD_SECONDS = 3600.0
"""How long a record outlives its lease or its end: longer than a step of the server's clock, which TTLs go by."""


class FlightState(StrEnum):
    """What a record says of its flight."""

    WAITING = "waiting"
    RENDERING = "rendering"
    LANDED = "landed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_active(self) -> bool:
        """Whether a process is, or was, at work on it."""
        return self in (FlightState.WAITING, FlightState.RENDERING)


@dataclass(frozen=True, slots=True)
class FlightStatus:
    """What a record or a message says: the state, the steps done of `total`, and `detail` (JSON) of an end."""

    token: int
    state: FlightState
    step: int = 0
    total: int = 0
    embedding: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The value is in L2, framed and unverified; `news` is what the record says of how it came, if there is one."""

    frame: bytes
    status: FlightStatus | None


@dataclass(frozen=True, slots=True)
class Joined:
    """Another process is at work; this waiter counts. Unless the holder is heard of, its lease ends for this process in
    `expires_in` seconds."""

    status: FlightStatus
    expires_in: float = field(default=LEASE_SECONDS, compare=False)


@dataclass(frozen=True, slots=True)
class Ended:
    """The flight this waiter was on has ended without a value in L2: it failed, or L3 alone has the value."""

    status: FlightStatus


@dataclass(frozen=True, slots=True)
class Leading:
    """This waiter leads, under this token; `may_have` tells whether L3 may have the video."""

    token: int
    may_have: bool = True


@dataclass(frozen=True, slots=True)
class Idle:
    """No process is at work, and this waiter did not want to lead."""


JoinResult = Found | Joined | Ended | Leading | Idle


class HolderStatus(StrEnum):
    """What the record says to its holder."""

    HELD = "held"
    LOST = "lost"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat; `urgency` is that of all waiters."""

    verdict: HolderStatus
    urgency: Urgency | None = None


Hear = Callable[[FlightStatus], None]


class FlightRecords(Protocol):
    """Flight records of videos; every method raises TierError when the records cannot be reached.

    key: key(video). waiter: an id of one process' wait, never used for two. token: from `Leading`.
    """

    @property
    def max_value_bytes(self) -> int:
        """The largest frame that `land` can write."""
        ...

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
        """Look at the flight as a waiter, and lead it when no process does; looking again is the waiter's heartbeat.

        given_up: the token of this waiter's own try that broke off, so that it need not wait for the lease to end.
        lead: False leaves the lead to other waiters. not_before: what a token of this call is no smaller than, so that
        what begins now counts as later than what this process has heard of.
        """
        ...

    async def beat(self, key: str, token: int, status: FlightStatus) -> Beat:
        """Extend the lease and tell where the work is; `news` has the token, state, step, total and embedding."""
        ...

    async def complete(
        self, key: str, token: int, frame: bytes | None, detail: str, *, ttl: float | None = None
    ) -> bool:
        """Write the framed value to L2 (None: it is in L3 alone) and end the flight; False when fenced off.

        ttl: seconds that L2 keeps it when it is not used; None: as long as any other. Raises TierFull when the server
        has no room for the value: then nothing is done.
        """
        ...

    async def fail(self, key: str, token: int, detail: str) -> bool:
        """End the flight with an error that every waiter is told; False when fenced off."""
        ...

    async def leave(self, key: str, waiter: str, *, at_once: bool = False) -> bool:
        """Stop waiting; True when no waiter is left: the holder is then cancelled, `at_once` or after the linger."""
        ...

    async def look(self, key: str) -> FlightStatus | None:
        """Return what the record says, without waiting for the flight."""
        ...

    def watch(self, key: str, hear: Hear) -> Callable[[], None]:
        """Hear what holders tell of `key` until the returned function is called; a message may be lost or late."""
        ...

    async def aclose(self) -> None:
        """Stop hearing; the records stay."""
        ...


def rank(priority: Priority) -> int:
    """Return 0 for the most urgent priority, counting up."""
    return list(Priority).index(priority)


def priority_of(number: int) -> Priority:
    """Return the priority of a `rank`."""
    return list(Priority)[number]
