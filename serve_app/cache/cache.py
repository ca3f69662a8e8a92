"""The tiers as one cache: walk L1, L2, L3; what is found lower is copied up; what breaks is a miss.

`get_now` answers from this process's memory without awaiting anything; everything else may touch the network but never
raises because of it. A value is stored when a durable tier has it, and if L3 already had the key (GPUs are not
bit-reproducible) the earlier bytes are adopted, so that all callers get one video. Copying up and extending TTLs
happen in the background, in tasks with an empty context: under Ray Serve they would be cancelled with the request.

What an invalidation covers is found in no tier and kept in none (`invalidation`): L1 is swept the moment a rule is
learned, so that a hit there costs no look at the rules; every value from elsewhere is judged when it arrives. Who asked
before the rule may still have it: they give `stale`, which judges by what was known when they asked.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiocache.base import BaseCache

from serve_app.cache.breaker import Breaker, BreakerState
from serve_app.cache.circuit import Circuit
from serve_app.cache.debounce import Debounce
from serve_app.cache.envelope import Envelope
from serve_app.cache.invalidation.rules import Labels, RuleBook, begun_at
from serve_app.cache.memory import MemoryTier
from serve_app.cache.redis.bloom import BloomFilter
from serve_app.cache.remote_tier import RemoteTier, Stale
from serve_app.cache.storage_name import Kind, masked, storage_name, unmasked
from serve_app.cache.store import AiocacheStore, ObjectStore
from serve_app.core import EVERYTHING, Entry, Outcome, Rule
from serve_app.tasks import detached
from serve_app.telemetry import Telemetry, TierRead, TierWritten

_BACKGROUND_TASKS = 64
_NAMES_KEPT = 32_768
"""At most so many copies and extensions under way; beyond that they are left out, a slow tier must not fill memory."""
TOUCH_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Stored:
    """`tiers`: the durable tiers that have the value, empty when none does; `entry`: the one to serve from now on."""

    tiers: tuple[str, ...]
    entry: Entry


class TieredCache:
    """Entries of one `kind` in up to three tiers, any of which may be None.

    secret: the deployment's, for names in shared tiers. l2: bytes by name with a TTL of its own (a RedisTier, or
    any aiocache backend with a NullSerializer). bloom: tells what L3 surely has not. rules: the invalidations this
    process knows. touch_interval: seconds between two extensions of one key's life in the shared tiers by hits above
    them; well below L2's TTL. Tiers may be shared by caches of several kinds, and then `circuits` of them too (by `l2`
    and `l3`; without, each cache has its own); `aclose` closes them.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        secret: bytes,
        l1: MemoryTier | None = None,
        l2: BaseCache | None = None,
        l3: ObjectStore | None = None,
        bloom: BloomFilter | None = None,
        rules: RuleBook | None = None,
        telemetry: Telemetry | None = None,
        touch_interval: float = TOUCH_SECONDS,
        circuits: Mapping[str, Circuit] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self._secret = secret
        self._envelope = Envelope(secret)
        self._telemetry = telemetry or Telemetry()
        self._l1 = l1
        self._bloom = bloom
        self.rules = RuleBook(Labels(secret)) if rules is None else rules
        self.rules.listen(self._swept)
        self._name_of = functools.lru_cache(_NAMES_KEPT)(functools.partial(self.rules.labels.of_value, kind))
        stores = {"l2": AiocacheStore(l2) if l2 is not None else None, "l3": l3}
        self._remotes = [
            RemoteTier(
                tier,
                kind,
                store,
                secret=secret,
                telemetry=self._telemetry,
                bloom=bloom if tier == "l3" else None,
                circuit=circuits[tier] if circuits else Circuit(tier, self._telemetry, clock=clock),
            )
            for tier, store in stores.items()
            if store is not None
        ]
        self._circuits = list(circuits.values()) if circuits else [remote.circuit for remote in self._remotes]
        self._recent = {remote.tier: Debounce(touch_interval, clock=clock) for remote in self._remotes}
        self._elsewhere = Breaker(f"storing a {kind} in any tier", clock=clock)
        self._background: dict[asyncio.Task[Any], str] = {}
        self._generation = 0
        self._l1_hits = self._l1_misses = self._l1_invalidated = 0

    def get_now(self, key: str) -> Entry | None:
        """Return the entry from L1, or None; awaits nothing. A miss is counted by the `get` that follows it."""
        if self._l1 is None:
            return None
        started = time.perf_counter()
        entry = self._l1.get_now(key)
        if entry is not None:
            self._l1_hits += 1
            self._telemetry.emit(TierRead("l1", self.kind, "hit", time.perf_counter() - started, entry.size))
            self._touch(key, self._remotes)
        return entry

    async def get(self, key: str, *, stale: Stale | None = None) -> tuple[Entry, Outcome] | None:
        """Return the verified entry and the tier it was found in, None when no tier could give it."""
        entry = self.get_l1(key)
        if entry is not None and not (stale and stale(entry)):
            return entry, Outcome.L1
        return await self._walk(key, self._remotes, stale)

    def get_l1(self, key: str) -> Entry | None:
        """Return the entry from L1 as `get_now` does, and count a miss: the caller looks further by itself."""
        entry = self.get_now(key)
        if entry is None and self._l1 is not None:
            self._l1_misses += 1
            self._telemetry.emit(TierRead("l1", self.kind, "miss", 0.0))
        return entry

    async def get_l3(
        self, key: str, may_have: bool | None = None, *, stale: Stale | None = None
    ) -> tuple[Entry, Outcome] | None:
        """Return the entry from L3 alone, for who has looked in L2 already and will write it there.

        may_have: what the Bloom filter said, where it was asked; None asks it.
        """
        return await self._walk(key, self._only("l3"), stale, may_have)

    async def arrived_from_l2(
        self, key: str, frame: bytes | None, seconds: float, *, stale: Stale | None = None
    ) -> Entry | None:
        """Take a frame that a script of the caller's read from L2 (None: a miss); None when it does not count."""
        await self.rules.ready()
        for l2 in self._only("l2"):
            generation = self._generation
            entry = await l2.arrived(key, frame, seconds, stale or self._is_covered)
            if entry is not None and generation == self._generation:
                self._copy_up(entry, [], self._only("l3"))
            return entry
        return None

    def _is_covered(self, entry: Entry) -> bool:
        return self.rules.covers(self.kind, entry)

    def _swept(self, rules: tuple[Rule, ...]) -> None:
        """Drop from L1 what new rules cover; what is being read or written meanwhile is judged when it comes."""
        if self._l1 is None or not rules:
            return
        chosen = {rule.label: rule.before for rule in rules}
        newest = max(chosen.values())
        dropped = self._l1.drop_now(lambda entry: begun_at(entry) < newest and self._is_chosen(entry, chosen))
        self._l1_invalidated += len(dropped)

    def _is_chosen(self, entry: Entry, chosen: Mapping[str, int]) -> bool:
        """Tell whether one of a few rules covers `entry`: quick, because all of L1 is asked while nothing else runs."""
        begun = begun_at(entry)
        if begun < chosen.get(EVERYTHING, 0):
            return True
        labels = self.rules.labels.of_entry(self._name_of(entry.key), entry)
        return any(begun < chosen[label] for label in labels if label in chosen)

    async def _walk(
        self, key: str, remotes: list[RemoteTier], stale: Stale | None, may_have: bool | None = None
    ) -> tuple[Entry, Outcome] | None:
        if not await self.rules.ready():
            return None  # what is there could be invalidated long since
        generation = self._generation
        for index, remote in enumerate(remotes):
            entry = await remote.read(key, may_have, stale or self._is_covered)
            if entry is not None:
                # Deleted while we read: it may be answered once more, but not be copied up again.
                if generation == self._generation:
                    self._copy_up(entry, remotes[:index], remotes[index + 1 :])
                return entry, Outcome(remote.tier)
        return None

    @property
    def invalidated(self) -> int:
        """How many entries invalidations have dropped from this process's memory."""
        return self._l1_invalidated

    @property
    def storeless(self) -> bool:
        """Whether this server was given no shared tier at all, so that nothing it makes is ever stored."""
        return not self._remotes

    async def can_store(self, key: str) -> bool:
        """Tell whether a shared tier would take the value of `key`, as far as is known.

        A tier that was left alone for its while is asked first: who relies on the answer must not be the one that
        finds out. With a tier in good order nothing is awaited.
        """
        if self._elsewhere.state is BreakerState.OPEN:
            return False
        if any(remote.circuit.closed for remote in self._remotes):
            return True
        for remote in self._remotes:
            if remote.circuit.takes_values and await remote.contains(key) is not None:
                return True
        return False

    def hear(self, *, stored: bool) -> None:
        """Hear whether any tier took a value in the process that made it; this one stores hardly anything itself."""
        if stored:
            self._elsewhere.close()
        else:
            self._elsewhere.trip()

    def remember(self, entry: Entry) -> None:
        """Keep in L1 alone an entry that is stored elsewhere already; `entry` must be verified."""
        self._keep(entry)

    async def put(self, entry: Entry, *, not_before: int = 0) -> Stored:
        """Store `entry` in every tier, the shared ones concurrently; raises nothing for a tier's sake.

        An earlier value is adopted unless it is invalidated or was begun before `not_before`. The meta of `entry` must
        be JSON (TypeError, ValueError).
        """
        replaced = self._replaced(not_before)
        written = await asyncio.gather(*(remote.write(entry, replaced) for remote in self._remotes))
        held = {remote.tier: kept for remote, kept in zip(self._remotes, written, strict=True) if kept is not None}
        adopted = held.get("l3", entry)
        if adopted.digest != entry.digest:
            await self._replace_in_l2(adopted, held)
        self._used(entry.key)
        self._keep(adopted)
        return Stored(tuple(sorted(held)), adopted)

    async def _replace_in_l2(self, adopted: Entry, held: dict[str, Entry]) -> None:
        """L3 had other bytes: L2 gets those too, or none; a write whose answer was lost may have taken effect."""
        for l2 in self._only("l2"):
            held.pop("l2", None)
            if await l2.write(adopted) is not None:
                held["l2"] = adopted
            else:
                await l2.delete(adopted.key)  # better none than two different videos

    def pack(self, entry: Entry) -> bytes:
        """Return the frame in which shared tiers store `entry`, for who writes one in a script of his own."""
        return self._envelope.pack(storage_name(self._secret, self.kind, entry.key), entry)

    def masked(self, key: str, other: str) -> str:
        """Return `other`, a key that would tell a prompt to who guesses it, as the metadata of `key` may hold it."""
        return masked(self._secret, storage_name(self._secret, self.kind, key), other)

    def unmasked(self, key: str, told: str) -> str:
        """Return what `masked` was given; raises ValueError for anything else."""
        return unmasked(self._secret, storage_name(self._secret, self.kind, key), told)

    async def put_l2(self, entry: Entry, *, not_before: int = 0) -> bool:
        """Store `entry` in L2 alone; False when it is not there."""
        written = [await l2.write(entry, self._replaced(not_before)) for l2 in self._only("l2")]
        return written not in ([], [None])

    async def put_l3(self, entry: Entry, *, not_before: int = 0) -> Entry | None:
        """Store `entry` in L3 alone; return what it holds now, an earlier one it may be, or None when nothing."""
        for l3 in self._only("l3"):
            return await l3.write(entry, self._replaced(not_before))
        return None

    def _replaced(self, not_before: int) -> Stale:
        """Return what makes room for a new value: what no rule leaves valid, or what is too old for the new one."""
        return lambda entry: begun_at(entry) < not_before or self._is_covered(entry)

    async def delete(self, key: str) -> tuple[str, ...]:
        """Remove `key` everywhere; return the tiers it was removed from (`where` tells which could not be asked).

        From the bottom up: once a tier has forgotten the key and copies begun before have ended, nothing puts the
        key back into the tier above.
        """
        removed = []
        for remote in reversed(self._remotes):
            if await remote.delete(key):
                removed.append(remote.tier)
            self._generation += 1
            await self._settled(task for task, of in self._background.items() if of == key)
        if self.forget(key):
            removed.append("l1")
        return tuple(reversed(removed))

    def forget(self, key: str) -> bool:
        """Drop `key` from this process's memory alone; True when it was there."""
        self._generation += 1
        for recent in self._recent.values():
            recent.forget(key)
        return self._l1 is not None and self._l1.delete_now(key)

    async def verified(self, key: str, ttl: float) -> bool:
        """Have L2 keep `key` for `ttl` seconds from now at least; False when it has not got it whole and still valid.

        Nothing is copied into this process' memory, and no tier counts it as a use.
        """
        if not await self.rules.ready():
            return False
        return any([await l2.verified(key, ttl, self._is_covered) for l2 in self._only("l2")])

    async def extend(self, key: str, ttl: float | None = None) -> bool:
        """Have L2 keep `key` for `ttl` seconds from now at least (None: as after a use); False when it has it not."""
        return any([await l2.extend(key, ttl) for l2 in self._only("l2")])

    def contains_now(self, key: str) -> bool:
        """Tell whether `key` is in this process's memory; that is no use of it, and counted nowhere."""
        return self._l1 is not None and self._l1.contains_now(key)

    async def where(self, key: str) -> dict[str, bool | None]:
        """Tell for each tier there is whether it has `key`; None when it could not be asked."""
        found = await asyncio.gather(*(remote.contains(key) for remote in self._remotes))
        here: dict[str, bool | None] = {} if self._l1 is None else {"l1": self._l1.contains_now(key)}
        return here | {remote.tier: has for remote, has in zip(self._remotes, found, strict=True)}

    async def location(self, key: str, disposition: str | None = None) -> str | None:
        """Return where a client finds the value in L3 by itself; None when it does not, or a tier above has it.

        disposition: the Content-Disposition that it is to find there.
        """
        if not any(l3.locates for l3 in self._only("l3")) or self.contains_now(key) or not await self.rules.ready():
            return None
        for remote in self._remotes:
            if remote.tier == "l3":
                return await remote.location(key, self._is_covered, disposition)
            if await remote.contains(key):
                return None
        return None

    def stats(self) -> dict[str, Any]:
        """Return per tier what was read and written with which result, since this process began."""
        stats: dict[str, Any] = {"kind": self.kind}
        if self._l1 is not None:
            counts = {"hit": self._l1_hits, "miss": self._l1_misses, "invalidated": self._l1_invalidated}
            stats["l1"] = counts | self._l1.stats()
        if self._bloom is not None:
            stats["filter"] = self._bloom.stats()
        return stats | {remote.tier: remote.stats() for remote in self._remotes}

    async def probe(self) -> None:
        """Ask every shared tier once, so that `broken` can tell how they are; raises nothing."""
        await asyncio.gather(*(remote.probe() for remote in self._remotes))

    def broken(self) -> list[dict[str, str]]:
        """Return which shared servers cannot be used, why, and in which words; see `Circuit.broken`."""
        found = {circuit.tier: circuit.broken for circuit in self._circuits}
        return [
            {"tier": tier, "reason": fault[0], "message": fault[1]}
            for tier, fault in found.items()
            if fault is not None
        ]

    async def aclose(self) -> None:
        """Wait for the background work, then close the tiers; closing twice is harmless."""
        await self._settled(self._background)
        if self._bloom is not None:
            await self._bloom.aclose()
        await asyncio.gather(*(remote.aclose() for remote in self._remotes))

    def _only(self, tier: str) -> list[RemoteTier]:
        """Return the shared tier of that name, or none."""
        return [remote for remote in self._remotes if remote.tier == tier]

    def _keep(self, entry: Entry) -> None:
        if self._l1 is None or self._is_covered(entry):
            return
        if not self._l1.set_now(entry.key, entry):
            self._telemetry.emit(TierWritten("l1", self.kind, "too_large", 0.0, entry.size))

    def _copy_up(self, entry: Entry, above: list[RemoteTier], below: list[RemoteTier]) -> None:
        if self._is_covered(entry):  # for this one caller, who asked before it was invalidated
            return
        self._keep(entry)
        for remote in above:
            self._spawn(entry.key, remote.write(entry, self._is_covered))
        self._touch(entry.key, below)
        self._used(entry.key)  # the tier that was read extended the value's life itself

    def _touch(self, key: str, remotes: list[RemoteTier]) -> None:
        for remote in remotes:
            recent = self._recent[remote.tier]
            if recent.due(key):
                begun = remote.circuit.reachable and self._spawn(key, self._extend(key, remote, recent))
                if not begun:
                    recent.forget(key)

    async def _extend(self, key: str, remote: RemoteTier, recent: Debounce) -> None:
        if not await remote.touch(key):
            recent.forget(key)  # not extended: the next hit tries again

    def _used(self, key: str) -> None:
        """Note that no tier need hear of a hit on `key` for a while."""
        for recent in self._recent.values():
            recent.due(key)

    def _spawn(self, key: str, work: Coroutine[Any, Any, object]) -> bool:
        """Do `work` behind the answer; False when it is left out."""
        if len(self._background) >= _BACKGROUND_TASKS:
            work.close()
            return False
        try:
            task = detached(work, traced=True)
        except RuntimeError:  # `get_now` outside a loop: nowhere to run it
            work.close()
            return False
        self._background[task] = key
        task.add_done_callback(lambda done: self._background.pop(done, None))
        return True

    async def _settled(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
