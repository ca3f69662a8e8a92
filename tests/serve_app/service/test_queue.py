"""The router's queue: earliest due first, one out at a time, nobody lost."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import Priority
from serve_app.service.queue import RenderQueue


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def asked(stile: RenderQueue, log: list[str], key: str, due: float, gate: asyncio.Event) -> asyncio.Task[None]:
    async def ask() -> None:
        async with stile.turn(key, due):
            log.append(key)
            await gate.wait()

    return asyncio.create_task(ask())


async def test_the_earliest_due_goes_first() -> None:
    """While one is out the others wait in the order they are due, not the order they came."""
    stile, log, gate = RenderQueue(), [], asyncio.Event()
    tasks = [asked(stile, log, key, due, gate) for key, due in (("a", 5), ("late", 9), ("soon", 1), ("mid", 4))]
    await settle()
    assert log == ["a"]
    assert len(stile) == 3
    gate.set()
    await asyncio.gather(*tasks)
    assert log == ["a", "soon", "mid", "late"]


async def test_taken_lets_the_next_one_through() -> None:
    """A request that a replica has taken goes on inside its block while the next is let through; twice is once."""
    stile = RenderQueue()
    async with stile.turn("a", 0) as first:
        stile.taken(first)
        async with stile.turn("b", 0) as second:
            stile.taken(first)
            waiting = asyncio.create_task(stile.turn("c", 0).__aenter__())
            await settle()
            assert not waiting.done()
            stile.taken(second)
            await settle()
            assert waiting.done()


async def test_a_promoted_request_passes_the_others() -> None:
    """A later requester who is in more of a hurry moves the request forward, never back."""
    stile, log, gate = RenderQueue(), [], asyncio.Event()
    tasks = [asked(stile, log, key, due, gate) for key, due in (("a", 0), ("b", 1), ("c", 2))]
    await settle()
    assert stile.promote("c", 0.5)
    assert stile.promote("b", 7)
    assert not stile.promote("a", 0)
    gate.set()
    await asyncio.gather(*tasks)
    assert log == ["a", "c", "b"]


async def test_who_gives_up_blocks_nobody() -> None:
    """Cancelled while waiting, while just let through, or while out: the next one has its turn."""
    stile, log, gate = RenderQueue(), [], asyncio.Event()
    tasks = [asked(stile, log, key, due, gate) for key, due in (("a", 0), ("b", 1), ("c", 2), ("d", 3))]
    await settle()
    tasks[1].cancel()
    tasks[0].cancel()
    await settle()
    assert log == ["a", "c"]
    tasks[2].cancel()
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with stile.turn("e", 0):
        assert len(stile) == 0


async def test_a_failure_inside_frees_the_turn() -> None:
    """What the renderer raises comes through, and the next request goes."""
    stile = RenderQueue()
    with pytest.raises(KeyError):
        async with stile.turn("a", 0):
            raise KeyError
    async with stile.turn("b", 0):
        pass


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["go", "cancel"])), max_size=20))
def test_everybody_is_answered_once(plans: list[tuple[int, str]]) -> None:
    """Whoever gives up and whenever, all others get through exactly once and the queue ends empty."""

    async def run() -> None:
        stile, log, gate = RenderQueue(), [], asyncio.Event()
        tasks = [asked(stile, log, str(i), due, gate) for i, (due, _) in enumerate(plans)]
        await settle()
        for task, (_, what) in zip(tasks, plans, strict=True):
            if what == "cancel":
                task.cancel()
        gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        going = {str(i) for i, (_, what) in enumerate(plans) if what == "go"}
        assert going <= set(log)
        assert len(log) == len(set(log))
        assert len(stile) == 0

    asyncio.run(run())


@given(
    st.lists(st.tuples(st.sampled_from([1.0, 5.0]), st.sampled_from(list(Priority))), min_size=2, max_size=20),
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 100.0]), min_size=1, max_size=5),
    st.integers(0, 1 << 16),
)
def test_equal_requests_keep_their_order(plan: list[tuple[float, Priority]], paces: list[float], seed: int) -> None:
    """Whatever renders turn out to take, of two that ask for as much with one priority the first goes first."""

    async def play() -> list[str]:
        stile, log, rng = RenderQueue(), list[str](), random.Random(seed)

        async def ask(number: int, work: float, priority: Priority) -> None:
            async with stile.turn(f"{number:02}", 10.0 * number, priority=priority, work=work):
                log.append(f"{number:02}")
                stile.reckon(rng.choice(paces))
                await asyncio.sleep(0)

        async def come() -> None:
            for number, (work, priority) in enumerate(plan):
                tasks.append(asyncio.create_task(ask(number, work, priority)))
                if rng.random() < 0.3:
                    await settle()

        tasks: list[asyncio.Task[None]] = []
        await come()
        await asyncio.gather(*tasks)
        return log

    went = [int(key) for key in asyncio.run(play())]
    for kind in set(plan):
        equal = [number for number in went if plan[number] == kind]
        assert equal == sorted(equal)
