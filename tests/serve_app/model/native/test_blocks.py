import itertools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from serve_app.model.native.blocks import FactorisedConv, VideoBlock, attend, video_positions
from serve_app.model.native.config import DenoiserConfig
from serve_app.model.native.weights import SeededWeights


@pytest.mark.parametrize("masked", [False, True])
def test_training_and_serving_attend_alike(masked: bool) -> None:
    """With gradients the CPU's written-out form, without them torch's own: the same numbers, with and without mask."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    allowed = (torch.arange(7) < torch.tensor([[4], [7]]))[:, None, None, :] if masked else None
    trained = attend(q.requires_grad_(), k, v, allowed)
    assert trained.grad_fn is not None
    assert "ScaledDotProduct" not in trained.grad_fn.name()
    with torch.no_grad():
        served = attend(q, k, v, allowed)
    torch.testing.assert_close(served, trained.detach())


def test_a_factorised_convolution_is_a_three_dimensional_one_in_two_parts() -> None:
    """Its two 2-D calls equal Conv3d 1x3x3, SiLU, Conv3d 3x1x1 with the same weights."""
    torch.manual_seed(0)
    conv, x = FactorisedConv(4), torch.randn(2, 5, 6, 8, 4)
    spatial, temporal = conv.spatial, conv.temporal
    video = x.permute(0, 4, 1, 2, 3)
    video = F.silu(F.conv3d(video, spatial.weight[:, :, None], spatial.bias, padding=(0, 1, 1)))
    video = F.conv3d(video, temporal.weight[..., None], temporal.bias, padding=(1, 0, 0))
    torch.testing.assert_close(conv(x), video.permute(0, 2, 3, 4, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dim", [96, 192, 100])
def test_positions_are_distinct_and_of_unit_scale(dim: int) -> None:
    """Every place of the largest demo video differs from every other, and sines and cosines have unit amplitude."""
    positions = video_positions(24, 8, 8, dim, torch.device("cpu"))
    assert positions.shape == (1, 24, 8, 8, dim)
    flat = positions.reshape(-1, dim)
    distances = torch.cdist(flat, flat) + 10 * torch.eye(len(flat))
    assert float(distances.min()) > 0.1
    assert 0.9 < float(flat.max()) <= 1.0


def test_positions_know_where_the_canvas_stops() -> None:
    """The last column of a narrow canvas is encoded otherwise than the same column of a wide one."""
    narrow, wide = (video_positions(8, 4, width, 96, torch.device("cpu")) for width in (4, 8))
    assert not torch.allclose(narrow[..., 3, :], wide[..., 3, :], atol=0.1)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_block_carries_information_along_every_axis(axis: int, joint: bool) -> None:
    """A change in the first frame, row or column reaches the last one, with joint attention and with two apart."""
    config = DenoiserConfig(inner_channels=24, num_heads=2, mlp_ratio=2, context_dim=16, joint_attention=joint)
    block = VideoBlock(config)
    SeededWeights(0).fill(block, "test")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 8, 8, 8, 24, generator=generator)
    condition = torch.randn(1, 8, 24, generator=generator)
    shared = torch.randn(1, 8, VideoBlock.layers_of(config) * 3 * 24, generator=generator)
    context, mask = torch.randn(1, 3, 16, generator=generator), torch.ones(1, 3, dtype=torch.bool)
    changed = x.clone()
    changed.select(axis, 0).add_(torch.randn(24, generator=generator))
    with torch.no_grad():
        key_value = block.cross.key_value(context)
        one, other = (block(each, condition, shared, torch.zeros(1), key_value, mask) for each in (x, changed))
    assert float((one - other).select(axis, 7).abs().max()) > 1e-4


@pytest.mark.parametrize("convolution", [True, False])
def test_the_condition_reaches_every_layer_of_a_block(convolution: bool) -> None:
    """A block has one shift, scale and gate per layer; each answers to the prompt and to the moment of the clip."""
    config = DenoiserConfig(inner_channels=24, num_heads=2, context_dim=16, inner_convolution=convolution)
    block = VideoBlock(config)
    SeededWeights(0).fill(block, "test")
    layers = 4 if convolution else 3
    assert VideoBlock.layers_of(config) == layers
    shared = torch.zeros(2, 4, layers * 3 * 24)
    modulations = block.adaptive(torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(0)), shared)
    assert len(modulations) == layers
    for part in itertools.chain.from_iterable(modulations):
        assert part.shape == (2, 4, 1, 1, 24)
        assert not torch.equal(part[0], part[1])
        assert not torch.equal(part[:, 0], part[:, 1])


def test_positions_made_while_serving_can_be_trained_with() -> None:
    """The cached positions are ordinary tensors, also when inference mode asked for them first."""
    with torch.inference_mode():
        positions = video_positions(3, 5, 7, 24, torch.device("cpu"))
    assert not positions.is_inference()
