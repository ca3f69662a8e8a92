"""One pass over many trajectories, with the real demo denoiser: company must not show in anybody's latents."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serve_app.core import VideoSpec
from serve_app.engine.denoising import Start, Trajectory, advance
from serve_app.model.model import Denoiser
from serve_app.model.native.condition import Prompts
from serve_app.model.native.config import DEMO, DenoiserConfig, NativeConfig
from serve_app.model.native.denoiser import DenoiserNet, NativeDenoiser
from serve_app.model.native.native import demo
from serve_app.model.native.weights import SeededWeights
from serve_app.model.sampler import initial_noise

SMALL = DenoiserConfig(
    outer_channels=16, outer_blocks=1, inner_channels=24, inner_blocks=1, num_heads=2, context_dim=12
)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.set_num_threads(1)
    return dataclasses.replace(demo(), config=dataclasses.replace(DEMO, denoiser_dtype=None)).load_denoiser("cpu")


@pytest.fixture(scope="module")
def small() -> Denoiser:
    return small_on("cpu")


def small_on(device: str) -> Denoiser:
    net = DenoiserNet(SMALL)
    SeededWeights(0).fill(net, "denoiser")
    return NativeDenoiser(net, NativeConfig(name="small", denoiser=SMALL), device)


def spec(**changes: float) -> VideoSpec:
    base = VideoSpec(
        model="native/demo",
        prompt="",
        negative_prompt="",
        seed=42,
        width=32,
        height=32,
        num_frames=8,
        fps=16,
        num_inference_steps=4,
        guidance_scale=3.0,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def embeds(num_tokens: int, seed: int, dim: int = 768) -> torch.Tensor:
    return initial_noise((num_tokens, dim), seed)


def small_job(denoiser: Denoiser, steps: int, guidance_scale: float, start: Start | None = None) -> Trajectory:
    asked = spec(num_inference_steps=steps, guidance_scale=guidance_scale)
    return Trajectory.of(denoiser, asked, embeds(5, 1, 12), embeds(2, 2, 12), start)


def through(denoiser: Denoiser, jobs: Sequence[Trajectory], lag: int = 0) -> list[Trajectory]:
    """Run jobs to their ends in shared passes; each joins `lag` passes after the one before it."""
    waiting, running, done = list(enumerate(jobs)), dict[int, Trajectory](), dict[int, Trajectory]()
    passes = 0
    while waiting or running:
        while waiting and waiting[0][0] * lag <= passes:
            running.update([waiting.pop(0)])
        running = dict(zip(running, advance(denoiser, list(running.values())), strict=True))
        passes += 1
        for i in [i for i, job in running.items() if job.step == job.sampler.num_inference_steps]:
            done[i] = running.pop(i)
    return [done[i] for i in range(len(jobs))]


def alone(denoiser: Denoiser, job: Trajectory) -> torch.Tensor:
    """The oracle: one job, and guidance as two separate passes."""
    latents, prompt = initial_noise(job.shape, job.seed), denoiser.prepare(job.prompt_embeds)
    for i, timestep in enumerate(job.sampler.timesteps):
        velocity = denoiser.predict(latents[None], torch.tensor([timestep]), [prompt])[0]
        if job.negative_prompt_embeds is not None:
            unconditional = denoiser.prepare(job.negative_prompt_embeds)
            negative = denoiser.predict(latents[None], torch.tensor([timestep]), [unconditional])[0]
            velocity = negative + job.guidance_scale * (velocity - negative)
        latents, _ = job.sampler.update(i, latents, velocity, ())
    return latents


def test_a_job_gets_the_same_latents_alone_and_in_company(denoiser: Denoiser) -> None:
    """Other prompts, steps, guidance, seeds and a later start in one batch change nobody's latents by 1e-4."""
    jobs = [
        Trajectory.of(denoiser, spec(), embeds(20, 1), embeds(2, 2)),
        Trajectory.of(denoiser, spec(seed=7, num_inference_steps=6, guidance_scale=1.0), embeds(50, 3), None),
        Trajectory.of(denoiser, spec(seed=8, num_inference_steps=2, guidance_scale=7.5), embeds(5, 4), embeds(9, 5)),
    ]
    running = {0: jobs[0]}
    done: dict[int, torch.Tensor] = {}
    for joining in (1, 2, None, None, None, None, None):
        moved = advance(denoiser, list(running.values()))
        running = dict(zip(running, moved, strict=True))
        for i in [i for i, job in running.items() if job.step == job.sampler.num_inference_steps]:
            latents = running.pop(i).latents
            assert latents is not None
            done[i] = latents
        if joining is not None:
            running[joining] = jobs[joining]
    assert set(done) == {0, 1, 2}
    for i, job in enumerate(jobs):
        torch.testing.assert_close(done[i], alone(denoiser, job), atol=1e-4, rtol=0)


def test_the_same_job_twice_gives_the_same_bits(denoiser: Denoiser) -> None:
    """Same spec, same embeddings, same batch: bit-equal latents."""
    first, second = (
        advance(denoiser, [Trajectory.of(denoiser, spec(), embeds(20, 1), embeds(2, 2))])[0].latents for _ in range(2)
    )
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_a_step_leaves_the_old_trajectory_as_it_was(denoiser: Denoiser) -> None:
    """Advancing returns new values, so a step whose job was cancelled can simply be thrown away."""
    job = Trajectory.of(denoiser, spec(), embeds(3, 1), embeds(2, 2))
    (once,) = advance(denoiser, [job])
    kept = once.latents.clone() if once.latents is not None else None
    (twice,) = advance(denoiser, [once])
    assert (job.step, job.latents, once.step, twice.step) == (0, None, 1, 2)
    assert kept is not None
    assert once.latents is not None
    assert torch.equal(once.latents, kept)


def test_only_the_poisoned_job_is_not_finite(denoiser: Denoiser) -> None:
    """NaN in one job's context stays in that job's row."""
    good = Trajectory.of(denoiser, spec(), embeds(4, 1), embeds(2, 2))
    bad = Trajectory.of(denoiser, spec(), torch.full((6, 768), torch.nan), embeds(2, 2))
    moved = advance(denoiser, [bad, good])
    assert [job.is_finite for job in moved] == [False, True]
    latents = moved[1].latents
    assert latents is not None
    torch.testing.assert_close(latents, advance(denoiser, [good])[0].latents, atol=1e-4, rtol=0)


def test_guidance_without_negative_embeddings_is_refused(denoiser: Denoiser) -> None:
    """A guided job must bring its unconditional side; an unguided one drops it and pays for one row only."""
    with pytest.raises(ValueError, match="negative_prompt_embeds"):
        Trajectory.of(denoiser, spec(), embeds(4, 1), None)
    unguided = Trajectory.of(denoiser, spec(guidance_scale=1.0), embeds(4, 1), embeds(2, 2))
    assert unguided.negative_prompt_embeds is None


def test_final_latents_are_half_precision(denoiser: Denoiser) -> None:
    """What leaves for the decoder is float16; before the first step there is nothing to hand over."""
    job = Trajectory.of(denoiser, spec(), embeds(4, 1), embeds(2, 2))
    with pytest.raises(ValueError, match="no step"):
        job.final_latents()
    assert advance(denoiser, [job])[0].final_latents().dtype == torch.float16


class Passes:
    """A denoiser that notes which prepared prompts it was given, pass by pass, and what it prepared."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.prepared: list[torch.Tensor] = []
        self.rows: list[list[object]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def prepare(self, prompt_embeds: torch.Tensor) -> object:
        self.prepared.append(prompt_embeds)
        return self._denoiser.prepare(prompt_embeds)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prompts: Sequence[object]) -> torch.Tensor:
        self.rows.append(list(prompts))
        return self._denoiser.predict(latents, timesteps, prompts)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_keys_and_values_are_computed_once_per_job(small: NativeDenoiser, steps: int) -> None:
    """However many steps a guided job has, each of its two prompts goes through the text's layers once."""
    calls: list[int] = []
    block = small._net.trunk[0]
    handle = block.cross.key_value.register_forward_hook(lambda module, given, out: calls.append(given[0].shape[1]))
    through(small, [small_job(small, steps, 3.0)])
    handle.remove()
    assert calls == [5, 2]


def test_nothing_is_computed_before_the_first_pass(small: Denoiser) -> None:
    """A job is made on the event loop: neither noise nor prompts are touched until a pass takes it."""
    watched = Passes(small)
    job = small_job(watched, 3, 3.0)
    assert (job.latents, job.prompt, job.negative_prompt, watched.prepared) == (None, None, None, [])
    (once,) = advance(watched, [job])
    assert [len(each) for each in watched.prepared] == [5, 2]
    (twice,) = advance(watched, [once])
    assert twice.prompt is once.prompt


def test_a_prepared_prompt_does_not_depend_on_company(small: Denoiser) -> None:
    """Jobs that join together, with shorter and longer prompts, prepare the same bits as each does alone."""
    jobs = [
        Trajectory.of(small, spec(guidance_scale=scale), embeds(length, length, 12), embeds(2, 2, 12))
        for length, scale in ((5, 3.0), (1, 1.0), (40, 7.5))
    ]
    for job, together in zip(jobs, advance(small, jobs), strict=True):
        (alone,) = advance(small, [job])
        for one, other in ((alone.prompt, together.prompt), (alone.negative_prompt, together.negative_prompt)):
            if one is None:
                assert other is None
                continue
            assert isinstance(one, Prompts)
            assert isinstance(other, Prompts)
            for name in ("whole", "whole_at", "key_value", "mask"):
                assert torch.equal(getattr(one, name), getattr(other, name))


def test_only_guided_jobs_pay_for_a_second_row(small: Denoiser) -> None:
    """Of three jobs one is guided: a pass has four rows, its unconditional one last."""
    watched = Passes(small)
    moved = advance(watched, [small_job(watched, 3, scale) for scale in (1.0, 3.0, 1.0)])
    (rows,) = watched.rows
    assert rows == [moved[0].prompt, moved[1].prompt, moved[2].prompt, moved[1].negative_prompt]
    assert moved[0].negative_prompt is None


@pytest.mark.parametrize(
    ("dtype", "steps", "guidance", "bound", "levels", "mean"),
    [(None, 4, 15.0, 2e-4, 2, 0.02), (None, 16, 15.0, 1e-3, 2, 0.02), ("bfloat16", 16, 3.0, 0.2, 16, 1.5)],
)
def test_batch_1_and_batch_n_are_as_close_as_the_docstring_says(
    dtype: str | None, steps: int, guidance: float, bound: float, levels: int, mean: float
) -> None:
    """With three and with four in a pass, prompts of all lengths, joining late: latents and frames hardly differ."""
    family = dataclasses.replace(demo(), config=dataclasses.replace(DEMO, denoiser_dtype=dtype))
    denoiser = family.load_denoiser("cpu")
    decoder = family.load_decoder("cpu")
    prompts = ("a small red circle moving left", "灰色背景,小的青色圆形,缩小", "a green heart " * 12, "a star")
    *conditional, empty = family.load_text_encoder("cpu").encode([*prompts, ""])
    jobs = [
        Trajectory.of(denoiser, spec(num_inference_steps=count, guidance_scale=scale, seed=i), conditional[i], empty)
        for i, (count, scale) in enumerate([(steps, 3.0), (7, 1.0), (steps, guidance), (2, guidance / 2)])
    ]
    expected = [through(denoiser, [job])[0] for job in jobs]
    for size in (3, 4):
        for one, other in zip(expected, through(denoiser, jobs[:size], lag=1), strict=False):
            torch.testing.assert_close(one.latents, other.latents, atol=bound, rtol=0)
            frames = [decoder.decode(job.final_latents()).astype(int) for job in (one, other)]
            apart = np.abs(frames[0] - frames[1])
            assert apart.max() <= levels
            assert apart.mean() < mean


@settings(max_examples=30, deadline=None)
@given(data=st.data(), steps=st.integers(2, 8), guidance_scale=st.sampled_from([1.0, 1.5, 3.0, 15.0]))
def test_going_on_from_a_checkpoint_ends_in_the_same_bits(
    small: Denoiser, data: st.DataObject, steps: int, guidance_scale: float
) -> None:
    """Wherever a job is stopped and started again from its own checkpoint, even twice, it ends as the full run does."""
    stops = data.draw(st.lists(st.integers(1, steps - 1), min_size=1, max_size=2, unique=True).map(sorted))
    (full,) = through(small, [small_job(small, steps, guidance_scale)])
    job = small_job(small, steps, guidance_scale)
    for stop in stops:
        while job.step < stop:
            (job,) = advance(small, [job])
        job = small_job(small, steps, guidance_scale, job.checkpoint())
        assert job.step == stop
    (resumed,) = through(small, [job])
    assert full.latents is not None
    assert resumed.latents is not None
    assert torch.equal(full.latents, resumed.latents)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_shipped_model_goes_on_from_a_checkpoint_in_the_same_bits(
    denoiser: Denoiser, guidance_scale: float
) -> None:
    """native/demo, 4 steps, from the checkpoint after each of them."""
    asked = spec(guidance_scale=guidance_scale)
    at = [advance(denoiser, [Trajectory.of(denoiser, asked, embeds(20, 1), embeds(2, 2))])[0]]
    while at[-1].step < 4:
        at += advance(denoiser, [at[-1]])
    for job in at[:-1]:
        again = Trajectory.of(denoiser, asked, embeds(20, 1), embeds(2, 2), job.checkpoint())
        latents = through(denoiser, [again])[0].latents
        assert latents is not None
        assert at[-1].latents is not None
        assert torch.equal(latents, at[-1].latents)


def test_a_checkpoint_is_where_the_job_is(small: Denoiser) -> None:
    """Steps done and float32 latents on the CPU; before the first step there is none."""
    job = small_job(small, 3, 3.0)
    with pytest.raises(ValueError, match="no step"):
        job.checkpoint()
    (once,) = advance(small, [job])
    point = once.checkpoint()
    assert (point.step, point.latents.dtype, point.latents.device.type) == (1, torch.float32, "cpu")
    assert once.latents is not None
    assert torch.equal(point.latents, once.latents)


@pytest.mark.parametrize(
    ("step", "shape", "dtype"),
    [
        (0, (8, 8, 4, 4), torch.float32),
        (4, (8, 8, 4, 4), torch.float32),
        (1, (8, 9, 4, 4), torch.float32),
        (1, (1, 8, 8, 4, 4), torch.float32),
        (1, (8, 8, 4, 4), torch.float16),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    small: Denoiser, step: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """A start is float32 latents of the job's own shape, after at least one step and before the last."""
    with pytest.raises(ValueError, match="start"):
        small_job(small, 4, 3.0, Start(step, torch.zeros(shape, dtype=dtype)))


class Arrivals(TorchDispatchMode):
    """Notes the shapes of host tensors that ops bring to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if isinstance(out, torch.Tensor) and out.is_meta:
            self.shapes += [tuple(each.shape) for each in tensors if not each.is_meta]
        return out


def test_a_step_brings_its_timesteps_and_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where reading any value fails, a later step brings one number a row and reads once."""
    denoiser = small_on("meta")
    reads: list[tuple[int, ...]] = []

    def tolist(tensor: torch.Tensor) -> list[bool]:
        reads.append(tuple(tensor.shape))
        return [True] * len(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    batch = advance(denoiser, [small_job(denoiser, 4, scale) for scale in (3.0, 1.0)])
    reads.clear()
    with Arrivals() as arrivals:
        batch = advance(denoiser, batch)
    assert [job.step for job in batch] == [2, 2]
    assert arrivals.shapes == [(3,)]
    assert reads == [(2,)]
