"""What a request means before anything is looked up: the spec, the keys, and how the prompt got its form.

Pure and cheap (no torch, no I/O), so that the router plans every request with it and the command line explains
thousands of prompts without a server.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from serve_app.cache.key import keys_for
from serve_app.core import Keys, ModelCard, VideoSpec
from serve_app.errors import Unprocessable
from serve_app.model.model import Family
from serve_app.prompt.prompt import Change, Normalised, trace
from serve_app.schema import VideoRequest, resolve


@dataclass(frozen=True, slots=True)
class Plan:
    """A request resolved: what to make, under which names. `asked` is the prompt as it was typed."""

    asked: str
    spec: VideoSpec
    keys: Keys
    changes: tuple[Change, ...] = ()

    def explained(self) -> dict[str, Any]:
        """Return the JSON-able explanation: prompt, normalised form, each step, the spec, the three keys."""
        return {
            "prompt": self.asked,
            "normalised": self.spec.prompt,
            "changes": [asdict(change) for change in self.changes],
            "keys": {"prompt": self.keys.prompt, "latents": self.keys.latents, "video": self.keys.video},
            "spec": asdict(self.spec),
        }


class Planner:
    """Turns requests into plans for one model and one encoder."""

    def __init__(self, family: Family, encoder_fingerprint: str, *, max_prompt_chars: int) -> None:
        self._family = family
        self._encoder_fingerprint = encoder_fingerprint
        self._max_prompt_chars = max_prompt_chars

    @property
    def card(self) -> ModelCard:
        """The model that plans are made for."""
        return self._family.card

    def plan(self, request: VideoRequest) -> Plan:
        """Resolve, normalise and name `request`.

        Raises Unprocessable for an empty or over-long prompt and whatever `schema.resolve` raises.
        """
        spec = resolve(request, self.card)
        prompt = self._normalised("prompt", spec.prompt)
        if not prompt.text:
            raise Unprocessable("'prompt' is empty.", param="prompt")
        negative_prompt = self._normalised("negative_prompt", spec.negative_prompt)
        spec = replace(spec, prompt=prompt.text, negative_prompt=negative_prompt.text)
        return Plan(request.prompt, spec, keys_for(spec, self.card, self._encoder_fingerprint), prompt.changes)

    def _normalised(self, field: str, text: str) -> Normalised:
        if len(text) > self._max_prompt_chars:
            raise Unprocessable(
                f"'{field}' has {len(text)} characters; at most {self._max_prompt_chars} are allowed.", param=field
            )
        normalised = trace(text, self.card.prompt_rules)
        tokens = self._family.count_tokens(normalised.text)
        if tokens > self.card.max_prompt_tokens:
            raise Unprocessable(
                f"'{field}' has {tokens} tokens; {self.card.name} reads at most {self.card.max_prompt_tokens}.",
                param=field,
            )
        return normalised
