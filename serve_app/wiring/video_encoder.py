"""What the VideoEncoder runs: frames to a file in the shared tiers, and the end of its flight."""

from __future__ import annotations

from serve_app.cache.cache import TieredCache
from serve_app.render.video_encoding import VideoWriter
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.tiers import open_cache, open_flight_records, open_tiers


def open_video_writer(settings: Settings, telemetry: Telemetry) -> tuple[VideoWriter, TieredCache]:
    """Return what encodes and stores, with its cache."""
    tiers = open_tiers(settings, telemetry)
    cache = open_cache("video", settings, tiers, telemetry)
    return VideoWriter(cache, telemetry, open_flight_records(settings, tiers)), cache
