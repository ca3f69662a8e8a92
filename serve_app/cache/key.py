"""The chain of keys: each stage's output is named by everything that went into it.

    key(prompt)  = H(scope, text encoder fingerprint, rules version, normalised prompt)
    key(latents) = H(model fingerprint, key(prompt), key(negative prompt), seed, size, frames, steps, guidance)
                   and, of a video that starts from an image: image encoder fingerprint, SHA-256 of the image's pixels
    key(video)   = H(key(latents), decoder + encoder fingerprint, fps, container, codec, quality)

`H` is SHA-256 over canonical bytes: UTF-8 JSON of a list that begins with the stage's name. Floats enter as their
exact hexadecimal form, in a list of its own so that no text can look like it. Different parts have different bytes.
"""

from __future__ import annotations

import hashlib
import json

from serve_app.core import Keys, ModelCard, VideoSpec

Part = str | int | float

REVISION = 1
"""Bumped by hand when the meaning of a key changes; golden tests guard it."""


def digest(stage: str, *parts: Part) -> str:
    """Return SHA-256 of the canonical bytes of `parts` as 64 hex digits."""
    canonical = json.dumps([f"{stage}/{REVISION}", *map(_canonical, parts)], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(part: Part) -> str | int | list[str]:
    if isinstance(part, float):
        return [(part + 0.0).hex()]  # -0.0 and 0.0 are one number
    return part


def prompt_key(card: ModelCard, scope: str, prompt: str) -> str:
    """Name the embedding of a normalised prompt."""
    return digest("prompt", scope, card.text_encoder_fingerprint, card.prompt_rules.version, prompt)


def keys_for(spec: VideoSpec, card: ModelCard, encoder_fingerprint: str) -> Keys:
    """Return the whole chain of keys of `spec` on the model of `card`, encoded by `encoder_fingerprint`."""
    prompt = prompt_key(card, spec.scope, spec.prompt)
    negative_prompt = prompt_key(card, spec.scope, spec.negative_prompt)
    latents = digest(
        "latents", card.model_fingerprint, prompt, negative_prompt, spec.seed, spec.width, spec.height,
        spec.num_frames, spec.num_inference_steps, float(spec.guidance_scale), *_image_parts(spec, card),
    )  # fmt: skip
    video = digest(
        "video", latents, card.decoder_fingerprint, encoder_fingerprint,
        spec.fps, spec.container, spec.codec, spec.quality,
    )  # fmt: skip
    return Keys(prompt, negative_prompt, latents, video)


def image_key(spec: VideoSpec) -> str:
    """Name the pixels that a video starts from; they are a tenant's own, like the prompt."""
    return digest("image", spec.scope, spec.width, spec.height, spec.input_reference)


def _image_parts(spec: VideoSpec, card: ModelCard) -> tuple[Part, ...]:
    """Return nothing for a video from text alone: its key is what it was before there were images."""
    return (card.image_encoder_fingerprint or "", spec.input_reference) if spec.input_reference else ()
