"""The same storm over nginx's `proxy_cache_lock`, in front of a backend that counts what reaches it.

nginx lets one request through and holds the others for `proxy_cache_lock_timeout`, after which it lets all through, and
one more every `proxy_cache_lock_age`; both are 5 s unless set. It runs with these, and with both longer than the
render. One process, as few lines of configuration as it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from server import free_port
from storm_clients import Answer, Crowd
from storm_scenarios import IDENTICAL, Storm, wrong

from deployments.launcher.host.processes import end, spawn

BODY = b"the one video behind nginx " * 1_000
LOCKS = {"nginx proxy_cache_lock": None, "nginx, locks of 60 s": 60}
"""Each with the seconds of both of its times; None: those that nginx has."""
_CONFIG = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log warn; worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache keys_zone=videos:1m;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://127.0.0.1:{backend};
            proxy_read_timeout 120s;
            proxy_cache videos; proxy_cache_valid 200 1h; proxy_cache_lock on; {times}
        }}
    }}
}}
"""


def missing() -> str:
    """Return why this cannot run here, empty when it can."""
    return "" if shutil.which("nginx") else "nginx is not installed (Debian: nginx-light)"


async def storms(requests: int, render_seconds: float, say: Callable[[str], None]) -> list[Storm]:
    """Return what nginx made of identical requests, with its own times and with longer ones."""
    found = []
    for system, seconds in LOCKS.items():
        say(f"{system}, {IDENTICAL} ...")
        found.append(await _storm(system, seconds, requests, render_seconds))
        say(f"  {found[-1].renders} renders")
    return found


async def _storm(system: str, lock_seconds: int | None, requests: int, render_seconds: float) -> Storm:
    renders = 0

    async def render(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal renders
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            renders += 1
            await asyncio.sleep(render_seconds)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + BODY)
            await writer.drain()
        writer.close()

    async with (
        await asyncio.start_server(render, "127.0.0.1", 0, backlog=4096) as backend,
        _nginx(backend.sockets[0].getsockname()[1], lock_seconds) as port,
    ):
        crowd = Crowd(port, "/video", "GET")
        answers: list[Answer] = await asyncio.gather(*(crowd.ask({}) for _ in range(requests)))
    digest = hashlib.sha256(BODY).hexdigest()
    return Storm(
        IDENTICAL, requests, len(answers), wrong(answers, [digest] * requests, etags=False), renders, (),
        sum(answer.asked_again > 0 for answer in answers), dict(crowd.again),
        max(answer.seconds for answer in answers), system=system,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _nginx(backend: int, lock_seconds: int | None) -> AsyncIterator[int]:
    """Start nginx before `backend` and yield its port; raises RuntimeError with its log."""
    with tempfile.TemporaryDirectory(prefix="encore-") as folder:
        port, config, log = free_port(), Path(folder) / "nginx.conf", Path(folder) / "log"
        times = "" if lock_seconds is None else (
            f"proxy_cache_lock_timeout {lock_seconds}s; proxy_cache_lock_age {lock_seconds}s;"
        )  # fmt: skip
        config.write_text(_CONFIG.format(folder=folder, port=port, backend=backend, times=times))
        nginx = shutil.which("nginx") or "nginx"
        command = [nginx, "-p", folder, "-c", str(config), "-e", str(Path(folder) / "error.log")]
        process = spawn(command, env=os.environ, log=log)
        try:
            await asyncio.to_thread(_wait, port, process.poll, log)
            yield port
        finally:
            end(process, 3)


def _wait(port: int, ended: Callable[[], int | None], log: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError as error:
            if ended() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nginx did not start:\n{log.read_text()[-1000:]}") from error
            time.sleep(0.05)
