"""The cache folder: who holds it, its secret, and where things lie in it.

lock      held while a server runs on the folder; contains its process id
secret    32 random bytes in hex, made once; every name in the shared tiers is an HMAC under it
valkey/   L2: append-only file of the embedded Valkey that may evict
records/  job records: append-only file of the one that evicts nothing
l3/       finished videos
logs/     what the child processes print; logs/ray: what Ray's processes of the last run wrote
run/      generated files of the running server; run/sockets leads to the folder of its sockets and Ray's files

Whatever is written there can be read by its owner alone.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from deployments.launcher.host.private_files import open_private
from serve_app.errors import Conflict

_MOST_LOG_BYTES = 100 << 20  # of one run, kept in logs/ray
_LONGEST_RUN_PATH = 90  # a Unix socket's path must fit in 108 bytes, with the name that is appended


class CacheFolder:
    """One server's folder, locked until `release`; raises Conflict when another server holds it."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        self.valkey, self.records, self.l3, self.logs = (
            self._made(name) for name in ("valkey", "records", "l3", "logs")
        )
        self._lock = self._locked()
        self.run, self.sockets = self._run_folders()
        self.secret = self._secret()

    def tail(self, log: str, lines: int = 12) -> str:
        """Return the last `lines` of one of the logs."""
        path = self.logs / log
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def release(self) -> None:
        """Let another server have the folder; the data stay, and Ray's logs."""
        self._keep_logs(self.sockets)
        for folder in (self.run, self.sockets):
            shutil.rmtree(folder, ignore_errors=True)
        self._lock.close()

    def _made(self, name: str) -> Path:
        try:
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.root / name).chmod(0o700)
        except OSError as error:
            raise Conflict(f"The cache folder {self.root} cannot be used: {error.strerror}.") from error
        return self.root / name

    def _locked(self) -> IO[str]:
        lock = open_private(self.root / "lock", "a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise Conflict(
                f"The cache folder {self.root} is in use by the server with process id {holder}. "
                "Stop that one, or give this one a folder of its own with --cache-dir."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _run_folders(self) -> tuple[Path, Path]:
        """Make both folders afresh; those that a killed server left are removed."""
        run, link = self.root / "run", self.root / "run" / "sockets"
        self._keep_logs(link.resolve())
        for leftover in (link.resolve(), run):
            shutil.rmtree(leftover, ignore_errors=True)
        sockets = Path(tempfile.mkdtemp(prefix="encore-", dir="/tmp"))
        if len(os.fsencode(run)) > _LONGEST_RUN_PATH or not _is_text(run):
            return sockets, sockets
        run.mkdir(mode=0o700)
        link.symlink_to(sockets)
        return run, sockets

    def _keep_logs(self, sockets: Path) -> None:
        """Move the logs of Ray's last session to logs/ray, the newest first, as many as are worth keeping."""
        logs = sockets / "ray" / "session_latest" / "logs"
        if not logs.is_dir():
            return
        kept, room = self.logs / "ray", _MOST_LOG_BYTES
        shutil.rmtree(kept, ignore_errors=True)
        with suppress(OSError):
            files = [(path, path.stat()) for path in logs.rglob("*") if path.is_file() and not path.is_symlink()]
            for path, told in sorted(files, key=lambda file: -file[1].st_mtime_ns):
                room -= told.st_size
                if told.st_size and room > 0:
                    target = kept / path.relative_to(logs)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(path, target)

    def _secret(self) -> str:
        path = self.root / "secret"
        if not path.exists():
            with open_private(path, "x") as file:
                file.write(secrets.token_hex(32))
        return path.read_text().strip()


def _is_text(path: Path) -> bool:
    """Whether the path is UTF-8: redis-py reads no other out of a URL."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
