"""Ports: what is asked for must be free, what is not is found, and nobody gets a port twice."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.launcher.host.ports import FreePorts
from serve_app.errors import Conflict


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[], FreePorts]]:
    """A function that makes one more server of the same user."""
    made: list[FreePorts] = []

    def make() -> FreePorts:
        made.append(FreePorts(tmp_path))
        return made[-1]

    yield make
    for ports in made:
        ports.release()


def test_a_busy_port_is_passed_over(server: Callable[[], FreePorts]) -> None:
    """`near` returns the next port when somebody listens on the customary one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert server().near(port) > port
        with pytest.raises(Conflict, match=f"Port {port}"):
            server().demanded(port, "the API")


def test_two_servers_never_choose_the_same(server: Callable[[], FreePorts]) -> None:
    """A port chosen by one server is not free for another, even before anybody listens; after `release` it is."""
    one, other = server(), server()
    first = one.near(42_000)
    assert one.near(42_000) != first
    assert other.near(42_000) != first
    with pytest.raises(Conflict):
        other.demanded(first, "the API")
    one.release()
    assert other.demanded(first, "the API") == first


def test_a_range_of_ports_belongs_to_one_server(server: Callable[[], FreePorts]) -> None:
    """Ranges never overlap, one with a busy port is passed over, and one that is refused holds nothing."""
    one, other = server(), server()
    first = 10_000 + os.getpid() % 200 * 40  # below what other tests and the kernel hand out
    starts = (first, first + 10, first + 20)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 5))
        taken.listen()
        assert one.block(10, starts) == first + 10
    assert other.block(10, starts) == first
    with pytest.raises(Conflict, match="10 ports in a row"):
        server().block(10, (first + 5, first + 15))
    one.release()
    other.release()
    assert server().block(20, (first,)) == first
