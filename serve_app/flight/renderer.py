"""The renderer as the router sees it: four deployments behind handles, or one process in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from serve_app.core import RenderEvent, RenderRequest, Urgency


class Renderer(Protocol):
    """Makes videos that no tier has."""

    def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """Yield Started, Progress as it happens, and Finished; raises EncoreError."""
        ...

    async def cancel(self, key: str) -> None:
        """End the render of key(video) at its next step, wherever it runs."""
        ...

    async def drop_latents(self, key: str) -> None:
        """Delete the latents of key(latents), also those that are just being written."""
        ...

    def promote(self, key: str, urgency: Urgency) -> None:
        """Let the render of key(video) go on as `urgency` asks, wherever it waits or runs; returns at once."""
        ...

    async def stats(self) -> dict[str, Any]:
        """Return what the renderer knows of its load."""
        ...
