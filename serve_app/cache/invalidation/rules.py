"""What no longer counts: the rules of invalidations in force, and whether one covers a stored value.

Deleting alone does not invalidate: a paused writer or a running render would bring the value back, and no index has
all names of "everything with this tag". So an invalidation is a rule, and every value says in its metadata what rules
need: when it was begun and, as HMACs under the deployment's secret, by what it may be chosen. A reader of a covered
value treats it as not there. Rules are few: of one label only the newest counts, one that says everything takes the
place of all that it covers, there are at most MAX_RULES, and a day later, when everything covered is deleted, a rule is
retired. Nothing here does I/O; `sync` brings the rules to every process.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from serve_app.cache.storage_name import Kind, storage_name
from serve_app.core import EVERYTHING, Entry, Rule, Selector

MICROSECONDS = 1_000_000
MAX_RULES = 1_000
"""That clients may have in force at a time; the videos of an invalidated tag may be more. All are read, by every
process, whenever one is made."""

Listener = Callable[[tuple[Rule, ...]], None]


class Labels:
    """What values are chosen by: HMACs under `secret`; a key's is the name that its value is stored under."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of(self, kind: Selector, *values: str) -> str:
        """Return the label of, for instance, a prompt of any model, or a prompt of one (the values in this order)."""
        if kind == "everything":
            return EVERYTHING
        if kind == "key":
            return self.of_value("video", values[0])
        text = "\0".join((f"label:{kind}", *values)).encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()

    def of_value(self, kind: Kind, key: str) -> str:
        """Return the label that only the value of `key` has."""
        return storage_name(self._secret, kind, key)

    def of_video(
        self, key: str, prompt: str, model: str, fingerprints: Iterable[str], tags: Iterable[str]
    ) -> tuple[str, ...]:
        """Return all labels of a video and of what it was made from; `prompt` is the normalised one."""
        return (
            self.of("key", key),
            self.of("prompt", prompt),
            self.of("prompt", prompt, model),
            self.of("model", model),
            *(self.of("fingerprint", each) for each in fingerprints),
            *(self.of("tag", each) for each in tags),
        )

    def of_entry(self, own: str, entry: Entry) -> frozenset[str]:
        """Return the labels of an entry stored under the name `own`."""
        given = entry.meta.get("labels")
        return frozenset((own, *given)) if isinstance(given, list | tuple) else frozenset((own,))


def begun_at(entry: Entry) -> int:
    """Return when the value's making began, microseconds; 0, before every rule, when it does not say."""
    begun, created = entry.meta.get("begun_at"), entry.meta.get("created_at")
    if isinstance(begun, int):
        return begun
    return round(created * MICROSECONDS) if isinstance(created, float) else 0


def provenance(begun: int, labels: Iterable[str]) -> dict[str, Any]:
    """Return the part of an entry's metadata that rules are matched with."""
    return {"begun_at": begun, "labels": list(labels)}


STEP = MICROSECONDS
"""By how much the shared clock must be behind what it said before to be taken for one that was set back."""


def says_more(rule: Rule, known: Rule | None) -> bool:
    """Tell whether `rule` covers more than one that is known of the same label, or of everything."""
    return known is None or known.before < rule.before


def uncovered(by_label: Mapping[str, Rule]) -> dict[str, Rule]:
    """Return `by_label` without the rules that the one of everything makes superfluous."""
    everything = by_label.get(EVERYTHING)
    if everything is None:
        return dict(by_label)
    return {label: rule for label, rule in by_label.items() if label == EVERYTHING or says_more(rule, everything)}


class SharedClock:
    """The time that tokens are made of, as far as this process knows: never later than it is there.

    A server's clock that is set back is not followed: what begins after an invalidation must have the later time (after
    the hybrid logical clocks of S. Kulkarni et al., 2014). Every message that has a time in it, and every token that is
    asked for, carries this clock on to the others.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead: float | None = None
        self._own = wall() - monotonic()

    def heard(self, now: int) -> None:
        """Note what the shared clock said a moment ago, microseconds."""
        ahead = now - self._monotonic() * MICROSECONDS
        if self._ahead is None or ahead > self._ahead - STEP:
            self._ahead = ahead

    def heard_of(self) -> int:
        """Return the time as `now` does, 0 as long as nothing was heard."""
        return 0 if self._ahead is None else self.now()

    def now(self) -> int:
        """Return microseconds; by this process' own clock, without its steps, as long as nothing was heard."""
        if self._ahead is None:
            return round((self._monotonic() + self._own) * MICROSECONDS)
        return round(self._monotonic() * MICROSECONDS + self._ahead)


class Rules:
    """The rules that were known at one moment; later ones do not change it. `by_label` has one rule of each label."""

    def __init__(self, labels: Labels, by_label: Mapping[str, Rule]) -> None:
        self.by_label = by_label
        self._labels = labels
        self._newest = max((rule.before for rule in by_label.values()), default=0)

    def not_before(self, labels: Iterable[str]) -> int:
        """Return since when what is made for a request with these labels must have been begun; 0: no rule says.

        Tags are no part of it: what was made without a tag is not covered by its invalidation because a later
        request has the tag.
        """
        return max((rule.before for rule in self._about(labels) if rule.kind != "tag"), default=0)

    def covers(self, kind: Kind, entry: Entry) -> bool:
        """Tell whether a rule says that `entry` does not count; labels are read only where a rule is younger."""
        return begun_at(entry) < self._newest and self.covers_named(self._labels.of_value(kind, entry.key), entry)

    def covers_named(self, name: str, entry: Entry) -> bool:
        """Tell the same of an entry of any kind, by the name it is stored under; its value need not be there."""
        begun = begun_at(entry)
        return any(begun < rule.before for rule in self._about(self._labels.of_entry(name, entry)))

    def _about(self, labels: Iterable[str]) -> Iterator[Rule]:
        if self.by_label:
            yield from (self.by_label[each] for each in {EVERYTHING, *labels} if each in self.by_label)


class RuleBook:
    """The rules that this process knows. It belongs to one event loop; `learn` takes effect before it returns.

    now: those of this moment, to be kept by who asked in it. load: awaited before the first value from a shared tier is
    believed; tells whether the rules are known now.
    """

    def __init__(self, labels: Labels, *, clock: SharedClock | None = None) -> None:
        self.labels = labels
        self.clock = clock or SharedClock()
        self.load: Callable[[], Awaitable[bool]] | None = None
        self.now = Rules(labels, {})
        self._loaded = False
        self._listeners: list[Listener] = []

    def __len__(self) -> int:
        return len(self.now.by_label)

    def __iter__(self) -> Iterator[Rule]:
        return iter(tuple(self.now.by_label.values()))

    def listen(self, listener: Listener) -> None:
        """Call `listener` with rules that are new, at once and before anything else can happen in this process."""
        self._listeners.append(listener)

    def learn(self, rules: Iterable[Rule]) -> tuple[Rule, ...]:
        """Take in rules from anywhere, in any order, any number of times; return those that say something new."""
        known = dict(self.now.by_label)
        new = []
        for rule in rules:
            if says_more(rule, known.get(rule.label)) and says_more(rule, known.get(EVERYTHING)):
                known[rule.label] = rule
                new.append(rule)
        if new:
            known = uncovered(known)
            self.now = Rules(self.labels, known)
            for listener in self._listeners:
                listener(tuple(new))
        return tuple(new)

    def retire(self, rules: Iterable[Rule]) -> None:
        """Forget rules that nothing is covered by any more; a newer one of the same label stays."""
        gone = set(rules)
        self.now = Rules(self.labels, {label: rule for label, rule in self.now.by_label.items() if rule not in gone})

    async def ready(self) -> bool:
        """Tell whether the rules are known, after trying to load them if they are not."""
        if not self._loaded and self.load is not None:
            self._loaded = await self.load()
            return self._loaded
        return True

    def not_before(self, labels: Iterable[str]) -> int:
        """Return what `Rules.not_before` says now."""
        return self.now.not_before(labels)

    def covers(self, kind: Kind, entry: Entry) -> bool:
        """Return what `Rules.covers` says now."""
        return self.now.covers(kind, entry)

    def concerning(self, labels: Iterable[str]) -> tuple[Rule, ...]:
        """Return what others must know who make or look up a value with these labels, or parts of it.

        All tags too: what it could be made from may have them.
        """
        own = {EVERYTHING, *labels}
        return tuple(rule for rule in self if rule.kind == "tag" or rule.label in own)
