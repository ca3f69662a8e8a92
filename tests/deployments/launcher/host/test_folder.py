"""The cache folder: one server at a time, a secret made once, short paths for sockets, no leftovers."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.launcher.host.folder import CacheFolder
from serve_app.errors import Conflict


def test_one_server_at_a_time(tmp_path: Path) -> None:
    """A second holder is refused with the first one's process id; after release the folder is free."""
    first = CacheFolder(tmp_path)
    with pytest.raises(Conflict, match="process id"):
        CacheFolder(tmp_path)
    first.release()
    CacheFolder(tmp_path).release()


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    """Every start finds the same secret, readable by its owner alone."""
    secrets = set()
    for _ in range(2):
        folder = CacheFolder(tmp_path)
        secrets.add(folder.secret)
        folder.release()
    (secret,) = secrets
    assert len(bytes.fromhex(secret)) == 32
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0


def test_sockets_have_short_paths_however_long_the_folder_is(tmp_path: Path) -> None:
    """HAProxy's socket path has at most 97 bytes, of which Ray uses 70; Valkey's has at most 108."""
    folder = CacheFolder(tmp_path / ("long" * 40))
    assert len(str(folder.sockets)) <= 97 - 70
    assert len(str(folder.run / "valkey.sock")) <= 107
    folder.release()


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    """The next start removes the socket folder of a server that could not clean up."""
    killed = CacheFolder(tmp_path)
    killed._lock.close()  # as the kernel does when the process dies
    again = CacheFolder(tmp_path)
    assert not killed.sockets.exists() or killed.sockets == again.sockets
    again.release()
    assert not again.sockets.exists()
    assert not again.run.exists()
