"""Too little memory, in torch's many words for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serve_app.engine import device_memory

CPU = torch.device("cpu")


def test_torch_says_it_in_several_ways() -> None:
    """Its own class, a plain RuntimeError of the CPU's allocator, Python's; nothing else is taken for it."""
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ):
        assert device_memory.is_out_of_memory(error)
    for error in (RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("x")):
        assert not device_memory.is_out_of_memory(error)


def test_the_real_allocator_is_understood() -> None:
    """A tensor that no machine can hold raises what is recognised."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8).fill_(1)
    assert device_memory.is_out_of_memory(caught.value)


def test_free_and_peak_memory_of_a_cpu() -> None:
    """There is some free, and holding more raises the peak by about that much."""
    free = device_memory.free_bytes(CPU)
    assert free is None or free > 10**6
    before = device_memory.peak_bytes(CPU)
    torch.ones(before + 64 * 2**20, dtype=torch.uint8)
    assert device_memory.peak_bytes(CPU) > before + 32 * 2**20
    device_memory.give_back(CPU)


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without /proc/meminfo, or with another form of it, free memory is unknown, not an error."""
    odd = tmp_path / "meminfo"
    odd.write_text("MemTotal: 5 kB\n")
    for path in (tmp_path / "none", odd):
        monkeypatch.setattr(device_memory, "_MEMINFO", path)
        assert device_memory.free_bytes(CPU) is None
