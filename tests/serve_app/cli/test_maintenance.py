"""`encore gc`, `fsck` and `reindex` on real folders and a real SeaweedFS, beside servers' own stores."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.objects.folder_files import FolderFiles
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.objects.s3_redirect import RedirectCopies
from serve_app.cache.storage_name import storage_name
from serve_app.cache.store_secret import require_own
from serve_app.core import Entry
from tests.serve_app.cache.frames import framed

SECRET = b"a secret of tests"
KEYS = [f"{number:064x}" for number in range(10)]
NAMES = [storage_name(SECRET, "video", key) for key in KEYS]
Encore = Callable[..., Result]


def frame(number: int) -> bytes:
    """A video that took 10 to the power of `number` seconds."""
    meta = {"content_type": "video/mp4", "render_seconds": 10**number, "encode_seconds": 0}
    return framed(Entry.of(KEYS[number], bytes([number]) * 10_000, meta), secret=SECRET)


FRAME_BYTES = len(frame(9))


@pytest.fixture
def folder(place: Path) -> Path:
    """A server's cache folder with ten videos in its L3 and the secret that the launcher made."""
    (place / "secret").write_text(SECRET.decode() + "\n")

    async def fill() -> None:
        store = FolderStore(place / "l3")
        for number, name in enumerate(NAMES):
            await store.put(name, frame(number))
        await store.aclose()

    asyncio.run(fill())
    return place


def value(folder: Path, number: int) -> Path:
    return folder / "l3" / "objects" / NAMES[number][:2] / NAMES[number][2:4] / NAMES[number]


def run(encore: Encore, command: str, folder: Path, *more: str) -> tuple[int, Any]:
    result = encore(command, "--cache-dir", str(folder), "--json", *more)
    return result.exit_code, json.loads(result.stdout)


def held(folder: Path) -> set[int]:
    return {number for number in range(10) if value(folder, number).exists()}


def test_gc_keeps_what_saves_most(encore: Encore, folder: Path) -> None:
    """Down to the bound the cheapest videos go; a dry run tells the same and removes nothing."""
    (folder / "l3" / "tmp" / "encore-leftover").write_bytes(bytes(77))
    bound = ("--max-bytes", str(3 * FRAME_BYTES + 100))
    _, told = run(encore, "gc", folder, "--dry-run", *bound)
    assert (told["evicted"]["count"], told["leftovers"], told["values"]) == (7, {"count": 1, "bytes": 77}, 10)
    assert held(folder) == set(range(10))
    status, done = run(encore, "gc", folder, *bound)
    assert status == 0
    assert (done["evicted"], done["leftovers"]) == (told["evicted"], told["leftovers"])
    assert (done["values"], held(folder)) == (3, {7, 8, 9})
    assert list((folder / "l3" / "tmp").iterdir()) == []


def test_gc_without_a_bound_takes_the_servers(encore: Encore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting l3_max_bytes bounds the folder, and the answer for people names figures."""
    monkeypatch.setenv("ENCORE_L3_MAX_BYTES", str(2 * FRAME_BYTES + 100))
    shown = encore("gc", "--cache-dir", str(folder)).stdout
    assert "8 values (0.1 MiB) evicted" in shown
    assert held(folder) == {8, 9}


def test_fsck_finds_nothing_wrong_with_a_good_store(encore: Encore, folder: Path) -> None:
    """Also while a server's store is open and written to."""
    store = FolderStore(folder / "l3")
    assert run(encore, "fsck", folder) == (0, {"values": 10, "former": 0, "names": "verified", "problems": []})
    with closing(store.index):
        asyncio.run(store.put(storage_name(SECRET, "latents", KEYS[0]), frame(0)))
        assert run(encore, "fsck", folder)[1]["values"] == 11


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_fsck_finds_and_repairs(encore: Encore, folder: Path) -> None:
    """Flipped, cut and swapped values and strays go to the quarantine, leftovers go, the index agrees again."""
    flip(value(folder, 0))
    value(folder, 1).write_bytes(frame(1)[:-1])
    value(folder, 2).write_bytes(frame(3))
    value(folder, 4).unlink()
    (folder / "l3" / "tmp" / "encore-leftover").write_bytes(b"half")
    (folder / "l3" / "objects" / "stray").write_bytes(b"")
    status, told = run(encore, "fsck", folder)
    what = [problem["what"] for problem in told["problems"]]
    assert status == 1
    assert sorted(problem["where"] for problem in told["problems"][:3]) == sorted(NAMES[:3])
    assert sum("name that is not its own" in each for each in what) == 1
    assert {"a temporary file of a writer that is gone", "no value's file", "in the index without a file"} < set(what)
    assert held(folder) == set(range(10)) - {4}
    status, told = run(encore, "fsck", folder, "--repair")
    assert status == 0
    assert all(problem["repaired"] for problem in told["problems"])
    actions = {problem["where"]: problem["action"] for problem in told["problems"]}
    assert [actions[name] for name in NAMES[:3]] == ["quarantined"] * 3
    assert set(actions.values()) == {"quarantined", "deleted", "repaired"}
    kept = {path.name for path in (folder / "l3" / "quarantine").rglob("*") if path.is_file()}
    assert kept == {*NAMES[:3], "stray"}
    assert held(folder) == {3, 5, 6, 7, 8, 9}
    assert run(encore, "fsck", folder) == (0, {"values": 6, "former": 0, "names": "verified", "problems": []})


def test_fsck_without_the_secret(encore: Encore, folder: Path) -> None:
    """Frames and digests are verified all the same, but not who wrote them, and it says so."""
    flip(value(folder, 5))
    (folder / "secret").unlink()
    status, told = run(encore, "fsck", folder)
    assert (status, told["names"]) == (1, "unknown")
    assert NAMES[5] in {problem["where"] for problem in told["problems"]}
    assert "without ENCORE_SECRET" in encore("fsck", "--cache-dir", str(folder)).stderr


def test_a_lost_index_comes_back(encore: Encore, folder: Path) -> None:
    """`reindex` makes it from the files, with their costs."""
    for path in (folder / "l3").glob("index.sqlite*"):
        path.write_bytes(b"garbage")
    assert run(encore, "reindex", folder) == (0, {"values": 10})
    run(encore, "gc", folder, "--max-bytes", str(FRAME_BYTES + 100))
    assert held(folder) == {9}


@pytest.mark.parametrize("command", ["gc", "fsck", "reindex"])
def test_a_store_that_is_not_there(encore: Encore, place: Path, command: str) -> None:
    """A wrong folder is told, and not made."""
    result = encore(command, "--cache-dir", str(place / "nowhere"))
    assert result.exit_code == 1
    assert "There is no store at" in result.stderr
    assert not (place / "nowhere").exists()


def test_a_url_of_no_kind(encore: Encore, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is named."""
    monkeypatch.setenv("ENCORE_L3_URL", "ftp://somewhere")
    assert "ENCORE_L3_URL" in encore("fsck").stderr


@pytest.fixture
def bucket(s3_server: Any, s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], S3Store]]:
    """A store in SeaweedFS that the environment names; it makes plain copies."""
    monkeypatch.setenv("ENCORE_L3_URL", f"s3://{s3_server.bucket}/{s3_prefix}")
    monkeypatch.setenv("ENCORE_S3_ENDPOINT_URL", s3_server.endpoint_url)
    monkeypatch.setenv("ENCORE_S3_REDIRECT", "true")
    monkeypatch.setenv("ENCORE_SECRET", SECRET.decode())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_access_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", s3_server.region)
    return lambda: S3Store(
        s3_server.bucket, s3_prefix, endpoint_url=s3_server.endpoint_url, timeout=300, plain=RedirectCopies(SECRET)
    )


def test_gc_bounds_s3(encore: Encore, bucket: Callable[[], S3Store]) -> None:
    """S3 evicts nothing itself: the policy plays its writes, plain copies count and go with their videos.

    What was written last stays, as it does in a folder; here the names decide that, all are of one second.
    """
    found: list[set[str]] = []

    async def fill(store: S3Store) -> None:
        for number in range(6):
            await store.put(NAMES[number], frame(number))
        client = await store._connected()
        orphan = f"{store._prefix}plain/{NAMES[9][:2]}/{NAMES[9]}"
        await client.put_object(Bucket=store._bucket, Key=orphan, Body=bytes(55))
        await store.aclose()

    async def look(store: S3Store) -> None:
        found.append({name async for name in store.names()})
        found.append({each.name async for each in store.listed(plain=True)})
        await store.aclose()

    asyncio.run(fill(bucket()))
    assert json.loads(encore("gc", "--json", "--dry-run").stdout)["evicted"]["count"] == 0
    bound = ("--max-bytes", str(3 * (FRAME_BYTES + 10_000) + 100))
    assert json.loads(encore("gc", "--json", "--dry-run", *bound).stdout)["evicted"]["count"] == 3
    told = json.loads(encore("gc", "--json", *bound).stdout)
    assert (told["values"], told["evicted"]["count"], told["leftovers"]) == (3, 3, {"count": 1, "bytes": 55})
    asyncio.run(look(bucket()))
    assert found[0] == found[1] > set(NAMES[4:6])


def test_fsck_repairs_s3(encore: Encore, bucket: Callable[[], S3Store]) -> None:
    """A cut object and a replaced plain copy are found and moved to the quarantine; good ones stay."""

    async def spoil(store: S3Store) -> None:
        for number in range(3):
            await store.put(NAMES[number], frame(number))
        client = await store._connected()
        where = {"Bucket": store._bucket}
        await client.put_object(**where, Key=f"{store._prefix}{NAMES[0][:2]}/{NAMES[0]}", Body=frame(0)[:-1])
        await client.put_object(**where, Key=f"{store._prefix}plain/{NAMES[1][:2]}/{NAMES[1]}", Body=b"evil")
        await store.aclose()

    asyncio.run(spoil(bucket()))
    first = encore("fsck", "--json")
    assert first.exit_code == 1
    assert {NAMES[0], NAMES[1]} == {problem["where"] for problem in json.loads(first.stdout)["problems"]}
    assert encore("fsck", "--repair").exit_code == 0
    last = json.loads(encore("fsck", "--json").stdout)
    assert last == {"values": 2, "former": 0, "names": "verified", "problems": []}


def test_s3_has_no_index(encore: Encore, bucket: Callable[[], S3Store]) -> None:
    """`reindex` says so instead of pretending."""
    result = encore("reindex")
    assert (result.exit_code, "no index" in result.stderr) == (1, True)


FOREIGN = b"the secret of another server"
COMMANDS = (("gc", "--max-bytes", "0"), ("gc", "--dry-run"), ("fsck",), ("fsck", "--repair", "--yes"), ("reindex",))


def mark(folder: Path) -> None:
    """Let the folder be one that a server has used."""
    asyncio.run(require_own(FolderStore(folder / "l3"), SECRET))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("marked", [True, False])
def test_no_tool_touches_a_store_of_another_secret(
    encore: Encore, folder: Path, command: tuple[str, ...], marked: bool
) -> None:
    """With another server's secret a command ends before it looks at a value, and says what to set.

    A store of a former release has no marker: there its values tell whose they are.
    """
    if marked:
        mark(folder)
    (folder / "secret").write_bytes(FOREIGN)
    result = encore(*command, "--cache-dir", str(folder))
    assert result.exit_code == 1
    assert "ENCORE_SECRET" in result.stderr
    assert "--cache-dir" in result.stderr
    assert held(folder) == set(range(10))
    assert not (folder / "l3" / "quarantine").exists()


@pytest.mark.parametrize(
    "command", [("gc", "--max-bytes", "0"), ("fsck", "--repair", "--yes"), ("reindex",)], ids=" ".join
)
def test_without_a_secret_nothing_is_removed(encore: Encore, folder: Path, command: tuple[str, ...]) -> None:
    """Who does not know whose store it is may look and no more; the next step is named."""
    (folder / "secret").unlink()
    result = encore(*command, "--cache-dir", str(folder))
    assert (result.exit_code, "set ENCORE_SECRET" in result.stderr) == (1, True)
    assert held(folder) == set(range(10))
    assert encore("gc", "--dry-run", "--cache-dir", str(folder)).exit_code == 0


def test_a_repair_of_much_asks_first(encore: Encore, folder: Path) -> None:
    """Four of ten values are damaged: without a terminal nothing is done; with --yes they can be had back."""
    for number in range(4):
        flip(value(folder, number))
    damaged = value(folder, 0).read_bytes()
    refused = encore("fsck", "--repair", "--cache-dir", str(folder))
    assert refused.exit_code == 1
    assert "--yes" in refused.stderr
    assert held(folder) == set(range(10))
    done = encore("fsck", "--repair", "--yes", "--cache-dir", str(folder))
    assert (done.exit_code, done.stdout.count("(quarantined)")) == (0, 4)
    assert held(folder) == set(range(4, 10))
    [kept] = (folder / "l3" / "quarantine").rglob(NAMES[0])
    assert kept.read_bytes() == damaged
    assert value(folder, 0).relative_to(folder / "l3") == kept.relative_to(
        next((folder / "l3" / "quarantine").iterdir())
    )


def test_the_quarantine_is_emptied_when_told(encore: Encore, folder: Path) -> None:
    """`gc` tells what lies there and removes nothing of it, until it is given an age in days."""
    flip(value(folder, 0))
    assert encore("fsck", "--repair", "--cache-dir", str(folder)).exit_code == 0
    (folder / "l3" / "quarantine" / "mine").mkdir()
    (folder / "l3" / "quarantine" / "mine" / "letter").write_bytes(b"dear")
    told = run(encore, "gc", folder)[1]
    assert (told["quarantine"]["count"], told["emptied"]["count"]) == (2, 0)
    assert run(encore, "gc", folder, "--empty-quarantine", "1")[1]["emptied"]["count"] == 0
    assert run(encore, "gc", folder, "--empty-quarantine", "0", "--dry-run")[1]["emptied"]["count"] == 1
    assert run(encore, "gc", folder, "--empty-quarantine", "0")[1]["emptied"] == {"count": 1, "bytes": len(frame(0))}
    assert [path.name for path in (folder / "l3" / "quarantine").rglob("*") if path.is_file()] == ["letter"]


def test_values_of_a_former_release_are_no_problem(encore: Encore, folder: Path) -> None:
    """They are counted and left for new ones to overwrite, not taken for damage."""
    old = (Path(__file__).parents[2] / "fixtures" / "store_formats" / "frame_v1.bin").read_bytes()
    path = FolderFiles(folder / "l3").path(storage_name(SECRET, "video", "1f" * 32))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(old)
    encore("reindex", "--cache-dir", str(folder))
    assert run(encore, "fsck", folder) == (0, {"values": 11, "former": 1, "names": "verified", "problems": []})
    assert run(encore, "fsck", folder, "--repair")[0] == 0
    assert path.exists()


def test_files_of_others_are_left_or_moved_never_removed(encore: Encore, folder: Path) -> None:
    """A wrong folder holds other programs' files: a repair moves those that lie among values, `gc` touches none."""
    for place in ("tmp", "objects", "objects/ab"):
        (folder / "l3" / place).mkdir(exist_ok=True)
        (folder / "l3" / place / "thesis.txt").write_bytes(b"years")
    assert encore("gc", "--cache-dir", str(folder), "--max-bytes", "0").exit_code == 0
    assert encore("fsck", "--repair", "--cache-dir", str(folder)).exit_code == 0
    assert [path.read_bytes() for path in (folder / "l3").rglob("thesis.txt")] == [b"years"] * 3
    assert (folder / "l3" / "tmp" / "thesis.txt").exists()


def test_no_tool_touches_a_bucket_of_another_secret(
    encore: Encore, bucket: Callable[[], S3Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault as it was found: the secret of the default cache folder, the bucket of another deployment."""

    async def fill(store: S3Store) -> None:
        for number in range(7):
            await store.put(NAMES[number], frame(number))
        await store.aclose()

    async def names(store: S3Store) -> set[str]:
        found = {name async for name in store.names()} | {each.name async for each in store.listed(plain=True)}
        await store.aclose()
        return found

    asyncio.run(fill(bucket()))
    monkeypatch.setenv("ENCORE_SECRET", FOREIGN.decode())
    for command in (("fsck", "--repair", "--yes"), ("gc", "--max-bytes", "0")):
        result = encore(*command)
        assert (result.exit_code, "ENCORE_SECRET" in result.stderr) == (1, True)
    assert asyncio.run(names(bucket())) == set(NAMES[:7])


def test_the_quarantine_of_s3(encore: Encore, bucket: Callable[[], S3Store]) -> None:
    """A damaged object is moved with its plain copy, counted, no value any more, and deleted when that is asked for."""

    async def spoil(store: S3Store) -> None:
        for number in range(2):
            await store.put(NAMES[number], frame(number))
        client = await store._connected()
        key = f"{store._prefix}{NAMES[0][:2]}/{NAMES[0]}"
        await client.put_object(Bucket=store._bucket, Key=key, Body=frame(0)[:-1])
        await store.aclose()

    asyncio.run(spoil(bucket()))
    told = json.loads(encore("fsck", "--json", "--repair").stdout)
    assert [(problem["where"], problem["action"]) for problem in told["problems"]] == [(NAMES[0], "quarantined")]
    told = json.loads(encore("gc", "--json").stdout)
    assert (told["values"], told["quarantine"]["count"]) == (1, 2)
    assert json.loads(encore("gc", "--json", "--empty-quarantine", "0").stdout)["emptied"]["count"] == 2
    assert json.loads(encore("gc", "--json").stdout)["quarantine"]["count"] == 0


def test_a_prefix_among_another_stores_folders(encore: Encore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store at `.../plain` would be taken for the plain copies of the one above it."""
    monkeypatch.setenv("ENCORE_L3_URL", "s3://bucket/plain")
    monkeypatch.setenv("ENCORE_SECRET", SECRET.decode())
    result = encore("gc")
    assert (result.exit_code, "ENCORE_L3_URL" in result.stderr) == (1, True)
