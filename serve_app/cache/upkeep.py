"""Looking after an L3 by hand: collect what is too much, check that everything there is what it says.

Both may run beside a server and may be interrupted at any moment: each step is one that the server takes too. What a
kind of store has beside its values (an index, temporary files, plain copies) is an `Upkeep`'s business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, get_args

from serve_app.cache.entry import read_header, unpack
from serve_app.cache.folder_book import Gone
from serve_app.cache.name import Kind, storage_name
from serve_app.cache.store import ObjectStore
from serve_app.errors import CorruptEntry

Show = Callable[[str, int, int], None]
"""Told the part of the work, how many steps of it are done, and how many there are."""
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection found or left (`values`, `bytes`), and what it removed or, in a dry run, would have."""

    values: int
    bytes: int
    evicted: Gone = field(default_factory=Gone)
    leftovers: Gone = field(default_factory=Gone)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be: a name or a path, and what is wrong with it."""

    where: str
    what: str
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """How many values were looked at, and what was wrong."""

    values: int
    problems: tuple[Problem, ...]


class Upkeep(Protocol):
    """What is particular to one kind of store. Every method may raise TierError."""

    @property
    def store(self) -> ObjectStore:
        """What is looked after."""
        ...

    async def inspect(self, name: str) -> bytes | None:
        """Return the stored bytes without counting a use."""
        ...

    async def collect(self, max_bytes: int | None, *, dry_run: bool, show: Show) -> Collected:
        """Remove leftovers, and evict down to `max_bytes` (None: nothing)."""
        ...

    async def disorder(self) -> list[Problem]:
        """Return what is wrong beside the values."""
        ...

    async def tidy(self) -> None:
        """Put what `disorder` tells in order."""
        ...

    async def reindex(self, show: Show) -> int | None:
        """Make the index anew from the values; return how many it has, None for a store without one."""
        ...


async def check(upkeep: Upkeep, secret: bytes | None, *, repair: bool, show: Show) -> Checked:
    """Verify every value, its place under `secret` (None: unknown), and what lies beside the values.

    repair: delete values that do not verify, and put the rest in order.
    """
    names = [name async for name in upkeep.store.names()]
    problems: list[Problem] = []

    async def look(name: str) -> None:
        frame = await upkeep.inspect(name)
        wrong = None if frame is None else await asyncio.to_thread(fault, name, frame, secret)
        if wrong is not None:
            problems.append(Problem(name, wrong, repair and await upkeep.store.delete(name)))

    await in_pages(names, look, lambda done: show("verifying", done, len(names)))
    beside = await upkeep.disorder()
    if repair and beside:
        await upkeep.tidy()
        left = {each.where for each in await upkeep.disorder()}
        beside = [Problem(each.where, each.what, each.where not in left) for each in beside]
    return Checked(len(names), tuple(problems + beside))


def fault(name: str, frame: bytes, secret: bytes | None) -> str | None:
    """Return what is wrong with `frame` stored as `name`, None when nothing is."""
    try:
        key = read_header(frame).get("key")
        if not isinstance(key, str):
            return "The header has no key."
        unpack(key, frame)
    except CorruptEntry as error:
        return error.message
    if secret is not None and name not in {storage_name(secret, kind, key) for kind in get_args(Kind)}:
        return "The value lies under a name that is not its key's."
    return None


async def in_pages(names: list[str], work: Callable[[str], Awaitable[object]], done: Callable[[int], None]) -> None:
    """Do `work` for every name, a few at once; what one of a page raises comes when its whole page has ended."""
    for start in range(0, len(names), AT_ONCE):
        page = names[start : start + AT_ONCE]
        results = await asyncio.gather(*map(work, page), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        done(start + len(page))
