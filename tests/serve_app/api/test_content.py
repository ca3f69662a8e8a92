"""A stored video and its pictures over HTTP as RFC 9110 wants them: types, validators, ranges, HEAD."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from serve_app.core import Entry
from serve_app.media import spritesheet, thumbnail
from tests.serve_app.api.conftest import FILM
from tests.serve_app.service.rig import Rig, ask, ended

ASK = {"prompt": "a red circle moves left"}


@pytest.fixture(params=["", "?variant=video", "?variant=thumbnail", "?variant=spritesheet"])
async def path(request: pytest.FixtureRequest, app: FastAPI, rig: Rig) -> str:
    rig.renderer.data = FILM
    service = app.state.service
    return f"/v1/videos/{(await ended(service, await service.jobs.submit(ask()))).id}/content{request.param}"


@pytest.fixture
async def entry(path: str, rig: Rig) -> Entry:
    found = await rig.cache().get(rig.renderer.asked[0])
    assert found is not None
    assert found[0].data == FILM
    make = {"thumbnail": thumbnail, "spritesheet": spritesheet}.get(path.partition("=")[2])
    return found[0] if make is None else Entry.of(found[0].key, make(FILM))


async def test_whole(http: httpx.AsyncClient, path: str, entry: Entry) -> None:
    """GET gives the bytes with type, length and the digest as a strong ETag; HEAD the same headers and no body."""
    got, head = await http.get(path), await http.head(path)
    assert (got.status_code, got.content) == (200, entry.data)
    types = {"thumbnail": "image/webp", "spritesheet": "image/jpeg"}
    assert got.headers["content-type"] == types.get(path.partition("=")[2], "video/mp4")
    assert got.headers["x-encore-key"] == entry.key
    assert got.headers["etag"] == f'"{entry.digest}"'
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["content-length"] == str(entry.size)
    assert (head.status_code, head.content) == (200, b"")
    assert dict(head.headers) == dict(got.headers)


@pytest.mark.parametrize("tag", ['"{}"', 'W/"{}"', "*", '"x", "{}"', '"x",W/"{}" , "y"'])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_not_modified(http: httpx.AsyncClient, path: str, entry: Entry, method: str, tag: str) -> None:
    """If-None-Match with the digest (strong, weak, in a list) or `*` is a 304 with the ETag and no body."""
    answer = await http.request(method, path, headers={"If-None-Match": tag.format(entry.digest), "Range": "bytes=0-1"})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == f'"{entry.digest}"'
    assert "cache-status" in answer.headers
    assert answer.headers.get("content-length") in (None, str(entry.size))


@pytest.mark.parametrize("tag", ['"x"', "", "x", '"{}', "W/*"])
async def test_modified(http: httpx.AsyncClient, path: str, entry: Entry, tag: str) -> None:
    """If-None-Match with anything else gives the whole."""
    answer = await http.get(path, headers={"If-None-Match": tag.format(entry.digest)})
    assert (answer.status_code, answer.content) == (200, entry.data)


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0), ("bytes=0-", 0, -1), ("bytes=5-9", 5, 9), ("bytes=-1", -1, -1), ("bytes=-7", -7, -1),
        ("bytes=10-99999999999999999999999", 10, -1), ("bytes=-999999", 0, -1), ("BYTES=1-2", 1, 2),
        ("bytes=00000000000000000000000003-4", 3, 4), ("bytes=0-99999", 0, -1),
    ],
)  # fmt: skip
async def test_one_range(http: httpx.AsyncClient, path: str, entry: Entry, header: str, first: int, last: int) -> None:
    """One satisfiable range is a 206 with exactly those bytes and a Content-Range that says which of how many."""
    first, last = first % entry.size, last % entry.size
    answer = await http.get(path, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, entry.data[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{entry.size}"
    assert answer.headers["content-length"] == str(last - first + 1)
    assert answer.headers["etag"] == f'"{entry.digest}"'


@pytest.mark.parametrize("header", ["bytes=99999-", "bytes=99999-100000", "bytes=-0", "bytes=9999999999999999999999-"])
async def test_beyond(http: httpx.AsyncClient, path: str, entry: Entry, header: str) -> None:
    """A range beyond the content is a 416 in the OpenAI form that tells the size."""
    answer = await http.get(path, headers={"Range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{entry.size}"
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


@pytest.mark.parametrize(
    "header", ["bytes=5-2", "bytes=a-b", "bytes=-", "bytes=", "bytes", "items=0-1", "bytes=0-1,3-4", "bytes=1--2", ""]
)
async def test_whole_instead(http: httpx.AsyncClient, path: str, entry: Entry, header: str) -> None:
    """An invalid, unknown or multiple range is ignored: the whole, with 200."""
    answer = await http.get(path, headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, entry.data)
    assert "content-range" not in answer.headers


async def test_if_range(http: httpx.AsyncClient, path: str, entry: Entry) -> None:
    """A range is given only for the very file: a weak, foreign or dated If-Range gives the whole."""
    for tag, status in (
        (f'"{entry.digest}"', 206),
        (f'W/"{entry.digest}"', 200),
        ('"x"', 200),
        ("Sun, 22 Nov 2026", 200),
    ):
        assert (await http.get(path, headers={"Range": "bytes=0-0", "If-Range": tag})).status_code == status


async def test_head_has_no_ranges(http: httpx.AsyncClient, path: str, entry: Entry) -> None:
    """Ranges are defined for GET alone; HEAD answers for the whole."""
    for header in ("bytes=0-0", "bytes=99999-"):
        answer = await http.head(path, headers={"Range": header})
        assert (answer.status_code, answer.headers["content-length"]) == (200, str(entry.size))


async def test_content_says_where_it_was(http: httpx.AsyncClient, path: str, rig: Rig, app: FastAPI) -> None:
    """Cache-Status tells the tier: memory first, the folder after memory forgot."""
    assert (await http.get(path)).headers["cache-status"] == "encore; hit; detail=l1"
    app.state.service.forget((rig.renderer.asked[0],), ())
    assert (await http.get(path)).headers["cache-status"] == "encore; hit; detail=l3"


@pytest.mark.parametrize("variant", ["", "Thumbnail", "poster", "video,thumbnail", "x" * 1000, "\x00", "\u00e9"])
@pytest.mark.parametrize("path", [""], indirect=True)
async def test_an_unknown_variant(http: httpx.AsyncClient, path: str, variant: str) -> None:
    """A variant that there is not is a short 422 that names the field and those there are."""
    answer = await http.get(path, params={"variant": variant})
    told = answer.json()["error"]
    assert (answer.status_code, told["code"], told["param"]) == (422, "invalid_value", "variant")
    assert "'video', 'thumbnail' or 'spritesheet'" in told["message"]
    assert len(answer.content) < 300


@pytest.mark.parametrize("variant", ["thumbnail", "spritesheet"])
async def test_a_stored_file_that_is_no_video(http: httpx.AsyncClient, app: FastAPI, variant: str) -> None:
    """What cannot be decoded is an error in the OpenAI form, not a broken picture; its bytes are still served."""
    service = app.state.service
    path = f"/v1/videos/{(await ended(service, await service.jobs.submit(ask()))).id}/content"
    answer = await http.get(path, params={"variant": variant})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "render_failed")
    assert (await http.get(path)).status_code == 200
