"""Events and spans; see `telemetry` and `tracing`."""

from serve_app.telemetry.telemetry import (
    Answered,
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
