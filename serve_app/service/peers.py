"""The other router replicas, as one of them sees them."""

from __future__ import annotations

from typing import Any, Protocol

from serve_app.core import Rule


class Peers(Protocol):
    """Calls that reach every router replica, this one too."""

    async def forget(self, keys: tuple[str, ...], job_ids: tuple[str, ...]) -> None:
        """Make every replica's memory forget these videos and jobs."""
        ...

    async def learn(self, rules: tuple[Rule, ...]) -> None:
        """Tell every replica of invalidations, as far as it can be reached; the others hear of them anyway."""
        ...

    async def counts(self) -> tuple[str, list[dict[str, Any]]]:
        """Return this replica's name, and the `VideoService.counts` of each that can be reached, this one too."""
        ...
