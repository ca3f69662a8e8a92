"""Keeps the rules of one process equal to those of all others, within a second, whatever is lost on the way.

Rules come by message at once and by a poll of the epoch twice a second; all of them only ever add up, so order and
repetition do not matter. Redis has them, an object in L3 mirrors them, every process remembers them: a Redis that comes
back empty, or without some, is given them again, and while it is away the object in L3 is what is polled. An
invalidation is acknowledged once either has it. Without shared tiers the memory of the processes is all there is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serve_app.cache.debounce import Debounce
from serve_app.cache.invalidation.object_rules import ObjectRules
from serve_app.cache.invalidation.redis_rules import Reading, RedisRules, TooMany
from serve_app.cache.invalidation.rules import MAX_RULES, MICROSECONDS, RuleBook
from serve_app.core import EVERYTHING, Rule, Selector
from serve_app.errors import TierError, Unavailable
from serve_app.tasks import detached, end

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
KEPT_SECONDS = 86_400.0
"""How long a rule lives at least: longer than any render or write that began before it."""
MIRROR_SECONDS = 30.0
"""How often the mirror is read again while all is well."""
NOTED_AGAIN_SECONDS = 3600.0
_PENDING = 10_000
_TOGETHER_SECONDS = 0.02
"""Messages that come within are one: each makes the process read all rules."""


@dataclass(eq=False, slots=True)
class _Batch:
    """Rules that the mirror gets in one write, and what became of it."""

    rules: set[Rule] = field(default_factory=set)
    written: bool | None = None


class RuleSync:
    """Syncs `book` with Redis and L3, either of which may be None; all methods belong to one event loop."""

    def __init__(
        self,
        book: RuleBook,
        redis: RedisRules | None = None,
        mirror: ObjectRules | None = None,
        *,
        poll_seconds: float = POLL_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.book = book
        book.load = self._load
        book.listen(self._learned)
        self.redis = redis
        if redis is not None:
            redis.heard_of = book.clock.heard_of
        self.epoch = 0
        self.swept: dict[str, int] = {}
        self._mirror = mirror
        self._poll_seconds = poll_seconds
        self._monotonic = monotonic
        self._version = ""
        self._away = True  # as long as nothing was heard of Redis
        self._mirrored_at: float | None = None
        self._syncing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._first_try = asyncio.Event()
        self._known = redis is None and mirror is None
        if self._known:
            self._first_try.set()
        self._task: asyncio.Task[None] | None = None
        self._noted = Debounce(NOTED_AGAIN_SECONDS, clock=monotonic)
        self._pending: dict[str, set[str]] = {}
        self._noting: asyncio.Task[None] | None = None
        self._adding = 0
        self._mirror_batch = _Batch()
        self._mirror_writes = asyncio.Lock()

    def start(self) -> None:
        """Begin to hear and poll, on the running event loop; doing so again is harmless."""
        if self._task is None and (self.redis or self._mirror):
            if self.redis is not None:
                self.redis.watch(self._wake.set)
            self._task = detached(self._run())

    async def add(self, kind: Selector, labels: Iterable[str], *, older_than: float = 0.0) -> tuple[Rule, ...]:
        """Make a rule for each label, as of now less `older_than` seconds; it holds here when this returns.

        Raises Unavailable when there are shared tiers and none could record it, and TooMany beyond MAX_RULES: nothing
        is changed then.
        """
        self.start()
        labels = tuple(labels)
        new = sum(label != EVERYTHING and label not in self.book.now.by_label for label in labels)
        if new and len(self.book) + self._adding + new > MAX_RULES:
            raise TooMany(len(self.book))
        self._adding += new  # the place is taken in the step that found it
        try:
            return await self._add(kind, labels, round(older_than * MICROSECONDS))
        finally:
            self._adding -= new

    async def _add(self, kind: Selector, labels: tuple[str, ...], age: int) -> tuple[Rule, ...]:
        await self._write_notes()
        made, recorded = await self._add_to_redis(kind, labels, age)
        if made is None:
            at = self.book.clock.now()
            made = tuple(Rule(kind, label, at - age, at) for label in labels)
        mirrored = await self._write_mirror(made)
        if not recorded and not mirrored and (self.redis or self._mirror):
            raise Unavailable("No storage can record the invalidation just now; try again.", retry_after=5)
        self.epoch = max(self.epoch, *(rule.at for rule in made))
        self.book.learn(made)
        return made

    def note(self, key: str, tags: Iterable[str]) -> None:
        """Remember in the background that the video with this label was asked for with tags of these labels."""
        new = [tag for tag in tags if self._noted.due(f"{tag}/{key}")]
        if self.redis is None or not new or sum(map(len, self._pending.values())) > _PENDING:
            return
        for tag in new:
            self._pending.setdefault(tag, set()).add(key)
        self.start()
        if self._noting is None or self._noting.done():
            self._noting = detached(self._write_notes())

    async def sync(self) -> bool:
        """Read what is new from Redis, from L3 where that is needed; False when neither could be read."""
        async with self._syncing:
            reading = await self._read_redis()
            was_away, self._away = self._away, reading is None
            if reading is not None and reading.version:
                self.book.learn(reading.rules or ())
                self._tried(known=True)
            if reading is None or was_away or not reading.version or self._mirror_is_due():
                mirrored = await self._read_mirror()
                self._tried(known=mirrored or reading is not None)
            if reading is not None:
                await self._settle(reading)
                await self._write_notes()
            return self._known

    def _tried(self, *, known: bool) -> None:
        """Let those go on who wait for the rules; what was known once stays so."""
        self._known = self._known or known
        self._first_try.set()

    async def refresh(self) -> None:
        """Read everything anew, what was swept meanwhile too."""
        self._version = ""
        await self.sync()

    async def sweep_ended(self, rules: Iterable[Rule], began: int) -> None:
        """Remember that all that these rules covered when a sweep began is deleted; raises TierError."""
        rules = tuple(rules)
        if self.redis is not None:
            await self.redis.swept(rules, began)
        self.swept |= {rule.label: began for rule in rules}

    async def retire(self, rules: Iterable[Rule]) -> None:
        """Forget, everywhere, rules that cover nothing any more; raises TierError."""
        rules = tuple(rules)
        if not rules:
            return
        if self.redis is not None:
            await self.redis.retire(rules)
        if self._mirror is not None:
            await self._mirror.write((), without=rules)
        self.book.retire(rules)

    async def aclose(self) -> None:
        """End the polling, write what is still to be noted, stop hearing."""
        if self._task is not None:
            await end(self._task)
        if self.redis is not None:
            await self._write_notes()
            await self.redis.aclose()

    async def _load(self) -> bool:
        self.start()
        await self._first_try.wait()
        return self._known

    def _learned(self, rules: tuple[Rule, ...]) -> None:
        """What was noted of a tag has been used up by its invalidation."""
        self._noted = Debounce(NOTED_AGAIN_SECONDS, clock=self._monotonic)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.sync()
            except Exception:
                logger.exception("a look for new invalidations failed")
            try:
                async with asyncio.timeout(self._poll_seconds):
                    await self._wake.wait()
                    await asyncio.sleep(_TOGETHER_SECONDS)
            except TimeoutError:
                pass

    async def _read_redis(self) -> Reading | None:
        if self.redis is None:
            return None
        try:
            reading = await self.redis.read("" if self._away else self._version)
        except TierError as error:
            logger.debug("rules: %s", error)
            return None
        self.book.clock.heard(reading.now)
        return reading

    async def _settle(self, reading: Reading) -> None:
        """Learn what Redis says, and tell it what it should: it was emptied, or lost some, or was away."""
        if reading.version and reading.rules is None:
            return
        held = frozenset(reading.rules or ())
        lost = {rule for rule in self.book if rule not in held}
        if reading.version:
            done = {rule for rule in lost if reading.now - rule.at >= KEPT_SECONDS * MICROSECONDS}
            self.book.retire(done)
            lost -= done
            self.swept = reading.swept or {}
            self._version, self.epoch = reading.version, int(reading.version.partition("/")[0])
        if self.redis is not None and (lost or not reading.version):
            await self._merge(self.redis, lost)
        if held:
            await self._write_mirror(held)

    async def _merge(self, redis: RedisRules, rules: Iterable[Rule]) -> None:
        try:
            await redis.merge(rules)
        except TierError as error:
            logger.debug("rules: %s", error)
            self._away = True  # look, and try, again at the next poll

    async def _add_to_redis(
        self, kind: Selector, labels: tuple[str, ...], age: int
    ) -> tuple[tuple[Rule, ...] | None, bool]:
        if self.redis is None:
            return None, False
        try:
            tag = {"tag": labels[0]} if kind == "tag" else {}
            added = await self.redis.add(kind, labels, older_than=age, **tag)
        except TierError as error:
            logger.debug("rules: %s", error)
            return None, False
        own = tuple(Rule(kind, label, added.now - age, added.now) for label in labels)
        return tuple(dict.fromkeys((*own, *added.rules))), True

    def _mirror_is_due(self) -> bool:
        return self._mirrored_at is None or self._monotonic() - self._mirrored_at >= MIRROR_SECONDS

    async def _read_mirror(self) -> bool:
        """Learn what the mirror says, and write into it what it lacks; False when it cannot be read."""
        if self._mirror is None:
            return False
        try:
            held = await self._mirror.read()
        except TierError as error:
            logger.debug("rules: %s", error)
            return False
        self._mirrored_at = self._monotonic()
        self.book.learn(held)
        if any(rule not in held for rule in self.book):
            await self._write_mirror(self.book)
        return True

    async def _write_mirror(self, rules: Iterable[Rule]) -> bool:
        """Write rules together with those of all who ask for it meanwhile: each write is of the whole object."""
        if self._mirror is None:
            return False
        batch = self._mirror_batch
        batch.rules.update(rules)
        async with self._mirror_writes:
            if batch.written is None:
                if batch is self._mirror_batch:
                    self._mirror_batch = _Batch()
                batch.written = await self._written(self._mirror, frozenset(batch.rules))
        return batch.written

    async def _written(self, mirror: ObjectRules, rules: frozenset[Rule]) -> bool:
        try:
            await mirror.write(rules)
        except TierError as error:
            logger.debug("rules: %s", error)
            self._mirrored_at = None
            return False
        return True

    async def _write_notes(self) -> None:
        if self.redis is None or not self._pending:
            return
        pending, self._pending = self._pending, {}
        try:
            await self.redis.note(pending)
        except TierError as error:
            logger.debug("tags: %s", error)
            for tag, keys in pending.items():
                self._pending.setdefault(tag, set()).update(keys)
