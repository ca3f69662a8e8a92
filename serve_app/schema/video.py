"""What a client gets: the OpenAI `Video` object, with Encore's extras (`seed`, `cache`) beside the standard fields."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class CacheInfo(BaseModel):
    """How the video was made; null until that is known."""

    outcome: str = Field(description="l1, l2, l3, joined, latents, resumed or rendered")
    key: str = Field(description="key(video): the same key is the same file")
    embedding: str | None = Field(None, description="hit or miss, where a prompt embedding was needed")


class VideoError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error")
    param: str | None = Field(None, description="the field at fault")
    code: str


class ErrorBody(BaseModel):
    """Every failure, in the OpenAI form."""

    error: ErrorDetail


class VideoObject(BaseModel):
    """A video job, as the OpenAI Videos API shows it."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="percent of the denoising steps done; 100 when completed")
    created_at: int = Field(description="Unix seconds")
    completed_at: int | None = None
    expires_at: int | None = Field(None, description="when the job record is forgotten, Unix seconds")
    prompt: str | None = None
    size: str = Field(description="WIDTHxHEIGHT")
    seconds: str = Field(description="playing time, as a decimal string")
    remixed_from_video_id: str | None = None
    error: VideoError | None = None
    seed: int
    num_frames: int
    fps: int
    quality: int = Field(description="constant rate factor of the file, 0 (lossless) to 51")
    negative_prompt: str = Field("", description="what the video should not show, as the model sees it")
    num_inference_steps: int
    guidance_scale: float
    input_reference: str | None = Field(
        None, description="SHA-256 of the first frame's pixels, where an image was sent"
    )
    priority: str = "interactive"
    deadline: float | None = Field(None, description="Unix seconds until which the video is wanted")
    tags: list[str] = []
    metadata: dict[str, str] = Field({}, description="as it was sent")
    corrected: list[dict[str, str]] = Field([], description="mistyped words, each `from` what it was `to` what is used")
    notice: str | None = Field(
        None,
        description="what the model may not do as it was asked: words that it does not understand, settings that it "
        "was not judged with; at most 500 characters, null where nothing is to be said",
    )
    cache: CacheInfo | None = None


class VideoEvent(VideoObject):
    """What an event of `GET /v1/videos/{id}/events` says: the job as it is now, and how far its render is."""

    step: int | None = Field(None, description="denoising steps done; null when not known, and for what was found")
    total_steps: int | None = Field(None, description="denoising steps there are")
    eta_seconds: float | None = Field(None, description="seconds of denoising left, at the pace of the last steps")
