"""Rooflines: the longer of computing and moving, each precision at its card's rate, and what keeps a claim."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serve_app.model.roofline import (
    CARDS,
    FP8,
    FP16,
    FP16_ACCUMULATE,
    INT8,
    STEPS,
    Card,
    Claim,
    Cost,
    Roofline,
    Work,
    rooflines,
    weight_bytes,
)

CARD = Card("card", memory=1, bandwidth=1000, peaks={FP16: 100, INT8: 400})
COMPUTES = Cost(flops=50 * 10**12, attention_flops=10 * 10**12, peak_bytes=10**8, moved_bytes=10**9)
MOVES = Cost(flops=1, attention_flops=0, peak_bytes=10**8, moved_bytes=10**12)
NOTHING = Cost(0, 0, 0, 0)
PARAMETERS = {"text_encoder": 10**6, "denoiser": 10**8, "encoder": 10**6, "decoder": 2 * 10**6}
WORK = Work(16, 2, denoise=COMPUTES, decode=MOVES, encode_prompt=NOTHING, parameters=PARAMETERS)
CASE = Roofline("card", INT8, frames=16, steps=8, batch=2, memory_bytes=9, fits=True, batch_seconds=4.0)


@pytest.mark.parametrize(
    ("precision", "seconds"),
    [(FP16, 0.5), (INT8, 40 / 400 + 10 / 100), (FP8, 0.5)],
)
def test_computing_runs_at_the_precision_s_peak_and_attention_in_fp16(precision: str, seconds: float) -> None:
    """Weighted products go at the card's rate; a precision the card lacks is computed in fp16."""
    assert CARD.seconds(COMPUTES, 10**9, precision) == pytest.approx(seconds)


def test_sums_in_fp16_speed_up_attention_too() -> None:
    """The faster accumulation holds for every fp16 product."""
    card = replace(CARD, peaks={FP16: 100, FP16_ACCUMULATE: 200})
    assert card.seconds(COMPUTES, 0, FP16_ACCUMULATE) == pytest.approx(0.25)


def test_a_call_that_moves_more_than_it_computes_waits_for_memory() -> None:
    """Weights and activations at the bandwidth, when that takes longer."""
    assert CARD.seconds(MOVES, 10**12, FP16) == pytest.approx(2.0)


def test_a_batch_is_its_passes_and_the_ends_of_each_clip() -> None:
    """Eight passes, and for each of the two clips the decoding with the decoder's fp16 weights, and two prompts."""
    ends = (MOVES.moved_bytes + 2 * PARAMETERS["decoder"]) / 1e12 + 2 * 2 * PARAMETERS["text_encoder"] / 1e12
    assert WORK.seconds(CARD, FP16, steps=8) == pytest.approx(8 * 0.5 + 2 * ends)


def test_only_the_denoiser_changes_precision() -> None:
    """Text encoder and decoder stay fp16, the frame encoder is not loaded, and both peaks lie on top."""
    assert weight_bytes(PARAMETERS, FP16) == 2 * (10**8 + 3 * 10**6)
    assert weight_bytes(PARAMETERS, INT8) == weight_bytes(PARAMETERS, FP8) == 10**8 + 2 * 3 * 10**6
    assert WORK.memory_bytes(INT8) == weight_bytes(PARAMETERS, INT8) + 2 * 10**8


def test_every_case_of_every_card_is_there_once() -> None:
    """Each card with each precision that differs on it, each work, each number of steps."""
    cases = list(rooflines([WORK, replace(WORK, batch=1)]))
    kinds = {(case.card, case.precision, case.batch, case.steps) for case in cases}
    assert len(kinds) == len(cases) == sum(3 + (FP16_ACCUMULATE in card.peaks) for card in CARDS) * 2 * len(STEPS)
    assert {case.fits for case in cases} == {True}


def test_published_peaks_are_dense() -> None:
    """Within a card, int8 and fp8 are two to four times fp16; four only where GeForce halves fp32 sums."""
    for card in CARDS:
        for precision in (INT8, FP8):
            if precision in card.peaks:
                geforce = FP16_ACCUMULATE in card.peaks
                assert 1.99 < card.peaks[precision] / card.peaks[FP16] < (4.01 if geforce else 2.03)


def test_a_claim_is_kept_up_to_its_limits() -> None:
    """Exactly the seconds keep it, exactly the gigabytes do not; half the speed needs twice the time."""
    claim = Claim("words", card="card", seconds=2.0, gigabytes=1.0)
    assert claim.keeps(CASE, 1.0)
    assert not claim.keeps(CASE, 0.5)
    assert not claim.keeps(CASE, 1.0, whole_batch=True)
    assert not claim.keeps(replace(CASE, memory_bytes=10**9), 1.0)


def test_everywhere_needs_every_length_and_batch() -> None:
    """One broken case takes its precision and steps away; other cards neither help nor harm."""
    claim = Claim("words", card="card", seconds=2.0, gigabytes=1.0)
    slow = replace(CASE, frames=24, batch_seconds=9.0)
    quick = replace(CASE, steps=4)
    other = replace(CASE, card="other", steps=4, batch_seconds=99.0)
    assert claim.everywhere([CASE, slow, quick, other], 1.0) == [(INT8, 4)]
    assert claim.kept([CASE, slow, quick, other], 1.0) == [CASE, quick]
    assert claim.everywhere([CASE, slow, quick, other], 1.0, whole_batch=True) == []
