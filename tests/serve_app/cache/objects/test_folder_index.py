"""The index of a folder: the policy's books in SQLite, shared, replaceable, and right again after whatever happened."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.cache.objects.folder_files import FolderFiles
from serve_app.cache.objects.folder_index import FolderIndex
from serve_app.cache.objects.folder_rows import Gone
from serve_app.cache.objects.gdsf import Gdsf


def name(number: int) -> str:
    return f"{number:064x}"


class Folder:
    """A folder and an index of it, as one process has them."""

    def __init__(self, root: Path) -> None:
        self.files = FolderFiles(root)
        self.index = FolderIndex(self.files)

    def put(self, key: str, size: int, cost: float = 1.0, max_bytes: int | None = None) -> Gone:
        with self.files.written(bytes(size)) as temporary:
            publish = partial(self.files.link, temporary, key)
            return self.index.admit(key, size, cost, max_bytes=max_bytes, uses={}, temporary=temporary, publish=publish)

    @property
    def held(self) -> set[str]:
        return {each for shard in self.files.shards() for each in self.files.names(shard)}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 60), st.floats(0, 1000)), min_size=10, max_size=60))
def test_it_evicts_as_the_policy_does(steps: list[tuple[int, int, float]]) -> None:
    """Files and rows go as `Gdsf` lets names go, with the same frequencies, over a reopening of the index too."""
    with tempfile.TemporaryDirectory() as root:
        folder, gdsf = Folder(Path(root)), Gdsf(100)
        held: set[str] = set()
        for step, (number, size, cost) in enumerate(steps):
            key = name(number)
            if gdsf.use(key):
                folder.index.use({key: 1})
            else:
                held = (held | {key}) - set(gdsf.add(key, size, cost))
                folder.put(key, size, cost, max_bytes=100)
            assert folder.held == held
            assert folder.index.size() == (len(gdsf), gdsf.bytes)
            assert folder.index.frequency(key) == gdsf.frequency(key)
            if step % 20 == 0:
                folder.index.close()
        folder.index.close()


def test_an_index_that_is_lost_comes_back(folder: Folder) -> None:
    """Deleting it under a running process loses frequencies and nothing else."""
    for number in range(5):
        folder.put(name(number), 100)
    for path in folder.files.root.glob("index.sqlite*"):
        path.unlink()
    assert folder.index.size() == (5, 500)
    assert folder.put(name(9), 100, max_bytes=300) == Gone(3, 300)


@pytest.mark.parametrize("damage", ["garbage", "empty", "middle", "another version"])
def test_a_damaged_index_is_replaced(folder: Folder, damage: str) -> None:
    """Whatever lies in its place, the next use makes it anew from the files, in this process and in one beside it."""
    beside = Folder(folder.files.root)
    for number in range(300):
        folder.put(name(number), 10)
    beside.index.size()
    path = folder.index.path
    if damage == "another version":
        with closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA user_version = 77")
        folder.index.close()
    else:
        folder.index.close()
        beside.index.close()
        data = path.read_bytes()
        half = len(data) // 2
        path.write_bytes({"garbage": b"no database" * 1000, "empty": b""}.get(damage, data[:half] + bytes(half)))
    for each in (folder, beside):
        assert each.index.size() == (300, 3000)
        assert not each.index.differences()
    assert folder.put(name(999), 10, max_bytes=1000) == Gone(201, 2010)
    assert beside.index.size() == (100, 1000)


def test_rows_and_files_that_disagree_are_set_right(folder: Folder) -> None:
    """Files that came or went without the index are told, and the next process begins by settling them."""
    for number in range(4):
        folder.put(name(number), 100)
    folder.files.unlink(name(0))
    with folder.files.written(bytes(50)) as temporary:
        folder.files.link(temporary, name(7))
    folder.files.path(name(1)).write_bytes(bytes(30))
    found = folder.index.differences()
    assert (found.unlisted, found.vanished, found.resized) == ((name(7),), (name(0),), (name(1),))
    assert Folder(folder.files.root).index.size() == (4, 350)
    assert folder.index.rebuild() == 4
    assert not folder.index.differences()
    assert folder.index.size() == (4, 280)


def test_frequencies_outlive_the_process(folder: Folder) -> None:
    """Another process on the same folder knows what was used, and reconciling keeps it."""
    folder.put(name(1), 100)
    folder.index.use({name(1): 4})
    folder.index.close()
    other = Folder(folder.files.root)
    assert other.index.reconcile() == 0
    assert other.index.frequency(name(1)) == 5


def test_use_of_a_file_without_a_row_enters_it(folder: Folder) -> None:
    """What the index does not know but somebody reads is entered; what is not there is not."""
    folder.index.size()
    with folder.files.written(bytes(50)) as temporary:
        folder.files.link(temporary, name(7))
    folder.index.use({name(7): 1, name(8): 1})
    assert folder.index.size() == (1, 50)


def test_a_write_that_fails_leaves_the_books_right(folder: Folder) -> None:
    """What publishing raises comes out, and neither a row nor a file of the value is there."""

    def fail() -> None:
        raise OSError("disk full")

    folder.put(name(1), 100)
    with pytest.raises(OSError, match="disk full"):
        folder.index.admit(name(2), 100, 1.0, max_bytes=1000, uses={}, temporary="none", publish=fail)
    assert folder.index.size() == (1, 100)
    assert folder.held == {name(1)}


def pending(folder: Folder, key: str, size: int, temporary: str) -> None:
    """Count a value whose file does not come, as a writer that is killed before `link` does."""
    folder.index._write(lambda book: book.insert(key, size, 1.0, Path(temporary).name))


def test_what_is_being_written_is_counted_and_left_alone(folder: Folder) -> None:
    """Another process neither evicts it, nor writes the same name, nor forgets it when it reconciles or deletes."""
    beside = Folder(folder.files.root)
    folder.put(name(1), 100)
    with folder.files.written(bytes(600)) as temporary:
        pending(folder, name(2), 600, temporary)
        assert beside.put(name(3), 350, max_bytes=1000) == Gone(1, 100)
        assert beside.index.delete(name(2)) is False
        assert beside.index.reconcile() == 0
        assert not beside.index.differences()
        assert beside.index.rebuild() == 2
        with pytest.raises(BlockingIOError):
            beside.put(name(2), 1)
        with pytest.raises(OSError, match="writes in progress"):
            beside.put(name(4), 500, max_bytes=1000)
        folder.files.link(temporary, name(2))  # and here the writer is killed
    assert beside.put(name(4), 200, max_bytes=1000) == Gone(1, 350)  # its bytes count, though nobody told so
    assert beside.held == {name(2), name(4)}
    assert beside.index.reconcile() == 1
    assert beside.put(name(5), 900, max_bytes=1000) == Gone(2, 800)


def test_the_room_of_a_killed_writer_is_free_again(folder: Folder) -> None:
    """At the next start, for the same name at once, and when nothing else can be evicted."""
    folder.index.size()
    with folder.files.written(b"") as temporary:
        pending(folder, name(1), 900, temporary)
        pending(folder, name(2), 50, temporary)
    folder.put(name(2), 60)
    assert folder.index.size() == (2, 960)
    assert folder.put(name(3), 500, max_bytes=1000) == Gone()
    assert folder.index.size() == (2, 560)
    pending(folder, name(4), 400, temporary)
    assert Folder(folder.files.root).index.size() == (2, 560)


def test_what_would_go(folder: Folder) -> None:
    """A dry run tells what evicting in pages comes to, and changes nothing."""
    for number in range(200):
        folder.put(name(number), 10)
    would = folder.index.would_evict(500)
    assert (would, len(folder.held)) == (Gone(150, 1500), 200)
    gone = Gone()
    while (page := folder.index.evict(500)).count:
        gone += page
    assert (gone, len(folder.held)) == (would, 50)
