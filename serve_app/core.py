"""The nouns of Encore, frozen: what a request means, what a model allows, what a cache holds.

Every other module speaks in these types, so this file depends on nothing but the standard library. Values are
immutable: a spec that could change after its key was made would be a wrong hit waiting to happen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
"""Decoded video, uint8 RGB, shape [num_frames, height, width, 3]."""

Picture = npt.NDArray[np.uint8]
"""One picture, uint8 RGB, shape [height, width, 3]."""


class Outcome(StrEnum):
    """How a request was answered; the same words in code, HTTP headers, metrics and documents."""

    L1 = "l1"
    L2 = "l2"
    L3 = "l3"
    JOINED = "joined"
    LATENTS = "latents"
    RESUMED = "resumed"
    RENDERED = "rendered"

    @property
    def is_hit(self) -> bool:
        """Whether a finished video was found, so that nothing at all was computed."""
        return self in (Outcome.L1, Outcome.L2, Outcome.L3)


class JobStatus(StrEnum):
    """The OpenAI Videos API's four states; there are no others on the wire."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether the job will never change again."""
        return self in (JobStatus.COMPLETED, JobStatus.FAILED)


@dataclass(frozen=True, slots=True)
class IntRange:
    """Allowed whole numbers: `minimum`, `minimum + step`, ... up to `maximum`, with the default."""

    minimum: int
    maximum: int
    default: int
    step: int = 1

    def __contains__(self, value: int) -> bool:
        return self.minimum <= value <= self.maximum and (value - self.minimum) % self.step == 0

    def nearest(self, value: int) -> tuple[int, ...]:
        """Return the one or two allowed values closest to `value`, ascending."""
        last = self.maximum - (self.maximum - self.minimum) % self.step
        if value <= self.minimum:
            return (self.minimum,)
        if value >= last:
            return (last,)
        below = value - (value - self.minimum) % self.step
        return (below,) if below == value else (below, below + self.step)


@dataclass(frozen=True, slots=True)
class FloatRange:
    """Allowed real numbers, both ends included, with the default."""

    minimum: float
    maximum: float
    default: float

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.minimum <= value <= self.maximum


@dataclass(frozen=True, slots=True)
class PromptRules:
    """How one model's prompts are normalised; `version` names the rules inside every key made with them.

    A card sets the switches; `tables`, a digest of the word lists and files behind them, is filled in by the
    Normaliser that applies the rules.
    """

    fold_case: bool = True
    fold_edge_punctuation: bool = True
    traditional_to_simplified: bool = True
    spelling: bool = True
    wrappers: bool = True
    typos: bool = True
    tables: str = ""

    @property
    def version(self) -> str:
        """Identify these rules in key(prompt): the revision of the code, every switch, and the tables."""
        return "3:" + ":".join(f"{each.name}={getattr(self, each.name)!s}" for each in fields(self))


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model's videos were judged with, smallest and largest; a request beyond gets a notice, no refusal."""

    num_frames: tuple[int, int]
    num_inference_steps: tuple[int, int]
    guidance_scale: tuple[float, float]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model accepts and how it is identified; validation, defaults and keys come from here.

    The fingerprints describe everything that decides a pixel: architecture revision, weights, dtype and sampler
    (`model_fingerprint`), the text encoder with its tokenizer, and the decoder that turns latents into frames.
    """

    name: str
    family: str
    description: str
    model_fingerprint: str
    text_encoder_fingerprint: str
    decoder_fingerprint: str
    width: IntRange
    height: IntRange
    num_frames: IntRange
    fps: IntRange
    num_inference_steps: IntRange
    guidance_scale: FloatRange
    max_prompt_tokens: int
    default_negative_prompt: str = ""
    image_encoder_fingerprint: str | None = None
    """What makes latents of an `input_reference`; None: the model starts from text alone."""
    aliases: tuple[str, ...] = ()
    prompt_rules: PromptRules = field(default_factory=PromptRules)
    created: int = 0
    sizes: tuple[tuple[int, int], ...] | None = None
    """Width and height of every size offered; None: any on the grid of `width` and `height`."""
    made_at: tuple[int, int] | None = None
    """The one size that the model makes, where the engine scales its frames to the others."""
    judged: Judged | None = None
    """None: the card does not say."""
    prompt_notice: Callable[[str], tuple[str, ...]] | None = None
    """From a normalised prompt to sentences on what of it the model does not understand; None: it cannot tell."""

    @property
    def takes_image(self) -> bool:
        """Whether a video may start from an image."""
        return self.image_encoder_fingerprint is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSpec:
    """One meaning, one spec: a request after normalisation, on the model's own grid.

    Two requests that mean the same video resolve to equal specs; every field that changes a pixel or a byte of
    the file is here, and nothing else (no user, no time, no request id).
    """

    model: str
    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    container: str = "mp4"
    codec: str = "h264"
    quality: int = 23
    scope: str = ""
    input_reference: str = ""
    """SHA-256 of the first frame's pixels (uint8 RGB, row by row), 64 hex digits; empty: the video starts from text."""

    @property
    def size(self) -> str:
        """The OpenAI form, WIDTHxHEIGHT."""
        return f"{self.width}x{self.height}"

    @property
    def guided(self) -> bool:
        """Whether the prompt is weighed against the negative one, which takes a second row of every pass."""
        return self.guidance_scale != 1.0

    @property
    def seconds(self) -> float:
        """Playing time."""
        return self.num_frames / self.fps


_UNTOLD = ("prompt", "negative_prompt", "scope", "input_reference")


def described(spec: VideoSpec) -> dict[str, str | int | float]:
    """Return a spec as a stored video's metadata tell it: without what it shows, and to whom."""
    return {name: value for name, value in asdict(spec).items() if name not in _UNTOLD}


def described_spec(described: object) -> VideoSpec:
    """Return the spec of such metadata, what is not told left empty; raises ValueError for any others."""
    names = {each.name for each in fields(VideoSpec)}
    try:
        told = {name: value for name, value in dict(described).items() if name in names}  # type: ignore[call-overload]
        return VideoSpec(**(dict.fromkeys(_UNTOLD, "") | told))
    except (TypeError, ValueError) as error:
        raise ValueError("These metadata tell no spec.") from error


@dataclass(frozen=True, slots=True)
class Keys:
    """The chain of keys of one spec, each 64 hex digits; a later one contains all earlier ones."""

    prompt: str
    negative_prompt: str
    latents: str
    video: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A cached value: the bytes, the SHA-256 of the bytes (also the ETag of a video) and JSON-able metadata.

    `key` is the public key it was stored under, so that a swapped object cannot pass for another.
    """

    key: str
    data: bytes = field(repr=False)  # megabytes, in a log or at a prompt
    digest: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, key: str, data: bytes, meta: Mapping[str, Any] | None = None) -> Entry:
        """Make an entry from fresh bytes; this is where a value gets its digest."""
        return cls(key, data, hashlib.sha256(data).hexdigest(), dict(meta or {}))

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return len(self.data)


class Priority(StrEnum):
    """What waits for a render: a person, a program, no caller yet."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    WARM_UP = "warm_up"


@dataclass(frozen=True, slots=True)
class Urgency:
    """How soon a render is wanted; part of no key, because it changes no pixel. `deadline` is in Unix seconds."""

    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None

    def joined(self, other: Urgency) -> Urgency:
        """Return what two who wait for one render want together: the higher priority and the earlier deadline."""
        order = list(Priority)
        deadlines = [deadline for deadline in (self.deadline, other.deadline) if deadline is not None]
        return Urgency(min(self.priority, other.priority, key=order.index), min(deadlines, default=None))


EVERYTHING = "everything"
"""The label that every value has."""
Selector = Literal["key", "prompt", "model", "fingerprint", "tag", "everything"]
"""What an invalidation may choose by."""


@dataclass(frozen=True, slots=True)
class Rule:
    """An invalidation: what bears `label` and was begun before `before` counts as not there, wherever it lies.

    label: an HMAC of what was chosen. Times are microseconds of the clock that fencing tokens are made of; `at` is when
    the rule was made, which for an invalidation by age is later than `before`.
    """

    kind: Selector
    label: str
    before: int
    at: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Of a render: when it began, since when what it is made from must have been, and what chooses what it makes.

    Times are microseconds of the clock that fencing tokens are made of.
    """

    begun_at: int = 0
    not_before: int = 0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """What a router asks of the renderer. `model_fingerprint` is refused by a replica that runs another one."""

    spec: VideoSpec
    keys: Keys
    model_fingerprint: str
    urgency: Urgency = field(default_factory=Urgency)
    asked_at: float | None = None
    """Unix seconds; what was waited since counts for the place in a queue."""
    token: int | None = None
    """The fencing token of the cluster-wide flight that this render is; None when there is no record of it."""
    ttl: float | None = None
    """Seconds that L2 keeps the video when it is not used; None: as long as any other."""
    begun_at: int = 0
    """When the render began, for invalidations: microseconds of the clock that tokens are made of."""
    labels: tuple[str, ...] = ()
    """What invalidations may choose its results by."""
    rules: tuple[Rule, ...] = ()
    """The invalidations that may concern it: every process that works on it knows at least what its router knew."""
    attempts: int = 0
    """How many renders of it ended in the death of their process; after the first it runs alone in its process."""
    image: bytes | None = field(default=None, repr=False)
    """The pixels that `spec.input_reference` names, as a lossless file; None where there are none, or none needed."""

    @property
    def not_before(self) -> int:
        """Since when what it is made from must have been begun; its tags do not matter."""
        about = (rule for rule in self.rules if rule.label in (EVERYTHING, *self.labels))
        return max((rule.before for rule in about if rule.kind != "tag"), default=0)

    def outdates(self, origin: Origin) -> bool:
        """Tell whether a render of this request's key, of that origin, is no answer to it."""
        of_its_own = any(rule.before > origin.begun_at for rule in self.rules if rule.label in origin.labels)
        return origin.begun_at < self.not_before or of_its_own

    @property
    def origin(self) -> Origin:
        """What those must know who make parts of it."""
        return Origin(self.begun_at, self.not_before, self.labels)


@dataclass(frozen=True, slots=True)
class Started:
    """The render has its prompt embeddings; `embedding` tells whether the prompt's was `hit` or `miss`."""

    embedding: str


@dataclass(frozen=True, slots=True)
class Retried:
    """The render begins again; `attempts` before it ended in the death of their process."""

    attempts: int


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `total` denoising steps are done."""

    step: int
    total: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The video exists. `stored` names the durable tiers that have it (`l2`, `l3`), empty when none does."""

    entry: Entry
    stored: tuple[str, ...]
    render_seconds: float
    encode_seconds: float
    outcome: Outcome = Outcome.RENDERED
    """`latents` when kept latents spared the denoising."""


RenderEvent = Started | Retried | Progress | Finished
