from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serve_app.model.native.config import DenoiserConfig, NativeConfig
from serve_app.model.native.denoiser import DenoiserNet, NativeDenoiser
from serve_app.model.native.weights import SeededWeights

SMALL = DenoiserConfig(
    outer_channels=16, outer_blocks=1, inner_channels=24, inner_blocks=1, num_heads=2, context_dim=12
)


def net(config: DenoiserConfig = SMALL) -> DenoiserNet:
    made = DenoiserNet(config).eval().requires_grad_(False)
    SeededWeights(0).fill(made, "denoiser")
    return made


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_frames", [8, 9, 24])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_any_number_of_frames_passes(num_frames: int, stride: int) -> None:
    """A clip whose frames do not fill the last token comes back with as many frames as it had."""
    config = DenoiserConfig(
        outer_channels=16, outer_blocks=1, inner_channels=24, inner_blocks=1, num_heads=2, context_dim=12,
        frame_stride=stride,
    )  # fmt: skip
    latents = randn(1, 8, num_frames, 4, 6)
    out = net(config)(latents, torch.tensor([0.5]), randn(1, 3, 12), torch.ones(1, 3, dtype=torch.bool))
    assert out.shape == latents.shape


def test_padding_of_the_context_changes_nothing() -> None:
    """A short prompt padded beside a longer one gives what it gives alone: neither attention nor pooling sees pads."""
    denoiser, latents, level = net(), randn(1, 8, 4, 4, 4), torch.tensor([0.3])
    context = randn(1, 3, 12)
    padded = torch.cat([context, 100 * torch.ones(1, 5, 12)], dim=1)
    alone = denoiser(latents, level, context, torch.ones(1, 3, dtype=torch.bool))
    beside = denoiser(latents, level, padded, torch.arange(8)[None] < 3)
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=0)


def test_the_last_token_conditions_every_place() -> None:
    """Another last token changes the velocity everywhere, in the first frame's first corner as in the last's last."""
    denoiser, latents, level = net(), randn(1, 8, 4, 4, 4), torch.tensor([0.3])
    mask = torch.ones(1, 3, dtype=torch.bool)
    first, other = randn(1, 3, 12), randn(1, 3, 12)
    other[:, -1] = randn(12, seed=1)
    change = (denoiser(latents, level, first, mask) - denoiser(latents, level, other, mask)).abs().amax(dim=(0, 1))
    assert float(change.min()) > 1e-4


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_a_pass_dealt_to_two_cores_is_the_same_pass(rows: int) -> None:
    """With two threads, every row has the velocity that it has with one: its own latents, level and prompt."""
    denoiser, before = NativeDenoiser(net(), NativeConfig(name="small", denoiser=SMALL), "cpu"), torch.get_num_threads()
    prompts = [denoiser.prepare(randn(2 + row % 3, 12, seed=row)) for row in range(rows)]
    latents, levels = randn(rows, 8, 5, 4, 4), torch.linspace(0.1, 0.9, rows)
    noise_pred = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        noise_pred.append(denoiser.predict(latents, levels, prompts))
    torch.set_num_threads(before)
    torch.testing.assert_close(*noise_pred, atol=1e-5, rtol=0)
    assert noise_pred[1].is_inference()


class Devices(TorchDispatchMode):
    """Notes where the tensors are that ops take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)}
        return out


def test_a_pass_asks_nothing_of_the_host_and_tells_it_nothing() -> None:
    """On the meta device, where no value can be read, a pass over two prompts runs and meets no tensor of the host."""
    denoiser = NativeDenoiser(net(), NativeConfig(name="small", denoiser=SMALL), "meta")
    prompts = [denoiser.prepare(randn(length, 12)) for length in (3, 5)]
    latents, levels = torch.empty(2, 8, 5, 4, 4, device="meta"), torch.empty(2, device="meta")
    with Devices() as devices:
        noise_pred = denoiser.predict(latents, levels, prompts)
    assert noise_pred.shape == latents.shape
    assert devices.seen == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_pass_on_a_gpu_never_waits_for_it() -> None:
    """CUDA's own watch on synchronising calls stays silent during a pass."""
    denoiser = NativeDenoiser(net(), NativeConfig(name="small", denoiser=SMALL), "cuda")
    prompts = [denoiser.prepare(randn(length, 12)) for length in (3, 5)]
    latents, levels = randn(2, 8, 5, 4, 4).cuda(), torch.tensor([0.3, 0.7]).cuda()
    denoiser.predict(latents, levels, prompts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        noise_pred = denoiser.predict(latents, levels, prompts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert noise_pred.isfinite().all()
