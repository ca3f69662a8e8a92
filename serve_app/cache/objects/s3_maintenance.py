"""An S3 store looked after: it evicts nothing by itself, so a collection plays its writes through the policy.

The objects are taken in the order they were written, each with its bytes and the seconds it says it saves, as if the
store had been bounded all along: what `Gdsf` would have let go is deleted, what it would hold stays. S3 counts no uses,
so frequency is 1 for all. Nothing but the listing is read of a store that is within the bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from serve_app.cache.objects.folder_rows import Gone
from serve_app.cache.objects.gdsf import Gdsf
from serve_app.cache.objects.maintenance import Collected, Problem, Show, in_pages
from serve_app.cache.objects.quarantine import is_older
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.objects.saved_seconds import MOST_SECONDS, UNKNOWN_SECONDS


@dataclass(slots=True)
class _Value:
    written_at: datetime
    bytes: int


class S3Maintenance:
    """The Maintenance of an S3Store; plain copies are part of their videos, and leftovers without them."""

    def __init__(self, store: S3Store) -> None:
        self.store = store

    async def inspect(self, name: str) -> bytes | None:
        """Return the stored bytes."""
        return await self.store.get(name)

    async def collect(self, max_bytes: int | None, *, dry_run: bool, show: Show) -> Collected:
        """Delete copies without a video, and what the policy would have evicted on the way to `max_bytes`."""
        values, orphans = await self._listed()
        held = sum(value.bytes for value in values.values())
        victims = await self._victims(values, max_bytes, show) if max_bytes is not None and held > max_bytes else []
        evicted = Gone(len(victims), sum(values[name].bytes for name in victims))
        leftovers = Gone(len(orphans), sum(orphans.values()))
        if not dry_run:
            await in_pages(victims, self.store.delete, lambda done: show("evicting", done, len(victims)))
            await in_pages(list(orphans), self.store.delete_plain, lambda done: show("leftovers", done, len(orphans)))
            return Collected(len(values) - evicted.count, held - evicted.bytes, evicted, leftovers)
        return Collected(len(values), held, evicted, leftovers)

    async def disorder(self) -> list[Problem]:
        """Return plain copies without a video, and those that are not what was made of it."""
        values, orphans = await self._listed()
        problems = [Problem(name, "a plain copy without its video") for name in orphans]
        copies = [each.name async for each in self.store.listed(plain=True) if each.name in values]

        async def look(name: str) -> None:
            told = await self.store.metadata(name)
            if told is not None and await self.store.location(name, told.get("digest", "")) is None:
                problems.append(Problem(name, "a plain copy that is not what was made of its video"))

        if self.store.locates:
            await in_pages(copies, look, lambda done: None)
        return problems

    async def tidy(self, batch: str) -> list[Problem]:
        """Move the plain copies that `disorder` tells to the quarantine."""
        problems = await self.disorder()

        async def move(name: str) -> None:
            await self.store.set_aside(name, batch, plain=True)

        await in_pages([problem.where for problem in problems], move, lambda done: None)
        return [replace(problem, action="quarantined") for problem in problems]

    async def quarantine(self, name: str, batch: str) -> bool:
        """Move a value and its plain copy to the quarantine."""
        return await self.store.set_aside(name, batch)

    async def quarantined(self) -> Gone:
        """Return how many objects lie in quarantine, and their bytes."""
        sizes = [size async for _, _, size in self.store.quarantined()]
        return Gone(len(sizes), sum(sizes))

    async def empty_quarantine(self, older_than_days: float, *, dry_run: bool) -> Gone:
        """Delete the objects of batches that are so old."""
        old = [(key, size) async for batch, key, size in self.store.quarantined() if is_older(batch, older_than_days)]
        if not dry_run:
            await in_pages([key for key, _ in old], self.store.delete_quarantined, lambda done: None)
        return Gone(len(old), sum(size for _, size in old))

    async def reindex(self, show: Show) -> None:
        """There is no index: objects tell what they are."""

    async def _listed(self) -> tuple[dict[str, _Value], dict[str, int]]:
        """Return the values with the bytes of their copies, and the bytes of copies without a value."""
        values = {each.name: _Value(each.written_at, each.bytes) async for each in self.store.listed()}
        orphans: dict[str, int] = {}
        async for copy in self.store.listed(plain=True):
            if copy.name in values:
                values[copy.name].bytes += copy.bytes
            else:
                orphans[copy.name] = copy.bytes
        return values, orphans

    async def _victims(self, values: dict[str, _Value], max_bytes: int, show: Show) -> list[str]:
        names = sorted(values, key=lambda name: (values[name].written_at, name))
        costs: dict[str, float] = {}

        async def weigh(name: str) -> None:
            costs[name] = _seconds(await self.store.metadata(name))

        await in_pages(names, weigh, lambda done: show("weighing", done, len(names)))
        policy, victims = Gdsf(max_bytes), []
        for name in names:
            if values[name].bytes > max_bytes:
                victims.append(name)
            else:
                victims += policy.add(name, values[name].bytes, costs[name])
        return victims


def _seconds(metadata: dict[str, str] | None) -> float:
    try:
        return min(MOST_SECONDS, max(0.0, float((metadata or {})["cost-seconds"])))
    except (KeyError, ValueError):
        return UNKNOWN_SECONDS
