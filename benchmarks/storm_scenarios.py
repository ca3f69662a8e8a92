"""The five storms over Encore: who asks, who is killed when, and how many renders began by the end.

Renders are those that the diffusion replicas noted (`storm_app.py`) from a storm's beginning to the last answer and a
moment beyond it. A kill counts only where it struck a replica that was up, before anybody was answered where it says
mid-render.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from form import Row
from sizes import LONG, SMALLEST
from storm_app import Note
from storm_clients import Answer, Crowd, Fields
from storm_server import StormServer

ENCORE = "Encore"
IDENTICAL, ROUTER, DIFFUSION, CLIENT, CHAOS = (
    "identical", "leader's router killed", "renderer killed", "leader's client gone", "random kills",
)  # fmt: skip
LEADER = "leader killed"
"""Peers render where they answer, so that with them the leader is both."""
SETTLE_SECONDS = 3.0
"""How long after the last answer a render may still begin that nobody asked for."""
_MID = 0.4


@dataclass(frozen=True, slots=True)
class Extent:
    """How many ask for one video of `fields`; how many over how many keys of `small` for how long with kills."""

    requests: int
    fields: Fields
    small: Fields
    small_requests: int
    keys: int
    seconds: int


FULL = Extent(
    1_000, {"size": LONG, "num_frames": 24, "num_inference_steps": 50},
    {"size": SMALLEST, "num_frames": 8, "num_inference_steps": 40}, 1_000, 50, 60,
)  # fmt: skip
QUICK = Extent(
    200, {"size": "64x64", "num_frames": 16, "num_inference_steps": 40},
    {"size": SMALLEST, "num_frames": 8, "num_inference_steps": 40}, 60, 6, 8,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storm:
    """What one scenario came to. `kills`: when each struck, Unix seconds; `wrong`: answers with other bytes.

    takeover_seconds: from the first kill to the next beginning of a render, 0 where there was none.
    """

    scenario: str
    requests: int
    answered: int
    wrong: int
    renders: int
    kills: Sequence[float]
    asked_again: int
    again: dict[str, int]
    seconds: float
    takeover_seconds: float = 0.0
    system: str = ENCORE

    def row(self) -> Row:
        """Return the line of the table."""
        return {
            "system": self.system, "scenario": self.scenario, "requests": self.requests, "answered": self.answered,
            "wrong": self.wrong, "kills": len(self.kills), "renders": self.renders, "asked again": self.asked_again,
            "longest wait s": self.seconds,
        }  # fmt: skip


def wrong(answers: Iterable[Answer], wanted: Iterable[str], *, etags: bool = True) -> int:
    """Return how many answers are not the wanted bytes or, where there are `etags`, name another digest than theirs."""
    return sum(
        answer.digest != digest or (etags and not answer.etag_is_digest)
        for answer, digest in zip(answers, wanted, strict=True)
    )


@dataclass(slots=True)
class Scenarios:
    """The storms over one server. `alone`: seconds of one render of `extent.fields` with nobody else about."""

    server: StormServer
    extent: Extent
    say: Callable[[str], None]
    alone: float = 0.0
    _kills: list[float] = field(default_factory=list)
    _before: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(6))

    async def warm_up(self) -> None:
        """Render twice before anything counts, and learn how long that takes."""
        crowd = Crowd(self.server.port, instance=self.server.instance)
        answers = [await crowd.ask({**self.extent.fields, "prompt": "a warm-up", "seed": seed}) for seed in (1, 2)]
        self.alone = min(answer.seconds for answer in answers)
        self.say(f"one render alone: {self.alone:.1f} s")

    async def identical(self, fields: Fields, digest: str) -> Storm:
        """All ask at once."""
        return await self._storm(IDENTICAL, self._all_ask, fields, [digest] * self.extent.requests)

    async def router_killed(self, fields: Fields, digest: str) -> Storm:
        """One asks a router past the balancer, so that this one leads; it dies when the others wait on all three."""
        return await self._storm(ROUTER, self._all_ask_and_the_router_dies, fields, [digest] * self.extent.requests)

    async def renderer_killed(self, fields: Fields, digest: str) -> Storm:
        """All ask at once, and the diffusion replica that took the render is killed."""
        return await self._storm(
            DIFFUSION, self._all_ask_and_the_renderer_dies, fields, [digest] * self.extent.requests
        )

    async def client_gone(self, fields: Fields, digest: str) -> Storm:
        """The one who asked first hangs up when all others wait."""
        return await self._storm(CLIENT, self._the_first_hangs_up, fields, [digest] * (self.extent.requests - 1))

    async def chaos(self, requests: Sequence[Fields], digests: Sequence[str]) -> Storm:
        """Requests at an even pace, every key equally often in a random order, and a kill every second."""
        places = [number % len(requests) for number in range(self.extent.small_requests)]
        self._random.shuffle(places)

        async def story(crowd: Crowd, fields: Fields) -> list[Answer]:
            pause = self.extent.seconds / len(places)
            asking = [self._ask_at(crowd, pause * turn, requests[place]) for turn, place in enumerate(places)]
            answers, _ = await asyncio.gather(asyncio.gather(*asking), self._kill_every_second())
            return answers

        return await self._storm(CHAOS, story, {}, [digests[place] for place in places])

    async def _storm(self, scenario: str, story: Story, fields: Fields, wanted: Sequence[str]) -> Storm:
        await asyncio.to_thread(self.server.wait_until_whole)
        self.say(f"{scenario} ...")
        self._before, self._kills = len(self.server.renders()), []
        crowd = Crowd(self.server.port, instance=self.server.instance)
        watching = asyncio.create_task(self._tell(crowd, len(wanted)))
        try:
            answers = await story(crowd, fields)
        finally:
            watching.cancel()
        await asyncio.sleep(SETTLE_SECONDS)
        began = [note.at for note in self._renders()]
        return Storm(
            scenario, len(wanted), len(answers), wrong(answers, wanted), len(began), tuple(self._kills),
            sum(answer.asked_again > 0 for answer in answers), dict(crowd.again),
            max(answer.seconds for answer in answers), takeover(began, self._kills),
        )  # fmt: skip

    async def _all_ask(self, crowd: Crowd, fields: Fields) -> list[Answer]:
        return await asyncio.gather(*(crowd.ask(fields) for _ in range(self.extent.requests)))

    async def _all_ask_and_the_router_dies(self, crowd: Crowd, fields: Fields) -> list[Answer]:
        router, port = self._random.choice(sorted(self.server.routers().items()))
        first = asyncio.create_task(crowd.ask(fields, first_port=port))
        began = await self._render_began()
        others = [asyncio.create_task(crowd.ask(fields)) for _ in range(self.extent.requests - 1)]
        await self._all_wait(crowd, began)
        self._kill(router)
        return await asyncio.gather(first, *others)

    async def _all_ask_and_the_renderer_dies(self, crowd: Crowd, fields: Fields) -> list[Answer]:
        everybody = [asyncio.create_task(crowd.ask(fields)) for _ in range(self.extent.requests)]
        began = await self._render_began()
        await self._all_wait(crowd, began)
        self._kill(began.pid)
        return await asyncio.gather(*everybody)

    async def _the_first_hangs_up(self, crowd: Crowd, fields: Fields) -> list[Answer]:
        leave = asyncio.Event()
        first = asyncio.create_task(crowd.hang_up(fields, leave))
        began = await self._render_began()
        others = [asyncio.create_task(crowd.ask(fields)) for _ in range(self.extent.requests - 1)]
        await self._all_wait(crowd, began)
        leave.set()
        await first
        return await asyncio.gather(*others)

    async def _ask_at(self, crowd: Crowd, seconds: float, fields: Fields) -> Answer:
        await asyncio.sleep(seconds)
        return await crowd.ask(fields)

    async def _kill_every_second(self) -> None:
        """Kill a random one of those that were up a second ago too; where nobody is, nobody is killed."""
        until, before = time.monotonic() + self.extent.seconds, self._up()
        while time.monotonic() < until:
            await asyncio.sleep(1)
            up = await asyncio.to_thread(self._up)
            if victims := sorted(up & before):
                victim = self._random.choice(victims)
                self._kill(victim)
                up.remove(victim)
            before = up

    def _up(self) -> set[int]:
        return {*self.server.routers(), *self.server.diffusions()}

    def _kill(self, pid: int) -> None:
        self.server.kill(pid)
        self._kills.append(time.time())

    def _renders(self) -> list[Note]:
        return self.server.renders()[self._before :]

    async def _render_began(self) -> Note:
        while not self._renders():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)
        return self._renders()[0]

    async def _all_wait(self, crowd: Crowd, began: Note) -> None:
        """Wait until all requests are sent and the render is well under way; raises RuntimeError if it is over then."""
        enough = began.at + _MID * self.alone
        while crowd.sent < self.extent.requests or time.time() < enough:  # noqa: ASYNC110 - many to wait for
            await asyncio.sleep(0.05)
        if crowd.answered:
            raise RuntimeError(f"the render was over before all {self.extent.requests} requests were sent")

    async def _tell(self, crowd: Crowd, wanted: int) -> None:
        while True:
            await asyncio.sleep(5)
            self.say(
                f"  {crowd.answered} of {wanted} answered, {len(self._renders())} renders, {len(self._kills)} kills, "
                f"asked again: {dict(crowd.again) or 'never'}"
            )


Story = Callable[[Crowd, Fields], Awaitable[list[Answer]]]


def takeover(began: Sequence[float], kills: Sequence[float]) -> float:
    """Return the seconds from the first kill to the next render's beginning; 0 when none was killed or none began."""
    later = [at for at in began if kills and at > kills[0]]
    return min(later) - kills[0] if later else 0.0
