"""Looking after an L3 by hand: collect what is too much, check that everything there is what it says.

Both may run beside a server and may be interrupted at any moment: each step is one that the server takes too. What a
kind of store has beside its values (an index, temporary files, plain copies) is a `Maintenance`'s business. Whose store
it is was made sure of before (`store_secret`). A repair deletes no value: it moves to quarantine what does not verify,
and when that is more than a few of a hundred it asks first, because then it is the repair that is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, get_args

from serve_app.cache.envelope import Envelope, former_key, is_former, whole
from serve_app.cache.objects.folder_rows import Gone
from serve_app.cache.objects.quarantine import new_batch
from serve_app.cache.storage_name import Kind, storage_name
from serve_app.cache.store import ObjectStore
from serve_app.cache.store_secret import MarkedStore
from serve_app.errors import CorruptEntry

Show = Callable[[str, int, int], None]
"""Told the part of the work, how many steps of it are done, and how many there are."""
Confirm = Callable[[int, int], bool]
"""Asked whether so many bad values of so many are to be moved to the quarantine."""
AT_ONCE = 16
FEW, FEW_PERCENT = 3, 3


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection found or left (`values`, `bytes`), and what it removed or, in a dry run, would have.

    quarantine: what lies there; `emptied`: what of it was removed.
    """

    values: int
    bytes: int
    evicted: Gone = field(default_factory=Gone)
    leftovers: Gone = field(default_factory=Gone)
    quarantine: Gone = field(default_factory=Gone)
    emptied: Gone = field(default_factory=Gone)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be: a name or a path, and what is wrong with it.

    action: what a repair did about it (`quarantined`, `deleted`, `repaired`), empty when nothing was done.
    """

    where: str
    what: str
    action: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """How many values were looked at, how many of them are of a former release, and what was wrong."""

    values: int
    problems: tuple[Problem, ...]
    former: int = 0
    declined: bool = False
    """Whether a repair was asked for and not done, because too much would have gone."""


class MaintainedStore(ObjectStore, MarkedStore, Protocol):
    """An L3 that can be looked after."""


class Maintenance(Protocol):
    """What is particular to one kind of store. Every method may raise TierError."""

    @property
    def store(self) -> MaintainedStore:
        """What is looked after."""
        ...

    async def inspect(self, name: str) -> bytes | None:
        """Return the stored bytes without counting a use."""
        ...

    async def collect(self, max_bytes: int | None, *, dry_run: bool, show: Show) -> Collected:
        """Remove leftovers, and evict down to `max_bytes` (None: nothing)."""
        ...

    async def quarantine(self, name: str, batch: str) -> bool:
        """Move a value to the quarantine, as part of a batch; False when it was not there."""
        ...

    async def quarantined(self) -> Gone:
        """Return what lies in quarantine."""
        ...

    async def empty_quarantine(self, older_than_days: float, *, dry_run: bool) -> Gone:
        """Delete what has been there for so long; return what that was, or would be."""
        ...

    async def disorder(self) -> list[Problem]:
        """Return what is wrong beside the values."""
        ...

    async def tidy(self, batch: str) -> list[Problem]:
        """Put in order what `disorder` tells, and return it with what was done; nothing goes that may be in use."""
        ...

    async def reindex(self, show: Show) -> int | None:
        """Make the index anew from the values; return how many it has, None for a store without one."""
        ...


async def check(
    upkeep: Maintenance, secret: bytes | None, *, repair: bool, show: Show, confirm: Confirm = lambda bad, all_: False
) -> Checked:
    """Verify every value, its place under `secret` (None: unknown), and what lies beside the values.

    repair: move values that do not verify to the quarantine, after `confirm` when they are many, and put the rest in
    order.
    """
    names = [name async for name in upkeep.store.names()]
    bad: dict[str, str] = {}
    former: list[str] = []

    async def look(name: str) -> None:
        frame = await upkeep.inspect(name)
        if frame is None:
            return
        wrong = await asyncio.to_thread(fault, name, frame, secret)
        if wrong is not None:
            bad[name] = wrong
        elif is_former(frame):
            former.append(name)

    await in_pages(names, look, lambda done: show("verifying", done, len(names)))
    many = len(bad) > max(FEW, FEW_PERCENT * len(names) / 100)
    if repair and (not many or confirm(len(bad), len(names))):
        problems = await _repaired(upkeep, bad, secret)
        return Checked(len(names), tuple(problems), len(former))
    problems = [Problem(name, wrong) for name, wrong in bad.items()] + await upkeep.disorder()
    return Checked(len(names), tuple(problems), len(former), declined=repair)


async def _repaired(upkeep: Maintenance, bad: dict[str, str], secret: bytes | None) -> Sequence[Problem]:
    """Move what is still bad, and put the rest in order; return what was wrong, with what was done."""
    batch, problems = new_batch(), []

    async def move(name: str) -> None:
        frame = await upkeep.inspect(name)  # a server may have replaced it meanwhile
        wrong = None if frame is None else await asyncio.to_thread(fault, name, frame, secret)
        if wrong is not None:
            done = await upkeep.quarantine(name, batch)
            problems.append(Problem(name, wrong, "quarantined" if done else ""))

    await in_pages(list(bad), move, lambda done: None)
    return problems + await upkeep.tidy(batch)


def fault(name: str, frame: bytes, secret: bytes | None) -> str | None:
    """Return what is wrong with `frame` stored as `name`, None when nothing is."""
    try:
        if is_former(frame):
            key = former_key(frame)
            if secret is not None and name not in {storage_name(secret, kind, key) for kind in get_args(Kind)}:
                return "The value lies under a name that is not its key's."
            return None
        whole(name, frame)
        if secret is not None:
            Envelope(secret).glance(name, frame)
    except CorruptEntry as error:
        return error.message
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
