"""Single flight: one computation per key, shared by all callers that ask meanwhile (after groupcache's singleflight).

A flight is a task of its own, made with an empty context: under Ray Serve even a shielded task inherits the request
that made it and is cancelled with it, so without this the leader's disconnect would fail every follower. When its last
waiter leaves, a flight lingers and is then cancelled; a waiter that comes in time keeps it alive.

This is the in-process form; `serve_app.flight.record` is the cluster's. A subclass owns what else there is to say of
its flight, and may decide differently what happens without waiters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Generic, TypeVar

from serve_app.errors import EncoreError, RenderCancelled
from serve_app.tasks import detached

T = TypeVar("T")
Event = TypeVar("Event")
F = TypeVar("F", bound="Flight[Any, Any]")


class Flight(Generic[T, Event]):
    """One computation in progress: its result, its events (started, progress), and how many wait for it."""

    def __init__(self, key: str, linger_seconds: float = 30.0) -> None:
        self.key = key
        self.waiters = 0
        self.abandoned = False
        self.events: list[Event] = []
        self._linger_seconds = linger_seconds
        self._watchers: list[Callable[[Event], None]] = []
        self._linger: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[T] | None = None
        self._interruption: asyncio.Future[EncoreError] | None = None

    def start(self, work: Callable[[], Awaitable[T]]) -> None:
        """Start the work in an empty context; only the trace goes with it, so that spans stay one tree."""

        async def run() -> T:
            return await work()

        self._task = detached(run(), traced=True)
        self._task.add_done_callback(_retrieve)

    @property
    def task(self) -> asyncio.Task[T]:
        """The running work; raises RuntimeError before `start`."""
        if self._task is None:
            raise RuntimeError(f"flight {self.key} has not started")
        return self._task

    @property
    def lingers(self) -> bool:
        """Whether the flight has lost its last waiter and will be cancelled unless one comes in time."""
        return self._linger is not None

    def publish(self, event: Event) -> None:
        """Tell every watcher; called by the work."""
        self.events.append(event)
        for watcher in list(self._watchers):
            watcher(event)

    def watch(self, watcher: Callable[[Event], None]) -> None:
        """Hear all events, those already told first."""
        for event in self.events:
            watcher(event)
        self._watchers.append(watcher)

    def hold(self) -> None:
        """Count one more waiter; pair with `release`."""
        self.waiters += 1
        self._stop_lingering()
        if self.waiters == 1:
            self._first_waiter_came()

    def release(self, *, at_once: bool = False) -> None:
        """Count one waiter less; when it was the last one the flight lingers, or ends `at_once`."""
        self.waiters -= 1
        if not self.waiters and not self.task.done():
            self._last_waiter_left(at_once)

    def linger(self, *, at_once: bool = False) -> None:
        """Cancel the work after the linger, or `at_once`, unless a waiter comes by then."""
        self._stop_lingering()
        if at_once:
            self._abandon()
        else:
            self._linger = asyncio.get_running_loop().call_later(self._linger_seconds, self._abandon)

    def _first_waiter_came(self) -> None:
        """Hook of subclasses: the flight had no waiters and has one."""

    def _last_waiter_left(self, at_once: bool) -> None:
        """Hook of subclasses: the flight has no waiters any more; `at_once` when the last one wants it to end."""
        self.linger(at_once=at_once)

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _abandon(self) -> None:
        self.abandoned = True
        self.task.cancel()

    async def wait(self) -> T:
        """Wait for the result as one of the waiters; cancelling this wait leaves the flight to the others.

        Raises what the work raised, and RenderCancelled if the flight itself was cancelled meanwhile.
        """
        self.hold()
        try:
            return await self.result()
        finally:
            self.release()

    async def wait_interruptibly(self) -> T:
        """Wait as `wait` does, but only until the work calls `interrupt_waiters`; raises its error."""
        self.hold()
        try:
            if self._interruption is None:
                self._interruption = asyncio.get_running_loop().create_future()
            interruption = self._interruption
            ways: set[asyncio.Future[Any]] = {self.task, interruption}
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if self.task.done():
                return await self.result()
            raise interruption.result()
        finally:
            self.release()

    def interrupt_waiters(self, error: EncoreError) -> None:
        """End all present `wait_interruptibly` calls with `error`; called by the work, which goes on for the others."""
        interruption, self._interruption = self._interruption, None
        if interruption is not None:
            interruption.set_result(error)

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


class FlightMap(Generic[F]):
    """The flights of one process, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, F] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[F]:
        return iter(list(self._flights.values()))

    def find(self, key: str) -> F | None:
        """Return the flight of `key` if one is active."""
        return self._flights.get(key)

    def forget(self, key: str) -> None:
        """Let later callers lead a flight of their own; the waiters of the present one stay on it."""
        self._flights.pop(key, None)

    def join_or_start(self, key: str, start: Callable[[], F]) -> tuple[F, bool]:
        """Return the flight of `key`, and whether this call made it; `start` returns a new flight, started.

        No await lies between the look-up and the entry, so on one event loop two callers cannot both lead. The flight
        is forgotten in the same loop iteration in which it ends; its work must have stored the result by then.
        """
        flight = self._flights.get(key)
        if flight is not None and not flight.task.done() and not flight.task.cancelling():
            return flight, False
        flight = self._flights[key] = start()
        flight.task.add_done_callback(lambda _: self._ended(flight))
        return flight, True

    def _ended(self, flight: F) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]


class SingleFlight(FlightMap[Flight[T, Event]]):
    """Plain flights by key: a cache miss is computed once, however many callers ask meanwhile."""

    def __init__(self, linger_seconds: float = 30.0) -> None:
        super().__init__()
        self._linger_seconds = linger_seconds

    def join_or_lead(self, key: str, work: Callable[[Flight[T, Event]], Awaitable[T]]) -> tuple[Flight[T, Event], bool]:
        """Return the flight of `key`, and whether this call leads it; then `work(flight)` runs as its task."""

        def start() -> Flight[T, Event]:
            flight: Flight[T, Event] = Flight(key, self._linger_seconds)
            flight.start(lambda: work(flight))
            return flight

        return self.join_or_start(key, start)
