"""Single flight: one computation per key, shared by everybody who asks meanwhile (after groupcache's singleflight).

A flight is a task of its own, made with an empty context: under Ray Serve even a shielded task inherits the request
that made it and is cancelled with it, so without this the leader's disconnect would fail every follower. When the last
waiter leaves, the flight lingers and is then cancelled; somebody who comes back in time keeps it alive.

This is the in-process form; `serve_app.flight.record` is the cluster's. A flight that stands for a part in one of those
hands the question of what happens without waiters over to it (`hand_over`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

from serve_app.errors import EncoreError, RenderCancelled
from serve_app.tasks import detached

T = TypeVar("T")
Event = TypeVar("Event")
Work = Callable[["Flight[T, Event]"], Awaitable[T]]


class Interest(Protocol):
    """Whoever must know that nobody waits for a flight in this process any more, or somebody again."""

    def all_left(self, at_once: bool) -> None:
        """The last waiter left; `at_once` when it does not want the flight to linger."""
        ...

    def came_back(self) -> None:
        """Somebody waits again."""
        ...


class Flight(Generic[T, Event]):
    """One computation in progress: its result, its news (started, progress), and who waits for it."""

    def __init__(self, key: str, linger_seconds: float) -> None:
        self.key = key
        self.waiters = 0
        self.abandoned = False
        self.news: list[Event] = []
        self._linger_seconds = linger_seconds
        self._watchers: list[Callable[[Event], None]] = []
        self._linger: asyncio.TimerHandle | None = None
        self._interest: Interest | None = None
        self._task: asyncio.Task[T] | None = None
        self._dismissal: asyncio.Future[EncoreError] | None = None

    def start(self, work: Work[T, Event]) -> None:
        """Start the work in an empty context; only the trace goes with it, so that spans stay one tree."""

        async def run() -> T:
            return await work(self)

        self._task = detached(run(), traced=True)
        self._task.add_done_callback(_retrieve)

    @property
    def task(self) -> asyncio.Task[T]:
        """The running work; a flight that never departed has none."""
        if self._task is None:
            raise RuntimeError(f"flight {self.key} has not departed")
        return self._task

    def publish(self, news: Event) -> None:
        """Tell every watcher; called by the work."""
        self.news.append(news)
        for watcher in list(self._watchers):
            watcher(news)

    def watch(self, watcher: Callable[[Event], None]) -> None:
        """Hear all news, those already told first."""
        for news in self.news:
            watcher(news)
        self._watchers.append(watcher)

    def hold(self) -> None:
        """Count one more waiter; pair with `release`."""
        self.waiters += 1
        self._stop_lingering()
        if self._interest is not None and self.waiters == 1:
            self._interest.came_back()

    def release(self, *, at_once: bool = False) -> None:
        """Count one waiter less; the last one's going starts the linger, or ends the flight `at_once`."""
        self.waiters -= 1
        if self.waiters or self.task.done():
            return
        if self._interest is None:
            self.linger(at_once=at_once)
        else:
            self._interest.all_left(at_once)

    def hand_over(self, interest: Interest) -> None:
        """Let `interest` decide from now on what happens when all waiters have left."""
        self._interest = interest
        if self._linger is not None:
            self._stop_lingering()
            interest.all_left(at_once=False)

    def linger(self, *, at_once: bool = False) -> None:
        """Cancel the work after the linger, or `at_once`, unless somebody waits again by then."""
        self._stop_lingering()
        if at_once:
            self._abandon()
        else:
            self._linger = asyncio.get_running_loop().call_later(self._linger_seconds, self._abandon)

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _abandon(self) -> None:
        self.abandoned = True
        self.task.cancel()

    async def wait(self) -> T:
        """Wait for the result as one of the waiters; cancelling this wait leaves the flight to the others.

        Raises whatever the work raised, and RenderCancelled if the flight itself was cancelled meanwhile.
        """
        self.hold()
        try:
            return await self.result()
        finally:
            self.release()

    async def wait_interruptibly(self) -> T:
        """Wait as `wait` does, but only until the work dismisses those who cannot wait for ever; raises its error."""
        self.hold()
        try:
            if self._dismissal is None:
                self._dismissal = asyncio.get_running_loop().create_future()
            dismissal = self._dismissal
            ways: set[asyncio.Future[Any]] = {self.task, dismissal}
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if self.task.done():
                return await self.result()
            raise dismissal.result()
        finally:
            self.release()

    def interrupt_waiters(self, error: EncoreError) -> None:
        """Let everybody go who waits impatiently by now; called by the work, which goes on for the others."""
        dismissal, self._dismissal = self._dismissal, None
        if dismissal is not None:
            dismissal.set_result(error)

    async def result(self) -> T:
        """Return the result without counting as a waiter; raises as `wait` does."""
        try:
            return await asyncio.shield(self.task)
        except asyncio.CancelledError:
            waiter = asyncio.current_task()
            if self.task.cancelled() and not (waiter and waiter.cancelling()):  # the waiter's own cancellation wins
                raise RenderCancelled("The render was cancelled because nobody waited for it any more.") from None
            raise


def _retrieve(task: asyncio.Task[T]) -> None:
    """Mark the exception as seen: a flight whose waiters all left must not log it as lost."""
    if not task.cancelled():
        task.exception()


class SingleFlight(Generic[T, Event]):
    """The flights of one process, by key."""

    def __init__(self, linger_seconds: float = 30.0) -> None:
        self._linger_seconds = linger_seconds
        self._flights: dict[str, Flight[T, Event]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, key: str) -> Flight[T, Event] | None:
        """Return the flight of `key` if one is in the air."""
        return self._flights.get(key)

    def forget(self, key: str) -> None:
        """Let whoever comes from now on lead a flight of their own; those on the present one stay on it."""
        self._flights.pop(key, None)

    def join_or_lead(self, key: str, work: Work[T, Event]) -> tuple[Flight[T, Event], bool]:
        """Return the flight of `key` and whether this call started it.

        No await lies between the look-up and the entry, so on one event loop two callers cannot both lead. The
        flight is forgotten in the same loop iteration in which it lands; its work must have stored the result by then.
        """
        flight = self._flights.get(key)
        if flight is not None and not flight.task.done() and not flight.task.cancelling():
            return flight, False
        flight = Flight(key, self._linger_seconds)
        flight.start(work)
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._land(flight))
        return flight, True

    def _land(self, flight: Flight[T, Event]) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
