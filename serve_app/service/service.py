"""The story of one request: plan it, look where it may be already, share a flight if not, render at last.

HTTP, Python handles, the client and the command line all end here. A hit in this process' memory is answered without
awaiting anything; everything else goes through one flight per key, in which the shared tiers are asked once for all
waiters. The words for how a request was answered are core.Outcome's. Jobs (`jobs.jobs`) and warm-ups
(`warmup.warmup`) are two more callers of the same loader.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from serve_app.cache.redis.bloom_builder import BloomBuilder
from serve_app.core import Entry, Keys, Outcome, Rule, VideoSpec
from serve_app.errors import InvalidRequest, NotCached
from serve_app.flight.renderer import Renderer
from serve_app.flight.result import FlightResult
from serve_app.prompt.typos import Correction
from serve_app.schema import VideoRequest
from serve_app.schema.invalidation import InvalidationRequest
from serve_app.service.jobs.jobs import Jobs
from serve_app.service.outcomes import summed
from serve_app.service.parts import RouterParts
from serve_app.service.plan import Plan
from serve_app.service.warmup.warmup import Warming
from serve_app.tasks import detached

PROBE_SECONDS = 5.0
_KEY = re.compile(r"[0-9a-f]{64}")
_TELLING_SECONDS = 0.5  # a renderer that is busy starting must not hold up who asks what it renders


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished video and how it came; `seconds` is what the caller waited, `corrected` what was taken for slips.

    notice: what the model may not have done as it was asked.
    """

    entry: Entry
    outcome: Outcome
    keys: Keys
    spec: VideoSpec
    embedding: str | None
    stored: bool
    seconds: float
    corrected: tuple[Correction, ...] = ()
    notice: str | None = None


class VideoService:
    """One router's service: what a single request means and comes to. `jobs` and `warming` are the other two callers.

    builder: keeps L3's Bloom filter built. close_records: called last, when nothing asks the stores of accepted things
    any more. batch_invariant: whether videos depend on their request alone; None: the renderer's stats say it.
    """

    def __init__(
        self,
        parts: RouterParts,
        jobs: Jobs,
        warming: Warming,
        renderer: Renderer,
        *,
        builder: BloomBuilder | None = None,
        close_records: Callable[[], Awaitable[object]] | None = None,
        batch_invariant: bool | None = None,
    ) -> None:
        self.planner = parts.planner
        self.jobs = jobs
        self.warming = warming
        self._parts = parts
        self._cache = parts.cache
        self._loader = parts.loader
        self._invalidator = parts.invalidator
        self._renderer = renderer
        self._builder = builder
        self._close_records = close_records
        self._batch_invariant = batch_invariant
        self._waiting = 0
        self._probed: tuple[asyncio.Task[None], float] | None = None

    def start(self) -> None:
        """Begin to look for jobs and warm-ups that no process follows, on the running event loop; the first does too.

        And to hear of invalidations, which the first look into a shared tier does too.
        """
        self.jobs.start()
        self._invalidator.start()
        if self._builder is not None:
            self._builder.start()
        self.warming.start()
        self._probe()

    async def readiness(self) -> dict[str, Any]:
        """Return whether all works that this router was given, and what does not; requests are answered all the same.

        The shared tiers are asked again at most every PROBE_SECONDS.
        """
        await asyncio.wait({self._probe()}, timeout=PROBE_SECONDS)
        broken = self._cache.broken()
        return {"status": "degraded" if broken else "ok", "broken": broken}

    def _probe(self) -> asyncio.Task[None]:
        now = time.monotonic()
        if self._probed is None or now - self._probed[1] > PROBE_SECONDS:
            self._probed = detached(self._cache.probe()), now
        return self._probed[0]

    async def check_cached(self, request: VideoRequest) -> None:
        """Raise NotCached unless a tier has the video that `request` means, so that a job for it renders nothing."""
        await self._check_cached(await self._parts.planning.plan(request))

    async def generate(self, request: VideoRequest, *, only_if_cached: bool = False) -> Answer:
        """Return the video that `request` means, from wherever it comes soonest.

        Raises Busy over the limits, RenderFailed, Unavailable when no replica could render it for long, what planning
        raises (Unprocessable, NotFound), and NotCached where it should come from a tier `only_if_cached`.
        """
        began = time.perf_counter()
        plan = await self._parts.planning.plan(request)
        if only_if_cached:
            await self._check_cached(plan)
        found = self._loader.now(plan.keys)
        self._invalidator.asked(plan, None if found is None else found.entry)
        if found is not None:
            return self._answer(plan, found, True, began)
        if self._waiting >= self._parts.limits.max_waiting:
            raise self._loader.busy("requests are waiting")
        self._waiting += 1
        try:
            found = await self._loader.overflow(plan.keys)
            if found is not None:
                return self._answer(plan, found, True, began)
            labels = self._invalidator.labels(plan)
            flight, led = self._loader.join_or_lead(plan.spec, plan.keys, plan.urgency, labels=labels, image=plan.image)
            result = await flight.wait_interruptibly()
        except Exception:
            self._parts.outcomes.count(None, time.perf_counter() - began, 0)
            raise
        finally:
            self._waiting -= 1
        return self._answer(plan, result, led, began)

    async def explain(self, request: VideoRequest) -> dict[str, Any]:
        """Return what `request` means, its keys, and which tier holds its video; renders nothing."""
        plan = await self._parts.planning.plan(request)
        tiers = await self._cache.where(plan.keys.video)
        return plan.explained() | {"tiers": tiers, "batch_invariant": await self.batch_invariant()}

    async def batch_invariant(self) -> bool | None:
        """Tell whether a video depends on its request alone, not on its company; None while no renderer could say."""
        if self._batch_invariant is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TELLING_SECONDS):
                    self._batch_invariant = (await self._renderer.stats()).get("batch_invariant")
        return self._batch_invariant

    async def invalidate(self, key: str) -> dict[str, Any]:
        """Delete the video of `key`, and its latents, from every tier and every router's memory.

        Asked for again it is rendered anew. Raises InvalidRequest, and Unavailable when that can be recorded nowhere.
        """
        if not _KEY.fullmatch(key):
            raise InvalidRequest("'key' must be the 64 hex digits of a video's key.", param="key")
        done = await self._invalidator.key(key)
        self.jobs.forget_video(key)
        await self._parts.peers.forget((key,), ())
        return {"key": key, "deleted": list(done.deleted)}

    async def invalidate_where(self, request: InvalidationRequest) -> dict[str, Any]:
        """Let what `request` chooses count as not there, everywhere within a second, and delete it.

        A render of it that is under way ends for its present waiters alone. Raises what
        `Invalidator.invalidate` does.
        """
        done = await self._invalidator.invalidate(request)
        if request.key is not None:
            self.jobs.forget_video(request.key)
            await self._parts.peers.forget((request.key,), ())
        return done.wire()

    def learn(self, rules: tuple[Rule, ...]) -> None:
        """Take in invalidations; a peer tells of them."""
        self._cache.rules.learn(rules)

    def forget(self, keys: tuple[str, ...], job_ids: tuple[str, ...]) -> None:
        """Drop videos and deleted jobs from this process' memory, and follow those no further; a peer asked for it."""
        for key in keys:
            self._cache.forget(key)
            self.jobs.forget_video(key)
        for job_id in job_ids:
            self.jobs.forget(job_id)

    def counts(self) -> dict[str, Any]:
        """Return what this router alone has counted, which peers' counts can be added to."""
        return {
            "outcomes": self._parts.outcomes.counts(),
            "flights": len(self._loader),
            "waiting": self._waiting,
            "jobs": self.jobs.stats(),
        }

    async def stats(self) -> dict[str, Any]:
        """Return counts of this router and its tiers, the sums over all routers, and what the renderer tells.

        `router` says whose counts they are: its name, and of how many routers; None where the others cannot be asked.
        """
        name, routers = await self._parts.peers.counts()
        return {
            "router": {"id": name, "of": len(routers) or None},
            "model": self.planner.card.name,
            **self.counts(),
            "all_routers": summed(routers),
            "warm_ups": self.warming.stats(),
            "cache": self._cache.stats(),
            "pictures": self.jobs.thumbnail_stats(),
            "invalidation": self._invalidator.stats(),
            "renderer": await self._renderer.stats(),
        }

    async def aclose(self) -> None:
        """Finish background writes and close the tiers."""
        self._parts.planning.close()
        if self._builder is not None:
            await self._builder.aclose()
        await self.warming.aclose()
        await self.jobs.aclose()
        await self._loader.aclose()
        await self._invalidator.aclose()
        await self._cache.aclose()
        if self._close_records is not None:
            await self._close_records()

    async def _check_cached(self, plan: Plan) -> None:
        if await self._cache.get(plan.keys.video) is None:
            raise NotCached("No tier has this video, and Cache-Control: only-if-cached forbids to render it.")

    def _answer(self, plan: Plan, result: FlightResult, led: bool, began: float) -> Answer:
        outcome, seconds = result.outcome_for(led), time.perf_counter() - began
        self._parts.outcomes.count(outcome, seconds, result.entry.size)
        return Answer(
            result.entry,
            outcome,
            plan.keys,
            plan.spec,
            result.embedding,
            result.stored,
            seconds,
            plan.corrected,
            plan.notice,
        )
