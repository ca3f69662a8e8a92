"""Content codings of request bodies: decoded within the limits, and what is not decoded is told."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from serve_app.api.http.content_coding import Decoder, codings_of
from serve_app.errors import InvalidRequest, TooLarge, UnsupportedCoding
from tests.serve_app.api.http.test_body import error_of

BODY = json.dumps({"prompt": "a red circle moves left", "seed": 7}).encode()
FORM = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na red circle moves left\r\n--x--\r\n'
JSON, MULTIPART, URLENCODED = "application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"


async def in_chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def bare(data: bytes) -> bytes:
    """Deflate without zlib's frame, as some clients send it."""
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


def members(data: bytes) -> bytes:
    return gzip.compress(data[:10]) + gzip.compress(b"") + gzip.compress(data[10:])


CODED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress), ("x-gzip", gzip.compress), ("GZip", gzip.compress), ("deflate", zlib.compress),
    ("deflate", bare), ("identity", bytes), ("", bytes), ("identity, gzip", gzip.compress), ("gzip", members),
    ("gzip, deflate", lambda body: zlib.compress(gzip.compress(body))),
    ("deflate , identity,gzip", lambda body: gzip.compress(zlib.compress(body))),
    ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
]  # fmt: skip


@pytest.mark.parametrize(("coding", "code"), CODED, ids=range(len(CODED)))
async def test_a_coded_body_is_the_body(http: httpx.AsyncClient, coding: str, code: Callable[[bytes], bytes]) -> None:
    """JSON and forms in each coding are answered as without one, sent at once and a few bytes at a time."""
    for kind, body in ((JSON, BODY), (MULTIPART, FORM), (URLENCODED, b"prompt=a+red+circle+moves+left")):
        plain = await http.post("/v1/explain", content=body, headers={"Content-Type": kind})
        assert plain.status_code == 200, plain.text
        headers = {"Content-Type": kind, "Content-Encoding": coding}
        coded = code(body)
        assert (await http.post("/v1/explain", content=coded, headers=headers)).json() == plain.json()
        assert (await http.post("/v1/explain", content=in_chunks(coded, 3), headers=headers)).json() == plain.json()


async def test_two_fields_are_one_list(http: httpx.AsyncClient) -> None:
    """Content-Encoding given twice names the codings of both, in their order."""
    headers = [("Content-Type", JSON), ("Content-Encoding", "gzip"), ("Content-Encoding", "deflate")]
    answer = await http.post("/v1/explain", content=zlib.compress(gzip.compress(BODY)), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, br", "*", "gzip;q=1", ", ".join(["gzip"] * 9)])
async def test_other_codings_are_refused(http: httpx.AsyncClient, coding: str) -> None:
    """What is not decoded is a 415 that names what is (RFC 9110, section 15.5.16), on each route with a body."""
    for path in ("/v1/videos", "/v1/videos/sync", "/v1/explain", "/v1/cache/invalidate", "/v1/cache/warm"):
        answer = await http.post(path, content=b"...", headers={"Content-Type": JSON, "Content-Encoding": coding})
        assert error_of(answer, 415)["param"] == "Content-Encoding"
        assert answer.headers["accept-encoding"] == "gzip, deflate, identity"


@pytest.mark.parametrize(("coding", "code"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", bare)])
async def test_a_broken_stream_is_refused(http: httpx.AsyncClient, coding: str, code: Callable[[bytes], bytes]) -> None:
    """A stream that is cut anywhere, damaged, or followed by anything is a 400 that names the coding."""
    coded = code(BODY)
    broken = [coded[:end] for end in range(len(coded))] + [coded + b"x", coded + b"\0" * 20, coded + BODY]
    if code is not bare:
        broken += [b"\x1f\x8b" + b"\xff" * 40, coded[:-3] + bytes([coded[-3] ^ 1]) + coded[-2:]]
    for body in broken:
        headers = {"Content-Type": JSON, "Content-Encoding": coding}
        error = error_of(await http.post("/v1/explain", content=body, headers=headers), 400)
        assert f"content coding '{coding}'" in error["message"], body


async def test_plain_json_under_a_coding_is_told_so(http: httpx.AsyncClient) -> None:
    """A body that is not compressed at all, but says so, is a 400 that names the coding and not JSON."""
    for coding in ("gzip", "deflate"):
        headers = {"Content-Type": JSON, "Content-Encoding": coding}
        assert f"'{coding}'" in error_of(await http.post("/v1/explain", content=BODY, headers=headers), 400)["message"]


@pytest.mark.parametrize("kind", [JSON, MULTIPART, URLENCODED])
@pytest.mark.parametrize("path", ["/v1/videos", "/v1/explain"])
async def test_a_bomb_is_too_large(http: httpx.AsyncClient, path: str, kind: str) -> None:
    """A body within the limit that stands for one far beyond it is a 413, in one coding and in two."""
    bomb = gzip.compress(b" " * 20_000_000, 6)
    twice = gzip.compress(bomb)
    assert len(twice) < 10_000
    headers = {"Content-Type": kind, "Content-Encoding": "gzip, gzip"}
    assert error_of(await http.post(path, content=twice, headers=headers), 413)["code"] == "request_too_large"
    headers["Content-Encoding"] = "gzip"
    error_of(await http.post(path, content=in_chunks(bomb, 1000), headers=headers), 413)


def test_a_bomb_takes_no_more_than_the_limit() -> None:
    """Decoding ends where the bound is passed: what would be 64 MiB takes a few hundred KiB."""
    piece = zlib.compressobj(wbits=31)
    bomb = b"".join(piece.compress(bytes(2**20)) for _ in range(64)) + piece.flush()
    decoder = Decoder(["gzip"], 100_000, lambda: TooLarge("too large"))
    tracemalloc.start()
    with pytest.raises(TooLarge):
        decoder.feed(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_exactly_the_limit_passes() -> None:
    """The bound is of decoded bytes, and inclusive."""
    for size, passes in ((1000, True), (1001, False)):
        decoder = Decoder(["deflate"], 1000, lambda: TooLarge("too large"))
        if passes:
            assert decoder.feed(zlib.compress(b"a" * size)) == b"a" * size
        else:
            with pytest.raises(TooLarge):
                decoder.feed(zlib.compress(b"a" * size))


def test_endless_empty_members_end() -> None:
    """A gzip stream of members without content is refused after a thousand, though it never passes the size bound."""
    decoder = Decoder(["gzip"], 1000, lambda: TooLarge("too large"))
    with pytest.raises(InvalidRequest, match="'gzip'"):
        decoder.feed(gzip.compress(b"") * 5000)


def test_names_of_codings() -> None:
    """Names are compared without case, identity is left out, and unknown ones are refused by name."""
    assert codings_of(["GZIP, identity", "deflate"]) == ["gzip", "deflate"]
    assert codings_of([]) == []
    with pytest.raises(UnsupportedCoding, match="'br'"):
        codings_of(["gzip,br"])


async def test_a_body_nobody_reads_is_not_decoded(http: httpx.AsyncClient) -> None:
    """Content-Encoding on a request without a body changes nothing."""
    assert (await http.get("/v1/models", headers={"Content-Encoding": "br"})).status_code == 200
    error_of(await http.delete("/v1/videos/x", headers={"Content-Encoding": "br"}), 404)
