"""How much code a request enters: what a reader must open to follow it, and what must not grow unseen."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

import serve_app
from serve_app.service.jobs import sweeper
from tests.serve_app.service.rig import Rig

ROOT = Path(serve_app.__file__).parent
ASK = {"prompt": "a red circle moves left"}
SYNC = "/v1/videos/sync"


async def entered(work: Callable[[], Awaitable[httpx.Response]]) -> set[str]:
    """Return the files of serve_app whose functions this thread enters while `work` is awaited and just after."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            files.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        answer = await work()
        await asyncio.sleep(0.05)
    finally:
        sys.setprofile(before)
    assert answer.status_code in (200, 204), answer.text
    return {str(Path(file).relative_to(ROOT)) for file in files}


async def test_how_many_files_a_request_enters(
    rig: Rig, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hit, a miss, a joined request and a deletion enter no more files than they did when this was written."""
    monkeypatch.setattr(sweeper, "ROUND_SECONDS", 3600.0)  # a round in between would be counted too
    await http.post(SYNC, json={"prompt": "a blue star"})  # what is loaded once is loaded
    miss = await entered(lambda: http.post(SYNC, json=ASK))
    hit = await entered(lambda: http.post(SYNC, json=ASK))
    rig.renderer.hold()
    leading = asyncio.create_task(http.post(SYNC, json=ASK | {"seed": 9}))
    while len(rig.renderer.asked) < 3:  # noqa: ASYNC110 - the renderer has no event for it
        await asyncio.sleep(0.01)

    async def join() -> httpx.Response:
        joined = asyncio.create_task(http.post(SYNC, json=ASK | {"seed": 9}))
        await asyncio.sleep(0.1)
        rig.renderer.allow()
        return await joined

    joined = await entered(join)
    await leading
    job = (await http.post("/v1/videos", json=ASK | {"seed": 11})).json()
    path = f"/v1/videos/{job['id']}"
    while (await http.get(path)).json()["status"] != "completed":  # noqa: ASYNC110 - as a client polls
        await asyncio.sleep(0.01)
    deleted = await entered(lambda: http.delete(path))
    counts = {"hit": len(hit), "miss": len(miss), "joined": len(joined), "delete": len(deleted)}
    most = {"hit": 38, "miss": 53, "joined": 45, "delete": 16}
    assert all(counts[name] <= most[name] for name in most), counts
    assert not {"flight/cluster_flight.py", "flight/single_flight.py"} & hit, sorted(hit)
