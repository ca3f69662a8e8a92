"""What `/v1/cache/warm` answers: a warm-up's progress, or what one would cost."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class WarmUpError(BaseModel):
    """Why one item could not be warmed."""

    prompt: str
    code: str
    message: str


class WarmUpObject(BaseModel):
    """A warm-up; `there`, `rendered` and `failed` add up to `total` when it is completed. Times are Unix seconds."""

    id: str
    object: Literal["cache.warm_up"] = "cache.warm_up"
    status: Literal["in_progress", "completed", "cancelled"]
    created_at: int
    completed_at: int | None
    expires_at: int
    total: int = Field(description="different videos")
    duplicates: int = Field(description="items that mean what an earlier one means; they are not in `total`")
    there: int = Field(description="stored already")
    rendered: int
    failed: int
    eta_seconds: float | None = Field(description="seconds left at the pace of the last minute")
    errors: list[WarmUpError] = Field(description="the first of those that failed")


class WarmEstimate(BaseModel):
    """What a warm-up would do, were it begun now."""

    object: Literal["cache.warm_up.estimate"] = "cache.warm_up.estimate"
    total: int = Field(description="different videos")
    duplicates: int
    there: int = Field(description="stored already")
    missing: int = Field(description="to be rendered")
    unknown: int = Field(description="of `missing`: a tier that could not be asked may have them")
    seconds_per_render: float | None = Field(description="measured; null while nothing was rendered")
    render_seconds: float | None = Field(description="of one device, for all that is missing")
    missing_keys: list[str]
