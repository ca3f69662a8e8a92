"""Events and spans; see `telemetry` and `tracing`."""

from serve_app.telemetry.telemetry import (
    Answered,
    BreakerTurned,
    EmbeddingServed,
    Encoded,
    Event,
    Evicted,
    Observer,
    Rendered,
    StepRun,
    Telemetry,
    TierRead,
    TierWritten,
)
from serve_app.telemetry.tracing import span

__all__ = [
    "Answered",
    "BreakerTurned",
    "EmbeddingServed",
    "Encoded",
    "Event",
    "Evicted",
    "Observer",
    "Rendered",
    "StepRun",
    "Telemetry",
    "TierRead",
    "TierWritten",
    "span",
]
