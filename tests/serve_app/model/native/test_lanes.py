"""Rows dealt out to threads: nothing may be lost, doubled, or left changed for whoever computes next."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import pytest
import torch

from serve_app.model.native.lanes import in_lanes

CPU = torch.device("cpu")


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Let torch use so many threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def calls(rows: int, device: torch.device = CPU) -> tuple[list[slice], set[int]]:
    """Return the slices that `in_lanes` asked for and the threads in which it did."""
    parts, where = list[slice](), set[int]()

    def compute(part: slice) -> torch.Tensor:
        parts.append(part)
        where.add(get_ident())
        return torch.zeros(1)

    in_lanes(compute, rows, device)
    return sorted(parts, key=lambda part: part.start or 0), where


@pytest.mark.parametrize("rows", [6, 7, 16, 17])
def test_every_row_is_computed_once_and_in_its_place(threads: int, rows: int) -> None:
    """Whatever the number of rows, the lanes' parts together are what one part would be, and are of like sizes."""
    values = torch.randn(rows, 3)
    torch.testing.assert_close(in_lanes(lambda part: values[part] * 2, rows, CPU), values * 2, atol=0, rtol=0)
    parts, _ = calls(rows)
    sizes = [part.stop - part.start for part in parts]
    assert len(sizes) == threads
    assert max(sizes) - min(sizes) <= 1


def test_few_rows_and_other_devices_stay_with_the_caller(threads: int) -> None:
    """A lane with less than two rows, and anything that is not on a CPU, is computed at once in the calling thread."""
    for rows, device in ((2 * threads - 1, CPU), (64, torch.device("meta"))):
        parts, where = calls(rows, device)
        assert parts == [slice(rows)]
        assert where == {get_ident()}


def test_a_lane_has_one_core_and_no_gradients_and_nobody_else_is_changed(threads: int) -> None:
    """Inside, torch uses one thread, in inference mode; the caller and threads born later have as many as before."""

    def compute(_: slice) -> torch.Tensor:
        x = torch.ones(4096, 64)
        mode = (x @ x.T).is_inference()  # and torch has set the thread up, if anything does
        return torch.tensor([[torch.get_num_threads(), int(mode)]])

    for _ in range(2):
        assert in_lanes(compute, 64, CPU).tolist() == [[1, 1]] * threads
        assert torch.get_num_threads() == threads
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == threads


def test_what_a_lane_raises_comes_through_and_the_next_call_works(threads: int) -> None:
    """One row that fails fails the call; the lanes go on to compute for others."""

    def fail_for_the_last(part: slice) -> torch.Tensor:
        if part.stop == 16:
            raise ArithmeticError("the last row")
        return torch.zeros(1)

    with pytest.raises(ArithmeticError, match="the last row"):
        in_lanes(fail_for_the_last, 16, CPU)
    assert in_lanes(lambda _: torch.zeros(1), 16, CPU).shape == (threads,)
