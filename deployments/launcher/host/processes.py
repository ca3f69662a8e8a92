"""Child processes that do not outlive their parent, and a way to end every last descendant.

Ray starts daemons that leave their process group and are re-parented when their starter dies. On Linux the launcher
makes itself the subreaper, so all of them stay its descendants and can be found; a child also gets SIGKILL from the
kernel should the launcher be killed outright. Elsewhere only direct children are ended.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.launcher.host.private_files import open_private

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def become_subreaper() -> None:
    """Let orphaned descendants be re-parented to this process instead of to init."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def allow_many_files(wanted: int = 65_536) -> None:
    """Let this process and what it starts open up to `wanted` files, as far as the machine lets them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def spawn(command: Sequence[str], *, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own (a Ctrl-C at the terminal reaches only the launcher)."""
    with open_private(log, "ab") as out:
        return subprocess.Popen(  # noqa: S603 - our own commands
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - the launcher has one thread
        )


def end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Ask `process` to end; after `patience` seconds, make it."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(max(0.0, patience))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_descendants(patience: float) -> None:
    """End every remaining descendant: ask first, after `patience` seconds kill; reap what is re-parented to us."""
    deadline = time.monotonic() + patience
    for kind in (signal.SIGTERM, signal.SIGKILL):
        _signal_all(kind)
        while descendants() and (kind is signal.SIGKILL or time.monotonic() < deadline):
            _reap()
            if kind is signal.SIGKILL:
                _signal_all(kind)
            time.sleep(0.02)


def _signal_all(kind: signal.Signals) -> None:
    for pid in descendants():
        try:
            os.kill(pid, kind)
        except ProcessLookupError:
            continue


def descendants(of: int | None = None) -> list[int]:
    """Return the process ids below `of` (this process), nearest first; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = stat.read_text().partition(" (")
        except OSError:
            continue  # it ended while we looked
        parent = int(rest.rpartition(") ")[2].split()[1])
        children.setdefault(parent, []).append(int(pid))
    found, level = [], children.get(os.getpid() if of is None else of, [])
    while level:
        found += level
        level = [pid for parent in level for pid in children.get(parent, [])]
    return found


def load() -> str:
    """Return how busy the machine is, for a person to read."""
    return f"load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"


@dataclass(frozen=True, slots=True)
class Process:
    """One process as it was when it was found: its id may be another's later, its start time tells them apart.

    name: of its program (`raylet`), or what it calls itself (`ray::ServeController`), without the method that Ray adds
    while it runs one.
    """

    pid: int
    name: str
    command: tuple[str, ...]
    started: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process with id `pid`; None when there is none, or no /proc."""
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            name = words[0].split("/")[-1].split(" ")[0]
            name = name.partition(".")[0] if name.startswith("ray::") else name
            return cls(pid, name, tuple(words), _stat(pid)[_STARTED])
        except (OSError, IndexError):
            return None

    def is_alive(self) -> bool:
        """Whether it still runs, or waits to; a zombie does not."""
        return self._state() not in "ZX"

    def is_stopped(self) -> bool:
        """Whether it was sent SIGSTOP."""
        return self._state() == "T"

    def option(self, name: str) -> Path | None:
        """Return the path in `name=PATH` of its command line."""
        found = [word.removeprefix(f"{name}=") for word in self.command if word.startswith(f"{name}=")]
        return Path(found[0]) if found else None

    def _state(self) -> str:
        try:
            stat = _stat(self.pid)
        except OSError:
            return "X"
        return stat[0] if stat[_STARTED] == self.started else "X"


_STARTED = 19
"""The place of a process' start time in /proc/PID/stat, counted from its state (proc(5))."""


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
