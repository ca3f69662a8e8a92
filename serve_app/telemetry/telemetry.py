"""What happened, told once: the cache and the service emit events; metrics and traces listen.

An event is a frozen value without prompt text. Emitting never raises and never waits: an observer that fails is
logged and skipped, because watching a request must not be able to break it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """A request for a video was answered (`outcome` is a core.Outcome or `failed`)."""

    outcome: str
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class TierRead:
    """A tier was asked for a key of `kind`: `result` is `hit`, `miss`, `filtered` (by the Bloom filter, so the tier was
    not asked after all), `error` or `corrupt`."""

    tier: str
    kind: str
    result: str
    seconds: float
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class TierWritten:
    """A tier was given a value: `result` is `stored`, `exists`, `too_large`, `too_full` (what memory it
    has left is for records) or `error`."""

    tier: str
    kind: str
    result: str
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Evicted:
    """A bounded tier dropped `count` entries of `bytes` in all to stay within its bound."""

    tier: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class BreakerTurned:
    """A tier's breaker is `open` or `closed` now; `asked` tells what of: to `reach` it, or to `store` in it."""

    tier: str
    asked: str
    state: str


@dataclass(frozen=True, slots=True)
class EmbeddingServed:
    """The text encoder answered for one prompt: `result` is `hit` or `miss`."""

    result: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """One render ended: seconds queued, denoising and decoding, the steps done, and how it ended."""

    result: str
    queue_seconds: float
    denoise_seconds: float
    decode_seconds: float
    steps: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """One file was encoded from frames."""

    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class StepRun:
    """One forward pass of the denoiser over `batch_size` jobs."""

    batch_size: int
    seconds: float


Event = Answered | TierRead | TierWritten | Evicted | BreakerTurned | EmbeddingServed | Rendered | Encoded | StepRun
Observer = Callable[[Event], None]


class Telemetry:
    """A list of observers with one door, `emit`."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)

    def listen(self, observer: Observer) -> None:
        """Add an observer; it is called for every later event, in the emitter's thread."""
        self._observers.append(observer)

    def emit(self, event: Event) -> None:
        """Tell every observer; an observer's exception is logged, never raised."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("observer failed on %s", type(event).__name__)
