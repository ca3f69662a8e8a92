"""URLs: what in them is secret is found and hidden, and any path can become part of one and come back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deployments.launcher.host.folder import CacheFolder
from deployments.launcher.valkey import EmbeddedValkey
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.store import open_store
from serve_app.urls import has_credentials, is_loopback, path_of, quoted_path, redacted, without_secrets

MARK = "hunter2"
NASTY = [
    "a blank", "100%", "%20", "what?", "number#1", "it's", 'so "quoted"', "$HOME", "back\\slash", "new\nline",
    "tab\there",
    "ünïcödé", "日本語", "🎬", "-dash", "~tilde", "semi;colon", "a&b=c", "{braces}", "[brackets]", "star*", "+plus+",
    os.fsdecode(b"no-utf8-\xff\xfe"),
]  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{MARK}@host:6379/0",
        f"rediss://user:{MARK}@host",
        f"redis+cluster://user:{MARK}@a:1,b:2?ssl_ca_certs=/x",
        f"redis://:sl/{MARK}@host",
        f"redis://:ha#{MARK}@host",
        f"redis://:wh?{MARK}@host",
        f"redis://:at@{MARK}@host",
        f"unix://user:{MARK}@/run/valkey.sock",
        f"unix:///run/valkey.sock?password={MARK}",
        f"http://{MARK}@collector:4318",
        f"https://collector/v1/traces?api_key={MARK}&x=1",
        f"https://collector?X-Amz-Signature={MARK}",
        f"s3://key:{MARK}@bucket/prefix",
        f"user:{MARK}@host",
    ],
)
def test_credentials_are_found_and_hidden(url: str) -> None:
    """User information and secret parameters are credentials, also where a password is not quoted as it should be."""
    assert has_credentials(url)
    assert MARK not in redacted(url)
    assert MARK not in without_secrets(f"Cannot reach {url}: refused") or "://" not in url


@pytest.mark.parametrize(
    "url",
    [
        "redis://host:6379/0",
        "redis+cluster://a:1,b:2",
        "unix:///run/a@b/valkey.sock",
        "file:///home/somebody@example.com/l3",
        "s3://bucket/prefix@2",
        "rediss://host?ssl_ca_certs=/etc/ca.pem&ssl_keyfile=/etc/key.pem&socket_timeout=1",
        "http://collector:4318/v1/traces",
    ],
)
def test_what_has_no_credentials_is_left_alone(url: str) -> None:
    """An address without secrets may travel and is shown as it is."""
    assert not has_credentials(url)
    assert redacted(url) == url


@pytest.mark.parametrize("name", NASTY)
async def test_any_path_survives_being_a_url(tmp_path: Path, name: str) -> None:
    """The path comes back from the URL, and the folder store is in that very folder."""
    folder = tmp_path / name
    url = f"file://{quoted_path(folder)}"
    assert url.isascii()
    assert path_of(url) == folder
    store = open_store(url)
    assert isinstance(store, FolderStore)
    await store.put("ab" * 32, b"frame")
    await store.aclose()
    assert (folder / "objects").is_dir()


@pytest.mark.parametrize("name", ['a blank 100% what? #1 it\'s "$x" \\ ünï', os.fsdecode(b"no-utf8-\xff")])
async def test_the_embedded_valkey_lives_in_any_folder(short_tmp: Path, valkey_binary: Path, name: str) -> None:
    """A real Valkey starts in a folder of any name, and its URL leads to it."""
    folder = CacheFolder(short_tmp / name)
    valkey = EmbeddedValkey(folder)
    try:
        valkey.wait_until_ready()
        tier = RedisTier(valkey.url)
        await tier.set("name", b"value")
        assert await tier.get("name") == b"value"
        await tier.close()
        assert (folder.valkey / "appendonlydir").is_dir()
    finally:
        valkey.stop(3)
        folder.release()


def test_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """This very machine is told from others, under each of its names."""
    for url in ("http://localhost:1", "http://127.0.0.1", "http://[::1]:1/", "redis://u:p@127.1.2.3"):
        assert is_loopback(url)
    for url in ("http://example.com", "http://10.0.0.1", "http://localhost.example.com", "unix:///x"):
        assert not is_loopback(url)
