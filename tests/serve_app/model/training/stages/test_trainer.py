"""The trainer: falling loss, exact resumption from any stop, shared gradients, seeds that matter."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from serve_app.model.training.recipe import Schedule
from serve_app.model.training.stages import trainer
from serve_app.model.training.stages.trainer import Progress, Trainer, Worker
from tests.serve_app.model.training.short_run import ShortRun
from tests.serve_app.model.training.two_workers import trained, work

SCHEDULE = Schedule(steps=20, batch=8, learning_rate=0.05, warmup=2, decay=5, weight_decay=0.01, ema_decay=0.9)


class Line:
    """Fits a line to noisy points; BatchNorm gives it buffers to keep too."""

    name = "line"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        x = torch.from_numpy(rng.normal(size=(8, 3))).float()
        return (self.module(x)[:, 0] - x @ torch.tensor([1.0, 2.0, 3.0])).square().mean(), {"points": len(x)}


class Killed(Exception):
    """Ends a run without a word, as SIGKILL would."""


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Python's own answers to signals: a CI may ignore SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def a_trainer(folder: Path, *, seed: int = 1, schedule: Schedule = SCHEDULE) -> Trainer:
    return Trainer(Line(), schedule, seed=seed, folder=folder, worker=Worker())


def state(folder: Path) -> dict[str, Any]:
    whole: dict[str, Any] = torch.load(folder / "line.ckpt", weights_only=True)
    return whole


def assert_equal(one: Any, other: Any) -> None:
    """Compare nested checkpoints to the bit."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


def stopping_at(step: int, stop: Callable[[], None]) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            stop()

    return report


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 7, 19, 20])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, number: int, step: int) -> None:
    """Ctrl-C or SIGTERM at any step, then the same again: weights, averages and optimiser are those of a whole run."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a_trainer(tmp_path / "a").run()
    with pytest.raises(KeyboardInterrupt):
        a_trainer(tmp_path / "b").run(stopping_at(step, lambda: os.kill(os.getpid(), number)))
    assert state(tmp_path / "b")["step"] == step
    a_trainer(tmp_path / "b").run()
    assert_equal(state(tmp_path / "a"), state(tmp_path / "b"))
    assert signal.getsignal(number) == {signal.SIGINT: signal.default_int_handler}.get(number, signal.SIG_DFL)


def test_a_killed_run_goes_on_from_its_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a chance to save, the last periodic checkpoint is the start, and the end is the same."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a_trainer(tmp_path / "a").run()
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)

    def killed() -> None:
        raise Killed

    with pytest.raises(Killed):
        a_trainer(tmp_path / "b").run(stopping_at(11, killed))
    assert state(tmp_path / "b")["step"] == 10
    a_trainer(tmp_path / "b").run()
    assert_equal(state(tmp_path / "a"), state(tmp_path / "b"))


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    """Who presses Ctrl-C twice is not kept waiting for a step to end, and nothing half done is saved."""

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        a_trainer(tmp_path).run(stopping_at(3, twice))
    assert not (tmp_path / "line.ckpt").exists()


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """A background job, whose SIGINT its shell ignores, is not stopped by it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    a_trainer(tmp_path).run(stopping_at(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert state(tmp_path)["step"] == SCHEDULE.steps


def test_a_run_may_live_in_a_thread(tmp_path: Path) -> None:
    """Only the main thread may listen to signals; elsewhere a run goes without."""
    thread = threading.Thread(target=a_trainer(tmp_path).run)
    thread.start()
    thread.join()
    assert state(tmp_path)["step"] == SCHEDULE.steps


def test_a_run_may_be_lengthened(tmp_path: Path) -> None:
    """Before the rate falls, steps do not depend on how many there will be: a longer run passes the same point."""
    short = replace(SCHEDULE, steps=8, decay=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a_trainer(tmp_path / "a", schedule=short).run()
    a_trainer(tmp_path / "a").run()
    a_trainer(tmp_path / "b").run()
    assert_equal(state(tmp_path / "a"), state(tmp_path / "b"))


def test_seeds_matter(tmp_path: Path) -> None:
    """Another seed draws other batches and ends with other weights."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (a_trainer(tmp_path / name, seed=seed).run() for name, seed in (("a", 1), ("b", 2)))
    assert not torch.equal(one[1].weight, other[1].weight)


def test_progress_tells_every_step(tmp_path: Path) -> None:
    """Each step is told once, with its loss and the stage's own figures, and the loss falls."""
    told: list[Progress] = []
    a_trainer(tmp_path).run(told.append)
    assert [each.step for each in told] == list(range(1, SCHEDULE.steps + 1))
    assert {each.stage for each in told} == {"line"}
    assert all(each.figures.keys() == {"loss", "points"} for each in told)
    assert sum(each.figures["loss"] for each in told[-5:]) < sum(each.figures["loss"] for each in told[:5])


def test_the_average_lags_behind_and_shares_buffers(tmp_path: Path) -> None:
    """What is kept is a mean of the weights on the way, with the latest buffers, in eval mode."""
    run = a_trainer(tmp_path)
    average = run.run()
    current = run._stage.module
    assert not torch.equal(average[1].weight, current[1].weight)
    assert torch.equal(average[0].running_mean, current[0].running_mean)
    assert not average.training


def test_the_rate_rises_holds_and_falls() -> None:
    """Warm-up to the full rate, then a straight line to nearly 0 at the last step."""
    rates = [SCHEDULE.rate(step) for step in range(SCHEDULE.steps)]
    assert rates[0] == pytest.approx(0.025)
    assert rates[1:16] == [0.05] * 15
    assert rates[-5:] == pytest.approx([0.05, 0.04, 0.03, 0.02, 0.01])


@pytest.mark.parametrize("stage", ["autoencoder", "text_encoder", "denoiser"])
def test_the_loss_falls_in_every_stage(short_run: ShortRun, stage: str) -> None:
    """In the short run the last ten losses of each stage are clearly lower than the first ten."""
    losses = short_run.losses[stage]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_two_workers_end_with_the_same_weights(tmp_path: Path) -> None:
    """Gradients are averaged: both end with equal weights and averages, which no worker alone would have reached."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, tmp_path)) for rank in (0, 1)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(60)
    assert [each.exitcode for each in workers] == [0, 0]
    (tmp_path / "autoencoder.ckpt").unlink()
    trained(tmp_path, Worker())
    for kind in ("module", "average"):
        first, second, alone = (
            load_file(tmp_path / f"{kind}-{name}.safetensors") for name in ("0-of-2", "1-of-2", "0-of-1")
        )
        assert_equal(first, second)
        assert any(not torch.equal(first[name], alone[name]) for name in first)
