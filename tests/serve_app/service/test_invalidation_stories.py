"""Any sequence of requests, tags, late writes and invalidations over several routers on a real Valkey and a folder.

The model knows which video was begun before which invalidation that chooses it. A router that made a rule, or looked
since, must never answer with a video that one covers; what no rule covers must be found again, not rendered anew.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.cache.invalidation.rules import begun_at
from serve_app.core import Entry, Outcome
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import Rig, ask
from tests.serve_app.service.test_invalidator import Router, maker

ROUTERS = 3
PROMPTS = ("a red circle moves left", "a blue square moves up")
TAGS = ("spring", "autumn")

deeds = st.one_of(
    st.tuples(
        st.just("ask"), st.integers(0, ROUTERS - 1), st.sampled_from(PROMPTS), st.integers(1, 2),
        st.sets(st.sampled_from(TAGS)),
    ),
    st.tuples(
        st.just("invalidate"), st.integers(0, ROUTERS - 1),
        st.sampled_from(("key", "prompt", "model", "fingerprint", "tag", "everything")),
        st.sampled_from(PROMPTS), st.integers(1, 2), st.sampled_from(TAGS),
    ),
    st.tuples(st.just("look"), st.integers(0, ROUTERS - 1)),
    st.tuples(st.just("late write"), st.integers(0, 20)),
    st.tuples(st.just("sweep"), st.integers(0, ROUTERS - 1)),
    st.tuples(st.just("new router"), st.integers(0, ROUTERS - 1)),
)  # fmt: skip


@dataclass
class Video:
    """One render: what it is of, and the tags that were in force for it when it was asked for."""

    entry: Entry
    prompt: str
    seed: int
    tags: set[str]
    covered: bool = False


@dataclass
class Story:
    """The routers, and what the model knows."""

    rig: Rig
    videos: dict[int, Video] = field(default_factory=dict)
    noted: dict[str, set[str]] = field(default_factory=dict)
    stale: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.make = maker(self.rig)
        self.routers: list[Router] = [self.make(deaf=True) for _ in range(ROUTERS)]

    async def tell(self, deed: Any) -> None:
        kind, *rest = deed
        await getattr(self, f"_{kind.replace(' ', '_')}")(*rest)

    async def _ask(self, who: int, prompt: str, seed: int, tags: set[str]) -> None:
        router = self.routers[who]
        answer = await router.ask(prompt, seed=seed, tags=sorted(tags))
        if router.rules._noting is not None:
            await router.rules._noting
        key = answer.keys.video
        for tag in tags:
            self.noted.setdefault(tag, set()).add(key)
        begun = begun_at(answer.entry)
        if answer.outcome is Outcome.RENDERED:
            assert begun not in self.videos
            fresh = [video for video in self.videos.values() if video.entry.key == key and not video.covered]
            assert not fresh or who in self.stale, "what nothing covers was rendered again"
            self.videos[begun] = Video(answer.entry, prompt, seed, set(tags))
        elif who not in self.stale:
            assert not self.videos[begun].covered, (who, answer.outcome)

    async def _invalidate(self, who: int, how: str, prompt: str, seed: int, tag: str) -> None:
        router = self.routers[who]
        card = router.service.planner.card
        key = router.service.planner.plan(ask(prompt, seed=seed)).keys.video
        choice: dict[str, dict[str, Any]] = {
            "key": {"key": key}, "prompt": {"prompt": prompt}, "model": {"model": card.name},
            "fingerprint": {"fingerprint": card.decoder_fingerprint}, "tag": {"tag": tag},
            "everything": {"older_than_seconds": 0},
        }  # fmt: skip
        await router.invalidate(**choice[how])
        by_tag = self.noted.pop(tag, set()) if how == "tag" else set()
        for video in self.videos.values():
            video.covered |= {
                "key": video.entry.key == key, "prompt": video.prompt == prompt,
                "tag": tag in video.tags or video.entry.key in by_tag,
            }.get(how, True)  # fmt: skip
        self.stale |= set(range(ROUTERS)) - {who}  # it knows its own rule, the others do not hear of it

    async def _look(self, who: int) -> None:
        await self.routers[who].sync()
        self.stale.discard(who)

    async def _late_write(self, which: int) -> None:
        if self.videos:
            video = list(self.videos.values())[which % len(self.videos)]
            await self.rig.renderer._store.put(video.entry)

    async def _sweep(self, who: int) -> None:
        await self._look(who)
        await self.rig.sweeper(self.routers[who].rules).round()

    async def _new_router(self, who: int) -> None:
        self.routers[who] = self.make(deaf=True)
        self.stale.discard(who)


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(st.lists(deeds, max_size=25))
def test_nobody_gets_what_was_invalidated(
    valkey_server: ValkeyServer, tmp_path: Path, story: list[tuple[Any, ...]]
) -> None:
    """Whatever happens in whatever order, a router that knows a rule never answers with a video that it covers."""
    asyncio.run(told(valkey_server, tmp_path, story))


async def told(valkey_server: ValkeyServer, folder: Path, story: list[tuple[Any, ...]]) -> None:
    valkey_server.flush()
    shutil.rmtree(folder / "l3", ignore_errors=True)
    rig = Rig(folder / "l3", valkey_server.url)
    telling = Story(rig)
    try:
        for deed in story:
            await telling.tell(deed)
        for who in range(ROUTERS):
            await telling._look(who)
        for prompt in PROMPTS:
            for who in range(ROUTERS):
                await telling._ask(who, prompt, 1, set())
    finally:
        await rig.aclose()
