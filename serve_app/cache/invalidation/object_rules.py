"""The rules of invalidations as one object of L3, so that they outlive a Redis that loses what it holds.

The stores are write-once, so a change is a deletion and a new object: whole or not there. Two who change it at a time
may lose each other's rule for a moment; every process that knows a rule the object lacks writes it again, so nothing is
lost unless all of them, and Redis, die in that moment. Taking in rules never takes any away.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import astuple
from typing import get_args

from serve_app.cache.circuit import Circuit
from serve_app.cache.envelope import Envelope
from serve_app.cache.invalidation.rules import provenance, uncovered
from serve_app.cache.storage_name import storage_name
from serve_app.cache.store import ObjectStore
from serve_app.core import Entry, Rule, Selector
from serve_app.errors import CorruptEntry, TierError

logger = logging.getLogger(__name__)

_KEY = "rules"
_TRIES = 8
_FOREVER = 2**62
"""Begun later than anything: no rule covers the rules."""
_WORTH = 1e9
"""Seconds of work, as eviction counts: no video is worth more."""


class ObjectRules:
    """The rules in `store`; every method raises TierError when it cannot be reached.

    circuit: that of the store, shared with whatever else asks it.
    """

    def __init__(self, store: ObjectStore, *, secret: bytes, circuit: Circuit | None = None) -> None:
        self._store = store
        self._circuit = circuit or Circuit("l3")
        self._envelope = Envelope(secret)
        self._name = storage_name(secret, "rules", _KEY)

    async def read(self) -> frozenset[Rule]:
        """Return the rules that are there; what cannot be read is none, and makes way for what is written next."""
        with self._circuit.attempt():
            frame = await self._store.get(self._name)
        if frame is None:
            return frozenset()
        try:
            return _rules(self._envelope.unpack(self._name, _KEY, frame).data)
        except CorruptEntry as error:
            logger.warning("the mirrored invalidations cannot be read: %s", error)
            await self._store.delete(self._name)
            return frozenset()

    async def write(self, rules: Iterable[Rule], *, without: Iterable[Rule] = ()) -> None:
        """Add `rules` to what is there, less `without`."""
        gone = frozenset(without)
        for _ in range(_TRIES):
            held = await self.read()
            wanted = _newest(held.union(rules)) - gone
            if held == wanted:
                return
            if held:
                await self._store.delete(self._name)
            meta = provenance(_FOREVER, ()) | {"cost_seconds": _WORTH}
            frame = self._envelope.pack(
                self._name, Entry.of(_KEY, json.dumps(sorted(map(astuple, wanted))).encode(), meta)
            )
            if not wanted or await self._store.put(self._name, frame) is frame:
                return
        raise TierError("The mirrored invalidations are being written by too many at a time.")


def _rules(data: bytes) -> frozenset[Rule]:
    """Return the rules of the object's bytes; raises CorruptEntry for what is none."""
    try:
        rules = frozenset(Rule(*each) for each in json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptEntry(f"These are no rules: {type(error).__name__}.") from error
    for rule in rules:
        times = type(rule.before) is int and type(rule.at) is int
        if not (times and isinstance(rule.label, str) and rule.kind in get_args(Selector)):
            raise CorruptEntry("One of the rules is none.")
    return rules


def _newest(rules: Iterable[Rule]) -> frozenset[Rule]:
    """Return of each label the rule that says most."""
    newest: dict[str, Rule] = {}
    for rule in sorted(rules, key=lambda rule: rule.before):
        newest[rule.label] = rule
    return frozenset(uncovered(newest).values())
