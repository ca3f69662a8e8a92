"""A store is known by the secret that it was written under: nothing is read, written or deleted there with another."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.cache.cache import TieredCache
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.cache.store import AiocacheStore, ObjectStore
from serve_app.cache.store_secret import ASK_AGAIN_SECONDS, Guard, marker_of, require_own
from serve_app.core import Entry
from serve_app.errors import ForeignStore, TierError
from tests.serve_app.cache.frames import framed

OURS, THEIRS = b"our secret", b"their secret"
KEYS = [f"{number:064x}" for number in range(5)]


class Place:
    """One kind of store, opened under any secret; and as a store of values, whatever it is."""

    def __init__(self, open_: Callable[[bytes | None], Any]) -> None:
        self._open = open_
        self._opened: list[Any] = []

    def open(self, secret: bytes | None) -> Any:
        self._opened.append(self._open(secret))
        return self._opened[-1]

    def values(self, secret: bytes | None) -> ObjectStore:
        store = self.open(secret)
        return AiocacheStore(store) if isinstance(store, RedisTier) else store

    def cache(self, secret: bytes, telemetry: Any = None) -> TieredCache:
        store = self.open(secret)
        tier = "l2" if isinstance(store, RedisTier) else "l3"
        return TieredCache("video", secret=secret, telemetry=telemetry, **{tier: store})

    async def fill(self, secret: bytes, under: bytes | None = None) -> list[str]:
        """Put values there as one that writes under `secret` would, and asks for the marker or (None) does not."""
        names = [storage_name(secret, "video", key) for key in KEYS]
        store = self.values(under)
        for name, key in zip(names, KEYS, strict=True):
            await store.put(name, framed(Entry.of(key, b"a video"), secret=secret))
        return names

    async def aclose(self) -> None:
        for store in self._opened:
            await (store.close() if isinstance(store, RedisTier) else store.aclose())


quick = pytest.mark.parametrize("place", ["valkey", "folder"], indirect=True)
"""For what does not depend on the kind of store: a test of SeaweedFS takes seconds."""


@pytest.fixture(params=["valkey", "folder", "s3"])
async def place(
    request: Any, valkey_url: str, tmp_path: Path, s3_store: Callable[..., S3Store]
) -> AsyncIterator[Place]:
    kinds: dict[str, Callable[[bytes | None], Any]] = {
        "valkey": lambda secret: RedisTier(valkey_url, secret=secret),
        "folder": lambda secret: FolderStore(tmp_path / "l3", secret=secret),
        "s3": lambda secret: s3_store(secret=secret),
    }
    place = Place(kinds[request.param])
    yield place
    await place.aclose()


async def test_the_first_use_marks_an_empty_store(place: Place) -> None:
    """After it the store is ours, for every process, and says nothing of the secret itself."""
    assert await place.values(OURS).contains("0" * 64) is False
    assert await place.open(None).marker() == marker_of(OURS)
    assert OURS not in marker_of(OURS)
    await require_own(place.open(None), OURS)
    with pytest.raises(ForeignStore, match=r"ENCORE_SECRET.*--cache-dir"):
        await require_own(place.open(None), THEIRS)


async def test_nothing_of_another_secrets_store_is_touched(place: Place, recorder: Any, caplog: Any) -> None:
    """Reads are misses, writes and deletions fail, nothing is stored, and the cause is logged once, as an error."""
    names = await place.fill(THEIRS, under=THEIRS)
    cache, entry = place.cache(OURS, recorder), Entry.of(KEYS[0], b"ours")
    with caplog.at_level(logging.ERROR):
        assert await cache.get(KEYS[0]) is None
        assert (await cache.put(entry)).tiers == ()
        assert await cache.delete(KEYS[0]) == ()
        assert await cache.where(KEYS[0]) == {next(iter(await cache.where(KEYS[0]))): None}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "ENCORE_SECRET" in caplog.text
    assert OURS.decode() not in caplog.text
    ours = place.values(OURS)
    for name in names:
        for call in (ours.get, ours.contains, ours.delete):
            with pytest.raises(ForeignStore):
                await call(name)
    theirs = place.values(THEIRS)
    assert [await theirs.contains(name) for name in names] == [True] * len(names)


@quick
async def test_an_unmarked_store_of_ours_is_marked(place: Place) -> None:
    """A store of a former release: its values are named under this secret, so it is ours."""
    names = await place.fill(OURS)
    assert await place.open(None).marker() is None
    assert await place.values(OURS).contains(names[0])
    assert await place.open(None).marker() == marker_of(OURS)


async def test_an_unmarked_store_of_others_is_refused(place: Place) -> None:
    """None of its values is of this secret: nobody marks it as ours."""
    names = await place.fill(THEIRS)
    with pytest.raises(ForeignStore, match="none of 5 values"):
        await place.values(OURS).get(names[0])
    assert await place.open(None).marker() is None


@quick
async def test_planted_values_do_not_make_a_store_foreign(place: Place) -> None:
    """One good value is enough: whoever plants some, or damages some, does not stop a start."""
    store = place.values(None)
    await place.fill(OURS)
    for number in range(20):
        await store.put(storage_name(OURS, "video", f"{number + 50:064x}"), b"planted")
    await require_own(place.open(None), OURS)


@quick
async def test_a_damaged_marker_is_not_ours(place: Place) -> None:
    """What cannot be read as our marker is somebody else's, even in a store of our values."""
    await place.fill(OURS)
    await place.open(None).mark(b'{"store": 7}')
    with pytest.raises(ForeignStore):
        await place.values(OURS).contains("0" * 64)


@quick
async def test_reading_alone_writes_no_marker(place: Place) -> None:
    """A tool that only looks leaves an empty store as it was."""
    await require_own(place.open(None), OURS, write=False)
    assert await place.open(None).marker() is None


async def test_of_two_that_begin_at_once_one_has_the_store(place: Place) -> None:
    """On an empty store both look and both mark: the marker is one of theirs, and the other is told."""
    results = await asyncio.gather(
        *(require_own(place.open(None), secret) for secret in (OURS, THEIRS)), return_exceptions=True
    )
    held = await place.open(None).marker()
    assert held in (marker_of(OURS), marker_of(THEIRS))
    winner = 0 if held == marker_of(OURS) else 1
    assert results[winner] is None
    with pytest.raises(ForeignStore):
        await require_own(place.open(None), (THEIRS, OURS)[winner])


async def test_a_full_store_of_ours_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a store that takes no marker now what is there is served all the same, if it is ours."""
    place = Place(lambda secret: FolderStore(tmp_path, secret=secret))
    ours = await place.fill(OURS)
    store, theirs = place.open(OURS), place.open(THEIRS)
    for each in (store, theirs):
        monkeypatch.setattr(each.files, "mark", lambda marker: os.write(os.open("/dev/full", os.O_WRONLY), marker))
    assert await store.get(ours[0]) is not None
    with pytest.raises(ForeignStore):
        await theirs.get(ours[0])
    await place.aclose()


async def test_an_outage_is_asked_again(clock: Any) -> None:
    """A store that cannot be asked is not ours yet and not foreign: the next call asks; then nobody asks any more."""
    answers: list[Exception | None] = [TierError("away"), TierError("away"), None]
    asked = []

    async def check() -> None:
        asked.append(1)
        if (answer := answers.pop(0)) is not None:
            raise answer

    guard = Guard(check, clock)
    for _ in range(2):
        with pytest.raises(TierError, match="away"):
            await guard.passed()
    for _ in range(5):
        await guard.passed()
    assert len(asked) == 3


async def test_a_foreign_store_is_asked_again_after_a_while(clock: Any) -> None:
    """Whoever empties the store, or gives the right one back, need not restart the server."""
    answers: list[Exception | None] = [ForeignStore("theirs"), None]

    async def check() -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    guard = Guard(check, clock)
    for _ in range(3):
        with pytest.raises(ForeignStore, match="theirs"):
            await guard.passed()
    clock.advance(ASK_AGAIN_SECONDS + 1)
    await guard.passed()


async def test_who_waits_shares_one_question(clock: Any) -> None:
    """A hundred first requests ask once, and one that is cancelled takes no other's answer along."""
    gate, asked = asyncio.Event(), []

    async def check() -> None:
        asked.append(1)
        await gate.wait()

    guard = Guard(check, clock)
    waiting = [asyncio.create_task(guard.passed()) for _ in range(100)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [None] * 99
    assert len(asked) == 1


async def test_another_server_behind_the_same_address_is_found(valkey_server: Any, valkey_url: str) -> None:
    """After an outage the marker is read again: a Redis that is somebody else's by now is left alone."""
    tier = RedisTier(valkey_url, secret=OURS)
    await tier.set(redis_name("0" * 64), b"ours")
    valkey_server.flush()
    theirs = RedisTier(valkey_url, secret=THEIRS)
    await theirs.set(redis_name("1" * 64), b"theirs")
    assert await tier.get(redis_name("1" * 64)) == b"theirs"  # no request asks whose it is
    await tier._reconnect()
    with pytest.raises(ForeignStore):
        await tier.get(redis_name("1" * 64))
    await tier.close()
    await theirs.close()
