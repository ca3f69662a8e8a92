"""torch.compile of the blocks, with this machine's own compiler: the same numbers, no compilation for another size."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor

from serve_app.errors import InvalidRequest
from serve_app.model.sampler import initial_noise
from serve_app.model.wan.speed import Speed
from serve_app.model.wan.wan import WanFamily
from tests.serve_app.model.wan.tiny_checkpoint import TI2V_5B

Families = Callable[..., WanFamily]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its own compiler
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture(autouse=True)
def _forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile anew: neither what an earlier test compiled nor what lies on the disk counts."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    with inductor.patch(compile_threads=1):  # no processes of its own
        yield
    torch.compiler.reset()


def loaded(wan: Families, **speed: Any) -> Any:
    return WanFamily("tiny", wan(TI2V_5B).checkpoint, "float32", Speed(**speed)).load_denoiser("cpu")


def velocity(
    denoiser: Any, shape: tuple[int, ...], lengths: tuple[int, ...], frames: torch.Tensor | None = None
) -> torch.Tensor:
    timesteps = torch.linspace(950, 50, len(lengths)) if frames is None else frames
    prompts = [denoiser.prepare(initial_noise((length, 32), length)) for length in lengths]
    found: torch.Tensor = denoiser.predict(initial_noise((len(lengths), *shape), 1), timesteps, prompts)
    return found


@needs_a_compiler
def test_the_compiled_pass_is_the_plain_one(wan: Families) -> None:
    """Rows, sizes and prompts' lengths of all sorts give the plain pass's numbers, and none is compiled anew."""
    plain, compiled = loaded(wan), loaded(wan, torch_compile=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape, lengths in (
            ((8, 1, 2, 4), (3,)),
            ((8, 3, 4, 6), (5, 9)),
            ((8, 2, 4, 4), (1, 512, 40)),
            ((8, 5, 6, 4), (7, 7, 7, 7)),
        ):
            expected = velocity(plain, shape, lengths)
            torch.testing.assert_close(velocity(compiled, shape, lengths), expected, atol=1e-5, rtol=1e-5)
        frames = torch.tensor([[0.0, 700.0, 700.0], [0.0, 20.0, 20.0], [300.0, 300.0, 300.0]])
        given = velocity(plain, (8, 3, 4, 6), (5, 9, 2), frames)
        torch.testing.assert_close(velocity(compiled, (8, 3, 4, 6), (5, 9, 2), frames), given, atol=1e-5, rtol=1e-5)


def test_a_machine_that_cannot_compile_says_so_at_its_start(wan: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading fails with the setting's name, long before a client asks."""
    monkeypatch.setattr(inductor.cpp, "cxx", ("/no/such/compiler",))
    with pytest.raises(InvalidRequest, match="torch_compile") as refused:
        loaded(wan, torch_compile=True)
    assert refused.value.param == "torch_compile"
