"""What earlier releases have left in stores is read, or is a miss that may be overwritten; it is never an error.

`tests/fixtures/store_formats/` has one file of every format that a release has written: no file there is ever changed,
a new format gets a new one. They were written under the secret below, for the key below.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from serve_app.cache.cache import TieredCache
from serve_app.cache.envelope import Envelope, former_key
from serve_app.cache.invalidation.object_rules import ObjectRules
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.objects.saved_seconds import cost_seconds
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.cache.store_secret import marker_of, was_made_for
from serve_app.core import Entry, Outcome, Rule
from serve_app.telemetry import TierRead

FORMATS = Path(__file__).parents[2] / "fixtures" / "store_formats"
SECRET, KEY = b"a secret of fixtures", "1f" * 32
NAME = storage_name(SECRET, "video", KEY)
RULE = Rule("tag", "cd" * 32, 8, 9)


def stored(name: str) -> bytes:
    return (FORMATS / name).read_bytes()


def put(folder: Path, name: str, data: bytes) -> FolderStore:
    """A folder's store that has had `data` under `name` since an earlier release."""
    path = folder / "objects" / name[:2] / name[2:4] / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return FolderStore(folder, secret=SECRET)


def test_frame_v2() -> None:
    """The present format: everything that was written is read."""
    entry = Envelope(SECRET).unpack(NAME, KEY, stored("frame_v2.bin"))
    assert entry.data == b"an MP4 file"
    assert entry.meta == {
        "spec": {"width": 64}, "content_type": "video/mp4", "created_at": 1800000000.5, "render_seconds": 2.5,
        "encode_seconds": 0.5, "begun_at": 7, "labels": ["ab" * 32],
    }  # fmt: skip
    assert cost_seconds(stored("frame_v2.bin")) == 3.0


def test_frame_v1_is_of_its_secret() -> None:
    """A frame of the former release is told to be ours, so that its store is marked, and weighs what it weighed."""
    assert former_key(stored("frame_v1.bin")) == KEY
    assert was_made_for(NAME, stored("frame_v1.bin"), SECRET)
    assert not was_made_for(NAME, stored("frame_v1.bin"), b"another secret")
    assert cost_seconds(stored("frame_v1.bin")) == 3.0


@pytest.mark.parametrize("tier", ["l2", "l3"])
async def test_frame_v1_is_a_miss(tier: str, tmp_path: Path, valkey_url: str, recorder: Any) -> None:
    """It is counted as a miss, not as damage, and the next render takes its place, in a write-once store too."""
    given: dict[str, Any] = {"l2": RedisTier(valkey_url, secret=SECRET)}
    if tier == "l2":
        await given["l2"].set(redis_name(NAME), stored("frame_v1.bin"))
    else:
        given = {"l3": put(tmp_path, NAME, stored("frame_v1.bin"))}
    cache, entry = TieredCache("video", secret=SECRET, telemetry=recorder, **given), Entry.of(KEY, b"a new render")
    assert await cache.get(KEY) is None
    assert recorder.results(TierRead, tier) == ["miss"]
    assert (await cache.put(entry)).tiers == (tier,)
    assert await cache.get(KEY) == (entry, Outcome(tier))
    await cache.aclose()


async def test_frame_v1_is_overwritten_without_being_read(tmp_path: Path) -> None:
    """A write-once store's value of the former release does not exist for who stores a new one."""
    cache = TieredCache("video", secret=SECRET, l3=put(tmp_path, NAME, stored("frame_v1.bin")))
    entry = Entry.of(KEY, b"a new render")
    assert (await cache.put(entry)).entry == entry
    await cache.aclose()


async def test_rules_v2(tmp_path: Path) -> None:
    """Invalidations that were mirrored are in force."""
    store = put(tmp_path, storage_name(SECRET, "rules", "rules"), stored("rules_v2.bin"))
    assert await ObjectRules(store, secret=SECRET).read() == {RULE}
    await store.aclose()


async def test_rules_v1(tmp_path: Path) -> None:
    """Those of the former release were about values that are not read any more: none, and they make way."""
    store = put(tmp_path, storage_name(SECRET, "rules", "rules"), stored("rules_v1.bin"))
    mirror = ObjectRules(store, secret=SECRET)
    assert await mirror.read() == frozenset()
    await mirror.write([RULE])
    assert await mirror.read() == {RULE}
    await store.aclose()


async def test_folder_index_v1(tmp_path: Path) -> None:
    """The index is taken over with what it knows of uses."""
    store = put(tmp_path, NAME, stored("frame_v2.bin"))
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        connection.executescript(stored("folder_index_v1.sql").decode())
    connection.close()
    assert store.index.frequency(NAME) == 4
    assert store.index.size() == (1, len(stored("frame_v2.bin")))
    assert not (tmp_path / "quarantine").exists()
    await store.aclose()


def test_marker() -> None:
    """A store is known by the marker that it was given."""
    assert stored("marker.json") == marker_of(SECRET)
    assert stored("marker.json") != marker_of(b"another secret")
