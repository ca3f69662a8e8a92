"""The least time named cards need for a clip, from what its parts compute and move and the cards' published peaks.

A call takes the longer of computing at the card's dense peak and moving its bytes at the card's bandwidth
(Williams et al., doi 10.1145/1498765.1498785); no kernel is faster, and good ones reach about half. Guidance adds a
second row a clip to each pass, as the engine does. A precision is the denoiser's: its weights' bytes, and the rate of
its linear layers and convolutions; attention, text encoder and decoder stay fp16. No torch in here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

FP16, FP16_ACCUMULATE, INT8, FP8 = "fp16", "fp16, fp16 sums", "int8", "fp8"
PRECISIONS = (FP16, INT8, FP8)
WEIGHT_BYTES = {FP16: 2, FP16_ACCUMULATE: 2, INT8: 1, FP8: 1}
STEPS = (4, 8, 16, 30)


@dataclass(frozen=True, slots=True)
class Cost:
    """One call of a part. All but the FLOPs (a multiplication and an addition are two) are bytes of activations."""

    flops: int
    attention_flops: int
    """The share of `flops` that has no weights: scores and weighted sums."""
    peak_bytes: int
    moved_bytes: int
    """What linear layers and convolutions read and write if all between them is fused: a lower bound."""


@dataclass(frozen=True, slots=True)
class Card:
    """Published figures: memory in GB, bandwidth in GB/s, dense TFLOPS or TOPS by precision, without sparsity."""

    name: str
    memory: float
    bandwidth: float
    peaks: Mapping[str, float]

    def peak(self, precision: str) -> float:
        """Return FLOP/s; a card without such hardware stores in the precision and computes in fp16."""
        return self.peaks.get(precision, self.peaks[FP16]) * 1e12

    def seconds(self, cost: Cost, weight_bytes: int, precision: str) -> float:
        """Return the time of one call at the peaks."""
        half = self.peak(precision if precision == FP16_ACCUMULATE else FP16)
        weighted = cost.flops - cost.attention_flops
        computing = weighted / self.peak(precision) + cost.attention_flops / half
        return max(computing, (weight_bytes + cost.moved_bytes) / (self.bandwidth * 1e9))


# fp16 and fp8 accumulate in fp32 unless they say otherwise, int8 in int32. NVIDIA's GA102 and Ada whitepapers (the
# GeForce cards) and the data sheets of A100, L40S, H100 and H200, whose fp16 is as fast with either accumulation.
CARDS = (
    Card("RTX 3090", 24, 936, {FP16: 71, FP16_ACCUMULATE: 142, INT8: 284}),
    Card("RTX 4090", 24, 1008, {FP16: 165.2, FP16_ACCUMULATE: 330.3, INT8: 660.6, FP8: 330.3}),
    Card("A100 80GB SXM", 80, 2039, {FP16: 312, INT8: 624}),
    Card("L40S", 48, 864, {FP16: 362, INT8: 733, FP8: 733}),
    Card("H100 SXM", 80, 3350, {FP16: 989, INT8: 1979, FP8: 1979}),
    Card("H200 SXM", 141, 4800, {FP16: 989, INT8: 1979, FP8: 1979}),
)


@dataclass(frozen=True, slots=True)
class Work:
    """A guided batch of clips of one length: a pass of the denoiser over it, and the ends of each clip."""

    frames: int
    batch: int
    denoise: Cost
    decode: Cost
    encode_prompt: Cost
    parameters: Mapping[str, int]
    """Of `text_encoder`, `denoiser` and `decoder`."""
    elsewhere: Sequence[str] = ()
    """Parts that are not in this card's memory; their time counts all the same."""

    @property
    def pass_flops(self) -> int:
        """FLOPs of a pass over one clip without guidance: half of its share of a guided one."""
        return self.denoise.flops // (2 * self.batch)

    def video_flops(self, steps: int) -> int:
        """FLOPs of one guided clip: two prompts, two rows a step, the decoding."""
        return steps * 2 * self.pass_flops + self.decode.flops + 2 * self.encode_prompt.flops

    def weight_bytes(self, precision: str) -> int:
        """Return the bytes of the parts that are on the card."""
        here = {name: 0 if name in self.elsewhere else count for name, count in self.parameters.items()}
        return weight_bytes(here, precision)

    def memory_bytes(self, precision: str) -> int:
        """Return weights and peak activations, with a finished clip decoding beside the next pass as in the engine."""
        return self.weight_bytes(precision) + self.denoise.peak_bytes + self.decode.peak_bytes

    def seconds(self, card: Card, precision: str, steps: int) -> float:
        """Return the time of the whole batch at the card's peaks: two prompts a clip, the passes, the decoding."""
        one_pass = card.seconds(self.denoise, self.parameters["denoiser"] * WEIGHT_BYTES[precision], precision)
        decode = card.seconds(self.decode, self.parameters["decoder"] * 2, FP16)
        encode = card.seconds(self.encode_prompt, self.parameters["text_encoder"] * 2, FP16)
        return steps * one_pass + self.batch * (decode + 2 * encode)


class Sizing(Protocol):
    """One architecture's parts, counted without weights, for clips of one size."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a clip in pixels."""
        ...

    def parameters(self) -> dict[str, int]:
        """Count the parameters of each part, `text_encoder`, `denoiser` and `decoder` among them."""
        ...

    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        """Return [channels, frames, height, width] of one clip's latents."""
        ...

    def tokens(self, frames: int) -> int:
        """Count the tokens that the denoiser attends over for one clip."""
        ...

    def works(self, frames: int, batches: Sequence[int]) -> list[Work]:
        """Return the guided batches of clips of one length."""
        ...


@dataclass(frozen=True, slots=True)
class Roofline:
    """One case: memory in bytes, and seconds of the batch at 100 % of the card's peaks."""

    card: str
    precision: str
    frames: int
    steps: int
    batch: int
    memory_bytes: int
    fits: bool
    batch_seconds: float

    @property
    def clip_seconds(self) -> float:
        """The batch's time shared out."""
        return self.batch_seconds / self.batch


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim about a card: every clip within `seconds`, in less than `gigabytes` (10^9) of memory."""

    words: str
    card: str
    seconds: float
    gigabytes: float

    def keeps(self, case: Roofline, efficiency: float, *, whole_batch: bool = False) -> bool:
        """Tell whether a case does, at that share of the peaks: a clip's share of the time, or the whole batch's."""
        seconds = (case.batch_seconds if whole_batch else case.clip_seconds) / efficiency
        return seconds <= self.seconds and case.memory_bytes < self.gigabytes * 1e9

    def kept(self, cases: Sequence[Roofline], efficiency: float) -> list[Roofline]:
        """Return the cases of the card that keep the claim by the clip."""
        return [case for case in cases if case.card == self.card and self.keeps(case, efficiency)]

    def everywhere(
        self, cases: Sequence[Roofline], efficiency: float, *, whole_batch: bool = False
    ) -> list[tuple[str, int]]:
        """Return the (precision, steps) at which every length and batch keeps the claim."""
        own = [case for case in cases if case.card == self.card]
        broken = {
            (case.precision, case.steps) for case in own if not self.keeps(case, efficiency, whole_batch=whole_batch)
        }
        return [kind for kind in dict.fromkeys((case.precision, case.steps) for case in own) if kind not in broken]


def weight_bytes(parameters: Mapping[str, int], precision: str) -> int:
    """Return the bytes of the parts that serve, the denoiser in `precision` and the others in fp16."""
    others = parameters["text_encoder"] + parameters["decoder"]
    return parameters["denoiser"] * WEIGHT_BYTES[precision] + others * 2


def rooflines(works: Iterable[Work]) -> Iterator[Roofline]:
    """Yield every case: card by card, each precision it distinguishes, each work, each number of steps."""
    for card, precision, work, steps in itertools.product(CARDS, WEIGHT_BYTES, list(works), STEPS):
        if precision == FP16_ACCUMULATE and precision not in card.peaks:
            continue
        memory = work.memory_bytes(precision)
        yield Roofline(
            card=card.name,
            precision=precision,
            frames=work.frames,
            steps=steps,
            batch=work.batch,
            memory_bytes=memory,
            fits=memory <= card.memory * 1e9,
            batch_seconds=work.seconds(card, precision, steps),
        )
