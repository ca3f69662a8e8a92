"""VideoEncoder: frames to a stored MP4, and the end of their flight. A thin shell over render.video_encoding."""

from __future__ import annotations

from typing import Any

from deployments.metrics import replica_telemetry
from deployments.replica.expected_errors import expected_errors_in_one_line
from deployments.replica.freeze_gc import settle
from serve_app.core import Finished, Frames, Outcome, RenderRequest
from serve_app.settings import Settings
from serve_app.wiring.video_encoder import open_video_writer


class VideoEncoder:
    """Encodes and stores."""

    def __init__(self, args: dict[str, Any]) -> None:
        expected_errors_in_one_line()
        settings = Settings(**args)
        telemetry = replica_telemetry()
        self._writer, self._cache = open_video_writer(settings, telemetry)
        settle()

    async def finish(self, request: RenderRequest, frames: Frames, render_seconds: float, outcome: Outcome) -> Finished:
        """Encode `frames`, store the file, end its flight; return it with its tiers. Raises RenderFailed."""
        return await self._writer.finish(request, frames, render_seconds, outcome)

    def stats(self) -> dict[str, Any]:
        """Return the counts of this replica's writes."""
        return self._cache.stats()

    async def __del__(self) -> None:
        await self._cache.aclose()
