"""Renders the judge's questions the way the engine renders requests, many to a pass, and judges what came out.

The parts, the sampler, guidance and half-precision latents are the served ones (`engine.denoising`); only cache,
queue and MP4 are left out, because they change no pixel the judge looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from serve_app.core import Frames, VideoSpec
from serve_app.engine.decoding import scaled
from serve_app.engine.denoising import Trajectory, advance
from serve_app.model.model import Decoder, Denoiser, Family, TextEncoder
from serve_app.model.training.judge.judge import Verdict, judge
from serve_app.model.training.judge.questions import Question


@dataclass(frozen=True, slots=True)
class RenderedQuestion:
    """One question's video and what the judge saw in it."""

    question: Question
    frames: Frames
    verdict: Verdict


class Evaluation:
    """A model's parts, loaded once for any number of rounds."""

    def __init__(self, family: Family, *, device: str = "cpu", batch_size: int = 16) -> None:
        self._card = family.card
        self._text_encoder: TextEncoder = family.load_text_encoder(device)
        self._denoiser: Denoiser = family.load_denoiser(device)
        self._decoder: Decoder = family.load_decoder(device)
        self._batch_size = batch_size

    def ask(
        self,
        questions: Sequence[Question],
        num_inference_steps: int,
        *,
        guidance_scale: float | None = None,
        size: tuple[int, int] | None = None,
        report: Callable[[int, int], None] = lambda done, of: None,
    ) -> Iterator[RenderedQuestion]:
        """Yield each question's answer; `report` gets the denoising steps done and to do, over all questions.

        size: width and height of the clips, the card's default where there is none.
        """
        size = size or (self._card.width.default, self._card.height.default)
        total = len(questions) * num_inference_steps
        done = 0
        for start in range(0, len(questions), self._batch_size):
            part = questions[start : start + self._batch_size]
            batch = [self._start(question, num_inference_steps, guidance_scale, size) for question in part]
            for _ in range(num_inference_steps):
                batch = advance(self._denoiser, batch)
                done += len(batch)
                report(done, total)
            for question, trajectory in zip(part, batch, strict=True):
                frames = scaled(self._decoder.decode(trajectory.final_latents()), *size)
                yield RenderedQuestion(question, frames, judge(question.scene, frames))

    def _start(
        self, question: Question, num_inference_steps: int, guidance_scale: float | None, size: tuple[int, int]
    ) -> Trajectory:
        card = self._card
        spec = VideoSpec(
            model=card.name,
            prompt=question.prompt,
            negative_prompt="",
            width=size[0],
            height=size[1],
            num_frames=card.num_frames.default,
            fps=card.fps.default,
            num_inference_steps=num_inference_steps,
            guidance_scale=card.guidance_scale.default if guidance_scale is None else guidance_scale,
            seed=question.seed,
        )
        prompt_embeds, negative = self._text_encoder.encode([spec.prompt, spec.negative_prompt])
        return Trajectory.of(self._denoiser, spec, prompt_embeds, negative)
