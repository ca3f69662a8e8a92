"""The server's address: with and without /v1, its credentials, and proxies that cannot be used."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest

from serve_app.client import Encore
from serve_app.errors import EncoreError, InvalidRequest

MARK = "hunter2"


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_both_forms_work(end: str) -> None:
    """The address of OpenAI's clients is the same server; a path before it stays."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"data": [], "object": "list"})

    for place in ("http://host:8000", "http://host/encore"):
        with Encore(f"{place}{end}", transport=httpx.MockTransport(answer)) as encore:
            encore.models()
            assert encore.base_url == place
    assert asked == ["http://host:8000/v1/models", "http://host/encore/v1/models"]


def test_both_forms_work_by_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ENCORE_URL may end in /v1 too, and the address may be in a file."""
    monkeypatch.setenv("ENCORE_URL", "http://host:8000/v1")
    assert Encore().base_url == "http://host:8000"
    monkeypatch.delenv("ENCORE_URL")
    (tmp_path / "url").write_text("http://other/v1\n")
    monkeypatch.setenv("ENCORE_URL_FILE", str(tmp_path / "url"))
    assert Encore().base_url == "http://other"


def test_credentials_log_in_and_are_told_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """They become a header; neither the address, nor an error, nor httpx's log has them."""
    headers: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        headers.append(request.headers["Authorization"])
        raise httpx.ConnectError("refused")

    caplog.set_level("DEBUG")
    encore = Encore(f"http://user:{MARK}@host", transport=httpx.MockTransport(answer))
    with pytest.raises(EncoreError) as caught:
        encore.models()
    assert base64.b64decode(headers[0].removeprefix("Basic ")) == f"user:{MARK}".encode()
    assert MARK not in f"{caught.value}{encore.base_url}{caplog.text}{encore._connection}"


@pytest.mark.parametrize("url", [f"http://user:{MARK}/x@host", f"ftp://user:{MARK}@host", f"http://user:{MARK}@h:x"])
def test_a_wrong_address_is_told_without_its_password(url: str) -> None:
    """What cannot be an address is named, but for what is secret in it."""
    with pytest.raises(InvalidRequest) as caught:
        Encore(url)
    assert MARK not in caught.value.message


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SOCKS proxy without its package is an error of ours with its reason; for this very machine no proxy matters."""
    monkeypatch.setenv("all_proxy", "gopher://proxy.example:1080")
    with pytest.raises(InvalidRequest, match="proxy that the environment names"):
        Encore("http://example.com")
    Encore("http://127.0.0.1:8000").close()
