"""The step engine over a tiny denoiser whose passes can be held, and once over the real demo model."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve_app.core import Frames, Priority, Urgency, VideoSpec
from serve_app.engine.denoising import Start
from serve_app.engine.engine import Rendering, StepEngine
from serve_app.engine.job import Checkpoints
from serve_app.errors import Conflict, RenderCancelled, RenderFailed, Unavailable
from serve_app.model.native.config import DEMO
from serve_app.model.native.native import demo
from serve_app.model.sampler import FlowMatchEulerSampler, Sampler
from serve_app.telemetry import Event, Rendered, StepRun, Telemetry


class TinyDenoiser:
    """Velocity = the first number of each row's context; `gate` holds passes, an infinite context raises.

    Passes of more than `room` rows are out of memory.
    """

    context_dim = 1
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.room = 1000
        self.gate = threading.Event()
        self.gate.set()
        self.passes: list[tuple[float, ...]] = []
        self.threads: set[tuple[str, int]] = set()

    def sampler(self, num_inference_steps: int) -> Sampler:
        return FlowMatchEulerSampler(num_inference_steps, 3.0)

    def latent_shape(self, spec: VideoSpec) -> tuple[int, int, int, int]:
        return 1, spec.num_frames, spec.height // 16, spec.width // 16

    def prepare(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        return prompt_embeds

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prompts: Sequence[Any]) -> torch.Tensor:
        if len(prompts) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        context: Sequence[torch.Tensor] = prompts
        self.passes.append(tuple(float(tokens[0, 0]) for tokens in context))
        self.threads.add((threading.current_thread().name, torch.get_num_threads()))
        assert self.gate.wait(10)
        values = torch.stack([tokens[0, 0] for tokens in context])
        if values.isinf().any():
            raise RuntimeError("a kernel failed")
        return torch.zeros_like(latents) + values[:, None, None, None, None]


class TinyDecoder:
    """Every latent number becomes one grey pixel; `gate` holds decodes."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[torch.Tensor] = []
        self.threads: list[str] = []
        self.error: Exception | None = None

    def decode(self, latents: torch.Tensor) -> Frames:
        self.calls.append(latents)
        self.threads.append(threading.current_thread().name)
        assert self.gate.wait(10)
        if self.error:
            raise self.error
        grey = (latents[0].float() * 32 + 128).clamp(0, 255).to(torch.uint8).numpy()
        return np.repeat(grey[..., None], 3, axis=-1)


def a_spec(**fields: Any) -> VideoSpec:
    usual = {"model": "tiny", "prompt": "", "negative_prompt": "", "seed": 1, "width": 32, "height": 32}
    usual |= {"num_frames": 8, "fps": 16, "num_inference_steps": 3, "guidance_scale": 1.0}
    return VideoSpec(**usual | fields)


class Bench:
    """An engine, its parts, the events it emitted and a short way to ask for renders."""

    def __init__(self, max_batch_size: int = 4) -> None:
        self.denoiser, self.decoder, self.now = TinyDenoiser(), TinyDecoder(), 0.0
        self.events: list[Event] = []
        self.engine = StepEngine(
            self.denoiser,
            self.decoder,
            max_batch_size=max_batch_size,
            telemetry=Telemetry(self.events.append),
            torch_threads=1,
            stuck_seconds=60,
            clock=lambda: self.now,
            wall=lambda: 1e9 + self.now,
        )

    def render(
        self,
        name: str,
        value: float = 1.0,
        steps: int = 3,
        guidance_scale: float = 1.0,
        width: int = 32,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        **options: Any,
    ) -> asyncio.Task[Rendering]:
        spec = a_spec(width=width, num_inference_steps=steps, guidance_scale=guidance_scale)
        negative = torch.tensor([[-1.0]]) if guidance_scale != 1.0 else None
        return asyncio.create_task(
            self.engine.render(name, spec, torch.tensor([[value]]), negative, on_step, **options)
        )

    def rendered(self) -> list[Rendered]:
        return [event for event in self.events if isinstance(event, Rendered)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async for made in _running(Bench()):
        yield made


@pytest.fixture
async def narrow() -> AsyncIterator[Bench]:
    async for made in _running(Bench(max_batch_size=1)):
        yield made


async def _running(bench: Bench) -> AsyncIterator[Bench]:
    await bench.engine.start()
    yield bench
    bench.denoiser.gate.set()
    bench.decoder.gate.set()
    await bench.engine.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other threads
            await asyncio.sleep(0.001)


async def test_a_render_returns_frames_and_where_its_time_went(bench: Bench) -> None:
    """Frames of the spec's shape, the steps done, and one event per pass and per job."""
    rendering = await bench.render("a", steps=3)
    assert rendering.frames.shape == (8, 32, 32, 3)
    assert rendering.frames.dtype == np.uint8
    assert rendering.steps == 3
    assert [event for event in bench.events if isinstance(event, StepRun)] == [StepRun(1, 0.0)] * 3
    assert bench.rendered() == [Rendered("completed", 0.0, 0.0, 0.0, 3)]


async def test_times_are_told_by_phase(narrow: Bench) -> None:
    """Waiting for a slot, denoising and decoding are counted apart, in seconds of the injected clock."""
    narrow.denoiser.gate.clear()
    first, second = narrow.render("a", steps=1), narrow.render("b", steps=1)
    await until(lambda: len(narrow.denoiser.passes) == 1)
    narrow.now = 2.0
    narrow.denoiser.gate.set()
    narrow.decoder.gate.clear()
    await until(lambda: len(narrow.decoder.calls) == 1 and narrow.engine.stats()["decoding"] == 2)
    narrow.now = 5.0
    narrow.decoder.gate.set()
    one, other = await first, await second
    assert (one.queue_seconds, one.denoise_seconds, one.decode_seconds) == (0.0, 2.0, 3.0)
    assert (other.queue_seconds, other.denoise_seconds) == (2.0, 0.0)


async def test_progress_is_real_and_monotone(bench: Bench) -> None:
    """Each step is reported once, in order, on the event loop, after its pass and before the next one."""
    told: list[tuple[int, int, int, bool]] = []
    loop_thread = threading.get_ident()

    def on_step(done: int, total: int) -> None:
        told.append((done, total, len(bench.denoiser.passes), threading.get_ident() == loop_thread))

    await bench.render("a", steps=4, on_step=on_step)
    assert told == [(i, 4, i, True) for i in (1, 2, 3, 4)]


async def test_a_listener_that_fails_breaks_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in on_step is logged and the video is finished."""

    def on_step(done: int, total: int) -> None:
        raise KeyError(done)

    assert (await bench.render("a", on_step=on_step)).steps == 3
    assert "progress listener of job a failed" in caplog.text


async def test_guidance_is_paid_only_by_who_asked(bench: Bench) -> None:
    """A guided and an unguided job share a pass of three rows: two conditional ones, then one unconditional."""
    bench.denoiser.gate.clear()
    tasks = [
        bench.render("warm", value=9),
        bench.render("a", value=1, guidance_scale=3.0),
        bench.render("b", value=2, guidance_scale=1.0),
    ]
    await until(lambda: bench.engine.stats()["queued"] + bench.engine.stats()["running"] == 3)
    bench.denoiser.gate.set()
    await asyncio.gather(*tasks)
    assert (9.0, 1.0, 2.0, -1.0) in bench.denoiser.passes


async def test_a_job_joins_and_leaves_at_step_boundaries(bench: Bench) -> None:
    """A short job that comes while a long one runs shares its next passes and is done long before it."""
    bench.denoiser.gate.clear()
    long = bench.render("long", value=1, steps=50)
    await until(lambda: len(bench.denoiser.passes) == 1)
    short = bench.render("short", value=2, steps=2)
    await asyncio.sleep(0)
    bench.denoiser.gate.set()
    await short
    await long
    assert bench.denoiser.passes[:4] == [(1.0,), (1.0, 2.0), (1.0, 2.0), (1.0,)]
    assert len(bench.denoiser.passes) == 50


async def test_shapes_never_share_a_pass(bench: Bench) -> None:
    """A job of another shape does not hold up those that fit the running pass."""
    bench.denoiser.gate.clear()
    tasks = [bench.render("a", value=1, width=32)]
    await until(lambda: len(bench.denoiser.passes) == 1)
    tasks += [bench.render("b", value=2, width=64), bench.render("c", value=3, width=32)]
    await asyncio.sleep(0)
    bench.denoiser.gate.set()
    await asyncio.gather(*tasks)
    assert bench.denoiser.passes == [(1.0,), (1.0, 3.0), (1.0, 3.0), (2.0,), (2.0,), (2.0,), (3.0,)]


async def test_a_warm_up_gives_way_at_the_next_step_and_goes_on_later(bench: Bench) -> None:
    """An interactive job takes the very next pass alone; the warm-up then does its remaining steps, none twice."""
    bench.denoiser.gate.clear()
    done: list[int] = []
    urgency = Urgency(Priority.WARM_UP)
    warm = bench.render("warm", value=1, steps=3, urgency=urgency, on_step=lambda step, total: done.append(step))
    await until(lambda: len(bench.denoiser.passes) == 1)
    now = bench.render("now", value=2, steps=2)
    await asyncio.sleep(0)
    bench.denoiser.gate.set()
    await asyncio.gather(warm, now)
    assert bench.denoiser.passes == [(1.0,), (2.0,), (2.0,), (1.0,), (1.0,)]
    assert done == [1, 2, 3]


async def test_a_deadline_goes_first_and_a_promoted_job_too(narrow: Bench) -> None:
    """With one place: the job with the nearest deadline, then the batch job that somebody in a hurry joined."""
    narrow.denoiser.gate.clear()
    tasks = [narrow.render("first", value=0, steps=1)]
    await until(lambda: len(narrow.denoiser.passes) == 1)
    narrow.now = 1.0
    batch, soon = Urgency(Priority.BATCH), Urgency(deadline=1e9 - 5)
    for value, urgency in enumerate((batch, Urgency(), batch, soon), start=1):
        tasks.append(narrow.render(f"j{value}", value=value, steps=1, urgency=urgency))
    await until(lambda: narrow.engine.stats()["queued"] == 4)
    assert narrow.engine.promote("j3", Urgency(deadline=1e9))
    assert not narrow.engine.promote("nobody", Urgency())
    narrow.denoiser.gate.set()
    await asyncio.gather(*tasks)
    assert narrow.denoiser.passes == [(0.0,), (4.0,), (3.0,), (2.0,), (1.0,)]


async def test_a_render_is_told_before_its_first_pass(narrow: Bench) -> None:
    """`on_begin` is over before the first step begins, and nobody is told who only waits for a place."""
    told: list[str] = []

    async def tell(name: str) -> None:
        await asyncio.sleep(0.01)
        assert name not in [str(value) for each in narrow.denoiser.passes for value in each]
        told.append(name)

    narrow.denoiser.gate.clear()
    first = narrow.render("first", value=1, on_begin=lambda: tell("1.0"))
    await until(lambda: len(narrow.denoiser.passes) == 1)
    second = narrow.render("second", value=2, on_begin=lambda: tell("2.0"))
    await until(lambda: narrow.engine.stats()["queued"] == 1)
    assert told == ["1.0"]
    narrow.denoiser.gate.set()
    await asyncio.gather(first, second)
    assert told == ["1.0", "2.0"]


async def test_a_suspect_has_the_engine_to_itself(bench: Bench) -> None:
    """What had begun is finished first, what had not waits, and nothing shares a pass with the suspect."""

    async def suspect() -> None:
        async with bench.engine.isolation.entered("suspect", 1):
            await bench.render("suspect", value=5)

    bench.denoiser.gate.clear()
    first = bench.render("first", value=1)
    await until(lambda: len(bench.denoiser.passes) == 1)
    alone = asyncio.create_task(suspect())
    await asyncio.sleep(0)
    later = [bench.render(f"later{value}", value=value) for value in (2, 3)]
    await until(lambda: bench.engine.stats()["queued"] == 2)
    bench.denoiser.gate.set()
    await asyncio.gather(first, alone, *later)
    assert bench.denoiser.passes == [(1.0,)] * 3 + [(5.0,)] * 3 + [(2.0, 3.0)] * 3


async def test_what_was_waited_elsewhere_counts(narrow: Bench) -> None:
    """Of two jobs that come together, the one that somebody asked for earlier, in a router's queue, goes first."""
    narrow.denoiser.gate.clear()
    tasks = [narrow.render("first", value=0, steps=1)]
    await until(lambda: len(narrow.denoiser.passes) == 1)
    narrow.now = 50.0
    for value, asked_at in ((1, None), (2, 1e9 + 40), (3, 1e9 + 30), (4, 1e9 + 99)):  # the last clock is ahead of ours
        tasks.append(narrow.render(f"j{value}", value=value, steps=1, asked_at=asked_at))
    await until(lambda: narrow.engine.stats()["queued"] == 4)
    narrow.denoiser.gate.set()
    await asyncio.gather(*tasks)
    assert narrow.denoiser.passes == [(0.0,), (3.0,), (2.0,), (1.0,), (4.0,)]


async def test_too_little_memory_halves_the_batch_and_loses_nobody(bench: Bench) -> None:
    """Four jobs in a device that fits two rows: all are finished, each with exactly its steps, in passes of two."""
    bench.denoiser.room = 2
    steps: dict[str, list[int]] = {name: [] for name in "abcd"}
    tasks = [bench.render(name, on_step=lambda step, total, at=name: steps[at].append(step)) for name in steps]
    for rendering in await asyncio.gather(*tasks):
        assert rendering.steps == 3
    assert steps == {name: [1, 2, 3] for name in "abcd"}
    assert {len(rows) for rows in bench.denoiser.passes} == {2}
    assert bench.engine.stats()["halved"] == 1


async def test_a_job_too_large_for_the_device_fails_alone(bench: Bench) -> None:
    """Guided, it needs two rows where one fits: a clear failure, and the unguided ones beside it are finished."""
    bench.denoiser.room = 1
    large = bench.render("large", guidance_scale=3.0)
    small = [bench.render("a"), bench.render("b")]
    with pytest.raises(RenderFailed, match="too little memory"):
        await large
    assert [rendering.steps for rendering in await asyncio.gather(*small)] == [3, 3]


async def test_a_decode_without_memory_runs_again_between_passes(bench: Bench) -> None:
    """The second attempt is made in the step thread, where nothing else needs memory; a third is not."""
    fails = [torch.OutOfMemoryError("CUDA out of memory")]
    real = bench.decoder.decode

    def decode(latents: torch.Tensor) -> Frames:
        bench.decoder.error = fails.pop() if fails else None
        return real(latents)

    bench.decoder.decode = decode  # type: ignore[method-assign]
    assert (await bench.render("a")).frames.shape == (8, 32, 32, 3)
    assert bench.decoder.threads == ["encore-decode_0", "encore-denoise_0"]
    fails[:] = [torch.OutOfMemoryError("1"), torch.OutOfMemoryError("2")]
    with pytest.raises(RenderFailed, match="too little memory"):
        await bench.render("b")


async def test_checkpoints_come_in_order_and_restart_to_the_bit(bench: Bench) -> None:
    """The latents after the asked-for steps; a render that starts from any of them does the rest and ends equal."""
    points: list[Start] = []
    keep = Checkpoints(frozenset({1, 3, 4}), points.append)
    whole = await bench.render("a", value=0.7, steps=4, checkpoints=keep)
    assert [point.step for point in points] == [1, 3]  # after the last step there is nothing to go on with
    for point in points:
        resumed = await bench.render("a", value=0.7, steps=4, start=point)
        assert torch.equal(resumed.latents, whole.latents)
        assert np.array_equal(resumed.frames, whole.frames)
        assert resumed.steps == 4 - point.step


async def test_a_checkpoint_listener_that_fails_breaks_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged, and the video is finished."""

    def keep(point: Start) -> None:
        raise KeyError(point.step)

    assert (await bench.render("a", checkpoints=Checkpoints(frozenset({1}), keep))).steps == 3
    assert "checkpoint listener of job a failed" in caplog.text


async def test_a_start_that_does_not_fit_is_refused(bench: Bench) -> None:
    """A start of another shape, or with nothing left to do, is a ValueError before anything runs."""
    for start in (Start(1, torch.zeros(1, 8, 2, 3)), Start(3, torch.zeros(1, 8, 2, 2))):
        with pytest.raises(ValueError, match="start"):
            await bench.render("a", start=start)
    assert bench.denoiser.passes == []


async def test_stored_latents_are_decoded_without_a_pass(bench: Bench) -> None:
    """The frames of a render come back from its latents alone; others' shapes are refused, and it can be cancelled."""
    first = await bench.render("a", value=0.3)
    passes = len(bench.denoiser.passes)
    again = await bench.engine.decode("b", a_spec(), first.latents)
    assert np.array_equal(again.frames, first.frames)
    assert (again.steps, len(bench.denoiser.passes)) == (0, passes)
    with pytest.raises(ValueError, match="shape"):
        await bench.engine.decode("b", a_spec(width=64), first.latents)
    bench.decoder.gate.clear()
    task = asyncio.create_task(bench.engine.decode("b", a_spec(), first.latents))
    await until(lambda: len(bench.decoder.calls) == 3)
    assert bench.engine.stats()["decoding"] == 1
    assert bench.engine.cancel("b")
    bench.decoder.gate.set()
    with pytest.raises(RenderCancelled):
        await task


async def test_draining_finishes_what_it_can_and_hands_back_the_rest(bench: Bench) -> None:
    """Passes take 1 s: of 4 s to denoise in, the job of two steps is finished, that of fifty is Unavailable at once."""
    real = bench.denoiser.predict

    def predict(*given: Any) -> torch.Tensor:
        bench.now += 1.0
        return real(*given)

    bench.denoiser.predict = predict  # type: ignore[method-assign]
    await bench.render("pace", steps=1)
    bench.denoiser.gate.clear()
    long, short = bench.render("long", steps=50), bench.render("short", steps=2)
    await until(lambda: len(bench.denoiser.passes) == 2)
    drained = asyncio.create_task(bench.engine.drain(5.0))
    with pytest.raises(Unavailable, match="another one takes"):
        await long
    with pytest.raises(Unavailable):
        await bench.render("late")
    assert not drained.done()
    bench.denoiser.gate.set()
    assert (await short).steps == 2
    await drained
    assert bench.engine.stats()["draining"]


async def test_draining_ends_in_time(bench: Bench) -> None:
    """A job that takes longer than expected is handed back when the time is over."""
    bench.denoiser.gate.clear()
    slow = bench.render("slow")
    await until(lambda: len(bench.denoiser.passes) == 1)
    await bench.engine.drain(0.05)
    with pytest.raises(Unavailable):
        await slow
    bench.denoiser.gate.set()


async def test_the_backlog_is_told_in_seconds(bench: Bench) -> None:
    """What is left to do times what a row's step took; measured passes give the batch limit."""
    await bench.engine.measure([(1, 8, 2, 2)])
    assert bench.engine.pace.knows((1, 8, 2, 2))
    bench.engine.pace.measured((1, 8, 2, 2), {1: 1.0, 2: 1.0, 4: 2.0})
    bench.denoiser.passes.clear()
    bench.denoiser.gate.clear()
    tasks = [bench.render("a", steps=3), bench.render("b", steps=4), bench.render("c", steps=4)]
    await until(lambda: len(bench.denoiser.passes) == 1 and bench.engine.stats()["queued"] >= 1)
    assert bench.engine.stats()["backlog_steps"] == 11
    assert bench.engine.stats()["backlog_seconds"] == pytest.approx(11 * 0.5)
    bench.denoiser.gate.set()
    await asyncio.gather(*tasks)
    assert max(len(rows) for rows in bench.denoiser.passes) == 2


async def test_torch_does_not_hold_up_the_event_loop(bench: Bench) -> None:
    """While a pass computes for a while, the loop's lag is measured and stays far below the pass' time."""
    real = bench.denoiser.predict

    def predict(*given: Any) -> torch.Tensor:
        time.sleep(0.4)
        return real(*given)

    bench.denoiser.predict = predict  # type: ignore[method-assign]
    await bench.render("a", steps=2)
    stats = bench.engine.stats()
    assert 0 <= stats["loop_lag_p50"] <= stats["loop_lag_max"]
    assert stats["loop_lag_p50"] < 0.2


async def test_cancel_frees_the_slot_at_the_next_step(narrow: Bench) -> None:
    """The cancelled render raises at once, its pass in flight is thrown away, and the next job has the slot."""
    narrow.denoiser.gate.clear()
    victim, other = narrow.render("victim", value=1, steps=50), narrow.render("other", value=2, steps=1)
    await until(lambda: len(narrow.denoiser.passes) == 1)
    assert narrow.engine.cancel("victim")
    assert not narrow.engine.cancel("victim")
    with pytest.raises(RenderCancelled):
        await victim
    narrow.denoiser.gate.set()
    assert (await other).steps == 1
    assert narrow.denoiser.passes == [(1.0,), (2.0,)]
    assert [event.result for event in narrow.rendered()] == ["cancelled", "completed"]
    assert not narrow.engine.cancel("nobody")


async def test_a_queued_job_is_cancelled_without_a_step(narrow: Bench) -> None:
    """A job that never got a slot leaves the queue and costs nothing."""
    narrow.denoiser.gate.clear()
    first, queued = narrow.render("first", steps=1), narrow.render("queued")
    await until(lambda: narrow.engine.stats()["queued"] == 1 and narrow.engine.stats()["running"] == 1)
    assert narrow.engine.cancel("queued")
    with pytest.raises(RenderCancelled):
        await queued
    narrow.denoiser.gate.set()
    await first
    assert len(narrow.denoiser.passes) == 1


async def test_cancelling_the_awaiting_task_frees_the_slot(narrow: Bench) -> None:
    """A waiter that goes away takes its job along."""
    narrow.denoiser.gate.clear()
    victim, other = narrow.render("victim", steps=50), narrow.render("other", value=2, steps=1)
    await until(lambda: len(narrow.denoiser.passes) == 1)
    victim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await victim
    assert narrow.engine.stats()["backlog_steps"] == 1
    narrow.denoiser.gate.set()
    await other
    assert len(narrow.denoiser.passes) == 2
    assert narrow.rendered()[0].result == "cancelled"


async def test_an_id_can_come_back_while_its_cancelled_pass_runs(bench: Bench) -> None:
    """A pass begun for a cancelled job does not count for a new job of the same id."""
    bench.denoiser.gate.clear()
    victim = bench.render("a", steps=5)
    await until(lambda: len(bench.denoiser.passes) == 1)
    bench.engine.cancel("a")
    with pytest.raises(RenderCancelled):
        await victim
    again = bench.render("a", steps=2)
    await asyncio.sleep(0)
    bench.denoiser.gate.set()
    assert (await again).steps == 2
    assert len(bench.denoiser.passes) == 3


async def test_a_listener_may_cancel_its_own_job(bench: Bench) -> None:
    """Cancelling from on_step works at any step, the last one included."""
    for step in (1, 3):
        render = bench.render(
            "a", steps=3, on_step=lambda done, total, at=step: done == at and bench.engine.cancel("a")
        )
        with pytest.raises(RenderCancelled):
            await render
    assert bench.engine.stats()["backlog_steps"] == 0


async def test_a_job_is_cancelled_while_it_decodes(bench: Bench) -> None:
    """A decode under way is finished and thrown away; one that waits is never begun."""
    bench.decoder.gate.clear()
    tasks = [bench.render("a", steps=1), bench.render("b", steps=1)]
    await until(lambda: bench.engine.stats()["decoding"] == 2 and len(bench.decoder.calls) == 1)
    assert bench.engine.cancel("a")
    assert bench.engine.cancel("b")
    bench.decoder.gate.set()
    for task in tasks:
        with pytest.raises(RenderCancelled):
            await task
    assert len(bench.decoder.calls) == 1


async def test_denoising_goes_on_while_a_video_is_decoded(bench: Bench) -> None:
    """With the decoder held, another job still gets all its steps."""
    bench.decoder.gate.clear()
    first = bench.render("a", steps=1)
    await until(lambda: len(bench.decoder.calls) == 1)
    done: list[int] = []
    second = bench.render("b", steps=5, on_step=lambda step, total: done.append(step))
    await until(lambda: done == [1, 2, 3, 4, 5])
    assert not first.done()
    bench.decoder.gate.set()
    await asyncio.gather(first, second)


async def test_nan_fails_one_job_alone(bench: Bench) -> None:
    """A job whose latents become NaN fails at that step; the one beside it is finished."""
    bench.denoiser.gate.clear()
    bad, good = bench.render("bad", value=float("nan"), steps=9), bench.render("good", steps=3)
    await asyncio.sleep(0)
    bench.denoiser.gate.set()
    with pytest.raises(RenderFailed, match="not finite"):
        await bad
    assert (await good).steps == 3
    assert len(bench.denoiser.passes) == 3


async def test_a_model_exception_fails_its_batch_and_no_more(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Jobs of the failed pass get RenderFailed without the foreign text; a later job renders."""
    with pytest.raises(RenderFailed) as caught:
        await bench.render("a", value=float("inf"))
    assert "kernel" not in str(caught.value)
    assert "a kernel failed" in caplog.text
    assert (await bench.render("b")).steps == 3
    bench.engine.check_health()
    assert [event.result for event in bench.rendered()] == ["failed", "completed"]


async def test_a_decoder_exception_fails_that_job(bench: Bench) -> None:
    """What the decoder raises becomes RenderFailed, and the engine decodes the next video."""
    bench.decoder.error = RuntimeError("a kernel failed")
    with pytest.raises(RenderFailed, match="decoding"):
        await bench.render("a")
    bench.decoder.error = None
    assert (await bench.render("b")).steps == 3


async def test_latents_are_rounded_to_half_precision_before_decoding(bench: Bench) -> None:
    """The decoder only ever sees float16, and latents beyond its range are a failure, not a white video."""
    await bench.render("a")
    assert bench.decoder.calls[0].dtype == torch.float16
    with pytest.raises(RenderFailed, match="out of range"):
        await bench.render("b", value=1e6)


async def test_one_id_renders_once_at_a_time(bench: Bench) -> None:
    """A second render of an id that is in the engine is a Conflict, and the first one is not harmed."""
    bench.denoiser.gate.clear()
    first, second = bench.render("a"), bench.render("a")
    with pytest.raises(Conflict):
        await second
    bench.denoiser.gate.set()
    assert (await first).steps == 3


async def test_steps_run_in_a_thread_of_their_own_with_explicit_torch_threads(bench: Bench) -> None:
    """Passes run in one named thread whose torch thread count is the one asked for."""
    await bench.render("a")
    assert bench.denoiser.threads == {("encore-denoise_0", 1)}


async def test_stats_count_jobs_by_phase(narrow: Bench) -> None:
    """Queued, running and backlog follow the jobs; everything is zero again at the end, and counters stay."""
    narrow.denoiser.gate.clear()
    tasks = [narrow.render("a", steps=3), narrow.render("b", steps=4)]
    await until(lambda: len(narrow.denoiser.passes) == 1)
    stats = narrow.engine.stats()
    assert (stats["queued"], stats["running"], stats["backlog_steps"], stats["max_batch_size"]) == (1, 1, 7, 1)
    narrow.denoiser.gate.set()
    await asyncio.gather(*tasks)
    stats = narrow.engine.stats()
    assert (stats["queued"], stats["running"], stats["decoding"], stats["backlog_steps"]) == (0, 0, 0, 0)
    assert (stats["steps_done"], stats["passes"]) == (7, 7)


async def test_health_tells_a_stuck_thread(bench: Bench) -> None:
    """A pass or a decode longer than stuck_seconds is unhealthy, and healthy again when it ends."""
    for gate, thread in ((bench.denoiser.gate, "denoise"), (bench.decoder.gate, "decode")):
        gate.clear()
        calls = len(bench.decoder.calls)
        task = bench.render("a", steps=1)
        if thread == "decode":
            await until(lambda calls=calls: len(bench.decoder.calls) > calls)
        else:
            await until(lambda: len(bench.denoiser.passes) == 1)
        bench.engine.check_health()
        bench.now += 61
        with pytest.raises(Unavailable, match=f"{thread} thread has been stuck for 61 s"):
            bench.engine.check_health()
        gate.set()
        await task
        bench.engine.check_health()


async def test_an_engine_that_does_not_run_says_so() -> None:
    """Before start and after stop, health and render both answer Unavailable; stopping twice is harmless."""
    bench = Bench()
    with pytest.raises(Unavailable):
        bench.engine.check_health()
    with pytest.raises(Unavailable):
        await bench.render("a")
    await bench.engine.start()
    bench.engine.check_health()
    await bench.engine.stop()
    await bench.engine.stop()
    with pytest.raises(Unavailable):
        bench.engine.check_health()
    with pytest.raises(Unavailable):
        await bench.render("b")


async def test_stop_answers_everybody(narrow: Bench) -> None:
    """Running and queued jobs get Unavailable when the engine stops; nobody waits for ever."""
    narrow.denoiser.gate.clear()
    tasks = [narrow.render("a"), narrow.render("b")]
    await until(lambda: len(narrow.denoiser.passes) == 1)
    stopping = asyncio.create_task(narrow.engine.stop())
    for task in tasks:
        with pytest.raises(Unavailable):
            await task
    narrow.denoiser.gate.set()
    await stopping


async def test_a_render_leaves_three_spans(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queue wait, denoise and decode are spans in that order, with numbers as their only attributes."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("serve_app.telemetry.tracing.trace.get_tracer", provider.get_tracer)
    await bench.render("a")
    spans = exporter.get_finished_spans()
    assert [each.name for each in spans] == ["encore.queue_wait", "encore.denoise", "encore.decode"]
    assert all(isinstance(value, int) for each in spans for value in (each.attributes or {}).values())


async def test_the_demo_model_renders_alike_alone_and_in_a_batch_while_the_loop_stays_free() -> None:
    """Over the real model: company changes no pixel by more than rounding, and the event loop answers meanwhile."""
    family = dataclasses.replace(demo(), config=dataclasses.replace(DEMO, denoiser_dtype=None))  # rounds least
    engine = StepEngine(
        family.load_denoiser("cpu"),
        family.load_decoder("cpu"),
        max_batch_size=3,
        telemetry=Telemetry(),
        torch_threads=1,
    )
    await engine.start()
    spec = VideoSpec(
        model="native/demo",
        prompt="",
        negative_prompt="",
        seed=5,
        width=64,
        height=64,
        num_frames=8,
        fps=16,
        num_inference_steps=4,
        guidance_scale=3.0,
    )
    context, negative = torch.randn(9, 768), torch.randn(2, 768)

    async def render(name: str, spec: VideoSpec, context: torch.Tensor) -> Frames:
        return (await engine.render(name, spec, context, negative, lambda done, total: None)).frames

    lags: list[float] = []

    async def watch_the_loop() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - began - 0.001)

    alone = await render("alone", spec, context)
    watcher = asyncio.create_task(watch_the_loop())
    other = dataclasses.replace(spec, seed=6, num_inference_steps=7, guidance_scale=1.0)
    together, _, _ = await asyncio.gather(
        render("a", spec, context), render("b", other, torch.randn(40, 768)), render("c", spec, torch.randn(4, 768))
    )
    watcher.cancel()
    await engine.stop()
    assert np.abs(alone.astype(int) - together).max() <= 3
    assert len(lags) > 20
    assert sorted(lags)[len(lags) * 9 // 10] < 0.05
