"""A folder looked after: temporary files, files without an owner, and the index that must agree with the files."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.objects.folder_index import Differences
from serve_app.cache.objects.folder_rows import Gone
from serve_app.cache.objects.maintenance import Collected, Problem, Show
from serve_app.cache.objects.quarantine import is_older


class FolderMaintenance:
    """The Maintenance of a FolderStore; beside a running server it takes turns with it, as processes do."""

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

    async def quarantine(self, name: str, batch: str) -> bool:
        """Move a value's file to the quarantine, and strike it from the index."""
        files = self.store.files

        def aside(name: str) -> bool:
            try:
                files.set_aside(files.path(name), batch)
            except FileNotFoundError:
                return False
            return True

        return await self.store.in_thread(partial(self.store.index.delete, name, aside))

    async def quarantined(self) -> Gone:
        """Return how many files lie in quarantine, and their bytes."""
        files = await self.store.in_thread(self.store.files.quarantined)
        return Gone(len(files), sum(size for _, _, size in files))

    async def empty_quarantine(self, older_than_days: float, *, dry_run: bool) -> Gone:
        """Delete the files of batches that are so old."""
        gone = Gone()
        for batch, path, size in await self.store.in_thread(self.store.files.quarantined):
            if is_older(batch, older_than_days):
                gone += Gone(1, size)
                if not dry_run:
                    await self.store.in_thread(partial(path.unlink, missing_ok=True))
        return gone

    async def disorder(self) -> list[Problem]:
        """Return leftovers, strays, and where index and files disagree."""
        run, files = self.store.in_thread, self.store.files
        differences = await run(self.store.index.differences)
        leftovers = [path for path, _ in await run(files.leftovers)]
        return _told(leftovers, await run(files.strays), differences)

    async def tidy(self, batch: str) -> list[Problem]:
        """Remove leftovers, move strays to the quarantine, and set the index right; frequencies stay."""
        run, files = self.store.in_thread, self.store.files
        leftovers, strays = [path for path, _ in await run(files.sweep)], await run(files.strays)
        for path in strays:
            await run(partial(files.set_aside, path, batch))
        differences = await run(self.store.index.differences)
        await run(partial(self.store.index.reconcile, differences.resized))
        return _told(leftovers, strays, differences, "deleted", "quarantined", "repaired")

    async def reindex(self, show: Show) -> int:
        """Make the index anew; how often values were used is forgotten."""
        return await self.store.in_thread(partial(self.store.index.rebuild, partial(show, "measuring")))


def _told(
    leftovers: Iterable[Path],
    strays: Iterable[Path],
    differences: Differences,
    removed: str = "",
    moved: str = "",
    entered: str = "",
) -> list[Problem]:
    told: list[tuple[str, Iterable[object], str]] = [
        ("a temporary file of a writer that is gone", leftovers, removed),
        ("no value's file", strays, moved),
        ("not in the index", differences.unlisted, entered),
        ("in the index without a file", differences.vanished, entered),
        ("in the index with another size", differences.resized, entered),
    ]
    return [Problem(str(where), what, action) for what, places, action in told for where in places]
