"""Plans with an image in them: made in a thread, bounded, the same as on the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from serve_app.errors import Busy, ImageNotSupported, Unprocessable
from serve_app.model.families import load_family
from serve_app.service.plan import Plan, Planner
from serve_app.service.planning_threads import MAX_PENDING, Planning
from tests.serve_app.service.rig import TINY, a_plan, ask

PLANNER = Planner(load_family("native/demo"), "encoder", max_prompt_chars=500)


async def test_text_is_planned_at_once() -> None:
    """Without an image nothing is awaited: the plan is there before anything else can run."""
    planning = Planning(PLANNER)
    coroutine = planning.plan(ask("p", **TINY))
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    assert done.value.value.keys == a_plan("p").keys
    planning.close()


async def test_an_image_is_refused_where_none_is_taken() -> None:
    """What the planner raises in the thread comes out as it is."""
    planning = Planning(PLANNER)
    with pytest.raises(ImageNotSupported):
        await planning.plan(ask("p", input_reference=b"x"))
    planning.close()


async def test_no_more_wait_than_memory_allows() -> None:
    """Beyond the bound a request with an image is Busy, one from text is not; places become free again."""
    let_go = threading.Event()

    class Slow:
        def plan(self, request: Any) -> Plan:
            assert let_go.wait(10)
            return a_plan("p")

    planning = Planning(Slow())  # type: ignore[arg-type]
    request = ask("p", input_reference=b"x")
    waiting = [asyncio.create_task(planning.plan(request)) for _ in range(MAX_PENDING)]
    await asyncio.sleep(0)
    with pytest.raises(Busy) as busy:
        await planning.plan(request)
    assert busy.value.retry_after == 1
    let_go.set()
    await asyncio.gather(*waiting)
    await planning.plan(request)
    planning.close()


async def test_a_long_prompt_leaves_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt too long to be kept is planned in a thread, a short one where it is; both mean what they meant."""
    planner = Planner(load_family("native/demo"), "encoder", max_prompt_chars=5_000)
    threads: list[bool] = []
    plan = planner.plan

    def watched(request: Any) -> Plan:
        threads.append(threading.current_thread() is threading.main_thread())
        return plan(request)

    monkeypatch.setattr(planner, "plan", watched)
    planning = Planning(planner)
    text = "a heart" + " " * 1_500
    assert (await planning.plan(ask(text, **TINY))).keys == plan(ask(text, **TINY)).keys
    await planning.plan(ask("a heart", **TINY))
    assert threads == [False, True]
    planning.close()


def test_ligatures_are_counted_written_out() -> None:
    """A prompt of ligatures, each many letters, is refused before it is normalised at eighteen times its length."""
    with pytest.raises(Unprocessable, match="written out") as raised:
        PLANNER.plan(ask("\ufdfa" * 499))
    assert raised.value.param == "prompt"
