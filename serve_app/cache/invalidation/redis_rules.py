"""The rules of invalidations in Redis: a hash, an epoch that every change moves on, and a message that says so.

A process that hears the message reads at once; one that missed it finds another epoch at the next poll, which is one
small script. The epoch follows Redis' clock, so one that was emptied never repeats a known epoch. Beside
the rules stand, per tag, the names of videos that were asked for with it after they had been made without. They lie
beside the values, because what they are compared with are times of that server's clock; nothing has a TTL, which an
eviction policy could use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from serve_app.cache.invalidation.rules import MAX_RULES
from serve_app.cache.redis.lease import Lease
from serve_app.cache.redis.pubsub import Subscriptions
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.redis.script import Script, milliseconds, now_of
from serve_app.cache.storage_name import record_name
from serve_app.core import EVERYTHING, Rule, Selector
from serve_app.errors import Conflict

_ADD, _READ, _RETIRE = (Script(f"rules_{verb}", "rules_clock") for verb in ("add", "read", "retire"))
_NOTE, _SWEEP = Script("rules_note"), Script("rules_sweep")
TAG_SECONDS = 30 * 86_400
"""How long it is remembered that a video was asked for with a tag, since the last such request."""
_AT_ONCE = 500
"""Rules in one script: while it runs no other client is served."""
_NO_TAG = "none"


class TooMany(Conflict):
    """There are as many invalidations in force as there may be."""

    code = "too_many_invalidations"

    def __init__(self, count: int) -> None:
        super().__init__(
            f"{count:,} invalidations are in force, and there may be {MAX_RULES:,}; each ends a day after it was made. "
            "Choose more at once: by 'tag', 'model' or 'fingerprint', or with 'older_than_seconds': 0 everything, "
            "which takes the place of all others."
        )
        self.count = count

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling between Ray processes."""
        return TooMany, (self.count,)


@dataclass(frozen=True, slots=True)
class Added:
    """What an addition changed: the epoch since, and the rules that are new, those of a tag's videos too."""

    epoch: int
    now: int
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What Redis says: `version` is '' when it knows of no rules; `rules` None when they are as they were.

    swept: by label, when the last sweep that ended had begun. Times in microseconds.
    """

    version: str
    now: int
    rules: tuple[Rule, ...] | None = None
    swept: dict[str, int] | None = None


class RedisRules:
    """The rules over an L2; `redis` belongs to the caller, which closes it. Every method raises TierError.

    clock: for tests, Unix seconds instead of the server's own time. Polls keep to the server's circuit; a change that
    an operator asks for is tried in any case.
    """

    def __init__(
        self,
        redis: RedisTier,
        *,
        secret: bytes,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._circuit = redis.circuit
        self._subscriptions = Subscriptions(redis.new_client, lambda: self._circuit.answers)
        names = ("rules", "epoch", "swept", "sweeper", "news", "tags", "clock")
        self._secret = secret
        self._rules, self._epoch, self._swept, self._sweeper, self._channel, self._tags, self._now = map(
            self._name, names
        )
        self.heard_of: Callable[[], int] = lambda: 0
        """The time by all that this process has heard of, which no time that Redis gives it is before."""

    async def add(self, kind: Selector, labels: Iterable[str], *, older_than: int = 0, tag: str = _NO_TAG) -> Added:
        """Make a rule for each label, as of now less `older_than` microseconds; raises TooMany beyond MAX_RULES.

        tag: the label of a tag; the videos that were asked for with it get rules of their own.
        """
        fields = [part for label in labels for part in (label, kind, "", str(older_than))]
        added, left = await self._add(fields, tag, most=MAX_RULES)
        while left:
            more, left = await self._add((), tag)
            added = Added(more.epoch, added.now, (*added.rules, *more.rules))
        return added

    async def merge(self, rules: Iterable[Rule]) -> Added:
        """Bring rules that were made elsewhere."""
        rules = tuple(rules)
        added, _ = await self._add((), _NO_TAG)
        for first in range(0, len(rules), _AT_ONCE):
            fields = [part for rule in rules[first : first + _AT_ONCE] for part in _fields(rule)]
            more, _ = await self._add(fields, _NO_TAG)
            added = Added(more.epoch, more.now, (*added.rules, *more.rules))
        return added

    async def read(self, version: str) -> Reading:
        """Return what has changed since `version`."""
        with self._circuit.attempt():
            answer = await self._redis.run(
                _READ,
                [self._rules, self._epoch, self._swept, self._now],
                [now_of(self._clock), version, self.heard_of()],
            )
        found, now = answer[0].decode(), int(answer[1])
        if len(answer) == 2:
            return Reading(found, now)
        rules = (_rule(label, *value.split()) for label, value in _pairs(answer[2]))
        return Reading(found, now, tuple(rules), {label.decode(): int(at) for label, at in _pairs(answer[3])})

    async def note(self, tags: dict[str, set[str]]) -> None:
        """Remember, by the label of each tag, the labels of keys that were asked for with it."""
        for tag, keys in tags.items():
            for first in range(0, len(keys), _AT_ONCE):
                labels = sorted(keys)[first : first + _AT_ONCE]
                names = [self._name(f"tag:{tag}"), self._tags]
                with self._circuit.attempt():
                    await self._redis.run(_NOTE, names, [now_of(self._clock), *labels])

    async def sweep(self) -> int:
        """Forget tags that no request had for TAG_SECONDS; return how many."""
        oldest: list[bytes] = await self._ask(lambda redis: redis.zrange(self._tags, 0, _AT_ONCE - 1))
        if not oldest:
            return 0
        names = [self._tags, *(name.decode() for name in oldest)]
        with self._circuit.attempt():
            return int(await self._redis.run(_SWEEP, names, (now_of(self._clock), milliseconds(TAG_SECONDS))))

    def lease(self, seconds: float) -> Lease:
        """Return the lease of who sweeps."""
        return Lease(self._redis, self._sweeper, seconds=seconds)

    async def swept(self, rules: Iterable[Rule], began: int) -> None:
        """Say that a sweep which began then has ended."""
        ended = [part for rule in rules for part in (rule.label, str(began))]
        if ended:
            await self._ask(lambda redis: redis.hset(self._swept, items=ended))

    async def retire(self, rules: Iterable[Rule]) -> None:
        """Forget rules that cover nothing any more."""
        fields = [part for rule in rules for part in (rule.label, f"{rule.kind} {rule.before} {rule.at}")]
        if fields:
            keys = [self._rules, self._epoch, self._swept, self._now]
            await self._redis.run(_RETIRE, keys, [now_of(self._clock), self._channel, *fields])

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` when a message says that rules changed; messages may be lost."""
        self._subscriptions.subscribe(self._channel, lambda _: changed())

    async def aclose(self) -> None:
        """Stop hearing."""
        await self._subscriptions.aclose()

    async def _add(self, fields: Sequence[str], tag: str, *, most: int | None = None) -> tuple[Added, int]:
        """Return what was added, and how many videos of the tag are left to be."""
        keys = [self._rules, self._epoch, self._name(f"tag:{tag}"), self._now, self._swept]
        bound = "" if most is None else str(most)
        args: list[bytes | str | float] = [now_of(self._clock), self._channel, self.heard_of(), bound, EVERYTHING]
        answer = await self._redis.run(_ADD, keys, [*args, *fields])
        if len(answer) == 1:
            raise TooMany(int(answer[0]))
        epoch, now, added, left = answer
        rules = tuple(_rule(*added[first : first + 4]) for first in range(0, len(added), 4))
        return Added(int(epoch), int(now), rules), int(left)

    async def _ask(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        with self._circuit.attempt():
            return await self._redis.ask(call)

    def _name(self, part: str) -> str:
        return record_name(self._secret, "rules", part)


def _fields(rule: Rule) -> tuple[str, str, str, str]:
    return rule.label, rule.kind, str(rule.before), str(rule.at)


def _rule(label: bytes, kind: bytes, before: bytes, at: bytes) -> Rule:
    return Rule(cast(Selector, kind.decode()), label.decode(), int(before), int(at))


def _pairs(flat: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
