"""One process' part in the cluster-wide flight of one video: it waits for it, or leads it, and may change between both.

The passage looks at the flight record about once a second, sooner when a message says that something has ended; each
look is the heartbeat of its waiting. Whoever finds nobody at work leads: looks in L3, then has the video rendered. Its
own render is one more source of news, not a reason to stop looking: a Diffusion replica that hangs loses its lease, and
the passage then leads anew or follows whoever did. With Redis away it renders by itself, as one process can.

What was begun before its callers' invalidations is no answer for them: a flight whose token is older than that is given
up like one of its own that broke off, and the lead taken anew, which fences the older one off.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import cast

from serve_app.cache.cache import TieredCache
from serve_app.cache.remote_tier import Stale
from serve_app.core import Entry, Finished, Outcome, Progress, RenderEvent, Retried, Started, Urgency
from serve_app.errors import (
    EncoreError,
    FingerprintMismatch,
    RenderCancelled,
    RenderFailed,
    ReplicaDied,
    TierError,
    TierFull,
    TierRefused,
    Unavailable,
)
from serve_app.flight import result_json
from serve_app.flight.attempts import MAX_ATTEMPTS, Attempts, backoff
from serve_app.flight.crash_count import CrashCount
from serve_app.flight.record import (
    LEASE_SECONDS,
    POLL_SECONDS,
    Ended,
    FlightRecords,
    FlightState,
    FlightStatus,
    Found,
    HolderStatus,
    Idle,
    Joined,
    Leading,
)
from serve_app.flight.result import FlightResult, VideoFlight
from serve_app.tasks import detached
from serve_app.telemetry import span

logger = logging.getLogger(__name__)

MISMATCHES = 10
"""How often a render is asked for again when a replica with other weights got it (a rolling update)."""
PATIENCE_SECONDS = 30.0
"""How long requests that hold a connection wait while no replica takes their render; jobs wait on."""
CANCELS = 10
"""How often a render may be cancelled under somebody who waits: by a lost lease, or in the moment that he came."""

OUTDATED = 3
"""How many flights older than an invalidation a passage gives up without a pause."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a passage needs of whoever sends it: how urgent it is by now, a render under a token, a push for one.

    ttl: seconds that L2 is to keep what L3 had; None: as long as any other.
    """

    urgency: Callable[[], Urgency]
    render: Callable[[int | None, int], AsyncIterator[RenderEvent]]
    """Takes the token, and how many attempts ended in the death of their process."""
    promote: Callable[[Urgency], None]
    not_before: int = 0
    """Since when a flight must have been begun to be joined, in microseconds as tokens are."""
    stale: Stale | None = None
    """Whether a video is no answer, by the invalidations that were known when it was asked for."""
    ttl: Callable[[], float | None] = lambda: None
    begun_after: Callable[[], int] = lambda: 0
    """The least that a token may be which is begun now: whatever this process has heard of was before."""
    attempts: Callable[[], int] = lambda: 0
    """How many attempts ended in a death, as far as the records of the jobs know that wait for it."""


class ClusterFlight:
    """One wait for one key; `travel` is its story, the other methods are what the local flight tells it."""

    def __init__(
        self,
        key: str,
        ticket: Ticket,
        flight: VideoFlight,
        cache: TieredCache,
        records: FlightRecords | None,
        attempts: Attempts | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = key
        self._ticket = ticket
        self._flight = flight
        self._cache = cache
        self._records = records
        self._clock = clock
        self._waiter = uuid.uuid4().hex
        self._asking = asyncio.Lock()  # a look that is on its way must not come back to life after the leaving
        self._wake = asyncio.Event()
        self._stop_watching: Callable[[], None] | None = None
        self._work: asyncio.Task[FlightResult] | None = None
        self._token: int | None = None
        self._taken = False
        self._given_up: int | None = None
        self._deaths = CrashCount(key, attempts, max_attempts)
        self._tries = 0
        self._failures = 0
        self._failing_since: float | None = None
        self._mismatches = 0
        self._cancels = 0
        self._outdated = 0
        self._idle_since: float | None = None
        self._joined = False
        self._told = (-1, "")
        self._heard_at: float | None = None
        self._wanted: Urgency | None = None
        self._look_in = POLL_SECONDS

    async def run(self) -> FlightResult:
        """Return how the flight landed; raises what the render raised, wherever it ran."""
        if self._records is not None:
            self._flight.hand_over(self)
        try:
            while True:
                flight_result = await self._look()
                if flight_result is not None:
                    return flight_result
                await self._pause()
                flight_result = await self._harvest()
                if flight_result is not None:
                    return flight_result
        finally:
            self._drop_work()
            if self._stop_watching is not None:
                self._stop_watching()

    def hurry(self) -> None:
        """Say that the urgency has changed."""
        self._wake.set()

    def all_left(self, at_once: bool) -> None:
        """Nobody waits here any more: a follower ends, a leader leaves it to the record how long its render goes on."""
        if self._work is None:
            self._flight.task.cancel()
        elif self._token is None:
            self._flight.linger(at_once=at_once)
            return
        detached(self._leave(at_once))

    def came_back(self) -> None:
        """Somebody waits here again."""
        self._wake.set()

    # The record.

    async def _look(self) -> FlightResult | None:
        """Ask the record what there is to do, and do it; a flight_result when that is all."""
        records = self._records
        if records is None or (self._work is not None and self._token is None):
            self._begin_alone()
            return None
        try:
            async with self._asking:
                if self._work is not None and self._token is not None and not self._taken:
                    await self._beat(records, self._token)
                if not self._flight.waiters and self._work is not None:
                    return None  # a render that lingers: its holder hears of it
                began = time.perf_counter()
                with span("flight"):
                    boarded = await records.join_or_lead(
                        self._key,
                        self._waiter,
                        self._ticket.urgency(),
                        given_up=self._given_up,
                        lead=self._would_lead(),
                        not_before=self._ticket.begun_after(),
                    )
        except TierError as error:
            return await self._without_records(error)
        self._heard_at = self._clock()
        self._look_in = POLL_SECONDS
        match boarded:
            case Found():
                return await self._found(boarded, time.perf_counter() - began)
            case Ended():
                return await self._ended(boarded.news)
            case Joined(news) if news.token < self._ticket.not_before:
                self._give_up(news.token)
            case Joined():
                self._look_in = min(POLL_SECONDS, max(0.0, boarded.expires_in) + 0.001)
                await self._follow(records, boarded.news)
            case Idle():
                self._idle_since = self._idle_since or self._clock()
            case Leading():
                await self._missed(time.perf_counter() - began)
                self._begin(boarded.token, boarded.may_have)
        return None

    def _give_up(self, token: int) -> None:
        """Lead anew, at once: nobody whom an invalidation does not concern would.

        Where clocks disagree on what was first it takes turns, until they agree, at the pace of looks.
        """
        self._given_up = token
        self._deaths.forgive()
        self._outdated += 1
        if self._outdated <= OUTDATED:
            self._wake.set()

    def _would_lead(self) -> bool:
        """Whose own render has gone silent lets another process try first: it may not reach the same replica."""
        if self._work is None or not self._taken:
            return True
        return self._idle_since is not None and self._clock() - self._idle_since > 1.5 * POLL_SECONDS

    async def _beat(self, records: FlightRecords, token: int) -> None:
        """Keep the lease while the render waits for a replica; from then on the replica does."""
        beat = await records.beat(self._key, token, FlightStatus(token, FlightState.WAITING))
        if beat.verdict is HolderStatus.HELD:
            if beat.urgency is not None and beat.urgency != self._wanted:
                self._wanted = beat.urgency
                self._ticket.promote(beat.urgency)
            return
        self._drop_work()
        if beat.verdict is HolderStatus.CANCELLED and not self._flight.waiters:
            raise RenderCancelled("The render was cancelled because nobody waited for it any more.")

    async def _found(self, found: Found, seconds: float) -> FlightResult | None:
        entry = await self._cache.arrived_from_l2(self._key, found.frame, seconds, stale=self._ticket.stale)
        if entry is None:  # it did not verify, or is invalidated, and is deleted: look again at once
            self._wake.set()
            return None
        if not self._joined and self._token is None:
            return FlightResult(entry, Outcome.L2, None, True)
        return FlightResult(entry, self._outcome(found.news), found.news.embedding if found.news else None, True)

    async def _ended(self, news: FlightStatus) -> FlightResult | None:
        if news.state is FlightState.FAILED:
            raise result_json.error_of(news)
        found = await self._in_l3()
        if found is None:  # gone already: the next look leads
            self._wake.set()
            return None
        return FlightResult(found[0], self._outcome(news), news.embedding or None, True)

    async def _in_l3(self, may_have: bool | None = None) -> tuple[Entry, Outcome] | None:
        return await self._cache.get_l3(self._key, may_have, stale=self._ticket.stale)

    def _outcome(self, news: FlightStatus | None) -> Outcome:
        """Tell how a video came that a flight brought: whoever led it says more than that it was joined."""
        outcome = None if news is None else result_json.outcome_of(news)
        if outcome is not None and (outcome.is_hit or (news is not None and news.token == self._token)):
            return outcome
        return Outcome.JOINED

    async def _follow(self, records: FlightRecords, news: FlightStatus) -> None:
        self._joined, self._idle_since = True, None
        if self._work is not None and news.token != self._token:
            self._drop_work()  # somebody else was given the flight
        if self._work is None:
            if self._stop_watching is None:
                await self._missed(0.0)
                self._stop_watching = records.watch(self._key, self._hear)
                self._wake.set()  # what was told between the look and the subscription is in the next look
            self._tell(news)

    async def _missed(self, seconds: float) -> None:
        if self._tries == 0 and self._stop_watching is None:
            await self._cache.arrived_from_l2(self._key, None, seconds)

    async def _without_records(self, error: TierError) -> FlightResult | None:
        """Redis is away: a render of ours goes on; who followed looks in L3, and renders after a lease of silence."""
        logger.debug("flight record: %s", error)
        if self._work is not None:
            return None
        if self._joined and self._heard_at is not None and self._clock() - self._heard_at < LEASE_SECONDS:
            found = await self._in_l3()
            return None if found is None else FlightResult(found[0], Outcome.JOINED, None, True)
        self._begin_alone(also_l2=isinstance(error, TierRefused))  # it answers: what it holds can still be read
        return None

    async def _leave(self, at_once: bool) -> None:
        try:
            async with self._asking:
                if self._flight.waiters or self._records is None:
                    return
                alone = await self._records.leave(self._key, self._waiter, at_once=at_once)
                if alone and at_once:
                    self._wake.set()
        except TierError:
            if self._work is not None and not self._flight.waiters:
                self._flight.linger(at_once=at_once)

    def _hear(self, news: FlightStatus) -> None:
        self._heard_at = self._clock()
        self._tell(news)
        if not news.state.is_active:
            self._wake.set()

    def _tell(self, news: FlightStatus) -> None:
        """Pass news of another process' render on to those who wait here."""
        if self._work is not None or not news.state.is_active or (news.step, news.embedding) == self._told:
            return
        if news.state is FlightState.RENDERING and self._told[1] != news.embedding:
            self._flight.publish(Started(news.embedding))
        if news.step:
            self._flight.publish(Progress(news.step, news.total))
        self._told = (news.step, news.embedding)

    # The work, when it is ours.

    def _begin_alone(self, *, also_l2: bool = True) -> None:
        if self._work is None:
            self._token = None
            self._work = asyncio.create_task(self._make(None, also_l2))

    def _begin(self, token: int, may_have: bool) -> None:
        if self._work is not None:
            self._tries += 1
            self._drop_work()
        self._token, self._given_up, self._taken, self._idle_since = token, None, False, None
        self._wanted = self._ticket.urgency()
        self._work = asyncio.create_task(self._make(token, also_l2=False, may_have=may_have))

    async def _make(self, token: int | None, also_l2: bool, may_have: bool | None = None) -> FlightResult:
        if also_l2:
            found = await self._cache.get(self._key, stale=self._ticket.stale)
        else:
            found = await self._in_l3(may_have)
        if found is not None:
            entry, outcome = found
            if token is not None and self._records is not None:
                await self._land(self._records, token, entry, outcome)
            return FlightResult(entry, outcome, None, True)
        attempts = await self._settle()
        embedding = None
        rendering = cast(AsyncGenerator[RenderEvent, None], self._ticket.render(token, attempts))
        async with aclosing(rendering) as events:
            async for event in events:
                self._taken = True
                self._flight.publish(event)
                if isinstance(event, Started):
                    embedding = event.embedding
                elif isinstance(event, Progress):
                    self._deaths.running = True
                    self._failures, self._failing_since = 0, None
                elif isinstance(event, Finished):
                    await self._deaths.survived()
                    return FlightResult(event.entry, event.outcome, embedding, bool(event.stored))
        raise RenderFailed("The renderer ended without a video.")

    async def _settle(self) -> int:
        """Return how many attempts ended in a death, after a pause that grows with them; raises RenderCrashed.

        Meanwhile the lease is ours, so nobody else is in a hurry to try.
        """
        attempts = await self._deaths.settle(self._ticket.attempts())
        if attempts:
            self._flight.publish(Retried(attempts))
        await asyncio.sleep(max(backoff(attempts), backoff(self._failures - 1)))
        return attempts

    async def _land(self, records: FlightRecords, token: int, entry: Entry, outcome: Outcome) -> None:
        frame = self._cache.pack(entry)
        with suppress(TierError):
            fits = len(frame) <= records.max_value_bytes
            detail = result_json.landed(outcome)
            try:
                await records.complete(self._key, token, frame if fits else None, detail, ttl=self._ticket.ttl())
            except TierFull:
                await records.complete(self._key, token, None, detail, ttl=self._ticket.ttl())

    async def _pause(self) -> None:
        """Wait for the next look: a message, our own work's end, or time."""
        if self._work is not None and (self._token is None or (self._taken and not self._flight.waiters)):
            await self._until_woken(None)
        else:
            await self._until_woken(self._look_in)
        self._wake.clear()

    async def _until_woken(self, seconds: float | None) -> None:
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait(
                {woken, *([self._work] if self._work else [])}, timeout=seconds, return_when="FIRST_COMPLETED"
            )
        finally:
            woken.cancel()

    async def _harvest(self) -> FlightResult | None:
        """Take our own work's result if it has ended; None when there is none yet, or it is worth another try."""
        if self._work is None or not self._work.done():
            return None
        work, self._work = self._work, None
        try:
            return work.result()
        except (Unavailable, FingerprintMismatch) as error:
            self._tries += 1
            self._mismatches += isinstance(error, FingerprintMismatch)
            if self._mismatches > MISMATCHES:
                await self._fail(error)
                raise
            if isinstance(error, ReplicaDied):
                await self._deaths.died(unrecorded=self._token is None)
            self._try_again(error)
        except RenderCancelled:  # by the last waiter of another process, or because the lease was lost
            self._cancels += 1
            if not self._flight.waiters or self._cancels > (1 if self._token is None else CANCELS):
                raise
        except EncoreError as error:
            await self._fail(error)
            raise
        except Exception as error:
            await self._fail(RenderFailed(f"The render failed: {type(error).__name__}."))
            raise
        self._given_up = self._token
        return None

    def _try_again(self, error: EncoreError) -> None:
        """Ask another replica, ever later; who holds a connection is told when that has gone on for long."""
        logger.warning("render of %s failed (%d in a row): %s", self._key, self._failures + 1, error)
        self._failures += 1
        now = self._clock()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since >= PATIENCE_SECONDS:
            waited = round(now - self._failing_since)
            self._flight.interrupt_waiters(
                Unavailable(f"No replica could render this video for {waited} s; try again in 10 s.", retry_after=10)
            )

    async def _fail(self, error: EncoreError) -> None:
        with suppress(TierError):
            if self._records is not None and self._token is not None:
                await self._records.fail(self._key, self._token, result_json.failed(error))

    def _drop_work(self) -> None:
        if self._work is not None:
            self._work.cancel()
            self._work.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._work = None
