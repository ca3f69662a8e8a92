"""Suspects run alone: nothing else that has begun is in the process then, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.isolation import Isolation


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_suspect_waits_for_what_has_begun_and_keeps_the_rest_out() -> None:
    """It is let in when the last one that had begun has left; until it has left nothing else may begin."""
    isolation, gate = Isolation(), asyncio.Event()

    async def suspect() -> None:
        async with isolation.entered("suspect", 1):
            isolation.begin("suspect")
            await gate.wait()

    isolation.begin("first")
    running = asyncio.create_task(suspect())
    await settle()
    assert [isolation.may_run(job_id) for job_id in ("first", "suspect", "new")] == [True, False, False]
    isolation.left("first")
    await settle()
    assert [isolation.may_run(job_id) for job_id in ("suspect", "new")] == [True, False]
    gate.set()
    await running
    assert isolation.may_run("new")


async def test_the_one_with_fewest_attempts_goes_first() -> None:
    """Who has died least is least likely to be the one that kills."""
    isolation, log = Isolation(), list[str]()

    async def suspect(job_id: str, attempts: int) -> None:
        async with isolation.entered(job_id, attempts):
            log.append(job_id)

    isolation.begin("first")
    tasks = [asyncio.create_task(suspect(*each)) for each in (("c", 3), ("a", 1), ("b", 2), ("a2", 1))]
    await settle()
    isolation.left("first")
    await asyncio.gather(*tasks)
    assert log == ["a", "a2", "b", "c"]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=15), st.integers(0, 1 << 16))
def test_nobody_is_beside_a_suspect_and_all_get_their_turn(plan: list[tuple[int, bool]], seed: int) -> None:
    """Whatever comes, waits, and is cancelled: a suspect is alone, and in the end everybody was in or has left."""
    rng = random.Random(seed)

    async def play() -> None:
        isolation, inside, done = Isolation(), dict[int, int](), set[int]()

        async def render(number: int, attempts: int) -> None:
            async with isolation.entered(str(number), attempts):
                await isolation.admitted(str(number))
                assert not inside or (not attempts and not any(inside.values()))
                inside[number] = attempts
                try:
                    for _ in range(rng.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    del inside[number]
                done.add(number)

        tasks = []
        for number, (attempts, leaves) in enumerate(plan):
            tasks.append(asyncio.create_task(render(number, attempts)))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            if leaves:
                tasks[rng.randrange(len(tasks))].cancel()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results), results
        assert {number for number, result in enumerate(results) if result is None} == done
        assert isolation.is_open

    asyncio.run(play())
