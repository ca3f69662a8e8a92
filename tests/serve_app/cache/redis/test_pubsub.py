"""Messages over one connection to a real Valkey: they arrive, and after trouble they arrive again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio

from serve_app.cache.redis.pubsub import Subscriptions
from serve_app.cache.redis.redis import RedisTier
from tests.conftest import ValkeyServer


class Bench:
    """A wire on a server, and a sender of its own."""

    def __init__(self, server: ValkeyServer) -> None:
        self.tier = RedisTier(server.url)
        self.wire = Subscriptions(self.tier.new_client)
        self.sender = redis.asyncio.Redis(unix_socket_path=str(server.socket))

    async def listeners(self, channel: str) -> int:
        """How many connections the server knows to listen."""
        return int(dict(await self.sender.pubsub_numsub(channel))[channel.encode()])

    async def settled(self, channel: str, listeners: int = 1) -> None:
        async with asyncio.timeout(30):
            while await self.listeners(channel) != listeners:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.wire.aclose()
        await self.sender.aclose()
        await self.tier.close()


@pytest.fixture
async def bench(valkey_server: ValkeyServer) -> AsyncIterator[Bench]:
    made = Bench(valkey_server)
    yield made
    await made.close()


async def got(ear: asyncio.Queue[bytes]) -> bytes:
    async with asyncio.timeout(30):
        return await ear.get()


async def test_a_message_reaches_who_listens_to_its_channel(bench: Bench) -> None:
    """Every listener of a channel hears its messages in order, and no others."""
    ears: list[asyncio.Queue[bytes]] = [asyncio.Queue() for _ in range(3)]
    for channel, ear in zip(("a", "a", "b"), ears, strict=True):
        bench.wire.subscribe(channel, ear.put_nowait)
    await bench.settled("a")
    await bench.settled("b")
    for channel, message in (("a", b"1"), ("b", b"2"), ("a", b"3")):
        await bench.sender.publish(channel, message)
    assert [await got(ear) for ear in (ears[0], ears[0], ears[1], ears[1], ears[2])] == [b"1", b"3", b"1", b"3", b"2"]
    assert all(ear.empty() for ear in ears)


async def test_one_connection_serves_all_channels(bench: Bench) -> None:
    """However many channels a process listens to, the server sees one connection more."""
    before = len(await bench.sender.client_list())
    stops = [bench.wire.subscribe(f"channel {number}", lambda data: None) for number in range(200)]
    await bench.settled("channel 199")
    assert len(await bench.sender.client_list()) == before + 1
    for stop in stops:
        stop()
    await bench.settled("channel 199", 0)
    assert len(await bench.sender.client_list()) == before + 1


async def test_a_channel_is_left_with_its_last_listener(bench: Bench) -> None:
    """While one of two listeners is left the channel stays; with the last one the server forgets us."""
    ear: asyncio.Queue[bytes] = asyncio.Queue()
    stop_first, stop_second = bench.wire.subscribe("a", lambda data: None), bench.wire.subscribe("a", ear.put_nowait)
    await bench.settled("a")
    stop_first()
    stop_first()
    await bench.sender.publish("a", b"1")
    assert await got(ear) == b"1"
    stop_second()
    await bench.settled("a", 0)


async def test_a_channel_wanted_again_is_heard_again(bench: Bench) -> None:
    """Listening ends and begins as often as one likes, with nothing else to listen to in between."""
    for message in (b"1", b"2", b"3"):
        ear: asyncio.Queue[bytes] = asyncio.Queue()
        stop = bench.wire.subscribe("a", ear.put_nowait)
        await bench.settled("a")
        await bench.sender.publish("a", message)
        assert await got(ear) == message
        stop()
        await bench.settled("a", 0)


async def test_channels_are_added_while_messages_come(bench: Bench) -> None:
    """A stream of messages neither loses nor delays channels that are added meanwhile."""
    ear: asyncio.Queue[bytes] = asyncio.Queue()
    bench.wire.subscribe("a", ear.put_nowait)
    await bench.settled("a")
    late: asyncio.Queue[bytes] = asyncio.Queue()
    for number in range(50):
        await bench.sender.publish("a", str(number).encode())
        bench.wire.subscribe(f"late {number}", late.put_nowait)
    await bench.settled("late 49")
    for number in range(50):
        await bench.sender.publish(f"late {number}", str(number).encode())
    assert [await got(ear) for _ in range(50)] == [str(number).encode() for number in range(50)]
    assert [await got(late) for _ in range(50)] == [str(number).encode() for number in range(50)]


async def test_a_listener_that_fails_hurts_nobody(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in one listener is logged, and everybody else hears on."""

    def broken(data: bytes) -> None:
        raise ZeroDivisionError

    ear: asyncio.Queue[bytes] = asyncio.Queue()
    bench.wire.subscribe("a", broken)
    bench.wire.subscribe("a", ear.put_nowait)
    await bench.settled("a")
    with caplog.at_level(logging.ERROR):
        for message in (b"1", b"2"):
            await bench.sender.publish("a", message)
            assert await got(ear) == message
    assert "ZeroDivisionError" in caplog.text


async def test_a_restarted_server_is_heard_again(start_valkey: Callable[..., ValkeyServer]) -> None:
    """Every channel still wanted is subscribed again after the server came back, also those added while it was away."""
    server = start_valkey()
    bench = Bench(server)
    ear: asyncio.Queue[bytes] = asyncio.Queue()
    bench.wire.subscribe("a", ear.put_nowait)
    await bench.settled("a")
    server.kill()
    await asyncio.sleep(0.05)
    bench.wire.subscribe("b", ear.put_nowait)
    server.restart()
    await bench.sender.connection_pool.disconnect()
    for channel in ("a", "b"):
        await bench.settled(channel)
        await bench.sender.publish(channel, channel.encode())
        assert await got(ear) == channel.encode()
    await bench.close()


@pytest.mark.parametrize("kind", ["refused_port", "hanging_port"])
async def test_a_server_out_of_reach_costs_nothing(request: pytest.FixtureRequest, kind: str) -> None:
    """Listening to a server that refuses or hangs returns at once, and so does closing."""
    tier = RedisTier(f"redis://127.0.0.1:{request.getfixturevalue(kind)}")
    wire = Subscriptions(tier.new_client)
    async with asyncio.timeout(5):
        stop = wire.subscribe("a", lambda data: None)
        await asyncio.sleep(0.05)
        stop()
        await wire.aclose()
        await tier.close()


async def test_a_server_that_talks_nonsense_is_left_and_tried_again(
    talking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are no Redis protocol end the connection, not the wire."""
    monkeypatch.setattr("serve_app.cache.redis.pubsub.RETRY_SECONDS", 0.01)
    connections = 0

    def nonsense(chunk: bytes) -> bytes:
        nonlocal connections
        connections += 1
        return b"nonsense\r\n" * 3

    tier = RedisTier(f"redis://127.0.0.1:{await talking(nonsense)}")
    wire = Subscriptions(tier.new_client)
    wire.subscribe("a", lambda data: None)
    async with asyncio.timeout(30):
        while connections < 3:  # noqa: ASYNC110 - counted by the server's side
            await asyncio.sleep(0.01)
    await wire.aclose()
    await tier.close()


async def test_closing_ends_the_connection(bench: Bench) -> None:
    """After aclose the server has nobody of ours on the line, and closing twice is harmless."""
    bench.wire.subscribe("a", lambda data: None)
    await bench.settled("a")
    await bench.wire.aclose()
    await bench.wire.aclose()
    await bench.settled("a", 0)
