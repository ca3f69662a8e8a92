"""The Wan benchmarks on a tiny checkpoint: both sides render, make the same, and are judged by goals that can fail."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # where Python looks when it runs a program there

import wan_settings as trades
import wan_vs_diffusers as benchmark
from wan_profile import ATTENTION, BETWEEN, LINEAR, profiled
from wan_sides import OURS, THEIRS, Diffusers, Encore, Size, play, spec

from benchmarks.form import Result, Row
from tests.serve_app.model.wan import tiny_checkpoint

TINY = Size(64, 64, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture
async def contest(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[benchmark.Contest]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(benchmark, "SHORT", TINY)
    found = benchmark.Contest(Encore(folder, 1), Diffusers(folder, 1), benchmark.QUICK)
    async with found.ours.serving(TINY):
        yield found
    found.theirs.shutdown()


async def test_both_sides_are_measured_alone_and_together(contest: benchmark.Contest) -> None:
    """Every line has both sides' figure and their ratio; the tables' columns are the same."""
    rows = await contest.rows()
    assert [row["case"] for row in rows] == [
        "one request", "one request, prompts known",
        "2 requests at once: mean latency", "2 requests at once: throughput",
        "2 requests spread out: mean latency", "2 requests spread out: throughput",
    ]  # fmt: skip
    for row in rows:
        assert row["ours / theirs"] == pytest.approx(float(row[OURS]) / float(row[THEIRS]))
        assert row.keys() == rows[0].keys()


async def test_both_sides_make_the_same(contest: benchmark.Contest) -> None:
    """Of the same request: latents as near as the goal says, frames as near as half-precision latents let them be."""
    latents, largest, frames = contest.apart()
    assert latents <= benchmark.LATENTS < largest
    assert frames <= 2
    asked = spec(TINY, 2, 1)
    mine, known = await contest.ours.render(asked), await contest.theirs.render(asked, known=True)
    assert mine.shape == known.shape == (5, 64, 64, 3)
    assert np.abs(mine.astype(int) - known).max() <= 2


async def test_the_profile_accounts_for_a_video(contest: benchmark.Contest) -> None:
    """Each part took time, and shares make a whole."""
    found = profiled(contest.ours, spec(TINY, 2))
    assert all(found.seconds[place] > 0 for place in (LINEAR, ATTENTION, BETWEEN, "text encoder", "decoder"))
    assert sum(found.shares().values()) == pytest.approx(1.0)
    assert found.linear_flops_per_second > 0


async def test_a_latency_counts_from_when_a_request_should_have_come() -> None:
    """Requests that wait for one another are late by as much."""

    class Server:
        order: list[int] = []  # noqa: RUF012 - of this test alone

        async def render(self, asked: object, *, known: bool = False) -> np.ndarray:
            self.order.append(asked.seed)  # type: ignore[attr-defined]
            return np.zeros(0)

    served = await play(Server(), [spec(TINY, 1, number) for number in range(3)], apart=0.0)
    assert Server.order == [0, 1, 2]
    assert served.mean > 0
    assert served.throughput > 0


@pytest.mark.parametrize(
    ("ratio", "latents", "weights", "met"),
    [(0.95, 1e-4, 100_000_000, True), (0.96, 0.0, 10**9, False), (0.5, 1.1e-4, 10**9, False), (0.5, 0.0, 1, False)],
)
def test_goals_can_fail(ratio: float, latents: float, weights: int, met: bool) -> None:
    """A slower side, another result or a checkpoint that is too small is not a success; throughput is not judged."""
    rows: list[Row] = [
        {"case": benchmark.KNOWN, "ours / theirs": ratio},
        {"case": "8 requests at once: throughput", "ours / theirs": 9.0},
    ]
    assert Result(rows, benchmark.goals(rows, latents, weights)).met is met


def settings_rows(**changed: float) -> list[Row]:
    """Return rows that meet every goal, some figures changed: `int8_s`, say."""
    names = {
        "plain": (trades.PASS, "plain"), "int8": (trades.PASS, "quantization=int8"),
        "fp8": (trades.PASS, "quantization=fp8"), "compiled": (trades.PASS, "torch_compile=True"),
        "decoded": (trades.DECODE, "plain"), "tiled": (trades.DECODE, "vae_tiling=True"),
    }  # fmt: skip
    rows = []
    for name, (work, words) in names.items():
        small = name in ("int8", "fp8")
        figures = {"s": 0.9, "weights, MB": 25.0 if small else 100.0, "peak beyond, MB": 100.0, "apart": 0.01}
        figures |= {"peak beyond, MB": 40.0} if name == "tiled" else {}
        figures |= {column: changed[f"{name}, {column}"] for column in figures if f"{name}, {column}" in changed}
        rows.append(Row(work=work, settings=words, **figures))
    return rows


@pytest.mark.parametrize(
    "broken",
    [
        {}, {"int8, weights, MB": 50.0}, {"fp8, weights, MB": 50.0}, {"int8, apart": 0.1}, {"fp8, apart": 0.1},
        {"compiled, s": 1.0}, {"tiled, peak beyond, MB": 90.0}, {"tiled, apart": 20.0},
    ],
    ids=lambda broken: " ".join(broken) or "none",
)  # fmt: skip
def test_a_setting_that_does_not_give_what_it_is_for_fails(broken: dict[str, float]) -> None:
    """Each goal of `wan_settings.py` fails by its own figure, and none when all are good."""
    unmet = [goal for goal in trades.goals(settings_rows(**broken)) if not goal.met]
    assert len(unmet) == len(broken)
