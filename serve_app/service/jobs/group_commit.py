"""Writes that come while one is under way go together in the next (group commit): one round trip, one fsync for all.

DeWitt et al., "Implementation Techniques for Main Memory Database Systems" (1984). A write alone goes at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from serve_app.tasks import detached

T = TypeVar("T")
A = TypeVar("A")


class GroupCommit(Generic[T, A]):
    """Hands what callers give to `commit`, up to `most` at a time, and each the answer to his own."""

    def __init__(self, commit: Callable[[Sequence[T]], Awaitable[Sequence[A]]], most: int) -> None:
        self._commit = commit
        self._most = most
        self._waiting: list[tuple[T, asyncio.Future[A]]] = []
        self._task: asyncio.Task[None] | None = None

    async def write(self, one: T) -> A:
        """Write `one` and return its answer; raises what `commit` does. A caller that is cancelled has written."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, answer))
        if self._task is None:
            self._task = detached(self._run())
        return await answer

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                await self._together(batch)
        finally:
            self._task = None

    async def _together(self, batch: Sequence[tuple[T, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._commit([one for one, _ in batch])
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        except BaseException:
            for _, answer in batch:
                answer.cancel()
            raise
        for (_, answer), said in zip(batch, answers, strict=True):
            if not answer.done():
                answer.set_result(said)
