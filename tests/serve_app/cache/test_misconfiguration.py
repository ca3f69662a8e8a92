"""A server that refuses for good is told from one that is away for a while, in its own words and once."""

from __future__ import annotations

import logging
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from botocore.exceptions import ClientError, NoCredentialsError

from serve_app.cache.cache import TieredCache
from serve_app.cache.circuit import TOLD_AGAIN_SECONDS, Circuit
from serve_app.cache.misconfiguration import of_s3
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.redis.redis import RedisTier
from serve_app.errors import TierError
from tests.conftest import S3Server, _start, _wait_until

PASSWORD, WRONG = "right-horse", "wrong-horse"


@pytest.fixture
def guarded(valkey_binary: Path, short_tmp: Path) -> Iterator[Path]:
    """The socket of a Valkey that wants a password, with a user `reader` who may only ping."""
    folder = Path(tempfile.mkdtemp(dir=short_tmp))
    socket, log = folder / "valkey.sock", folder / "valkey.log"
    command = [str(valkey_binary), "--port", "0", "--unixsocket", str(socket), "--save", "", "--requirepass", PASSWORD]
    process: subprocess.Popen[bytes] = _start([*command, "--user", "reader", "on", f">{PASSWORD}", "+ping"], log)
    _wait_until(socket.exists, process, log, 10)
    with redis.Redis(unix_socket_path=str(socket), password=PASSWORD) as client:
        _wait_until(client.ping, process, log, 10)
    yield socket
    process.kill()
    process.wait()


def opened(url: str, circuit: Circuit) -> TieredCache:
    return TieredCache("video", secret=b"secret", l2=RedisTier(url), circuits={"l2": circuit})


@pytest.mark.parametrize(
    ("login", "told"),
    [(f":{WRONG}@", "WRONGPASS"), ("", "NOAUTH"), (f"reader:{PASSWORD}@", "NOPERM")],
    ids=["password", "none", "right"],
)
async def test_redis_says_what_is_wrong(guarded: Path, login: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    """One WARNING with the server's words, however often it is asked; `broken` names it; the password is nowhere."""
    cache = opened(f"unix://{login}{guarded}", Circuit("l2"))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await cache.probe()
    (broken,) = cache.broken()
    assert (broken["tier"], broken["reason"]) == ("l2", "misconfigured")
    assert told in broken["message"]
    assert [told in record.getMessage() for record in caplog.records if "refuses" in record.getMessage()] == [True]
    assert "redis_url" in caplog.text
    assert WRONG not in caplog.text + str(broken)
    assert PASSWORD not in caplog.text + str(broken)
    await cache.aclose()


async def test_another_database_than_there_is(guarded: Path) -> None:
    """A database that the server does not have is a mistake too."""
    cache = opened(f"unix://:{PASSWORD}@{guarded}?db=99", Circuit("l2"))
    await cache.probe()
    assert cache.broken()[0]["message"].endswith("DB index is out of range")
    await cache.aclose()


async def test_an_outage_is_no_misconfiguration(guarded: Path) -> None:
    """A server that is away is `unreachable` and no more; one that works is not named."""
    cache = opened(f"unix://{guarded}.gone", Circuit("l2", failures=1))
    await cache.probe()
    assert [each["reason"] for each in cache.broken()] == ["unreachable"]
    await cache.aclose()
    cache = opened(f"unix://:{PASSWORD}@{guarded}", Circuit("l2"))
    await cache.probe()
    assert cache.broken() == []
    await cache.aclose()


async def test_s3_without_its_bucket(s3_server: S3Server) -> None:
    """A read from a bucket that does not exist says so in S3's words."""
    store = S3Store(
        "no-such-bucket", endpoint_url=s3_server.endpoint_url, region=s3_server.region,
        access_key_id=s3_server.access_key_id, secret_access_key=s3_server.secret_access_key,
    )  # fmt: skip
    cache = TieredCache("video", secret=b"secret", l3=store)
    await cache.probe()
    (broken,) = cache.broken()
    assert (broken["tier"], broken["reason"]) == ("l3", "misconfigured")
    assert "NoSuchBucket" in broken["message"]
    await cache.aclose()


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "NoSuchBucket"])
def test_what_s3_says_for_good(code: str) -> None:
    """Wrong keys, missing rights and buckets are mistakes; a busy or broken store is none."""
    assert code in (of_s3(_refusal(code, 403)) or "")
    assert of_s3(NoCredentialsError()) is not None
    for passing, status in (("SlowDown", 503), ("InternalError", 500), ("NoSuchKey", 404)):
        assert of_s3(_refusal(passing, status)) is None


def _refusal(code: str, status: int) -> ClientError:
    said = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(said, "GetObject")  # type: ignore[arg-type]


def test_it_is_told_once_a_change_and_forgotten_when_it_works(caplog: pytest.LogCaptureFixture) -> None:
    """The same words again within the hour are no news; a call that works ends the fault."""
    now = [0.0]
    circuit = Circuit("l2", failures=100, clock=lambda: now[0])

    def ask(words: str | None) -> None:
        error = TierError("no")
        error.misconfigured = words
        with suppress(TierError), circuit.attempt():
            raise error

    for words in ("WRONGPASS", "WRONGPASS", "NOPERM", "WRONGPASS"):
        ask(words)
    assert len(caplog.records) == 2
    now[0] += TOLD_AGAIN_SECONDS + 1
    ask("WRONGPASS")
    assert len(caplog.records) == 3
    with circuit.attempt():
        pass
    assert circuit.broken is None
