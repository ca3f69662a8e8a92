"""Warm-ups: videos are made before a client asks for them, while there is time, so that later requests are hits.

What is stored already is skipped, so the content itself is the checkpoint; beside it a durable record counts, and a
router that finds a warm-up whose runner died goes on with it. Renders have the priority `warm_up`, at most
`concurrency` of them at a time in one router, and wait when the router is full. A warm-up keeps a video in L2 for its
own TTL, never less than it would be kept anyway; from the first real use on it is kept as any other.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.cache.cache import TieredCache
from serve_app.clock import steady
from serve_app.core import Outcome
from serve_app.errors import Busy, EncoreError, NotFound, Unavailable, Unprocessable
from serve_app.flight.cluster_flight import ClusterFlight
from serve_app.flight.result import FlightResult, not_stored
from serve_app.schema.templates import MAX_TEXT_CHARS, Templates, located, parse_templates
from serve_app.service.jobs.sweeper import Sweeper
from serve_app.service.loader import VideoLoader
from serve_app.service.plan import Plan, Planner
from serve_app.service.warmup.record import ERRORS_KEPT, Estimate, Held, ItemError, WarmStatus, WarmUp
from serve_app.service.warmup.store import WarmStore, Written
from serve_app.tasks import detached

logger = logging.getLogger(__name__)

MAX_ITEMS = 10_000
"""Of one warm-up; planning them takes a router about a second and a half, with breaks."""
MAX_RUNNING = 8
"""Of one router; another one is refused until one has ended, and so is another estimate."""
TRIES = 3
LONGEST_PAUSE = 10.0
_AT_ONCE = 16
"""Look-ups of an estimate."""
_BREAK_SECONDS = 0.005
"""How long planning goes on before others have their turn."""
_RATE_SECONDS, _SAMPLE_SECONDS = 60.0, 0.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """One video of a warm-up: its number among the different ones, what to make, how long to keep it."""

    number: int
    plan: Plan
    ttl: float


_NO_KEY = "0" * 64
"""Under which nothing is: asked for to see whether a tier answers."""


class Warming:
    """The warm-ups of one router.

    join_or_lead: starts or joins the flight of a video that is to be kept for so many seconds. keep_seconds: how long
    records live. max_prompt_chars: the planner's, so that longer texts are refused before they are made. `sleep`,
    `clock` (Unix seconds) and `timer` are for tests.
    """

    def __init__(
        self,
        store: WarmStore,
        planner: Planner,
        loader: VideoLoader,
        cache: TieredCache,
        join_or_lead: Callable[[Plan, float], tuple[ClusterFlight, bool]],
        *,
        concurrency: int,
        keep_seconds: float,
        max_prompt_chars: int = MAX_TEXT_CHARS,
        clock: Callable[[], float] = steady,
        timer: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._planner = planner
        self._loader = loader
        self._cache = cache
        self._join_or_lead = join_or_lead
        self._keep_seconds = keep_seconds
        self._max_prompt_chars = max_prompt_chars
        self._clock = clock
        self._timer = timer
        self._sleep = sleep
        self._concurrency = concurrency
        self._places = asyncio.Semaphore(concurrency)
        self._runner = uuid.uuid4().hex
        self._runs: dict[str, Run] = {}
        self._beginning = self._estimating = 0
        self._sweeper = Sweeper((self._write_all, self._adopt))

    def start(self) -> None:
        """Begin to look for warm-ups whose runner died, on the running event loop."""
        self._sweeper.start()

    async def begin(self, request: Mapping[str, Any]) -> WarmUp:
        """Accept a warm-up of `request`'s `templates` (and `ttl`); from then on it goes on, whatever dies.

        Raises Unprocessable for templates or items that cannot be, Busy when too many run, Unavailable.
        """
        self.start()
        if self._room() <= 0:
            raise Busy("Too many warm-ups are running; try again in 10 s.", retry_after=10)
        self._beginning += 1  # the place is taken in the step that found it
        try:
            return await self._begun(request)
        finally:
            self._beginning -= 1

    async def _begun(self, request: Mapping[str, Any]) -> WarmUp:
        templates = self._parsed(request)
        if not await self._cache.can_store(_NO_KEY):
            raise Unavailable("No storage can take the videos of a warm-up.", retry_after=5)
        total = sum([1 async for _ in self._wanted(templates)])
        now = self._clock()
        warm_up = WarmUp(
            id=f"warm_{uuid.uuid4().hex}", created_at=now, updated_at=now, expires_at=now + self._keep_seconds,
            total=total, duplicates=templates.combinations - total,
        )  # fmt: skip
        held = Held(warm_up, {name: request[name] for name in ("templates", "ttl") if request.get(name) is not None})
        await self._store.add(held, self._runner)
        return self._run(held, templates).snapshot()

    async def estimate(self, request: Mapping[str, Any]) -> Estimate:
        """Look where each video of `request` is, without rendering; raises Unprocessable, and Busy as `begin` does.

        What a render costs is what the last ones did; a router that has seen none reads one of the videos there are.
        """
        if self._estimating >= MAX_RUNNING:
            raise Busy("Too many warm-ups are being estimated; try again in 10 s.", retry_after=10)
        self._estimating += 1
        try:
            return await self._estimated(request)
        finally:
            self._estimating -= 1

    async def _estimated(self, request: Mapping[str, Any]) -> Estimate:
        templates = self._parsed(request)
        look = Look(self._cache)
        async for wanted in self._wanted(templates):
            await look.at(wanted.plan)
        await look.at_rest()
        cost = self._loader.cost
        if not cost.is_known and look.example is not None and (found := await self._cache.get(look.example)):
            cost.learn(found[0])
        seconds = [cost.seconds(plan.spec) or 0.0 for plan in look.missing] if cost.is_known else []
        return Estimate(
            total=look.there + len(look.missing),
            duplicates=templates.combinations - look.there - len(look.missing),
            there=look.there,
            missing=len(look.missing),
            unknown=look.unknown,
            seconds_per_render=sum(seconds) / len(seconds) if seconds else None,
            render_seconds=None if look.missing and not seconds else sum(seconds),
            missing_keys=tuple(plan.keys.video for plan in look.missing),
        )

    async def get(self, warm_up_id: str) -> WarmUp:
        """Return the newest state; raises NotFound, Unavailable."""
        run = self._runs.get(warm_up_id)
        warm_up = run.snapshot() if run is not None else await self._store.get(warm_up_id)
        if warm_up is None:
            raise NotFound(f"There is no warm-up '{warm_up_id[:100]}'.", param="warm_up_id")
        return warm_up

    async def cancel(self, warm_up_id: str) -> WarmUp:
        """End a warm-up: nothing new is rendered, and what renders ends at its next step unless others wait for it.

        One that has ended stays as it is. Raises NotFound, Unavailable.
        """
        warm_up = await self.get(warm_up_id)
        if warm_up.status.is_final:
            return warm_up
        now = self._clock()
        ended = replace(warm_up, status=WarmStatus.CANCELLED, completed_at=now, updated_at=now, eta_seconds=None)
        await self._store.write(ended, None)
        if warm_up_id in self._runs:
            self._runs[warm_up_id].cancelled = True
        self._stop(warm_up_id)
        return await self.get(warm_up_id)  # it may have been completed meanwhile

    def stats(self) -> dict[str, int]:
        """Return how many warm-ups run here."""
        return {"running": len(self._runs)}

    async def aclose(self) -> None:
        """Stop; another router goes on with what runs here."""
        await self._sweeper.aclose()
        tasks = [self._stop(warm_up_id) for warm_up_id in list(self._runs)]
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)

    async def _wanted(self, templates: Templates) -> AsyncGenerator[Wanted, None]:
        """Plan the items, one video once, giving way to others now and then; raises Unprocessable."""
        seen: set[str] = set()
        since = self._timer()
        for item in templates.items():
            try:
                plan = self._planner.plan(item.request)
            except (Unprocessable, NotFound) as error:
                raise located(error, f"templates[{item.template}]") from None
            if plan.keys.video not in seen:
                seen.add(plan.keys.video)
                yield Wanted(len(seen) - 1, plan, item.ttl)
            if self._timer() - since > _BREAK_SECONDS:
                await asyncio.sleep(0)
                since = self._timer()

    def _run(self, held: Held, templates: Templates) -> Run:
        run = Run(held, self._clock, self._timer)
        self._runs[held.warm_up.id] = run
        run.task = detached(self._see_through(run, templates))
        return run

    async def _see_through(self, run: Run, templates: Templates) -> None:
        items = self._wanted(templates)
        taking = asyncio.Lock()

        async def work() -> None:
            while True:
                async with taking:
                    wanted = await anext(items, None)
                if wanted is None:
                    return
                if run.wants(wanted.number):
                    await self._deal_with(run, wanted)

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._concurrency):
                    workers.create_task(work())
        except* Exception as errors:  # an item that was allowed when it came, by a release with other rules; or a bug
            logger.warning("warm-up %s broke off", run.id, exc_info=errors)
            run.broke_off(str(errors.exceptions[0]))
        else:
            run.end(WarmStatus.COMPLETED)
        finally:
            await items.aclose()
        with suppress(Unavailable):  # the next round writes it
            await self._write_all()

    async def _deal_with(self, run: Run, wanted: Wanted) -> None:
        try:
            outcome = await self._warm(run, wanted)
        except EncoreError as error:
            run.failed(wanted, error)
        except Exception as error:
            logger.exception("an item of warm-up %s failed", run.id)
            run.failed(wanted, EncoreError(f"The render failed: {type(error).__name__}."))
        else:
            run.done(wanted, outcome)

    async def _warm(self, run: Run, wanted: Wanted) -> Outcome:
        """Have the video in L2 for its TTL; tell how it came."""
        key = wanted.plan.keys.video
        if await self._cache.verified(key, wanted.ttl):
            return Outcome.L2
        async with self._places:
            flight_result = await self._result(run, wanted)
        if not flight_result.stored:
            raise not_stored()
        if flight_result.outcome is Outcome.L1:  # this process remembered what L2 had forgotten
            await self._cache.put(flight_result.entry)
        await self._cache.extend(key, wanted.ttl)  # the leader may have stored it for less
        return flight_result.outcome

    async def _result(self, run: Run, wanted: Wanted) -> FlightResult:
        """Take the flight of a video; wait where there is no place, try again where no replica could render it."""
        tries = 0
        while True:
            try:
                return await self._loader.overflow(wanted.plan.keys) or await self._from_flight(run, wanted)
            except (Busy, Unavailable) as error:
                tries += isinstance(error, Unavailable)
                if tries >= TRIES:
                    raise
                await self._sleep(min(LONGEST_PAUSE, error.retry_after or 1))

    async def _from_flight(self, run: Run, wanted: Wanted) -> FlightResult:
        flight, led = self._join_or_lead(wanted.plan, wanted.ttl)
        flight.hold()
        try:
            flight_result = await flight.result()
        finally:
            flight.release(at_once=run.cancelled)
        return replace(flight_result, outcome=flight_result.outcome_for(led))

    async def _write_all(self) -> None:
        """Tell how far the warm-ups are, those first that have ended; stop with what is no longer ours."""
        for run in sorted(self._runs.values(), key=lambda run: not run.is_over):
            snapshot = run.snapshot()
            written = await self._store.write(snapshot, self._runner)
            if written is Written.GONE:  # the store lost it
                await self._store.add(Held(snapshot, run.request), self._runner)
            elif written is not Written.STORED:
                self._stop(run.id)
            if snapshot.status.is_final:
                self._runs.pop(run.id, None)

    async def _adopt(self) -> None:
        room = self._room()
        if room <= 0:
            return
        self._beginning += room  # what is claimed must be run: no other warm-up may take the places meanwhile
        try:
            orphans = await self._store.claim(room, self._runner)
        finally:
            self._beginning -= room
        for held in orphans:
            if held.warm_up.id in self._runs:
                continue
            logger.warning("going on with warm-up %s", held.warm_up.id)
            try:
                templates = self._parsed(held.request)
            except Unprocessable as error:  # it was accepted by a release with other rules
                run = Run(held, self._clock, self._timer)
                run.broke_off(error.message)
                await self._store.write(run.snapshot(), self._runner)
            else:
                self._run(held, templates)

    def _room(self) -> int:
        return MAX_RUNNING - len(self._runs) - self._beginning

    def _parsed(self, request: Mapping[str, Any]) -> Templates:
        return parse_templates(
            request.get("templates"), request.get("ttl"), max_items=MAX_ITEMS, max_chars=self._max_prompt_chars
        )

    def _stop(self, warm_up_id: str) -> asyncio.Task[None] | None:
        run = self._runs.pop(warm_up_id, None)
        if run is None or run.task is None:
            return None
        if run.task is not asyncio.current_task():
            run.task.cancel()
        return run.task


class Look:
    """Asks the tiers for one video after the other, several at a time, and counts."""

    def __init__(self, cache: TieredCache) -> None:
        self.there = 0
        self.unknown = 0
        self.missing: list[Plan] = []
        self.example: str | None = None
        self._cache = cache
        self._batch: list[Plan] = []

    async def at(self, plan: Plan) -> None:
        """Look for one more."""
        self._batch.append(plan)
        if len(self._batch) == _AT_ONCE:
            await self.at_rest()

    async def at_rest(self) -> None:
        """Look for all that were not looked for yet."""
        batch, self._batch = self._batch, []
        found = await asyncio.gather(*(self._cache.where(plan.keys.video) for plan in batch))
        for plan, tiers in zip(batch, found, strict=True):
            if any(tiers.values()):
                self.there += 1
                self.example = plan.keys.video
            else:
                self.missing.append(plan)
                self.unknown += None in tiers.values()


@dataclass(eq=False)
class Run:
    """One warm-up as its runner counts it."""

    held: Held
    clock: Callable[[], float]
    timer: Callable[[], float]
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    _now: WarmUp = field(init=False)
    _ahead: set[int] = field(init=False)
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._now = self.held.warm_up
        self._ahead = set(self._now.ahead)

    @property
    def id(self) -> str:
        """The warm-up's."""
        return self._now.id

    @property
    def request(self) -> Mapping[str, Any]:
        """What was asked for."""
        return self.held.request

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be done."""
        return self._now.status.is_final

    def wants(self, number: int) -> bool:
        """Tell whether an item is still to be dealt with."""
        return number >= self._now.position and number not in self._ahead

    def done(self, wanted: Wanted, outcome: Outcome) -> None:
        """Count an item that is stored now."""
        if outcome.is_hit:
            self._now = replace(self._now, there=self._now.there + 1)
        else:
            self._now = replace(self._now, rendered=self._now.rendered + 1)
        self._pass(wanted.number)

    def failed(self, wanted: Wanted, error: EncoreError) -> None:
        """Count an item that could not be made."""
        logger.warning("warm-up %s: %s", self.id, error.message)
        kept = (*self._now.errors, ItemError(wanted.plan.asked[:200], error.code, error.message))[:ERRORS_KEPT]
        self._now = replace(self._now, failed=self._now.failed + 1, errors=kept)
        self._pass(wanted.number)

    def end(self, status: WarmStatus) -> None:
        """Say that nothing more will be done."""
        now = self.clock()
        self._now = replace(
            self._now, status=status, completed_at=now, updated_at=now, ahead=tuple(sorted(self._ahead)),
            eta_seconds=None,
        )  # fmt: skip

    def broke_off(self, why: str) -> None:
        """Say that the templates are no good any more."""
        self._now = replace(self._now, errors=(ItemError("", "invalid_value", why), *self._now.errors))
        self.end(WarmStatus.CANCELLED)

    def snapshot(self) -> WarmUp:
        """Return the state by now, with the seconds left at the pace of the last minute."""
        if self.is_over:
            return self._now
        eta = self._eta()
        self._now = replace(self._now, updated_at=self.clock(), ahead=tuple(sorted(self._ahead)), eta_seconds=eta)
        return self._now

    def _pass(self, number: int) -> None:
        self._ahead.add(number)
        position = self._now.position
        while position in self._ahead:
            self._ahead.remove(position)
            position += 1
        self._now = replace(self._now, position=position)

    def _eta(self) -> float | None:
        now = self.timer()
        if not self._seen or now > self._seen[-1][0] + _SAMPLE_SECONDS:  # not at every look of a client
            self._seen.append((now, self._now.done))
        while len(self._seen) > 2 and self._seen[1][0] < now - _RATE_SECONDS:
            self._seen.popleft()
        then, done = self._seen[0]
        if self._now.done == done:
            return None
        return round((now - then) / (self._now.done - done) * (self._now.total - self._now.done), 1)
