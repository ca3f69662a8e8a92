"""From Settings to parts: the one place below `deployments` that reads them; all else gets plain arguments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from serve_app.cache.bloom import BloomFilter
from serve_app.cache.bloom_builder import BloomBuilder
from serve_app.cache.cache import TOUCH_SECONDS, TieredCache
from serve_app.cache.circuit import Circuit
from serve_app.cache.folder import FolderStore
from serve_app.cache.invalidation import Labels, RuleBook
from serve_app.cache.lease import Lease
from serve_app.cache.memory import MemoryTier
from serve_app.cache.name import Kind
from serve_app.cache.redis import RedisTier
from serve_app.cache.redis_flights import RedisFlights
from serve_app.cache.redis_rules import RedisRules
from serve_app.cache.rule_keeper import RuleKeeper
from serve_app.cache.rule_mirror import RuleMirror
from serve_app.cache.rule_sweep import ObjectShelf, RedisShelf, RuleSweeper
from serve_app.cache.store import ObjectStore, open_store
from serve_app.core import ModelCard, PromptRules, VideoSpec
from serve_app.errors import InvalidRequest
from serve_app.media.media import encoder_fingerprint
from serve_app.model.model import Family, load_family
from serve_app.model.wan.speed import Speed
from serve_app.prompt.prompt import Normaliser
from serve_app.prompt.synonyms import Synonyms
from serve_app.prompt.vocabulary import read_vocabulary
from serve_app.schema import VideoRequest, resolve
from serve_app.service.images import ImageStore, MemoryImages
from serve_app.service.jobs import JobStore, MemoryJobs
from serve_app.service.landing import Peers, Renderer
from serve_app.service.plan import Planner
from serve_app.service.redis_images import RedisImages
from serve_app.service.redis_jobs import RedisJobs
from serve_app.service.redis_warm_ups import RedisWarmUps
from serve_app.service.service import Limits, VideoService
from serve_app.service.warm_ups import MemoryWarmUps, WarmStore
from serve_app.settings import UNSET_SECRET, Settings
from serve_app.telemetry import Telemetry

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedTiers:
    """The tiers that all processes share, opened once per process; a circuit for each, whoever asks it."""

    l2: RedisTier | None
    l3: ObjectStore | None
    circuits: Mapping[str, Circuit]
    bloom: BloomFilter | None = None


def open_tiers(settings: Settings, telemetry: Telemetry) -> SharedTiers:
    """Open L2 and L3 as configured; nothing is asked of them yet. Raises ValueError for a URL of no known kind."""
    if settings.secret.get_secret_value() == UNSET_SECRET and settings.redis_url:
        logger.warning("ENCORE_SECRET is not set: whoever can list the shared tiers can guess prompts from names")
    l2 = l3 = None
    if settings.redis_url is not None:
        l2 = RedisTier(
            settings.redis_url,
            ttl=settings.l2_ttl_seconds,
            max_value_bytes=settings.l2_max_value_bytes,
            connect_timeout=settings.redis_timeout_seconds,
            socket_timeout=settings.redis_timeout_seconds,
            deadline=4 * settings.redis_timeout_seconds,
        )
    if settings.l3_url is not None:
        l3 = open_store(
            settings.l3_url,
            max_bytes=settings.l3_max_bytes,
            telemetry=telemetry,
            endpoint_url=settings.s3_endpoint_url,
            public_endpoint_url=settings.s3_public_endpoint_url,
            plain_secret=settings.secret_bytes if settings.s3_redirect else None,
        )
    slow = 2 * settings.redis_timeout_seconds  # no value takes that long in good order
    # A cluster's node that is gone fails its share of calls: more in a row say that all are.
    failures = 3 if l2 is None or not l2.is_cluster else 12
    circuits = {
        "l2": Circuit("l2", telemetry, failures=failures, slow_after=slow),
        "l3": Circuit("l3", telemetry),
    }
    return SharedTiers(l2, l3, circuits, _open_bloom(settings, l2, l3, circuits["l2"]))


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


def open_rules(settings: Settings, tiers: SharedTiers) -> RuleKeeper:
    """Return what keeps this process' book of invalidations equal to everybody's."""
    secret = settings.secret_bytes
    return RuleKeeper(
        RuleBook(Labels(secret)),
        None if tiers.l2 is None else RedisRules(tiers.l2, secret=secret, circuit=tiers.circuits["l2"]),
        None if tiers.l3 is None else RuleMirror(tiers.l3, secret=secret, circuit=tiers.circuits["l3"]),
    )


def open_sweeper(keeper: RuleKeeper, tiers: SharedTiers) -> RuleSweeper:
    """Return what deletes from the shared tiers what invalidations cover."""
    l2 = () if tiers.l2 is None else (RedisShelf(tiers.l2),)
    l3 = () if tiers.l3 is None else (ObjectShelf(tiers.l3),)
    return RuleSweeper(keeper, (*l2, *l3))


def open_flights(settings: Settings, tiers: SharedTiers) -> RedisFlights | None:
    """Return the cluster's flight records, which need L2; None without: then every process renders by itself."""
    if tiers.l2 is None:
        return None
    return RedisFlights(
        tiers.l2,
        secret=settings.secret_bytes,
        linger_seconds=settings.linger_seconds,
        bloom=tiers.bloom,
        circuit=tiers.circuits["l2"],
    )


def open_builder(tiers: SharedTiers) -> BloomBuilder | None:
    """Return what keeps the filter over L3 built, where there is one."""
    if tiers.bloom is None or tiers.l2 is None or tiers.l3 is None:
        return None
    return BloomBuilder(tiers.bloom, tiers.l3.names, Lease(tiers.l2, "bloom", circuit=tiers.circuits["l2"]))


def open_family(settings: Settings) -> Family:
    """Return the configured model; raises NotFound, and InvalidRequest for a setting that it does not have."""
    speed = Speed(settings.quantization, settings.torch_compile, settings.vae_tiling)
    return load_family(settings.model, checkpoint=settings.checkpoint, dtype=settings.dtype, speed=speed)


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


def open_service(
    settings: Settings, renderer: Renderer, peers: Peers, telemetry: Telemetry, tiers: SharedTiers | None = None
) -> VideoService:
    """Return a router's service over its process' `tiers`, opened here unless they are given."""
    tiers = tiers or open_tiers(settings, telemetry)
    jobs: JobStore = MemoryJobs()
    warm_ups: WarmStore = MemoryWarmUps()
    images: ImageStore = MemoryImages()
    if tiers.l2 is not None:
        jobs = RedisJobs(
            tiers.l2,
            secret=settings.secret_bytes,
            telemetry=telemetry,
            tombstone_seconds=settings.job_ttl_seconds,
            circuit=tiers.circuits["l2"],
        )
        warm_ups = RedisWarmUps(
            tiers.l2, secret=settings.secret_bytes, telemetry=telemetry, circuit=tiers.circuits["l2"]
        )
        images = RedisImages(tiers.l2, secret=settings.secret_bytes, telemetry=telemetry, circuit=tiers.circuits["l2"])
    planner = open_planner(settings)
    planner.load()
    rules = open_rules(settings, tiers)
    return VideoService(
        planner,
        open_cache("video", settings, tiers, telemetry, l1_bytes=settings.l1_bytes, rules=rules.book),
        renderer,
        jobs,
        secret=settings.secret_bytes,
        telemetry=telemetry,
        peers=peers,
        latents=open_latents(settings, tiers, telemetry, rules.book),
        flights=open_flights(settings, tiers),
        builder=open_builder(tiers),
        rules=rules,
        sweeper=open_sweeper(rules, tiers),
        warm_ups=warm_ups,
        images=images,
        limits=Limits(
            max_queued=settings.max_queued,
            max_waiting=settings.max_waiting,
            linger_seconds=settings.linger_seconds,
            job_ttl_seconds=settings.job_ttl_seconds,
            warm_up_renders=settings.warm_up_renders,
        ),
    )


def default_spec(card: ModelCard) -> VideoSpec:
    """Return the spec of a request that leaves everything to the model."""
    return resolve(VideoRequest(prompt=""), card)


def compute_device(settings: Settings) -> str:
    """Return the torch device to compute on; `auto` takes a GPU where there is one."""
    return _device(settings.device)


def text_device(settings: Settings) -> str:
    """Return the torch device of the text encoder."""
    return _device(settings.text_device or settings.device)


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
