"""The tiers that every process opens, and the caches, flight records and counts over them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from serve_app.cache.cache import TOUCH_SECONDS, TieredCache
from serve_app.cache.circuit import Circuit
from serve_app.cache.invalidation.rules import RuleBook
from serve_app.cache.memory import MemoryTier
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.redis.bloom import BloomFilter
from serve_app.cache.redis.cluster import is_cluster
from serve_app.cache.redis.redis import RESERVE, RedisTier
from serve_app.cache.storage_name import Kind
from serve_app.cache.store import ObjectStore, open_store
from serve_app.cache.store_secret import MarkedStore, require_own
from serve_app.errors import ForeignStore, TierError
from serve_app.flight.redis_attempts import RedisAttempts
from serve_app.flight.redis_record import RedisFlightRecords
from serve_app.service.jobs.records_server import same_server
from serve_app.settings import UNSET_SECRET, Settings
from serve_app.telemetry import Telemetry

logger = logging.getLogger(__name__)

START_SECONDS = 10.0
"""How long a start asks one tier whose it is."""


@dataclass(frozen=True, slots=True)
class SharedTiers:
    """The tiers that all processes share, opened once per process; `circuits` has one for each server."""

    l2: RedisTier | None
    l3: ObjectStore | None
    circuits: Mapping[str, Circuit]
    bloom: BloomFilter | None = None
    records: RedisTier | None = None
    """Where what was accepted is kept; `l2` unless it has a server of its own (`jobs_url`)."""


def open_tiers(settings: Settings, telemetry: Telemetry) -> SharedTiers:
    """Open L2 and L3 as configured; nothing is asked of them yet. Raises ValueError for a URL of no known kind."""
    if settings.secret.get_secret_value() == UNSET_SECRET and (settings.redis_url or settings.jobs_url):
        logger.warning("ENCORE_SECRET is not set: whoever can list the shared tiers can guess prompts from names")
    l2 = l3 = None
    if settings.redis_url is not None:
        shared = settings.jobs_url is None or same_server(settings.jobs_url, settings.redis_url)
        l2 = _open_redis(
            settings.redis_url,
            settings,
            ttl=settings.l2_ttl_seconds,
            max_value_bytes=settings.l2_max_value_bytes,
            reserve=RESERVE if shared else 0.0,
            circuit=_circuit("l2", settings.redis_url, settings, telemetry),
        )
    if settings.l3_url is not None:
        l3 = open_store(
            settings.l3_url,
            max_bytes=settings.l3_max_bytes,
            telemetry=telemetry,
            endpoint_url=settings.s3_endpoint_url,
            public_endpoint_url=settings.s3_public_endpoint_url,
            secret=settings.secret_bytes,
            plain_secret=settings.secret_bytes if settings.s3_redirect else None,
            timeout=settings.l3_timeout_seconds,
        )
    circuits = {"l3": Circuit("l3", telemetry)} | ({} if l2 is None else {"l2": l2.circuit})
    records = l2
    if settings.jobs_url not in (None, settings.redis_url):
        circuit = _circuit("jobs", settings.jobs_url, settings, telemetry)
        records = _open_redis(settings.jobs_url, settings, circuit=circuit)
        circuits["jobs"] = circuit
    return SharedTiers(l2, l3, circuits, _open_bloom(settings, l2, l3), records)


def require_own_stores(settings: Settings) -> None:
    """Raise ForeignStore when a shared tier was written under another secret; for a start, before anything is served.

    A tier that cannot be asked now stops no start: each process asks before its first read or write there. Runs in a
    thread of its own, so that it may be called on an event loop.
    """
    with ThreadPoolExecutor(1, "whose-stores") as thread:
        thread.submit(asyncio.run, _require_own_stores(settings)).result()


async def _require_own_stores(settings: Settings) -> None:
    try:
        tiers = open_tiers(settings, Telemetry())
    except TierError as error:
        logger.warning("whose store L3 is could not be asked at the start: %s", error.message)
        return
    stores: list[MarkedStore] = [each for each in (tiers.l2, tiers.records, tiers.l3) if isinstance(each, MarkedStore)]
    try:
        for store in stores:
            try:
                async with asyncio.timeout(START_SECONDS):
                    await require_own(store, settings.secret_bytes, write=False)
            except ForeignStore:
                raise
            except (TierError, TimeoutError) as error:
                logger.warning("%s could not be asked at the start whose it is: %s", store.where, error)
    finally:
        with suppress(TierError, TimeoutError):
            for redis in (tiers.l2, tiers.records):
                if redis is not None:
                    await redis.close()
            if tiers.l3 is not None:
                await tiers.l3.aclose()


def _open_redis(url: str, settings: Settings, **options: Any) -> RedisTier:
    seconds = settings.redis_timeout_seconds
    return RedisTier(
        url,
        connect_timeout=seconds,
        socket_timeout=seconds,
        deadline=4 * seconds,
        secret=settings.secret_bytes,
        **options,
    )


def _circuit(tier: str, url: str, settings: Settings, telemetry: Telemetry) -> Circuit:
    slow = 2 * settings.redis_timeout_seconds  # nothing takes that long in good order
    # A cluster's node that is gone fails its share of calls: more in a row say that all are.
    return Circuit(tier, telemetry, failures=12 if is_cluster(url) else 3, slow_after=slow)


def _open_bloom(settings: Settings, l2: RedisTier | None, l3: ObjectStore | None) -> BloomFilter | None:
    """Return the filter over L3; for a folder on this machine a look costs no more than asking Redis about it."""
    if l2 is None or l3 is None or settings.l3_filter == "off":
        return None
    skipped = settings.l3_filter == "auto" and isinstance(l3, FolderStore)
    return None if skipped else BloomFilter(l2)


def open_cache(
    kind: Kind,
    settings: Settings,
    tiers: SharedTiers,
    telemetry: Telemetry,
    *,
    l1_bytes: int | None = None,
    rules: RuleBook | None = None,
) -> TieredCache:
    """Return the cache of one kind of value over `tiers`, with `l1_bytes` of this process' memory above them.

    rules: the invalidations that this process keeps up with; without, it knows those that come with requests.
    """
    return TieredCache(
        kind,
        secret=settings.secret_bytes,
        l1=None if l1_bytes is None else MemoryTier(l1_bytes, telemetry=telemetry),
        l2=tiers.l2,
        l3=tiers.l3,
        bloom=tiers.bloom,
        rules=rules,
        telemetry=telemetry,
        circuits=tiers.circuits,
        touch_interval=min(TOUCH_SECONDS, settings.l2_ttl_seconds / 10),
    )


def open_latents(
    settings: Settings, tiers: SharedTiers, telemetry: Telemetry, rules: RuleBook | None = None
) -> TieredCache | None:
    """Return the cache of final latents, which is L3 alone; None when there is none or they are not to be kept."""
    if tiers.l3 is None or not settings.keep_latents:
        return None
    return open_cache("latents", settings, replace(tiers, l2=None), telemetry, rules=rules)


def open_flight_records(settings: Settings, tiers: SharedTiers) -> RedisFlightRecords | None:
    """Return the cluster's flight records, which need L2; None without: then every process renders by itself."""
    if tiers.l2 is None:
        return None
    return RedisFlightRecords(
        tiers.l2,
        secret=settings.secret_bytes,
        linger_seconds=settings.linger_seconds,
        bloom=tiers.bloom,
    )


def open_attempts(settings: Settings, tiers: SharedTiers, telemetry: Telemetry) -> RedisAttempts | None:
    """Return the count of renders that ended in a death, beside the job records; None without a Redis."""
    if tiers.records is None:
        return None
    return RedisAttempts(tiers.records, secret=settings.secret_bytes, telemetry=telemetry)
