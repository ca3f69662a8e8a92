"""The rules as one object of L3: whole, additive, verified, in a folder and in S3."""

from __future__ import annotations

import asyncio
from itertools import chain
from pathlib import Path

import pytest

from serve_app.cache.invalidation.object_rules import ObjectRules
from serve_app.cache.invalidation.rules import Labels, RuleBook
from serve_app.cache.invalidation.sweep import ObjectShelf
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.store import ObjectStore
from serve_app.core import Rule
from serve_app.errors import TierError

SECRET = b"a test's secret"
A, B = Rule("tag", "a", 1, 2), Rule("key", "b", 3, 3)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Either kind of L3."""
    if request.param == "folder":
        return FolderStore(tmp_path)
    made: ObjectStore = request.getfixturevalue("s3_store")()
    return made


async def test_what_is_written_is_read_by_others(store: ObjectStore) -> None:
    """Rules add up, a newer one of a label replaces the older, and an older one changes nothing."""
    mirror = ObjectRules(store, secret=SECRET)
    assert await mirror.read() == frozenset()
    await mirror.write([A])
    await mirror.write([B, Rule("tag", "a", 0, 0)])
    assert await ObjectRules(store, secret=SECRET).read() == {A, B}
    newer = Rule("tag", "a", 9, 9)
    await mirror.write([newer], without=[B])
    assert await mirror.read() == {newer}
    await mirror.write([], without=[newer])
    assert await mirror.read() == frozenset()
    assert [name async for name in store.names()] == []
    await store.aclose()


async def test_nothing_covers_the_rules_themselves(tmp_path: Path) -> None:
    """The sweep of an invalidation of everything leaves the object in which it is written down."""
    store = FolderStore(tmp_path)
    await ObjectRules(store, secret=SECRET).write([A])
    book = RuleBook(Labels(SECRET))
    book.learn([Rule("everything", "everything", 2**53, 2**53)])
    (name,) = [name async for name in store.names()]
    entry = await ObjectShelf(store, secret=SECRET).head(name)
    assert entry is not None
    assert not book.now.covers_named(name, entry)


async def test_a_damaged_object_makes_way(tmp_path: Path) -> None:
    """What does not verify is no rules, and the next write takes its place."""
    store = FolderStore(tmp_path)
    mirror = ObjectRules(store, secret=SECRET)
    await store.put(mirror._name, b"ENCR and then nonsense")
    await mirror.write([A])
    assert await mirror.read() == {A}


async def test_two_writers_at_a_time_lose_nothing_in_the_end(tmp_path: Path) -> None:
    """Whoever finds that the object lacks a rule writes again; after a few rounds all of them are there."""
    mirrors = [ObjectRules(FolderStore(tmp_path), secret=SECRET) for _ in range(3)]
    mine = [[Rule("tag", f"{n} {m}", 1, 1) for m in range(3)] for n in range(3)]

    async def insist(mirror: ObjectRules, rules: list[Rule]) -> None:
        while not frozenset(rules) <= await mirror.read():
            await mirror.write(rules)

    async with asyncio.timeout(20):
        while await mirrors[0].read() != frozenset(chain(*mine)):
            await asyncio.gather(*map(insist, mirrors, mine))


class Refusing(FolderStore):
    """Takes no bytes, and says so."""

    async def put(self, name: str, data: bytes) -> bytes | None:
        return None


async def test_a_store_that_refuses_is_told(tmp_path: Path) -> None:
    """Rules that could not be written raise TierError: an invalidation must not be acknowledged for them."""
    with pytest.raises(TierError):
        await ObjectRules(Refusing(tmp_path), secret=SECRET).write([A])
