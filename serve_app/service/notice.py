"""What an answer says of a request that was accepted though its video may not show what was asked for.

A notice is part of no key and changes no video: it comes from the spec and the model's card alone, so every request for
the same gets the same.
"""

from __future__ import annotations

from collections.abc import Callable

from serve_app.core import ModelCard, VideoSpec

MAX_CHARS = 500
NAMES = ("num_frames", "num_inference_steps", "guidance_scale")
"""What a card may say the judged range of."""


def notice_of(
    spec: VideoSpec, card: ModelCard, prompt_notice: Callable[[str], tuple[str, ...]] | None = None
) -> str | None:
    """Return the sentences about a spec, at most 500 characters of them; None where there is nothing to say.

    prompt_notice: the card's own unless another is given, such as one with a memory.
    """
    told = prompt_notice or card.prompt_notice
    sentences = list(told(spec.prompt)) if told is not None and spec.prompt else []
    sentences += _beyond_judged(spec, card)
    if card.made_at is not None and card.made_at != (spec.width, spec.height):
        made, asked = (f"{width}x{height}" for width, height in (card.made_at, (spec.width, spec.height)))
        sentences.append(f"{card.name} makes {made}; this is that, scaled to {asked}.")
    text = " ".join(sentences)
    if len(text) > MAX_CHARS:
        text = f"{text[: MAX_CHARS - 1]}…"
    return text or None


def _beyond_judged(spec: VideoSpec, card: ModelCard) -> list[str]:
    """Return a sentence for each setting with which the model's videos were not judged."""
    sentences = []
    for name in NAMES if card.judged is not None else ():
        least, most = getattr(card.judged, name)
        value = getattr(spec, name)
        if not least <= value <= most:
            sentences.append(
                f"{card.name} was judged with '{name}' from {least:g} to {most:g}; with {value:g} nobody looked."
            )
    return sentences
