"""What a request means before anything is looked up: the spec, the keys, and how the prompt got its form.

Pure and cheap (no torch, no I/O), so that the router plans every request with it and the command line explains
thousands of prompts without a server. Only an image takes time, to be decoded and fitted: see `planning`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from serve_app.cache.key import keys_for
from serve_app.clock import steady
from serve_app.core import Keys, ModelCard, Urgency, VideoSpec
from serve_app.errors import Unprocessable
from serve_app.media.first_frame import MAX_BYTES, MAX_PIXELS, read_first_frame
from serve_app.model.model import Family
from serve_app.prompt.folding import unicode
from serve_app.prompt.prompt import Change, Normalised, Normaliser
from serve_app.prompt.typos import Correction
from serve_app.schema import VideoRequest, resolve
from serve_app.schema.resolve import no_such_model
from serve_app.service.notice import notice_of

KEPT_PROMPTS, KEPT_CHARS = 4_096, 1_000
"""Normal forms kept in memory, those of prompts up to so long: most prompts come again letter by letter, and looking
one up costs nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A request resolved: what to make, under which names, how soon. `asked` is the prompt as it was typed.

    `urgency`, `tags` and `metadata` are beside spec and keys, not in them: a caller in a hurry, or under another
    name, gets the video that others wait for.
    """

    asked: str
    spec: VideoSpec
    keys: Keys
    changes: tuple[Change, ...] = ()
    corrected: tuple[Correction, ...] = ()
    urgency: Urgency = field(default_factory=Urgency)
    tags: tuple[str, ...] = ()
    image: bytes | None = field(default=None, repr=False)
    """The pixels that the spec's `input_reference` names, as a PNG; None when the video starts from text."""
    metadata: tuple[tuple[str, str], ...] = ()
    notice: str | None = None
    """What the model may not do as it was asked, see `notice`."""

    def explained(self) -> dict[str, Any]:
        """Return the JSON-able explanation: prompt, normalised form, each step, corrections, spec and keys."""
        return {
            "prompt": self.asked,
            "normalised": self.spec.prompt,
            "changes": [asdict(change) for change in self.changes],
            "corrected": [correction.wire() for correction in self.corrected],
            "notice": self.notice,
            "keys": {"prompt": self.keys.prompt, "latents": self.keys.latents, "video": self.keys.video},
            "spec": asdict(self.spec),
        }


class Planner:
    """Turns requests into plans for one model, one encoder and one deployment's rules (absent: the model's own).

    negative_prompt: what a request that has none is taken to say (absent: the model's own); raises Unprocessable where
    no request could say it.
    """

    def __init__(
        self,
        family: Family,
        encoder_fingerprint: str,
        *,
        max_prompt_chars: int,
        max_image_bytes: int = MAX_BYTES,
        max_image_pixels: int = MAX_PIXELS,
        normaliser: Normaliser | None = None,
        negative_prompt: str | None = None,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._family = family
        self._normaliser = normaliser or Normaliser(family.card.prompt_rules)
        self._trace = functools.lru_cache(maxsize=KEPT_PROMPTS)(self._normaliser.trace)
        self._card = replace(family.card, prompt_rules=self._normaliser.rules)
        told = self._card.prompt_notice
        self._prompt_notice = None if told is None else functools.lru_cache(maxsize=KEPT_PROMPTS)(told)
        self._encoder_fingerprint = encoder_fingerprint
        self._max_prompt_chars = max_prompt_chars
        self._max_image_bytes = max_image_bytes
        self._max_image_pixels = max_image_pixels
        self._clock = clock
        if negative_prompt is not None:
            text = self._normalised("negative_prompt", negative_prompt, correct_typos=True).text
            self._card = replace(self._card, default_negative_prompt=text)

    @property
    def max_prompt_chars(self) -> int:
        """The most characters of a prompt."""
        return self._max_prompt_chars

    @property
    def card(self) -> ModelCard:
        """The model that plans are made for, with the rules that its prompts are normalised by."""
        return self._card

    def load(self) -> None:
        """Read what the first plan would have to wait for."""
        self._normaliser.load()

    def plan(self, request: VideoRequest) -> Plan:
        """Resolve, normalise and name `request`; any thread may.

        Raises Unprocessable for an empty or over-long prompt, and whatever `schema.resolve` and, for an image,
        `read_first_frame` raise.
        """
        spec = resolve(request, self.card)
        correct_typos = request.correct_typos is not False
        prompt = self._normalised("prompt", spec.prompt, correct_typos)
        if not prompt.text:
            raise Unprocessable("'prompt' is empty.", param="prompt")
        negative_prompt = self._normalised("negative_prompt", spec.negative_prompt, correct_typos)
        spec = replace(spec, prompt=prompt.text, negative_prompt=negative_prompt.text)
        image: bytes | None = None
        if request.input_reference is not None:
            spec, image = self._started_from(request.input_reference, spec)
        keys = keys_for(spec, self.card, self._encoder_fingerprint)
        corrected = dict.fromkeys((*prompt.corrected, *negative_prompt.corrected))
        urgency = request.urgency(self._clock())
        tags = request.tags or ()
        metadata = tuple((request.metadata or {}).items())
        return Plan(
            request.prompt, spec, keys, prompt.changes, tuple(corrected), urgency, tags, image, metadata,
            self.notice(spec),
        )  # fmt: skip

    def notice(self, spec: VideoSpec) -> str | None:
        """Return what the model may not do as `spec` says, None where nothing is known; an empty prompt is not told."""
        return notice_of(spec, self.card, self._prompt_notice if len(spec.prompt) <= KEPT_CHARS else None)

    def prompt_forms(self, prompt: str) -> frozenset[str]:
        """Return the normal forms of `prompt`: as it is asked for, and with its typos kept; raises Unprocessable."""
        forms = {self._normalised("prompt", prompt, correct_typos).text for correct_typos in (True, False)}
        if "" in forms:
            raise Unprocessable("'prompt' is empty.", param="prompt")
        return frozenset(forms)

    def known_as(self, model: str) -> str:
        """Return the name that a model's videos bear, if `model` is one of the names of this one; else `model`."""
        return self._card.name if model in self._card.aliases else model

    def model(self, model: str) -> str:
        """Return the name of this planner's model; raises NotFound for another's."""
        if self.known_as(model) != self._card.name:
            raise no_such_model(model, self._card)
        return self._card.name

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Everything with a fingerprint that a video of this planner's is made by."""
        card = self._card
        return (
            card.model_fingerprint, card.text_encoder_fingerprint, card.decoder_fingerprint, self._encoder_fingerprint
        )  # fmt: skip

    def _started_from(self, image: bytes, spec: VideoSpec) -> tuple[VideoSpec, bytes]:
        frame = read_first_frame(
            image, spec.width, spec.height, max_bytes=self._max_image_bytes, max_pixels=self._max_image_pixels
        )
        return replace(spec, input_reference=frame.digest), frame.data

    def _check_written_out(self, field: str, text: str) -> None:
        """Refuse what is many times longer once its ligatures are letters (one of Arabic is 18), before it is."""
        if text.isascii() or len(text) <= KEPT_CHARS // 20:
            return
        if (length := len(unicode(text))) > 2 * self._max_prompt_chars:
            raise Unprocessable(
                f"'{field}' has {length} characters with its ligatures written out; at most "
                f"{2 * self._max_prompt_chars} are allowed.",
                param=field,
            )

    def _normalised(self, field: str, text: str, correct_typos: bool) -> Normalised:
        if len(text) > self._max_prompt_chars:
            raise Unprocessable(
                f"'{field}' has {len(text)} characters; at most {self._max_prompt_chars} are allowed.", param=field
            )
        self._check_written_out(field, text)
        trace = self._trace if len(text) <= KEPT_CHARS else self._normaliser.trace
        normalised = trace(text, correct_typos=correct_typos)
        tokens = self._family.count_tokens(normalised.text)
        if tokens > self.card.max_prompt_tokens:
            raise Unprocessable(
                f"'{field}' has {tokens} tokens; {self.card.name} reads at most {self.card.max_prompt_tokens}.",
                param=field,
            )
        return normalised
