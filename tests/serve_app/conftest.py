"""What tests of several rooms share: a clock turned by hand, recorded events, servers that hang, rigs, small models."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from serve_app.cache.objects.s3 import S3Store
from serve_app.telemetry import Event, Telemetry
from tests.conftest import ValkeyServer
from tests.serve_app.model.training.short_run import ShortRun
from tests.serve_app.model.training.short_run import short_run as run
from tests.serve_app.service.rig import Rig


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Recorder(Telemetry):
    """Telemetry that remembers every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        super().__init__(self.events.append)

    def results(self, event_type: type[Any], tier: str) -> list[str]:
        """The results of all events of that type from that tier, in order."""
        return [event.result for event in self.events if isinstance(event, event_type) and event.tier == tier]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def valkey_url(valkey_server: Any) -> str:
    """The shared Valkey, emptied."""
    valkey_server.flush()
    return valkey_server.url


@pytest.fixture
def hanging_port() -> Iterator[int]:
    """A port where connections are taken (by the kernel) and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def refused_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
async def talking() -> AsyncIterator[Callable[[Callable[[bytes], bytes]], Any]]:
    """A function that starts a server which answers every chunk it is sent by `answer(chunk)`; returns its port."""
    async with AsyncExitStack() as stack:

        async def start(answer: Callable[[bytes], bytes]) -> int:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                while chunk := await reader.read(65536):
                    writer.write(answer(chunk))
                    await writer.drain()
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            stack.callback(server.close)
            return server.sockets[0].getsockname()[1]

        yield start


@pytest.fixture
def s3_store(s3_server: Any, s3_prefix: str) -> Callable[..., S3Store]:
    """A function that makes an S3Store on the real SeaweedFS, in the test's own prefix; other options are its own."""

    def make(**options: Any) -> S3Store:
        where: dict[str, Any] = {
            "connect_timeout": 60.0,
            "timeout": 300.0,  # a busy machine, and SeaweedFS takes seconds for conditional writes that race
            "endpoint_url": s3_server.endpoint_url,
            "region": s3_server.region,
            "access_key_id": s3_server.access_key_id,
            "secret_access_key": s3_server.secret_access_key,
        }
        return S3Store(s3_server.bucket, s3_prefix, **(where | options))

    return make


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path / "l3")
    yield made
    await made.aclose()


@pytest.fixture
async def shared_rig(tmp_path: Path, valkey_server: ValkeyServer) -> AsyncIterator[Rig]:
    valkey_server.flush()
    made = Rig(tmp_path / "l3", valkey_server.url)
    yield made
    await made.aclose()


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> ShortRun:
    """A finished run of the short recipe, by one worker; nobody may write into it. Workers of xdist share one."""
    if worker_id == "master":
        return run(tmp_path_factory.mktemp("run") / "tiny")
    shared = tmp_path_factory.getbasetemp().parent / "short_run"
    with FileLock(f"{shared}.lock"):
        told = shared / "told.json"
        if not told.exists():
            made = run(shared / "tiny")
            told.write_text(json.dumps({"checkpoint": str(made.checkpoint), "losses": made.losses}))
        found = json.loads(told.read_text())
    return ShortRun(shared / "tiny", Path(found["checkpoint"]), found["losses"])


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a tiny checkpoint of a kind, made at its first use; nobody may write into it."""
    from tests.serve_app.model.wan import tiny_checkpoint  # imports diffusers, which few tests need

    folders: dict[Any, Path] = {}

    def folder(kind: tiny_checkpoint.Kind = tiny_checkpoint.TI2V_5B) -> Path:
        if kind not in folders:
            folders[kind] = tiny_checkpoint.save(tmp_path_factory.mktemp("wan") / "tiny", kind)
        return folders[kind]

    return folder
