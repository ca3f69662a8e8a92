"""What does a user of `encore serve` lose when a part of it dies, hangs or is beset? Nothing that was accepted.

Each fault strikes a real server while it has accepted jobs. A fault is survived when every accepted job ends completed
with the right bytes (they are what their ETag says, a video of the right length, twice the same), the API then answers
and renders something new, a video and a job from before are as they were, and no job is answered by a 404 meanwhile.
After the death of the launcher, the raylet or the GCS the launcher must end with all it started, and the server is
started again on the same folder.

    answered after   seconds from the fault (or the next start) until the API answered
    done after       the same until all jobs were completed
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
from deaths_server import Server, is_small_disk, server, until
from form import Goal, Result, Row, main

from deployments.launcher.host.processes import allow_many_files
from deployments.launcher.supervisor import EXIT_STATUS
from serve_app.media import probe

ASK = {"prompt": "a red circle moves left", "num_inference_steps": 30}
FRAMES = 16
JOBS = 3
LOCKED_SECONDS, STOPPED_SECONDS, FULL_SECONDS = 21.0, 20.0, 15.0
READERS, UPLOADS, HALF_OPEN = 300, 200, 4_200
ENDED_SECONDS = 120.0
HIT_SECONDS = 30.0
"""Within which others are answered while clients beset the server: longer than the limit of headers."""
_seeds = itertools.count(1000)


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: what strikes. `ends`: the launcher ends by it, with this status."""

    name: str
    strike: Callable[[Server, list[str]], None]
    ends: int | None = None
    jobs: int = JOBS
    quick: bool = False


def killed(name: str) -> Callable[[Server, list[str]], None]:
    """Return what kills the process of this name."""
    return lambda server, jobs: server.kill(name) and None


def launcher_killed(server: Server, jobs: list[str]) -> None:
    """SIGKILL the launcher itself."""
    os.kill(server.pid, signal.SIGKILL)


def valkeys_killed(server: Server, jobs: list[str]) -> None:
    """SIGKILL every Valkey, one after the other."""
    for valkey in server.valkeys():
        os.kill(valkey.pid, signal.SIGKILL)
        until(lambda dead=valkey: not dead.is_alive())


def diffusion_killed_again_and_again(server: Server, jobs: list[str]) -> None:
    """SIGKILL Diffusion four times, each time one that has just come up, in about a minute."""
    name = "ray::ServeReplica:encore:Diffusion"
    for _ in range(4):
        victim = server.kill(name)
        until(lambda last=victim: any(each != last for each in server.below(name)))
        time.sleep(5)


def valkeys_stopped(server: Server, jobs: list[str]) -> None:
    """SIGSTOP every Valkey for 20 seconds."""
    stopped = server.valkeys()
    for valkey in stopped:
        os.kill(valkey.pid, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    for valkey in stopped:
        os.kill(valkey.pid, signal.SIGCONT)


def flushed(server: Server, jobs: list[str]) -> None:
    """FLUSHALL the Valkey of the cache."""
    with server.cache() as client:
        client.flushall()


def evicted(server: Server, jobs: list[str]) -> None:
    """Leave the Valkey of the cache no memory for a while."""
    with server.cache() as client:
        before = client.config_get("maxmemory")["maxmemory"]
        client.config_set("maxmemory", "1mb")
        time.sleep(5)
        client.config_set("maxmemory", before)


def disk_full(server: Server, jobs: list[str]) -> None:
    """Fill the disk of the cache folder, for a while; raises RuntimeError where it is no disk of its own."""
    if not is_small_disk(server.folder):
        raise RuntimeError("a disk can be filled only where one may be mounted (root)")
    filler = server.folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65_536)
    time.sleep(FULL_SECONDS)
    filler.unlink()


def folder_locked(server: Server, jobs: list[str]) -> None:
    """Hold the lock of every index of L3 for 21 seconds."""
    with ExitStack() as stack:
        for path in server.folder.glob("l3/**/*.sqlite*"):
            if not path.name.endswith(("-wal", "-shm")):
                held = stack.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)))
                held.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED_SECONDS)


def folder_deleted(server: Server, jobs: list[str]) -> None:
    """Delete the folder of L3 under the running server."""
    shutil.rmtree(server.folder / "l3")


def readers_of_events(server: Server, jobs: list[str]) -> None:
    """Let 300 readers follow one job to its end, while others are answered; raises when a reader does not see it."""
    ends: list[bool] = []

    def read() -> None:
        url = f"http://127.0.0.1:{server.port}/v1/videos/{jobs[-1]}/events"
        with contextlib.suppress(httpx.HTTPError), httpx.stream("GET", url, timeout=120, trust_env=False) as response:
            ends.append(any(line == "event: completed" for line in response.iter_lines()))

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    others_are_answered(server)
    for thread in threads:
        thread.join()
    if ends != [True] * READERS:
        raise RuntimeError(f"{sum(ends)} of {READERS} readers saw the end")


def slow_uploads(server: Server, jobs: list[str]) -> None:
    """Send half a body on each of 200 connections and hold them, while others are answered."""
    head = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with beset(server, UPLOADS, head + b"Content-Length: 400000\r\n\r\n{" + b" " * 100_000):
        others_are_answered(server)


def half_open(server: Server, jobs: list[str]) -> None:
    """Send half a header on each of 4,200 connections and hold them, while others are answered."""
    with beset(server, HALF_OPEN, b"GET /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nX-"):
        others_are_answered(server)


@contextlib.contextmanager
def beset(server: Server, count: int, data: bytes) -> Iterator[None]:
    """Hold `count` connections on which `data` was sent, for as long as the server keeps them."""
    with ExitStack() as stack:
        for _ in range(count):
            with contextlib.suppress(OSError):
                held = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
                held.sendall(data)
        yield


def others_are_answered(server: Server) -> None:
    """Ask for a hit and post a job; raises where that takes too long."""
    with httpx.Client(base_url=server.http.base_url, timeout=HIT_SECONDS, trust_env=False) as http:
        http.post("/v1/videos/sync", json=ASK).raise_for_status()
        http.post("/v1/videos", json=ASK).raise_for_status()


REPLICA = "ray::ServeReplica:encore:"
FAULTS = [
    Fault("SIGKILL of the router", killed(f"{REPLICA}CacheRouter"), quick=True),
    Fault("SIGKILL of Diffusion", killed(f"{REPLICA}Diffusion"), quick=True),
    Fault("SIGKILL of TextEncoder", killed(f"{REPLICA}TextEncoder")),
    Fault("SIGKILL of VideoEncoder", killed(f"{REPLICA}VideoEncoder")),
    Fault("SIGKILL of Valkey", valkeys_killed, quick=True),
    Fault("SIGKILL of the Serve controller", killed("ray::ServeController")),
    Fault("SIGKILL of the proxy", killed("ray::ProxyActor")),
    Fault("SIGKILL of HAProxy", killed("haproxy"), quick=True),
    Fault("SIGKILL of HAProxyManager", killed("ray::HAProxyManager")),
    Fault("Diffusion killed four times", diffusion_killed_again_and_again, jobs=5),
    Fault("Valkey stopped for 20 s", valkeys_stopped),
    Fault("FLUSHALL", flushed, quick=True),
    Fault("eviction", evicted),
    Fault("disk full", disk_full),
    Fault("folder locked", folder_locked),
    Fault("folder deleted", folder_deleted),
    Fault(f"{READERS} event readers", readers_of_events),
    Fault(f"{UPLOADS} slow uploads", slow_uploads),
    Fault("half-open connections", half_open, quick=True),
    Fault("SIGKILL of the launcher", launcher_killed, ends=-signal.SIGKILL),
    Fault("SIGKILL of the GCS", killed("gcs_server"), ends=EXIT_STATUS),
    Fault("SIGKILL of the raylet", killed("raylet"), ends=EXIT_STATUS, quick=True),
]


def tried(server: Server, fault: Fault, control: str) -> Row:
    """Let one fault strike and see what is left; `control` is a job from before, completed."""
    row: Row = {
        "fault": fault.name,
        "jobs": 0,
        "completed": 0,
        "answered after": "",
        "done after": "",
        "survived": "no",
    }
    before = content_of(server, control)
    jobs = [server.accept(ASK | {"seed": next(_seeds)}) for _ in range(fault.jobs)]
    row["jobs"] = len(jobs)
    family = server.below("")
    began = time.monotonic()
    fault.strike(server, jobs)
    if fault.ends is not None:
        check(server.launcher is not None and server.launcher.wait(ENDED_SECONDS) == fault.ends, server.said)
        with contextlib.suppress(TimeoutError):
            until(lambda: not any(each.is_alive() for each in family), ENDED_SECONDS)
        left = [f"{each.pid} {each.name}" for each in family if each.is_alive()]
        check(not left, f"what the launcher started lives on: {left}")
        began = time.monotonic()
        server.start()
    until(server.answers)
    row["answered after"] = round(time.monotonic() - began, 1)
    for job in jobs:
        until(lambda job=job: (server.job(job) or {}).get("status") in ("completed", "failed"))
        check((server.job(job) or {}).get("status") == "completed", f"{job}: {(server.job(job) or {}).get('error')}")
        row["completed"] = int(row["completed"]) + (content_of(server, job) == content_of(server, job))
    row["done after"] = round(time.monotonic() - began, 1)
    check(row["completed"] == len(jobs), "not every accepted job was completed with the right bytes")
    check(content_of(server, control) == before, "a video from before is another one")
    new = server.http.post("/v1/videos/sync", json=ASK | {"seed": next(_seeds)}, timeout=120)
    check(new.status_code == 200 and probe(new.content).num_frames == FRAMES, f"a new video: {new.status_code}")
    row["survived"] = "yes"
    return row


def content_of(server: Server, job: str) -> bytes:
    """Return a completed job's video; raises RuntimeError when it is not what its ETag says, or of another length."""
    answer: list[httpx.Response] = []

    def asked() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            answer[:] = [server.http.get(f"/v1/videos/{job}/content")]
        return bool(answer) and answer[0].status_code < 500

    until(asked)
    data = answer[0].content
    check(answer[0].status_code == 200, f"the content of {job}: {answer[0].status_code} {data[:100]!r}")
    check(hashlib.sha256(data).hexdigest() in answer[0].headers["etag"], f"{job} is not what its ETag says")
    check(probe(data).num_frames == FRAMES, f"{job} has another length")
    return data


def check(holds: bool, what: str) -> None:
    """Raise RuntimeError with `what` is wrong unless it holds."""
    if not holds:
        raise RuntimeError(what)


def measure(quick: bool) -> Result:
    """Let every fault strike one server, one after the other; after one that was not survived, a new one."""
    allow_many_files()
    rows: list[Row] = []
    with server() as made:
        control = completed(made)
        for fault in FAULTS:
            if quick and not fault.quick:
                continue
            try:
                rows.append(tried(made, fault, control))
            except (
                RuntimeError,
                LookupError,
                TimeoutError,
                OSError,
                subprocess.TimeoutExpired,
                httpx.HTTPError,
            ) as error:
                print(f"{fault.name}: {type(error).__name__} {error}", file=sys.stderr, flush=True)
                rows.append(not_survived(fault))
                made.renew()
                control = completed(made)
            print(rows[-1], file=sys.stderr, flush=True)
    survived = sum(row["survived"] == "yes" for row in rows)
    goal = Goal.exactly("faults survived", survived, len(rows))
    return Result(rows, [goal], {"tried": len(rows), "survived": survived})


def completed(server: Server) -> str:
    """Return a job that is completed."""
    job = server.accept(ASK)
    until(lambda: (server.job(job) or {}).get("status") == "completed")
    return job


def not_survived(fault: Fault) -> Row:
    """Return the row of a fault whose reason was told on standard error."""
    row: Row = {"fault": fault.name, "jobs": fault.jobs, "completed": 0, "answered after": "", "done after": ""}
    return row | {"survived": "no"}


def draw(axes: Any, result: Result) -> None:
    """Draw how long each fault took until all jobs were done."""
    rows = [row for row in result.rows if row["survived"] == "yes"]
    axes.barh([str(row["fault"]) for row in rows], [float(row["done after"]) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("seconds until every accepted job was done")


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
