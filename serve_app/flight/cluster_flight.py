"""The flight of one video in one process, as a part of the cluster's flight: it follows, or leads, and may change.

The flight looks at its record about once a second, sooner when a message says that something has ended; each look is
the heartbeat of its waiting. A flight that finds no other process at work leads: it looks in L3, then has the video
rendered. Its own render is one more source of events, not a reason to stop looking: a Diffusion replica that hangs
loses its lease, and the flight then leads anew or follows the new leader. While Redis is away it renders by itself, as
one process can.

A render that began before its callers' invalidations is no answer for them: a flight whose token is older than that is
given up like one of its own that broke off, and the lead taken anew, which fences the older one off.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import cast

from serve_app.cache.cache import TieredCache
from serve_app.core import (
    Entry,
    Finished,
    Outcome,
    Priority,
    Progress,
    RenderEvent,
    RenderRequest,
    Retried,
    Started,
    Urgency,
    VideoSpec,
)
from serve_app.errors import (
    EncoreError,
    FingerprintMismatch,
    RenderCancelled,
    RenderFailed,
    TierError,
    TierFull,
    TierRefused,
    Unavailable,
)
from serve_app.flight import result_json
from serve_app.flight.attempts import MAX_ATTEMPTS, Attempts
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
from serve_app.flight.renderer import Renderer
from serve_app.flight.result import FlightResult
from serve_app.flight.retries import PATIENCE_SECONDS, Retries, unavailable
from serve_app.flight.single_flight import Flight
from serve_app.tasks import detached
from serve_app.telemetry import span

logger = logging.getLogger(__name__)

OUTDATED = 3
"""How many flights older than an invalidation are given up without a pause."""

FindImage = Callable[[VideoSpec], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class FlightServices:
    """What all flights of a process work with.

    records: the cluster's flight records; None: this process is alone. attempts: counts renders that ended in the
    death of their process; max_attempts of them end a render for good. find_image: returns the first frame that a spec
    names, where a job came without it because another process had accepted it. clock: monotonic seconds.
    """

    cache: TieredCache
    renderer: Renderer
    attempts: Attempts
    records: FlightRecords | None = None
    max_attempts: int = MAX_ATTEMPTS
    find_image: FindImage | None = None
    clock: Callable[[], float] = time.monotonic


class ClusterFlight(Flight[FlightResult, RenderEvent]):
    """One process' flight of one video: what is asked for, how urgently, by how many, and how it comes about."""

    def __init__(self, request: RenderRequest, services: FlightServices, linger_seconds: float = 30.0) -> None:
        super().__init__(request.keys.video, linger_seconds)
        self._request = request
        self._services = services
        self._cache = services.cache
        self._records = services.records
        self._clock = services.clock
        self._known_rules = services.cache.rules.now
        self._retries = Retries(self.key, services.attempts, services.max_attempts, services.clock)
        self._waiter = uuid.uuid4().hex
        self._is_under_way = False
        self._asking = asyncio.Lock()  # a look that is on its way must not come back to life after the leaving
        self._wake = asyncio.Event()
        self._look_in = POLL_SECONDS
        self._stop_watching: Callable[[], None] | None = None
        self._follows = False
        self._told = (-1, "")
        self._heard_at: float | None = None
        self._idle_since: float | None = None
        self._work: asyncio.Task[FlightResult] | None = None
        self._token: int | None = None
        self._is_taken = False
        self._given_up: int | None = None
        self._outdated = 0
        self._wanted: Urgency | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """What invalidations may choose the video by."""
        return self._request.labels

    @property
    def urgency(self) -> Urgency:
        """How soon the video is wanted by the most urgent caller."""
        return self._request.urgency

    @property
    def is_for_warm_up(self) -> bool:
        """Whether only a warm-up waits: then the video must not push others out of this process' memory."""
        return self._request.ttl is not None and self.urgency.priority is Priority.WARM_UP

    def join(self, urgency: Urgency, image: bytes | None, attempts: int) -> None:
        """Take in what one more caller brings: its urgency, the first frame if it has it, what its record counts."""
        before = self.urgency
        self._request = replace(
            self._request,
            urgency=before.joined(urgency),
            image=self._request.image if image is None else image,
            attempts=max(attempts, self._request.attempts),
        )
        if self.urgency != before:
            self._services.renderer.promote(self.key, self.urgency)
            if self._is_under_way:
                self._wake.set()

    async def run(self) -> FlightResult:
        """Return how the flight ends; raises what the render raised, wherever it ran."""
        rules = self._cache.rules
        self._request = replace(self._request, rules=rules.concerning(self.labels))
        self._known_rules = rules.now
        self._is_under_way = True
        if self._records is not None and self.lingers:
            self._stop_lingering()
            self._last_waiter_left(at_once=False)
        try:
            while True:
                result = await self._look()
                if result is not None:
                    return result
                await self._pause()
                result = await self._harvest()
                if result is not None:
                    return result
        finally:
            self._drop_work()
            if self._stop_watching is not None:
                self._stop_watching()
            if self.abandoned:
                await self._services.renderer.cancel(self.key)

    # The waiters.

    def _first_waiter_came(self) -> None:
        if self._is_in_cluster:
            self._wake.set()

    def _last_waiter_left(self, at_once: bool) -> None:
        """End a follower; leave it to the record how long a leader's render goes on."""
        if not self._is_in_cluster or (self._work is not None and self._token is None):
            self.linger(at_once=at_once)
            return
        if self._work is None:
            self.task.cancel()
        detached(self._leave(at_once))

    @property
    def _is_in_cluster(self) -> bool:
        return self._is_under_way and self._records is not None

    async def _leave(self, at_once: bool) -> None:
        try:
            async with self._asking:
                if self.waiters or self._records is None:
                    return
                alone = await self._records.leave(self.key, self._waiter, at_once=at_once)
                if alone and at_once:
                    self._wake.set()
        except TierError:
            if self._work is not None and not self.waiters:
                self.linger(at_once=at_once)

    # The record.

    async def _look(self) -> FlightResult | None:
        """Ask the record what there is to do, and do it; return the result when the flight has ended."""
        records = self._records
        if records is None or (self._work is not None and self._token is None):
            self._begin_alone()
            return None
        try:
            async with self._asking:
                if self._work is not None and self._token is not None and not self._is_taken:
                    await self._beat(records, self._token)
                if not self.waiters and self._work is not None:
                    return None  # a render that lingers: its holder hears of it
                began = time.perf_counter()
                with span("flight"):
                    answer = await records.join_or_lead(
                        self.key,
                        self._waiter,
                        self.urgency,
                        given_up=self._given_up,
                        lead=self._would_lead(),
                        not_before=max(self._not_before, self._cache.rules.clock.heard_of()),
                    )
        except TierError as error:
            return await self._without_records(error)
        self._heard_at = self._clock()
        self._look_in = POLL_SECONDS
        match answer:
            case Found():
                return await self._found(answer, time.perf_counter() - began)
            case Ended():
                return await self._ended(answer.status)
            case Joined(status) if status.token < self._not_before:
                self._give_up(status.token)
            case Joined():
                self._look_in = min(POLL_SECONDS, max(0.0, answer.expires_in) + 0.001)
                await self._follow(records, answer.status)
            case Idle():
                self._idle_since = self._idle_since or self._clock()
            case Leading():
                await self._missed(time.perf_counter() - began)
                self._begin(answer.token, answer.may_have)
        return None

    @property
    def _not_before(self) -> int:
        """Since when a flight must have begun to be joined, in microseconds as tokens are."""
        return self._known_rules.not_before(self.labels)

    def _is_stale(self, entry: Entry) -> bool:
        """Tell whether a video is no answer, by the invalidations that were known when it was asked for."""
        return self._known_rules.covers(self._cache.kind, entry)

    def _would_lead(self) -> bool:
        """Let another process try first after the own render went silent: it may not reach the same replica."""
        if self._work is None or not self._is_taken:
            return True
        return self._idle_since is not None and self._clock() - self._idle_since > 1.5 * POLL_SECONDS

    def _give_up(self, token: int) -> None:
        """Lead anew, at once: callers whom an invalidation does not concern would not.

        Where clocks disagree on what was first it takes turns, until they agree, at the pace of looks.
        """
        self._given_up = token
        self._retries.forgive()
        self._outdated += 1
        if self._outdated <= OUTDATED:
            self._wake.set()

    async def _beat(self, records: FlightRecords, token: int) -> None:
        """Keep the lease while the render waits for a replica; from then on the replica does."""
        beat = await records.beat(self.key, token, FlightStatus(token, FlightState.WAITING))
        if beat.verdict is HolderStatus.HELD:
            if beat.urgency is not None and beat.urgency != self._wanted:
                self._wanted = beat.urgency
                self._services.renderer.promote(self.key, beat.urgency)
            return
        self._drop_work()
        if beat.verdict is HolderStatus.CANCELLED and not self.waiters:
            raise RenderCancelled("The render was cancelled because nobody waited for it any more.")

    async def _found(self, found: Found, seconds: float) -> FlightResult | None:
        entry = await self._cache.arrived_from_l2(self.key, found.frame, seconds, stale=self._is_stale)
        if entry is None:  # it did not verify, or is invalidated, and is deleted: look again at once
            self._wake.set()
            return None
        if not self._follows and self._token is None:
            return FlightResult(entry, Outcome.L2, None, True)
        embedding = found.status.embedding if found.status else None
        return FlightResult(entry, self._outcome(found.status), embedding, True)

    async def _ended(self, status: FlightStatus) -> FlightResult | None:
        if status.state is FlightState.FAILED:
            raise result_json.error_of(status)
        found = await self._in_l3()
        if found is None:  # gone already: the next look leads
            self._wake.set()
            return None
        return FlightResult(found[0], self._outcome(status), status.embedding or None, True)

    async def _in_l3(self, may_have: bool | None = None) -> tuple[Entry, Outcome] | None:
        return await self._cache.get_l3(self.key, may_have, stale=self._is_stale)

    def _outcome(self, status: FlightStatus | None) -> Outcome:
        """Tell how a flight's video came: its leader says more than that it was joined."""
        outcome = None if status is None else result_json.outcome_of(status)
        if outcome is not None and (outcome.is_hit or (status is not None and status.token == self._token)):
            return outcome
        return Outcome.JOINED

    async def _follow(self, records: FlightRecords, status: FlightStatus) -> None:
        self._follows, self._idle_since = True, None
        if self._work is not None and status.token != self._token:
            self._drop_work()  # another process was given the flight
        if self._work is None:
            if self._stop_watching is None:
                await self._missed(0.0)
                self._stop_watching = records.watch(self.key, self._hear)
                self._wake.set()  # what was told between the look and the subscription is in the next look
            self._tell(status)

    async def _missed(self, seconds: float) -> None:
        if self._retries.tries == 0 and self._stop_watching is None:
            await self._cache.arrived_from_l2(self.key, None, seconds)

    async def _without_records(self, error: TierError) -> FlightResult | None:
        """Let the own render go on while Redis is away; a follower looks in L3, and renders after a silent lease."""
        logger.debug("flight record: %s", error)
        if self._work is not None:
            return None
        if self._follows and self._heard_at is not None and self._clock() - self._heard_at < LEASE_SECONDS:
            found = await self._in_l3()
            return None if found is None else FlightResult(found[0], Outcome.JOINED, None, True)
        self._begin_alone(also_l2=isinstance(error, TierRefused))  # it answers: what it holds can still be read
        return None

    def _hear(self, status: FlightStatus) -> None:
        self._heard_at = self._clock()
        self._tell(status)
        if not status.state.is_active:
            self._wake.set()

    def _tell(self, status: FlightStatus) -> None:
        """Tell the waiters how far another process' render is."""
        if self._work is not None or not status.state.is_active or (status.step, status.embedding) == self._told:
            return
        if status.state is FlightState.RENDERING and self._told[1] != status.embedding:
            self.publish(Started(status.embedding))
        if status.step:
            self.publish(Progress(status.step, status.total))
        self._told = (status.step, status.embedding)

    # The work, when this flight leads.

    def _begin_alone(self, *, also_l2: bool = True) -> None:
        if self._work is None:
            self._token = None
            self._work = asyncio.create_task(self._make(None, also_l2))

    def _begin(self, token: int, may_have: bool) -> None:
        if self._work is not None:
            self._retries.tries += 1
            self._drop_work()
        self._token, self._given_up, self._is_taken, self._idle_since = token, None, False, None
        self._wanted = self.urgency
        self._work = asyncio.create_task(self._make(token, also_l2=False, may_have=may_have))

    async def _make(self, token: int | None, also_l2: bool, may_have: bool | None = None) -> FlightResult:
        if also_l2:
            found = await self._cache.get(self.key, stale=self._is_stale)
        else:
            found = await self._in_l3(may_have)
        if found is not None:
            entry, outcome = found
            if token is not None and self._records is not None:
                await self._complete(self._records, token, entry, outcome)
            return FlightResult(entry, outcome, None, True)
        deaths = await self._settle()
        embedding = None
        rendering = cast(AsyncGenerator[RenderEvent, None], self._render(token, deaths))
        async with aclosing(rendering) as events:
            async for event in events:
                self._is_taken = True
                self.publish(event)
                if isinstance(event, Started):
                    embedding = event.embedding
                elif isinstance(event, Progress):
                    self._retries.progressed()
                elif isinstance(event, Finished):
                    await self._retries.succeeded()
                    return FlightResult(event.entry, event.outcome, embedding, bool(event.stored))
        raise RenderFailed("The renderer ended without a video.")

    async def _settle(self) -> int:
        """Return how many attempts ended in a death, after a pause that grows with them; raises RenderCrashed.

        Meanwhile the lease is held, so no other process is in a hurry to try.
        """
        deaths = await self._retries.settle(self._request.attempts)
        if deaths:
            self.publish(Retried(deaths))
        await asyncio.sleep(self._retries.pause(deaths))
        return deaths

    def _render(self, token: int | None, deaths: int) -> AsyncIterator[RenderEvent]:
        request = replace(
            self._request,
            token=token,
            begun_at=max(token or self._cache.rules.clock.now(), self._not_before),
            ttl=self._ttl,
            attempts=deaths,
        )
        if request.spec.input_reference and request.image is None and self._services.find_image is not None:
            return self._render_with(self._services.find_image, request)
        return self._services.renderer.render(request)

    async def _render_with(self, find_image: FindImage, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        rendering = self._services.renderer.render(replace(request, image=await find_image(request.spec)))
        async with aclosing(cast(AsyncGenerator[RenderEvent, None], rendering)) as events:
            async for event in events:
                yield event

    @property
    def _ttl(self) -> float | None:
        """Seconds that L2 keeps the video when it is not used; None: as long as any other."""
        return self._request.ttl if self.is_for_warm_up else None

    async def _complete(self, records: FlightRecords, token: int, entry: Entry, outcome: Outcome) -> None:
        """End the cluster's flight with what L3 had; a frame that L2 cannot take stays in L3 alone."""
        frame = self._cache.pack(entry)
        with suppress(TierError):
            fits = len(frame) <= records.max_value_bytes
            detail = result_json.completed(outcome)
            try:
                await records.complete(self.key, token, frame if fits else None, detail, ttl=self._ttl)
            except TierFull:
                await records.complete(self.key, token, None, detail, ttl=self._ttl)

    async def _pause(self) -> None:
        """Wait for the next look: for a message, the own work's end, or time."""
        if self._work is not None and (self._token is None or (self._is_taken and not self.waiters)):
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
        """Take the own work's result if it has ended; None when there is none yet, or it is worth another try."""
        if self._work is None or not self._work.done():
            return None
        work, self._work = self._work, None
        try:
            return work.result()
        except (Unavailable, FingerprintMismatch) as error:
            await self._try_again(error)
        except RenderCancelled:  # by the last waiter of another process, or because the lease was lost
            may_repeat = self._retries.cancelled(may_repeat=self._token is not None)
            if not self.waiters or not may_repeat:
                raise
        except EncoreError as error:
            await self._fail(error)
            raise
        except Exception as error:
            await self._fail(RenderFailed(f"The render failed: {type(error).__name__}."))
            raise
        self._given_up = self._token
        return None

    async def _try_again(self, error: Unavailable | FingerprintMismatch) -> None:
        """Ask another replica, ever later; callers that hold a connection are told when that has gone on for long."""
        try:
            seconds = await self._retries.failed(error, unrecorded=self._token is None)
        except EncoreError:
            await self._fail(error)
            raise
        if seconds >= PATIENCE_SECONDS:
            self.interrupt_waiters(unavailable(seconds))

    async def _fail(self, error: EncoreError) -> None:
        with suppress(TierError):
            if self._records is not None and self._token is not None:
                await self._records.fail(self.key, self._token, result_json.failed(error))

    def _drop_work(self) -> None:
        if self._work is not None:
            self._work.cancel()
            self._work.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._work = None
