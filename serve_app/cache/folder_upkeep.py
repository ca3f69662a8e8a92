"""A folder looked after: temporary files, files that are nobody's, and the index that must agree with the files."""

from __future__ import annotations

from functools import partial

from serve_app.cache.folder import FolderStore
from serve_app.cache.folder_book import Gone
from serve_app.cache.upkeep import Collected, Problem, Show


class FolderUpkeep:
    """The Upkeep of a FolderStore; beside a running server it takes turns with it, as processes do."""

    def __init__(self, store: FolderStore) -> None:
        self.store = store

    async def inspect(self, name: str) -> bytes | None:
        """Return the stored bytes without counting a use."""
        return await self.store.inspect(name)

    async def collect(self, max_bytes: int | None, *, dry_run: bool, show: Show) -> Collected:
        """Evict as a write would, and remove the temporary files of writers that are gone."""
        run, files, index = self.store.in_thread, self.store.files, self.store.index
        left = await run(files.leftovers if dry_run else files.sweep)
        leftovers = Gone(len(left), sum(size for _, size in left))
        values, held = await run(index.size)
        evicted = Gone()
        if max_bytes is not None and dry_run:
            evicted = await run(partial(index.would_evict, max_bytes))
        elif max_bytes is not None:
            excess = max(0, held - max_bytes)
            while (page := await run(partial(index.evict, max_bytes))).count:
                evicted += page
                show("evicting", min(evicted.bytes, excess), excess)
            values, held = await run(index.size)
        return Collected(values, held, evicted, leftovers)

    async def disorder(self) -> list[Problem]:
        """Return leftovers, strays, and where index and files disagree."""
        run, files = self.store.in_thread, self.store.files
        differences = await run(self.store.index.differences)
        told = {
            "a temporary file of a writer that is gone": [path for path, _ in await run(files.leftovers)],
            "no value's file": await run(files.strays),
            "not in the index": differences.unlisted,
            "in the index without a file": differences.vanished,
            "in the index with another size": differences.resized,
        }
        return [Problem(str(where), what) for what, places in told.items() for where in places]

    async def tidy(self) -> None:
        """Remove leftovers and strays, and set the index right; frequencies stay."""
        run, files = self.store.in_thread, self.store.files
        await run(files.sweep)
        for path in await run(files.strays):
            await run(partial(path.unlink, missing_ok=True))
        differences = await run(self.store.index.differences)
        await run(partial(self.store.index.reconcile, differences.resized))

    async def reindex(self, show: Show) -> int:
        """Make the index anew; how often values were used is forgotten."""
        return await self.store.in_thread(partial(self.store.index.rebuild, partial(show, "measuring")))
