"""Several processes in one thread and no time at all: an event loop each, one clock that jumps to what happens next.

A `World` owns the time, the messages that are under way and the processes. Product code runs in them unchanged: it
sees an ordinary asyncio loop without sockets and threads. A process can be paused (its tasks stand still while the
world goes on) and killed (nothing of it reaches anybody any more). With the same seed everything happens again.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import sys
import threading
from asyncio import base_events, events
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

_THREAD_SECONDS = 0.01
"""How long what would run in a thread takes."""


class World:
    """The clock, the messages under way, the processes; `errors` is what nobody caught."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.processes: list[Process] = []
        self.errors: list[str] = []
        self._posts: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        """Do something outside all processes, so many seconds from now."""
        heapq.heappush(self._posts, (self.now + seconds, next(self._order), do))

    def latency(self) -> float:
        """Seconds that a message takes: mostly one or two thousandths, at times much longer."""
        return self.random.choice((0.001, 0.001, 0.002, 0.002, 0.003, 0.02, 0.1))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until then, or until `done`, or until nothing is left to happen."""
        while not done():
            when, process = self._next()
            if when > until:
                self.now = until
                return
            self.now = max(self.now, when)
            if process is None:
                heapq.heappop(self._posts)[2]()
            else:
                process.turn()

    def close(self) -> None:
        """End all processes; whatever does not end when it is cancelled is an error."""
        for process in self.processes:
            process.kill()

    def _next(self) -> tuple[float, Process | None]:
        when: float = self._posts[0][0] if self._posts else float("inf")
        who = None
        for process in self.processes:
            if process.alive and (at := process.next_at()) < when:
                when, who = at, process
        return when, who


class Process:
    """A name, an event loop, a wall clock that may be wrong."""

    def __init__(self, world: World, name: str, skew: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.skew = skew
        self.alive = True
        self.paused_until = 0.0
        self.paused_seconds = 0.0
        self.loop = VirtualLoop(world)
        self.loop.set_exception_handler(self._uncaught)
        world.processes.append(self)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task in this process, from anywhere."""
        return self.loop.create_task(work)

    def post(self, do: Callable[..., object], *args: object) -> None:
        """Bring something to this process now: it happens there as soon as it runs; a dead one never gets it."""
        if self.alive:
            self.loop.call_soon(do, *args)

    def pause(self, seconds: float) -> None:
        """Let its tasks stand still, as a stopped or starved process."""
        end = max(self.paused_until, self.world.now + seconds)
        self.paused_seconds += end - max(self.paused_until, self.world.now)
        self.paused_until = end

    def kill(self) -> None:
        """End the process as SIGKILL does, for all that others see.

        Its tasks still run to their ends, out of time and cut off from everybody, so that no generator is left open.
        """
        if not self.alive:
            return
        self.alive = False
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        for _ in range(10_000):
            if not self.loop.is_busy() or not asyncio.all_tasks(self.loop):
                break
            self.loop.skip()
            self.turn()
        left = asyncio.all_tasks(self.loop)
        if left:
            self.world.errors.append(f"{self.name}: cancelled and still there: {left}")
        self.loop.close()

    def next_at(self) -> float:
        """When this process wants to run next."""
        at = self.loop.next_at()
        return max(at, self.paused_until)

    def turn(self) -> None:
        """Run what is ready once."""
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self.loop._asyncgen_firstiter_hook, self.loop._asyncgen_finalizer_hook)
        events._set_running_loop(self.loop)
        try:
            self.loop._run_once()
        finally:
            events._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    async def ask(self, step: Callable[[], T]) -> T:
        """Have something done outside and wait for what it returns or raises; each way takes a while.

        What a process has asked for happens even if it stops waiting or dies meanwhile, as a request on the wire does.
        """
        if not self.alive:
            raise asyncio.CancelledError
        answer: asyncio.Future[T] = self.loop.create_future()

        def arrive() -> None:
            try:
                result = step()
            except Exception as error:
                self.world.after(self.world.latency(), lambda error=error: self.post(_fail, answer, error))
            else:
                self.world.after(self.world.latency(), lambda: self.post(_answer, answer, result))

        self.world.after(self.world.latency(), arrive)
        return await answer

    def _uncaught(self, loop: object, context: dict[str, Any]) -> None:
        if self.alive:
            self.world.errors.append(f"{self.name}: {context.get('message')}: {context.get('exception')!r}")


class VirtualLoop(base_events.BaseEventLoop):
    """asyncio's own loop with nothing below it; whoever owns it calls `_run_once` and says what time it is."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._ahead = 0.0
        self._selector = self
        self._clock_resolution = 1e-9
        self._thread_id = threading.get_ident()

    def time(self) -> float:
        return self._world.now + self._ahead

    def next_at(self) -> float:
        """When something is to be done; infinity when nothing is."""
        if self._ready:
            return self.time()
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        return self._scheduled[0]._when if self._scheduled else float("inf")

    def is_busy(self) -> bool:
        return self.next_at() != float("inf")

    def skip(self) -> None:
        """Go alone to the time of what is next."""
        self._ahead = max(self._ahead, self.next_at() - self._world.now)

    def select(self, timeout: float | None) -> list[Any]:
        return []

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                _answer(done, func(*args))
            except Exception as error:
                _fail(done, error)

        self.call_later(_THREAD_SECONDS, run)
        return done

    def close(self) -> None:
        self._thread_id = None
        super().close()

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def _answer(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
