"""Lua that runs inside Redis: one script is one round trip and one atomic step; all of it lives in `scripts/`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoScriptError


def milliseconds(seconds: float) -> int:
    """Return a time or a length of time as scripts take it."""
    return round(seconds * 1000)


def now_of(clock: Callable[[], float] | None) -> str:
    """Return the time as scripts take it: '' for the server's own, else that of a test's clock in Unix seconds."""
    return "" if clock is None else str(milliseconds(clock()))


def _text(name: str) -> str:
    return resources.files(__package__).joinpath("scripts", f"{name}.lua").read_text("utf-8")


class Script:
    """One file of `scripts/` after `clock.lua` and what else it needs; its text is sent only where it is not known."""

    def __init__(self, name: str, *needs: str) -> None:
        self.name = name
        self.source = "".join(_text(part) for part in ("clock", *needs, name))
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()  # as Redis names scripts

    async def run(self, client: Redis | RedisCluster, keys: Sequence[str], args: Sequence[bytes | str | float]) -> Any:
        """Run the script; a server that was restarted or flushed is given the text again. Raises RedisError."""
        try:
            return await client.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await client.eval(self.source, len(keys), *keys, *args)
