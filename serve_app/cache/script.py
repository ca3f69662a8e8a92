"""Lua that runs inside Redis: one script is one round trip and one atomic step; all of it lives in `scripts/`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError


class Script:
    """One file of `scripts/`, sent by its hash; its text goes along only when the server does not know it yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = resources.files(__package__).joinpath("scripts", f"{name}.lua").read_text("utf-8")
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()  # as Redis names scripts

    async def run(self, client: Redis, keys: Sequence[str], args: Sequence[bytes | str | float]) -> Any:
        """Run the script; a server that was restarted or flushed is given the text again. Raises RedisError."""
        try:
            return await client.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await client.eval(self.source, len(keys), *keys, *args)
