"""Where a client connects to, and what it says when nobody, or nobody sensible, is there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve_app import errors
from tests.serve_app.client.wire_server import World


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that stays bound, so nobody else gets it, but on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def hanging_up() -> Iterator[str]:
    """The address of a server that reads a request and closes the connection without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def test_nobody_listening_says_how_to_start_a_server(connect: Callable[..., Any], closed_port: int) -> None:
    """Proves that a refused connection names the address and the command that would help."""
    url = f"http://127.0.0.1:{closed_port}"
    with pytest.raises(errors.Unavailable) as raised:
        connect(url).health()
    assert url in raised.value.message
    assert "`encore serve`" in raised.value.message


def test_generate_without_a_server_is_unavailable_too(connect: Callable[..., Any], closed_port: int) -> None:
    """Proves that the conversation of several calls maps failures as single calls do."""
    with pytest.raises(errors.Unavailable, match="encore serve"):
        connect(f"http://127.0.0.1:{closed_port}").generate("A red circle")


def test_a_broken_connection_is_unavailable(connect: Callable[..., Any], hanging_up: str) -> None:
    """Proves that a server which hangs up in the middle is told apart from one that is not there."""
    with pytest.raises(errors.Unavailable, match="broke"):
        connect(hanging_up).health()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://a:b", "server", "http://:8000"])
def test_an_impossible_address_is_named(connect: Callable[..., Any], url: str) -> None:
    """Proves that a mistyped address is an InvalidRequest that quotes it, never an exception of httpx."""
    with pytest.raises(errors.InvalidRequest) as raised:
        connect(url)
    assert f"'{url}'" in raised.value.message
    assert raised.value.param == "base_url"


def test_the_address_is_argument_then_environment_then_default(
    connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves the order in which a server is chosen."""
    monkeypatch.delenv("ENCORE_URL", raising=False)
    assert connect().base_url == "http://127.0.0.1:8000"
    monkeypatch.setenv("ENCORE_URL", "http://videos.example:81/")
    assert connect().base_url == "http://videos.example:81"
    assert connect("http://localhost:9").base_url == "http://localhost:9"


def test_a_prefix_in_the_address_is_kept(connect: Callable[..., Any], address: str, world: World) -> None:
    """Proves that a server behind a gateway's path is reached there."""
    with pytest.raises(errors.Unavailable):
        connect(f"{address}/films/").models()
    assert world.asked == ["GET /films/v1/models"]


def test_a_proxy_is_not_asked_for_this_machine(
    connect: Callable[..., Any], address: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves that a company's proxy settings do not hide the server next door."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert connect(address).health() is True
    with pytest.raises(errors.Unavailable):
        connect("http://videos.example").health()


def test_headers_go_with_every_call(connect: Callable[..., Any], address: str, world: World) -> None:
    """Proves that an operator's gateway gets its token."""
    encore = connect(address, headers={"Authorization": "Bearer sesame"})
    encore.health()
    encore.generate_sync("A red circle")
    assert [headers["authorization"] for *_, headers in world.requests] == ["Bearer sesame"] * 2
