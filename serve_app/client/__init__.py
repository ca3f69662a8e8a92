"""The Python client; see `client` (blocking) and `async_client` (awaited)."""

from serve_app.client.async_client import AsyncEncore
from serve_app.client.client import Encore
from serve_app.client.replies import (
    CacheInfo,
    Explanation,
    Generated,
    Invalidated,
    Invalidation,
    Job,
    JobError,
    JobEvent,
    JobPage,
    Model,
    StageKeys,
    WarmEstimate,
    WarmUp,
)

__all__ = [
    "AsyncEncore",
    "CacheInfo",
    "Encore",
    "Explanation",
    "Generated",
    "Invalidated",
    "Invalidation",
    "Job",
    "JobError",
    "JobEvent",
    "JobPage",
    "Model",
    "StageKeys",
    "WarmEstimate",
    "WarmUp",
]
