"""The same storms over others' locks: cashews and aiocache behind two uvicorn workers each, sharing one Valkey.

Renders are counted in Valkey by the render itself (`storm_peer_app.py`). The worker whose render was counted first
leads; where one is killed it is that one, and uvicorn starts another. Clients ask again like Encore's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from redis.asyncio import Redis
from server import free_port
from storm_clients import Answer, Crowd
from storm_peer_app import AIOCACHE, CASHEWS, PORT_VARIABLE, RENDERS, SECONDS_VARIABLE, VIDEO
from storm_scenarios import IDENTICAL, LEADER, Storm, wrong
from storm_valkey import valkey

from deployments.launcher.host.processes import descendants, end, spawn

SYSTEMS = {"cashews, lock=True": CASHEWS, "aiocache cached_stampede": AIOCACHE}
WORKERS = 2
DIGEST = hashlib.sha256(VIDEO.encode()).hexdigest()
_START_SECONDS = 60.0
_MID = 0.4


async def storms(requests: int, render_seconds: float, say: Callable[[str], None]) -> list[Storm]:
    """Return what each peer made of identical requests, and of the leading worker's death."""
    found = []
    for system in SYSTEMS:
        for scenario in (IDENTICAL, LEADER):
            say(f"{system}, {scenario} ...")
            found.append(await _storm(system, scenario, requests, render_seconds))
            say(f"  {found[-1].renders} renders")
    return found


async def _storm(system: str, scenario: str, requests: int, render_seconds: float) -> Storm:
    async with _workers(render_seconds) as (port, pid, counter):
        crowd = Crowd(port, SYSTEMS[system])
        asking = [asyncio.create_task(crowd.ask({})) for _ in range(requests)]
        kills = []
        if scenario == LEADER:
            leader = await _leader(counter)
            while crowd.sent < requests:  # noqa: ASYNC110 - a thousand things to wait for, and no hurry
                await asyncio.sleep(0.05)
            await asyncio.sleep(_MID * render_seconds)
            if crowd.answered or leader not in descendants(pid):
                raise RuntimeError("the render was over, or its worker gone, before the kill")
            os.kill(leader, signal.SIGKILL)
            kills.append(time.time())
        answers: list[Answer] = await asyncio.gather(*asking)
        renders = await counter.llen(RENDERS)
    return Storm(
        scenario, requests, len(answers), wrong(answers, [DIGEST] * requests, etags=False), renders, tuple(kills),
        sum(answer.asked_again > 0 for answer in answers), dict(crowd.again),
        max(answer.seconds for answer in answers), system=system,
    )  # fmt: skip


async def _leader(counter: Redis) -> int:
    """Return the process id of the worker whose render came first."""
    while not (first := await counter.lindex(RENDERS, 0)):  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.05)
    return int(first)


@contextlib.asynccontextmanager
async def _workers(render_seconds: float) -> AsyncIterator[tuple[int, int, Redis]]:
    """Start an empty Valkey and uvicorn; yield its port, its supervisor's process id and the counter of renders."""
    with tempfile.TemporaryDirectory(prefix="encore-") as name, valkey(Path(name)) as valkey_port:
        port, log = free_port(), Path(name) / "uvicorn.log"
        here = Path(__file__).parent
        command = [
            sys.executable, "-m", "uvicorn", "storm_peer_app:build", "--factory", "--app-dir", str(here),
            "--workers", str(WORKERS), "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning",
            "--backlog", "4096",
        ]  # fmt: skip
        chosen = {PORT_VARIABLE: str(valkey_port), SECONDS_VARIABLE: str(render_seconds)}
        supervisor = spawn(command, env=os.environ | chosen, log=log)
        try:
            await asyncio.to_thread(_wait_for_all, port, log)
            async with Redis(port=valkey_port) as counter:
                yield port, supervisor.pid, counter
        finally:
            end(supervisor, 5)


def _wait_for_all(port: int, log: Path) -> None:
    """Wait until each worker has answered once; raises RuntimeError with their log."""
    seen, deadline = set(), time.monotonic() + _START_SECONDS
    while len(seen) < WORKERS:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
                seen.add(int(answer.read()))
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all workers came up:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)
