"""Kept latents: back to the bit, out of the way, bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from serve_app.cache.cache import Stored, TieredCache
from serve_app.core import Entry
from serve_app.render.latents import LatentsCache
from tests.serve_app.service.rig import Rig

KEY = "ab" * 32


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_latents_come_back_to_the_bit(rig: Rig) -> None:
    """Half precision, in another process' cache, and not after they were dropped."""
    latents = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(0)).half()
    kept = LatentsCache(rig.latents())
    assert await kept.find(KEY) is None
    assert kept.keep(KEY, latents)
    await kept.settled()
    other = LatentsCache(rig.latents())
    found = await other.find(KEY)
    assert found is not None
    assert torch.equal(found, latents)
    await other.drop(KEY)
    assert await kept.find(KEY) is None


async def test_what_is_being_written_is_dropped_too(rig: Rig) -> None:
    """A drop that comes before the write is done is not undone by it."""
    kept = LatentsCache(rig.latents())
    assert kept.keep(KEY, torch.zeros(4, 8, 8, 8))
    await kept.drop(KEY)
    await kept.settled()
    assert await kept.find(KEY) is None


async def test_a_slow_store_does_not_fill_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With eight writes under way the ninth is left out; when they end there is room again."""
    gate = asyncio.Event()

    async def put(self: TieredCache, entry: Entry) -> Stored:
        await gate.wait()
        return Stored((), entry)

    monkeypatch.setattr(TieredCache, "put", put)
    kept = LatentsCache(rig.latents())
    latents = torch.zeros(1, 1, 1, 1)
    assert [kept.keep(f"{i:064x}", latents) for i in range(9)] == [True] * 8 + [False]
    gate.set()
    await kept.settled()
    assert kept.keep(KEY, latents)
    await kept.settled()
