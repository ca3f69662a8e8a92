"""A real server with a fresh world per test, and both clients behind one face, so that every test runs over both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve_app.client import AsyncEncore, Encore
from tests.serve_app.client.wire_server import World, serving


class Blocking:
    """AsyncEncore with its methods called from ordinary code: a coroutine is run, an async iterator drained."""

    def __init__(self, *arguments: Any, sleep: Callable[[float], None] | None = None, **options: Any) -> None:
        self._runner = asyncio.Runner()
        if sleep is not None:

            async def rest(seconds: float) -> None:
                sleep(seconds)

            options["sleep"] = rest
        try:
            self._encore = AsyncEncore(*arguments, **options)
        except BaseException:
            self._runner.close()
            raise

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._encore, name)
        return found if not callable(found) else lambda *args, **kwargs: self._finished(found(*args, **kwargs))

    def close(self) -> None:
        self._runner.run(self._encore.close())
        self._runner.close()

    def _finished(self, result: Any) -> Any:
        async def drained() -> list[Any]:
            return [item async for item in result]

        return self._runner.run(drained() if inspect.isasyncgen(result) else result)


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[World, str]]:
    world = World()
    with serving(world) as address:
        yield world, address


@pytest.fixture
def world(served: tuple[World, str]) -> World:
    served[0].reset()
    return served[0]


@pytest.fixture
def address(served: tuple[World, str], world: World) -> str:
    return served[1]


@pytest.fixture(params=[Encore, Blocking], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Make a client of either kind; all are closed after the test."""
    clients = []

    def make(*arguments: Any, **options: Any) -> Any:
        clients.append(request.param(*arguments, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def encore(connect: Callable[..., Any], address: str) -> Any:
    return connect(address)
