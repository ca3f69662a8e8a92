"""Digests of large files: right, computed once, and never a reason to fail."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from serve_app.model.wan.checkpoint.digests import Digests, default_file


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"weights")
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every file that is hashed from now on."""
    seen: list[str] = []
    whole = hashlib.file_digest

    def digest(stream: object, name: str) -> object:
        seen.append(stream.name)  # type: ignore[attr-defined]
        return whole(stream, name)  # type: ignore[type-var]

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return seen


def test_a_file_is_read_once(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process finds the digest in the file that the first one wrote."""
    seen = reads(monkeypatch)
    memory = tmp_path / "cache" / "digests.json"
    assert Digests(memory).of(weights) == sha256(b"weights")
    assert Digests(memory).of(weights) == sha256(b"weights")
    assert seen == [str(weights)]


def test_a_changed_file_is_read_again(weights: Path, tmp_path: Path) -> None:
    """Other bytes of the same length, and another time of change, are another file."""
    digests = Digests(tmp_path / "digests.json")
    digests.of(weights)
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(1, 1))
    assert digests.of(weights) == sha256(b"WEIGHTS")


def test_the_hubs_cache_names_blobs_by_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link into `blobs` is believed by its name and not read; a blob under another name is read."""
    seen = reads(monkeypatch)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name in ("a" * 64, "b" * 40):
        (blobs / name).write_bytes(b"weights")
        (snapshot / name[0]).symlink_to(blobs / name)
    digests = Digests(tmp_path / "digests.json")
    assert digests.of(snapshot / "a") == "a" * 64
    assert digests.of(snapshot / "b") == sha256(b"weights")
    assert seen == [str(blobs / ("b" * 40))]


@pytest.mark.parametrize("broken", ["{", "[]", "null"])
def test_a_broken_memory_costs_time_only(weights: Path, tmp_path: Path, broken: str) -> None:
    """What cannot be read is made anew; what cannot be written is done without."""
    memory = tmp_path / "digests.json"
    memory.write_text(broken)
    assert Digests(memory).of(weights) == sha256(b"weights")
    assert Digests(memory).of(weights) == sha256(b"weights")
    assert Digests(weights / "no folder" / "digests.json").of(weights) == sha256(b"weights")


def test_it_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CACHE_HOME where it is absolute, else ~/.cache."""
    monkeypatch.setenv("HOME", "/home/somebody")
    for base, expected in (
        ("/caches", "/caches"),
        ("relative", "/home/somebody/.cache"),
        ("", "/home/somebody/.cache"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert default_file() == Path(expected) / "encore" / "digests.json"
