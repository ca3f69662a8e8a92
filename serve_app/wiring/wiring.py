"""From Settings to parts: the one place below `deployments` that reads them; all else gets plain arguments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from serve_app.cache.cache import TOUCH_SECONDS, TieredCache
from serve_app.cache.circuit import Circuit
from serve_app.cache.invalidation.object_rules import ObjectRules
from serve_app.cache.invalidation.redis_rules import RedisRules
from serve_app.cache.invalidation.rules import Labels, RuleBook
from serve_app.cache.invalidation.sweep import ObjectShelf, RedisShelf, RuleSweeper
from serve_app.cache.invalidation.sync import RuleSync
from serve_app.cache.memory import MemoryTier
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.redis.bloom import BloomFilter
from serve_app.cache.redis.bloom_builder import BloomBuilder
from serve_app.cache.redis.lease import Lease
from serve_app.cache.redis.redis import RESERVE, RedisTier
from serve_app.cache.storage_name import Kind
from serve_app.cache.store import ObjectStore, open_store
from serve_app.cache.store_secret import MarkedStore, require_own
from serve_app.core import ModelCard, PromptRules, VideoSpec
from serve_app.errors import ForeignStore, InvalidRequest, TierError
from serve_app.flight.redis_attempts import RedisAttempts
from serve_app.flight.redis_record import RedisFlightRecords
from serve_app.flight.renderer import Renderer
from serve_app.media.media import encoder_fingerprint
from serve_app.model.batch_invariant import is_on
from serve_app.model.model import Family, load_family
from serve_app.model.wan.speed import Speed
from serve_app.prompt.prompt import Normaliser
from serve_app.prompt.synonyms import Synonyms
from serve_app.prompt.vocabulary import read_vocabulary
from serve_app.schema import VideoRequest, resolve
from serve_app.service.assembly import assemble
from serve_app.service.jobs.input_images import MemoryInputImages
from serve_app.service.jobs.old_records import OldRecords
from serve_app.service.jobs.records_server import RecordsServer, same_server
from serve_app.service.jobs.redis_input_images import RedisInputImages
from serve_app.service.jobs.redis_store import RedisJobs
from serve_app.service.jobs.store import MemoryJobs
from serve_app.service.jobs.sweeper import Chore
from serve_app.service.parts import Limits
from serve_app.service.peers import Peers
from serve_app.service.plan import Planner
from serve_app.service.records import Records
from serve_app.service.service import VideoService
from serve_app.service.warmup.redis_store import RedisWarmUps
from serve_app.service.warmup.store import MemoryWarmUps
from serve_app.settings import UNSET_SECRET, Settings
from serve_app.telemetry import Telemetry

T = TypeVar("T")
REDIS_SETTINGS = ("redis_url", "jobs_url")

logger = logging.getLogger(__name__)

START_SECONDS = 10.0
"""How long a start asks one tier whose it is."""


@dataclass(frozen=True, slots=True)
class SharedTiers:
    """The tiers that all processes share, opened once per process; a circuit for each, whoever asks it."""

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
    circuits = {"l2": _circuit("l2", l2, settings, telemetry), "l3": Circuit("l3", telemetry)}
    records, circuits["jobs"] = l2, circuits["l2"]
    if settings.jobs_url not in (None, settings.redis_url):
        records = _open_redis(settings.jobs_url, settings)
        circuits["jobs"] = _circuit("jobs", records, settings, telemetry)
    return SharedTiers(l2, l3, circuits, _open_bloom(settings, l2, l3, circuits["l2"]), records)


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


def _circuit(tier: str, redis: RedisTier | None, settings: Settings, telemetry: Telemetry) -> Circuit:
    slow = 2 * settings.redis_timeout_seconds  # nothing takes that long in good order
    # A cluster's node that is gone fails its share of calls: more in a row say that all are.
    failures = 3 if redis is None or not redis.is_cluster else 12
    return Circuit(tier, telemetry, failures=failures, slow_after=slow)


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
    return _redis_records(settings, tiers, telemetry, redis, tiers.circuits["jobs"], server)


def _redis_records(
    settings: Settings,
    tiers: SharedTiers,
    telemetry: Telemetry,
    redis: RedisTier,
    circuit: Circuit,
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
        circuit=circuit,
        server=server,
    )
    images = RedisInputImages(
        redis, secret=secret, telemetry=telemetry, max_bytes=settings.jobs_max_bytes, circuit=circuit
    )
    warm_ups = RedisWarmUps(redis, secret=secret, telemetry=telemetry, circuit=circuit)
    moves: tuple[Chore, ...] = ()
    if tiers.l2 is not None:
        jobs.old = OldRecords(
            tiers.l2,
            secret=secret,
            circuit=tiers.circuits["l2"],
            jobs=jobs,
            images=images,
            warm_ups=warm_ups if own else None,
        )
        moves = (jobs.old.move,)
    records = Records(jobs, images, warm_ups, moves)
    return replace(records, aclose=redis.close) if own else records


def _open_bloom(
    settings: Settings, l2: RedisTier | None, l3: ObjectStore | None, circuit: Circuit
) -> BloomFilter | None:
    """Return the filter over L3; for a folder on this machine a look costs no more than asking Redis about it."""
    if l2 is None or l3 is None or settings.l3_filter == "off":
        return None
    skipped = settings.l3_filter == "auto" and isinstance(l3, FolderStore)
    return None if skipped else BloomFilter(l2, circuit=circuit)


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


def open_rules(settings: Settings, tiers: SharedTiers) -> RuleSync:
    """Return what keeps this process' book of invalidations equal to everybody's."""
    secret = settings.secret_bytes
    return RuleSync(
        RuleBook(Labels(secret)),
        None if tiers.l2 is None else RedisRules(tiers.l2, secret=secret, circuit=tiers.circuits["l2"]),
        None if tiers.l3 is None else ObjectRules(tiers.l3, secret=secret, circuit=tiers.circuits["l3"]),
    )


def open_sweeper(settings: Settings, keeper: RuleSync, tiers: SharedTiers) -> RuleSweeper:
    """Return what deletes from the shared tiers what invalidations cover."""
    l2 = () if tiers.l2 is None else (RedisShelf(tiers.l2, secret=settings.secret_bytes),)
    l3 = () if tiers.l3 is None else (ObjectShelf(tiers.l3, secret=settings.secret_bytes),)
    return RuleSweeper(keeper, (*l2, *l3))


def open_flights(settings: Settings, tiers: SharedTiers) -> RedisFlightRecords | None:
    """Return the cluster's flight records, which need L2; None without: then every process renders by itself."""
    if tiers.l2 is None:
        return None
    return RedisFlightRecords(
        tiers.l2,
        secret=settings.secret_bytes,
        linger_seconds=settings.linger_seconds,
        bloom=tiers.bloom,
        circuit=tiers.circuits["l2"],
    )


def open_attempts(settings: Settings, tiers: SharedTiers, telemetry: Telemetry) -> RedisAttempts | None:
    """Return the count of renders that ended in a death, beside the job records; None without a Redis."""
    if tiers.records is None:
        return None
    return RedisAttempts(
        tiers.records, secret=settings.secret_bytes, telemetry=telemetry, circuit=tiers.circuits["jobs"]
    )


def open_builder(tiers: SharedTiers) -> BloomBuilder | None:
    """Return what keeps the filter over L3 built, where there is one."""
    if tiers.bloom is None or tiers.l2 is None or tiers.l3 is None:
        return None
    return BloomBuilder(tiers.bloom, tiers.l3.names, Lease(tiers.l2, "bloom", circuit=tiers.circuits["l2"]))


def open_family(settings: Settings) -> Family:
    """Return the configured model; raises NotFound, and InvalidRequest for a setting that it does not have."""
    speed = Speed(settings.quantization, settings.torch_compile, settings.vae_tiling)
    return load_family(
        settings.model,
        checkpoint=settings.checkpoint,
        revision=settings.revision,
        dtype=settings.dtype,
        speed=speed,
        batch_invariant=settings.batch_invariant,
    )


def open_planner(settings: Settings, family: Family | None = None) -> Planner:
    """Return the planner of the configured model; raises what `open_family`, `open_normaliser` and Planner raise."""
    family = family or open_family(settings)
    return Planner(
        family,
        encoder_fingerprint(),
        max_prompt_chars=settings.max_prompt_chars,
        max_image_bytes=settings.max_image_bytes,
        max_image_pixels=settings.max_image_pixels,
        normaliser=open_normaliser(settings, family.card.prompt_rules),
        negative_prompt=settings.negative_prompt,
    )


def open_normaliser(settings: Settings, rules: PromptRules) -> Normaliser:
    """Return what normalises under a model's rules less those the settings switch off, with the deployment's files.

    Raises InvalidRequest for a file that cannot be used.
    """
    rules = replace(
        rules,
        traditional_to_simplified=rules.traditional_to_simplified and settings.traditional_to_simplified,
        spelling=rules.spelling and settings.unify_spelling,
        wrappers=rules.wrappers and settings.strip_wrappers,
        typos=rules.typos and settings.correct_typos,
    )
    vocabulary = _read("vocabulary_file", settings.vocabulary_file, read_vocabulary) or frozenset()
    plain = Normaliser(rules)
    read_synonyms = partial(Synonyms.read, normalise=lambda term: plain.trace(term, correct_typos=False).text)
    return Normaliser(
        rules, synonyms=_read("synonyms_file", settings.synonyms_file, read_synonyms), vocabulary=vocabulary
    )


def _read(setting: str, file: str | None, read: Callable[[Path], T]) -> T | None:
    try:
        return None if file is None else read(Path(file).expanduser())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"Setting '{setting}' ({file}): {error}", param=setting) from error


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
        flight_records=open_flights(settings, tiers),
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


def default_spec(card: ModelCard) -> VideoSpec:
    """Return the spec of a request that leaves everything to the model."""
    return resolve(VideoRequest(prompt=""), card)


def compute_device(settings: Settings) -> str:
    """Return the torch device to compute on; `auto` takes a GPU where there is one."""
    return _device(settings.device)


def batch_invariant(settings: Settings, device: str | None = None) -> bool | None:
    """Tell whether videos depend on their request alone; `device`: where Diffusion computes, if that is known.

    None: it is for the device to decide, and the device is not known.
    """
    return is_on(settings.batch_invariant, device or settings.device, torch_compile=settings.torch_compile)


def text_device(settings: Settings) -> str:
    """Return the torch device of the text encoder."""
    return _device(settings.text_device or settings.device)


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
