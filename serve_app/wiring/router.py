"""What the router runs: the service over its stores; nothing here imports torch."""

from __future__ import annotations

from dataclasses import replace

from serve_app.cache.invalidation.object_rules import ObjectRules
from serve_app.cache.invalidation.redis_rules import RedisRules
from serve_app.cache.invalidation.rules import Labels, RuleBook
from serve_app.cache.invalidation.sweep import ObjectShelf, RedisShelf, RuleSweeper
from serve_app.cache.invalidation.sync import RuleSync
from serve_app.cache.redis.bloom_builder import BloomBuilder
from serve_app.cache.redis.lease import Lease
from serve_app.cache.redis.redis import RedisTier
from serve_app.errors import InvalidRequest
from serve_app.flight.renderer import Renderer
from serve_app.service.assembly import assemble
from serve_app.service.jobs.input_images import MemoryInputImages
from serve_app.service.jobs.old_records import OldRecords
from serve_app.service.jobs.records_server import RecordsServer
from serve_app.service.jobs.redis_input_images import RedisInputImages
from serve_app.service.jobs.redis_store import RedisJobs
from serve_app.service.jobs.store import MemoryJobs
from serve_app.service.jobs.sweeper import Chore
from serve_app.service.parts import Limits
from serve_app.service.peers import Peers
from serve_app.service.records import Records
from serve_app.service.service import VideoService
from serve_app.service.warmup.redis_store import RedisWarmUps
from serve_app.service.warmup.store import MemoryWarmUps
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.model import batch_invariant, open_planner
from serve_app.wiring.tiers import SharedTiers, open_attempts, open_cache, open_flight_records, open_latents, open_tiers

REDIS_SETTINGS = ("redis_url", "jobs_url")


def open_records(settings: Settings, tiers: SharedTiers, telemetry: Telemetry) -> Records:
    """Open the records of jobs, images and warm-ups: in `jobs_url`, else in L2's server, else in this process' memory.

    Raises InvalidRequest when the server answers and says that it would evict them.
    """
    url, setting = settings.jobs_url or settings.redis_url, "jobs_url" if settings.jobs_url else "redis_url"
    redis = tiers.records
    if url is None or redis is None:
        jobs = MemoryJobs(
            settings.jobs_max_count, max_bytes=settings.jobs_max_bytes, tombstone_seconds=settings.job_ttl_seconds
        )
        return Records(jobs, MemoryInputImages(settings.jobs_max_bytes), MemoryWarmUps())
    server = RecordsServer(url, setting, settings.redis_timeout_seconds)
    server.check_at_start()
    return _redis_records(settings, tiers, telemetry, redis, server)


def _redis_records(
    settings: Settings,
    tiers: SharedTiers,
    telemetry: Telemetry,
    redis: RedisTier,
    server: RecordsServer,
) -> Records:
    secret, own = settings.secret_bytes, redis is not tiers.l2
    jobs = RedisJobs(
        redis,
        secret=secret,
        telemetry=telemetry,
        tombstone_seconds=settings.job_ttl_seconds,
        max_count=settings.jobs_max_count,
        max_bytes=settings.jobs_max_bytes,
        server=server,
    )
    images = RedisInputImages(redis, secret=secret, telemetry=telemetry, max_bytes=settings.jobs_max_bytes)
    warm_ups = RedisWarmUps(redis, secret=secret, telemetry=telemetry)
    moves: tuple[Chore, ...] = ()
    if tiers.l2 is not None:
        jobs.old = OldRecords(
            tiers.l2,
            secret=secret,
            jobs=jobs,
            images=images,
            warm_ups=warm_ups if own else None,
        )
        moves = (jobs.old.move,)
    records = Records(jobs, images, warm_ups, moves)
    return replace(records, aclose=redis.close) if own else records


def open_rules(settings: Settings, tiers: SharedTiers) -> RuleSync:
    """Return what keeps this process' invalidations equal to those of all others."""
    secret = settings.secret_bytes
    return RuleSync(
        RuleBook(Labels(secret)),
        None if tiers.l2 is None else RedisRules(tiers.l2, secret=secret),
        None if tiers.l3 is None else ObjectRules(tiers.l3, secret=secret, circuit=tiers.circuits["l3"]),
    )


def open_sweeper(settings: Settings, sync: RuleSync, tiers: SharedTiers) -> RuleSweeper:
    """Return what deletes from the shared tiers what invalidations cover."""
    secret = settings.secret_bytes
    l2 = () if tiers.l2 is None else (RedisShelf(tiers.l2, secret=secret),)
    l3 = () if tiers.l3 is None else (ObjectShelf(tiers.l3, secret=secret, circuit=tiers.circuits["l3"]),)
    return RuleSweeper(sync, (*l2, *l3))


def open_builder(tiers: SharedTiers) -> BloomBuilder | None:
    """Return what keeps the filter over L3 built, where there is one."""
    if tiers.bloom is None or tiers.l2 is None or tiers.l3 is None:
        return None
    return BloomBuilder(tiers.bloom, tiers.l3.names, Lease(tiers.l2, "bloom"))


def check_settings(settings: Settings) -> None:
    """Raise EncoreError, naming the setting, for what cannot work on any machine; nothing is connected or made."""
    open_planner(settings)
    for name in REDIS_SETTINGS:
        url = getattr(settings, name, None)
        if url is None:
            continue
        try:
            RedisTier(url).check()
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"Setting '{name}': {error}", param=name) from None


def open_service(
    settings: Settings, renderer: Renderer, peers: Peers, telemetry: Telemetry, tiers: SharedTiers | None = None
) -> VideoService:
    """Return a router's service over its process' `tiers`, opened here unless they are given."""
    tiers = tiers or open_tiers(settings, telemetry)
    records = open_records(settings, tiers, telemetry)
    planner = open_planner(settings)
    planner.load()
    rules = open_rules(settings, tiers)
    return assemble(
        planner,
        open_cache("video", settings, tiers, telemetry, l1_bytes=settings.l1_bytes, rules=rules.book),
        renderer,
        records,
        secret=settings.secret_bytes,
        telemetry=telemetry,
        peers=peers,
        latents=open_latents(settings, tiers, telemetry, rules.book),
        flight_records=open_flight_records(settings, tiers),
        attempts=open_attempts(settings, tiers, telemetry),
        builder=open_builder(tiers),
        rules=rules,
        sweeper=open_sweeper(settings, rules, tiers),
        limits=Limits(
            max_queued=settings.max_queued,
            max_waiting=settings.max_waiting,
            linger_seconds=settings.linger_seconds,
            job_ttl_seconds=settings.job_ttl_seconds,
            warm_up_renders=settings.warm_up_renders,
            max_attempts=settings.max_attempts,
        ),
        batch_invariant=batch_invariant(settings),
    )
