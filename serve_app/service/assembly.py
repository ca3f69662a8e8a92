"""From the parts of one router to its service; the wiring opens the parts, tests bring their own."""

from __future__ import annotations

from collections.abc import Callable

from serve_app.cache.cache import TieredCache
from serve_app.cache.invalidation.sweep import RuleSweeper
from serve_app.cache.invalidation.sync import RuleSync
from serve_app.cache.redis.bloom_builder import BloomBuilder
from serve_app.clock import steady
from serve_app.flight.attempts import Attempts
from serve_app.flight.cluster_flight import ClusterFlight
from serve_app.flight.record import FlightRecords
from serve_app.flight.renderer import Renderer
from serve_app.service.invalidator import Invalidator
from serve_app.service.jobs.input_images import InputImages
from serve_app.service.jobs.jobs import Jobs
from serve_app.service.loader import VideoLoader
from serve_app.service.outcomes import OutcomeCounter
from serve_app.service.parts import Limits, RouterParts
from serve_app.service.peers import Peers
from serve_app.service.plan import Plan, Planner
from serve_app.service.planning_threads import Planning
from serve_app.service.records import Records
from serve_app.service.service import VideoService
from serve_app.service.warmup.warmup import Warming
from serve_app.telemetry import Telemetry


def assemble(
    planner: Planner,
    cache: TieredCache,
    renderer: Renderer,
    records: Records,
    *,
    secret: bytes,
    telemetry: Telemetry,
    peers: Peers,
    latents: TieredCache | None = None,
    flight_records: FlightRecords | None = None,
    attempts: Attempts | None = None,
    builder: BloomBuilder | None = None,
    rules: RuleSync | None = None,
    sweeper: RuleSweeper | None = None,
    limits: Limits | None = None,
    batch_invariant: bool | None = None,
    clock: Callable[[], float] = steady,
) -> VideoService:
    """Return the service of a router: `cache` holds videos, `latents` what they are decoded from, `renderer` the rest.

    flight_records: the cluster's; without them this router is alone. attempts: counts renders that ended in the death
    of their process. rules: keeps the invalidations that the caches know; without it only routers that are told by
    their peers know of one. sweeper: deletes what they cover. builder, batch_invariant: as VideoService has them.
    """
    limits = limits or Limits()
    images = InputImages(records.images)
    loader = VideoLoader(
        cache,
        renderer,
        planner.card.model_fingerprint,
        max_queued=limits.max_queued,
        linger_seconds=limits.linger_seconds,
        flight_records=flight_records,
        find_image=images.find,
        attempts=attempts,
        max_attempts=limits.max_attempts,
        clock=clock,
    )
    invalidator = Invalidator(
        rules or RuleSync(cache.rules), planner, cache, renderer, peers, latents=latents, sweeper=sweeper
    )
    parts = RouterParts(
        planner, Planning(planner), cache, loader, invalidator, OutcomeCounter(telemetry), peers, limits, clock
    )

    def join_or_lead(plan: Plan, ttl: float) -> tuple[ClusterFlight, bool]:
        return loader.join_or_lead(plan.spec, plan.keys, plan.urgency, ttl=ttl, labels=invalidator.labels(plan))

    warming = Warming(
        records.warm_ups,
        planner,
        loader,
        cache,
        join_or_lead,
        concurrency=min(limits.warm_up_renders, limits.max_queued),
        keep_seconds=limits.job_ttl_seconds,
        max_prompt_chars=planner.max_prompt_chars,
        clock=clock,
    )
    return VideoService(
        parts,
        Jobs(parts, records, images, secret=secret, flight_records=flight_records),
        warming,
        renderer,
        builder=builder,
        close_records=records.aclose,
        batch_invariant=batch_invariant,
    )
