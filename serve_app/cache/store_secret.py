"""Whose store this is: every shared store carries a digest of the secret that it was written under.

Under another secret every name is another one and nothing verifies, so a server would delete what it took for damaged,
and a tool would repair a good store until it is empty. So nothing is asked of a store before its marker was read: one
small value beside the values, written once (of two that begin on an empty store, the second finds the first's). A store
of a former release has values and no marker: a sample of them is held against the secret. The digest is an HMAC of a
fixed text, which does not give the secret away.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, get_args, runtime_checkable

from serve_app.cache.envelope import Envelope, former_key, is_former
from serve_app.cache.storage_name import Kind, storage_name
from serve_app.errors import CorruptEntry, ForeignStore, TierError, TierRefused
from serve_app.tasks import detached

logger = logging.getLogger(__name__)

MARKER = "encore-store.json"
"""What the marker is called among files and objects."""
MARKER_BYTES = 4096
SAMPLE = 32
ASK_AGAIN_SECONDS = 30.0
_LABEL = b"encore store marker"


@runtime_checkable
class MarkedStore(Protocol):
    """What a store can say of whose it is. Every method may raise TierError, and none asks for the marker first."""

    @property
    def where(self) -> str:
        """How a person knows the store: without credentials, with the setting that names it."""
        ...

    async def marker(self) -> bytes | None:
        """Return the marker, None when there is none."""
        ...

    async def mark(self, marker: bytes) -> bytes:
        """Write the marker unless there is one; return the one that is there now."""
        ...

    def sample(self, count: int) -> AsyncIterator[tuple[str, bytes]]:
        """Yield some stored names and the first bytes of their values, at most `count`."""
        ...


def marker_of(secret: bytes) -> bytes:
    """Return the marker of a store that is written under `secret`."""
    return json.dumps({"store": 1, "secret": hmac.new(secret, _LABEL, hashlib.sha256).hexdigest()}).encode() + b"\n"


async def require_own(store: MarkedStore, secret: bytes, *, write: bool = True) -> None:
    """Raise ForeignStore unless `store` was written under `secret`; TierError when that cannot be told now.

    write: mark a store that has no marker and nothing that speaks against it.
    """
    own, held = marker_of(secret), await store.marker()
    if held is None:
        looked, matching = await _matching(store, secret)
        if looked and not matching:
            raise ForeignStore(
                f"{store.where} has no marker ({MARKER}), and none of {looked} values looked at was written under this "
                f"secret. {_NEXT_STEP}"
            )
        if not write:
            return
        try:
            held = await store.mark(own)
        except TierRefused as error:  # full or read-only: what it has is ours, and is worth reading
            logger.warning("%s could not be marked as ours: %s", store.where, error)
            return
    if not hmac.compare_digest(held.strip(), own.strip()):
        raise ForeignStore(f"{store.where} was written under another secret. {_NEXT_STEP}")


def was_made_for(name: str, head: bytes, secret: bytes) -> bool:
    """Tell whether the first bytes of a frame, of this version or the former, say that it was stored under `secret`."""
    try:
        if is_former(head):
            key = former_key(head, headers_only=True)
            return name in {storage_name(secret, kind, key) for kind in get_args(Kind)}
        Envelope(secret).glance(name, head)
    except CorruptEntry:
        return False
    return True


async def _matching(store: MarkedStore, secret: bytes) -> tuple[int, int]:
    """Return how many values were looked at, and how many of them are of this secret."""
    found = [was_made_for(name, head, secret) async for name, head in store.sample(SAMPLE)]
    return len(found), sum(found)


_NEXT_STEP = (
    "Nothing was touched. Set ENCORE_SECRET to the secret it was written under, or give the --cache-dir whose `secret` "
    "that is, or name another store; to begin anew under this secret, empty that one first."
)


class Guard:
    """Lets nothing pass to a store before it is known whose it is; asked once in the life of a process.

    check: raises ForeignStore or TierError. A foreign store is told once as an error, and asked again after a while.
    """

    def __init__(self, check: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.monotonic) -> None:
        self._check = check
        self._clock = clock
        self._passed = False
        self._foreign: str | None = None
        self._refused_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def passed(self) -> None:
        """Return when the store is ours; raises ForeignStore, and TierError when that cannot be told now."""
        if self._passed:
            return
        if self._foreign is not None and self._clock() - self._refused_at < ASK_AGAIN_SECONDS:
            raise ForeignStore(self._foreign)
        if self._asking is None or self._asking.done():
            self._asking = detached(self._ask())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # told to who waits
        await asyncio.shield(self._asking)  # a caller that is cancelled takes no answer along

    def forget(self) -> None:
        """Ask again: it may be another store by now."""
        self._passed = False

    async def _ask(self) -> None:
        try:
            await self._check()
        except ForeignStore as error:
            self._refused_at = self._clock()
            if self._foreign is None:
                logger.error("%s It is left alone.", error.message)
            self._foreign = error.message
            raise
        except TierError:
            raise
        except Exception as error:
            raise TierError(f"Whose store this is could not be told: {type(error).__name__}: {error}") from error
        self._passed, self._foreign = True, None
