"""The policies of `benchmarks/eviction.py`: Encore's own object, a naive LRU, and those of libcachesim.

A policy is made for a number of objects and is asked once per request whether it holds the object; it takes what it
does not hold. Every object counts one, because traces of generation services tell no sizes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from serve_app.cache.objects.gdsf import GHOSTS_PER_VALUE, POWER, Gdsf

Ask = Callable[[int, float, int], bool]
"""Whether the object is held, given its number, its seconds and the place of its next use (Belady alone looks)."""


def lru(objects: int) -> Ask:
    """Naive: the one used longest ago goes."""
    held: OrderedDict[int, None] = OrderedDict()

    def ask(number: int, seconds: float, next_use: int) -> bool:
        hit = number in held
        held[number] = None
        held.move_to_end(number)
        if len(held) > objects:
            held.popitem(last=False)
        return hit

    return ask


def gdsf(objects: int, *, power: float = POWER, ghosts_per_value: float = GHOSTS_PER_VALUE) -> Ask:
    """Encore's policy object, the one that `FolderStore`'s index keeps the books of."""
    policy = Gdsf(objects, power=power, ghosts_per_value=ghosts_per_value)

    def ask(number: int, seconds: float, next_use: int) -> bool:
        name = str(number)
        if policy.use(name):
            return True
        policy.add(name, 1, seconds)
        return False

    return ask


def plain_gdsf(objects: int) -> Ask:
    """Cherkasova's, without a power and without memory of what was evicted."""
    return gdsf(objects, power=1.0, ghosts_per_value=0)


def _simulated(make: Callable[[Any, int], Any]) -> Callable[[int], Ask]:
    """Return a policy of libcachesim; its window and queues get one object at least."""

    def policy(objects: int) -> Ask:
        import libcachesim

        cache = make(libcachesim, objects)
        request = libcachesim.Request(obj_size=1)

        def ask(number: int, seconds: float, next_use: int) -> bool:
            request.obj_id, request.next_access_vtime = number, next_use
            return bool(cache.get(request))

        return ask

    return policy


POLICIES: dict[str, Callable[[int], Ask]] = {
    "LRU": lru,
    "GDSF": gdsf,
    "plain GDSF": plain_gdsf,
    "SIEVE": _simulated(lambda simulator, objects: simulator.Sieve(objects)),
    "S3-FIFO": _simulated(lambda simulator, objects: simulator.S3FIFO(objects)),
    "W-TinyLFU": _simulated(
        lambda simulator, objects: simulator.WTinyLFU(objects, window_size=max(0.01, 1.5 / objects))
    ),
    "Belady": _simulated(lambda simulator, objects: simulator.Belady(objects)),
}
