"""Values of the service as the objects of the wire: a job, an event of its life, a model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from serve_app.core import IntRange, ModelCard
from serve_app.schema import CacheInfo, VideoError, VideoEvent, VideoObject
from serve_app.schema.request import QUALITY
from serve_app.service.jobs.events import JobEvent
from serve_app.service.jobs.job import Job


def video_object(job: Job) -> VideoObject:
    """Return a job as the OpenAI Videos API shows it."""
    spec = job.spec
    return VideoObject(
        id=job.id,
        model=spec.model,
        status=job.status.value,
        progress=job.progress,
        created_at=int(job.created_at),
        completed_at=None if job.completed_at is None else int(job.completed_at),
        expires_at=int(job.expires_at),
        prompt=job.prompt or None,
        size=spec.size,
        seconds=f"{spec.seconds:g}",
        error=None if job.error_code is None else VideoError(code=job.error_code, message=job.error_message or ""),
        seed=spec.seed,
        num_frames=spec.num_frames,
        fps=spec.fps,
        quality=spec.quality,
        negative_prompt=spec.negative_prompt,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        input_reference=spec.input_reference or None,
        priority=job.urgency.priority.value,
        deadline=job.urgency.deadline,
        tags=list(job.tags),
        metadata=dict(job.metadata),
        corrected=[each.wire() for each in job.corrected],
        notice=job.notice,
        cache=None
        if job.outcome is None
        else CacheInfo(outcome=job.outcome.value, key=job.keys.video, embedding=job.embedding),
    )


def event_object(event: JobEvent) -> VideoEvent:
    """Return what an event of a job says: the job, and how far its render is."""
    job = event.job
    return VideoEvent(
        **dict(video_object(job)), step=job.step, total_steps=job.total_steps, eta_seconds=event.eta_seconds
    )


def model_object(card: ModelCard) -> dict[str, Any]:
    """Return a model with its ranges and defaults.

    sizes: those offered, null for any on the grid; judged: what notices go by, null for none; notices_prompts: whether
    a prompt that the model does not understand gets a notice.
    """

    def whole(allowed: IntRange) -> dict[str, int]:
        return {
            "minimum": allowed.minimum, "maximum": allowed.maximum, "step": allowed.step, "default": allowed.default
        }  # fmt: skip

    names = ("width", "height", "num_frames", "fps", "num_inference_steps")
    guidance = card.guidance_scale
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "encore",
        "family": card.family,
        "description": card.description,
        "aliases": list(card.aliases),
        "fingerprint": card.model_fingerprint,
        "max_prompt_tokens": card.max_prompt_tokens,
        "takes_image": card.takes_image,
        "made_at": None if card.made_at is None else f"{card.made_at[0]}x{card.made_at[1]}",
        "sizes": None if card.sizes is None else [f"{width}x{height}" for width, height in card.sizes],
        "judged": None if card.judged is None else asdict(card.judged),
        "notices_prompts": card.prompt_notice is not None,
        "parameters": {name: whole(getattr(card, name)) for name in names}
        | {
            "quality": whole(QUALITY),
            "guidance_scale": {
                "minimum": guidance.minimum, "maximum": guidance.maximum, "default": guidance.default
            }
        },
    }  # fmt: skip
