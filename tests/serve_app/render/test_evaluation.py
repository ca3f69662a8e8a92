"""Questions to answers: the served parts, in order, counted step by step, and anything may be asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from serve_app.core import VideoSpec
from serve_app.engine.denoising import Trajectory, advance
from serve_app.model.native.native import NativeFamily, from_folder
from serve_app.model.training.judge.judge import judge
from serve_app.model.training.judge.questions import questions
from serve_app.render.evaluation import Evaluation
from tests.serve_app.model.training.short_run import ShortRun

OUTSIDE = (
    "",
    "a cat plays the piano",
    "三只猫在月球上跳舞",
    "not a red circle, and no background",
    "seven stars, three hearts and a plus sign that chase each other",
    "\x00\ud800 <|endoftext|> 👩‍🚀",
    "ሰላም ልዑል שלום",
)


@pytest.fixture(scope="module")
def family(short_run: ShortRun) -> NativeFamily:
    torch.set_num_threads(1)
    return from_folder(short_run.checkpoint)


@pytest.fixture(scope="module")
def evaluation(family: NativeFamily) -> Evaluation:
    return Evaluation(family, batch_size=4)


def test_every_question_is_answered_in_order(evaluation: Evaluation) -> None:
    """Answers come in the order of the questions, each with its own video and the judge's verdict on that."""
    asked = questions(6)
    answers = list(evaluation.ask(asked, 2))
    assert [answer.question for answer in answers] == list(asked)
    for answer in answers:
        assert (answer.frames.shape, answer.frames.dtype) == ((16, 64, 64, 3), np.uint8)
        assert answer.verdict == judge(answer.question.scene, answer.frames)
    assert len({answer.frames.tobytes() for answer in answers}) == 6


def test_steps_are_reported_over_all_questions(evaluation: Evaluation) -> None:
    """Progress counts denoising steps, batch by batch, up to all of them."""
    told: list[tuple[int, int]] = []
    for _ in evaluation.ask(questions(6), 3, report=lambda done, of: told.append((done, of))):
        pass
    assert told == [(done, 18) for done in (4, 8, 12, 14, 16, 18)]


def test_the_videos_are_those_of_the_engine(family: NativeFamily, evaluation: Evaluation) -> None:
    """One answer is, to rounding, the video that the engine's own pass makes of the same spec."""
    question = questions(5)[2]
    answer = list(evaluation.ask(questions(5), 3, guidance_scale=2.0))[2]
    card = family.card
    spec = VideoSpec(
        model=card.name,
        prompt=question.prompt,
        negative_prompt="",
        seed=question.seed,
        width=64,
        height=64,
        num_frames=16,
        fps=16,
        num_inference_steps=3,
        guidance_scale=2.0,
    )
    denoiser = family.load_denoiser("cpu")
    batch = [Trajectory.of(denoiser, spec, *family.load_text_encoder("cpu").encode([spec.prompt, ""]))]
    for _ in range(3):
        batch = advance(denoiser, batch)
    alone = family.load_decoder("cpu").decode(batch[0].final_latents())
    assert np.abs(alone.astype(int) - answer.frames).max() <= 2


def test_guidance_matters(family: NativeFamily, evaluation: Evaluation) -> None:
    """The scale that is asked for is used; absent, it is the card's default."""
    usual, none, given = (
        next(evaluation.ask(questions(1), 2, guidance_scale=guidance_scale)).frames
        for guidance_scale in (None, 1.0, family.card.guidance_scale.default)
    )
    assert np.array_equal(usual, given)
    assert not np.array_equal(usual, none)


@pytest.mark.parametrize("prompt", OUTSIDE)
def test_prompts_outside_the_world_give_a_video(evaluation: Evaluation, prompt: str) -> None:
    """Whatever is asked, a video comes and the judge has an opinion."""
    answer = next(evaluation.ask([replace(questions(1)[0], prompt=prompt)], 2))
    assert answer.frames.shape == (16, 64, 64, 3)
    assert set(answer.verdict.met) == {"shape", "color", "background", "size", "motion"}
