"""The server that `deaths.py` breaks: a launcher that is started again on the same folder; its processes by name."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import redis
from server import free_port

from deployments.launcher.host.processes import Process, descendants, end, spawn

ANSWER_SECONDS = 180.0
"""Longest that anything may take on a busy machine before it counts as never."""
_DISK = "192m"


class Server:
    """One launcher on `folder`, which is a small disk of its own (tmpfs) where the user may mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)
        self.launcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready; raises RuntimeError with the end of what it said."""
        log = self.folder.with_name("log")
        log.write_text("")
        arguments = {"cache_dir": str(self.folder), "port": self.port, "overrides": {}, "config": None}
        command = [sys.executable, "-m", "deployments.launcher.launcher", json.dumps(arguments)]
        launcher = self.launcher = spawn(command, env=os.environ, log=log)
        try:
            until(lambda: "Encore is ready." in log.read_text() or launcher.poll() is not None)
        except TimeoutError:
            end(launcher, 20)
        if launcher.poll() is not None:
            raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")

    def stop_launcher(self) -> None:
        """End what runs, to start it again."""
        if self.launcher is not None:
            end(self.launcher, 20)

    def renew(self) -> None:
        """Start anew on an empty folder, so that the next fault meets nothing that the last one left."""
        self.stop_launcher()
        for left in self.folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self.start()

    def stop(self) -> None:
        """End it."""
        self.stop_launcher()
        self.http.close()

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        assert self.launcher is not None
        return self.launcher.pid

    @property
    def said(self) -> str:
        """The last line that the launcher printed."""
        return (self.folder.with_name("log").read_text().strip().splitlines() or [""])[-1]

    def below(self, name: str) -> list[Process]:
        """Return its processes whose name begins so, the oldest first."""
        found = [each for pid in descendants(self.pid) if (each := Process.of(pid)) is not None]
        named = [each for each in found if each.name.startswith(name) and each.is_alive()]
        return sorted(named, key=lambda each: int(each.started))

    def kill(self, name: str) -> Process:
        """SIGKILL the oldest process of this name; it may take a moment to be there."""
        until(lambda: bool(self.below(name)))
        victim = self.below(name)[0]
        os.kill(victim.pid, signal.SIGKILL)
        until(lambda: not victim.is_alive())
        return victim

    def valkeys(self) -> list[Process]:
        """Return its Valkeys, one or two."""
        return self.below("valkey-server")

    @contextlib.contextmanager
    def cache(self) -> Iterator[redis.Redis]:
        """A client of the Valkey that holds the cache."""
        served = json.loads((self.folder / "run" / "config.json").read_text())
        url = served["applications"][0]["args"]["redis_url"]
        with redis.Redis.from_url(url, socket_timeout=30) as client:
            yield client

    def answers(self) -> bool:
        """Whether the API does."""
        with contextlib.suppress(httpx.HTTPError):
            return self.http.get("/healthz", timeout=10).status_code == 200
        return False

    def accept(self, fields: dict[str, Any]) -> str:
        """Post a job and return its id; refusals are waited for. Raises RuntimeError with the last one."""
        end = time.monotonic() + ANSWER_SECONDS
        while True:
            answer = self.http.post("/v1/videos", json=fields)
            if answer.status_code == 200:
                accepted: str = answer.json()["id"]
                return accepted
            if answer.status_code not in (429, 503) or time.monotonic() > end:
                raise RuntimeError(f"a job was not accepted: {answer.status_code} {answer.text[:300]}")
            time.sleep(float(answer.headers.get("retry-after", 1)))

    def job(self, job_id: str) -> dict[str, Any] | None:
        """Return a job's state, None while the server cannot say; raises LookupError when it says there is none."""
        try:
            answer = self.http.get(f"/v1/videos/{job_id}")
        except httpx.HTTPError:
            return None
        if answer.status_code == 200:
            found: dict[str, Any] = answer.json()
            return found
        if answer.status_code < 500:
            raise LookupError(f"{job_id}: {answer.status_code} {answer.text[:100]}")
        return None


def until(condition: Callable[[], bool], seconds: float = ANSWER_SECONDS) -> float:
    """Wait until `condition` holds and return the seconds; raises TimeoutError."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - began


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A started server for the length of a `with`."""
    place = Path(tempfile.mkdtemp(prefix="encore-"))
    folder = place / "c"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={_DISK}".encode()) == 0
    made = Server(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        if mounted:
            libc.umount2(str(folder).encode(), 2)  # MNT_DETACH
        shutil.rmtree(place, ignore_errors=True)


def is_small_disk(folder: Path) -> bool:
    """Whether the folder is on a disk of its own, which may be filled."""
    return folder.is_mount()
