"""What a preset weighs and computes: the 5b preset has five billion weights, and the counts agree with real passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from serve_app.model.counting import Activations
from serve_app.model.native.blocks import FactorisedConv, SelfAttention
from serve_app.model.native.config import DEMO, FIVE_B, NativeConfig
from serve_app.model.native.denoiser import DenoiserNet
from serve_app.model.native.sizing import Sizing

FACTORISED = replace(DEMO, denoiser=replace(DEMO.denoiser, inner_convolution=True, joint_attention=False))


@pytest.fixture(scope="module")
def demo() -> Sizing:
    return Sizing(DEMO)


@pytest.fixture(scope="module")
def five_b() -> Sizing:
    return Sizing(FIVE_B)


def test_the_large_preset_is_five_billion_and_never_allocated(five_b: Sizing) -> None:
    """4.8 to 5.2 thousand million weights in all four networks, every one of them on the meta device."""
    assert 4.8e9 <= sum(five_b.parameters().values()) <= 5.2e9
    assert all(each.is_meta for net in five_b.parts.values() for each in net.state_dict().values())


def test_its_text_encoder_is_clip_l(five_b: Sizing) -> None:
    """As many weights as the text model of CLIP ViT-L/14, whose 768 dimensions need no projection."""
    assert five_b.parameters()["text_encoder"] == 123_060_480
    assert isinstance(five_b.parts["text_encoder"].projection, nn.Identity)


def test_its_blocks_are_factorised(five_b: Sizing) -> None:
    """Every inner block has a spatial and a temporal convolution, and attention over space apart from time."""
    block = five_b.parts["denoiser"].get_submodule("trunk.0")
    convolution, *attentions = block.before
    assert isinstance(convolution, FactorisedConv)
    assert [layer._tokens for layer in attentions] == [SelfAttention.TOKENS["space"], SelfAttention.TOKENS["time"]]


def test_the_grid_is_the_preset_s(five_b: Sizing) -> None:
    """640x480 gives latents that the inner level halves evenly, for 8 to 24 frames."""
    for frames in (8, 16, 24):
        _, count, height, width = five_b.latent_shape(frames)
        downscale = FIVE_B.autoencoder.downscale
        assert (count, height * downscale, width * downscale) == (frames, 480, 640)
        assert height % 2 == width % 2 == 0
        assert five_b.tokens(frames) == frames // 2 * height * width // 4


@pytest.mark.parametrize("config", [DEMO, FACTORISED], ids=["joint", "factorised"])
def test_flops_on_meta_are_those_of_a_real_pass(config: NativeConfig) -> None:
    """The same network with real weights on the CPU, where attention is written out, computes as much."""
    net = DenoiserNet(config.denoiser).requires_grad_(False)
    length = config.text_encoder.max_tokens
    inputs = (torch.zeros(2, 8, 9, 8, 8), torch.ones(2), torch.zeros(2, length, 768), torch.ones(2, length).bool())
    with FlopCounterMode(display=False) as counter:
        net(*inputs)
    cost = Sizing(config).denoise(frames=9, rows=2)
    assert cost.flops == counter.get_total_flops()
    assert 0 < cost.attention_flops < cost.flops


def test_most_of_a_pass_is_two_flops_a_weight_and_token(five_b: Sizing) -> None:
    """The large preset's pass costs about 2 x weights x tokens: nothing big is missed or counted twice."""
    cost = five_b.denoise(frames=8, rows=2)
    assert cost.flops == pytest.approx(2 * 2 * five_b.parameters()["denoiser"] * five_b.tokens(8), rel=0.1)


def test_activations_of_a_chain_are_counted_to_the_byte() -> None:
    """Two linear layers on the meta device: two neighbouring tensors alive at most, each product's ends moved once."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 16)).half().requires_grad_(False)
    seen = Activations(net)
    with torch.device("meta"), seen:
        x = torch.empty(2, 4, dtype=torch.half)
        for layer in net:
            x = layer(x)
    sizes = [2 * each * 2 for each in (4, 8, 16)]
    assert seen.peak_bytes == sizes[1] + sizes[2]
    assert seen.moved_bytes == sizes[0] + 2 * sizes[1] + sizes[2]
    assert seen.attention_flops == 0


def test_products_without_weights_are_attention() -> None:
    """A product of two activations counts as attention, one with a weight does not, whatever op torch picks."""
    weight = nn.Linear(8, 8, bias=False, device="meta").requires_grad_(False)
    seen = Activations(weight)
    with torch.device("meta"), seen:
        x = torch.empty(1, 4, 8)
        weight(x) @ x.transpose(1, 2)
    assert seen.attention_flops == 2 * 4 * 8 * 4
    assert seen.moved_bytes == 2 * x.nbytes


def test_repeated_counts_agree(demo: Sizing) -> None:
    """The positions are cached between passes, but every count sees them made."""
    assert demo.denoise(frames=8, rows=2) == demo.denoise(frames=8, rows=2)


def test_batches_between_the_counted_ones_are_exact(demo: Sizing) -> None:
    """What is put between the smallest and the largest batch is what a count of it gives."""
    works = demo.works(frames=8, batches=(1, 2, 3, 4))
    assert [work.batch for work in works] == [1, 2, 3, 4]
    assert [work.denoise for work in works] == [demo.denoise(frames=8, rows=2 * batch) for batch in (1, 2, 3, 4)]


def test_a_pass_is_linear_in_its_clips(demo: Sizing) -> None:
    """What is shown as one pass is what a pass over a single clip computes, but for the moments that clips share."""
    (work,) = demo.works(frames=8, batches=(3,))
    assert work.pass_flops == pytest.approx(demo.denoise(frames=8, rows=1).flops, rel=1e-3)


def test_one_batch_alone_can_be_asked_for(demo: Sizing) -> None:
    """A single batch size needs no line through two points."""
    (work,) = demo.works(frames=8, batches=(3,))
    assert work.denoise == demo.denoise(frames=8, rows=6)


def test_decoding_grows_with_the_frames(demo: Sizing) -> None:
    """Frames are decoded one by one, so twice as many cost exactly twice."""
    short, long = demo.decode(8), demo.decode(16)
    assert (long.flops, long.moved_bytes, long.attention_flops) == (2 * short.flops, 2 * short.moved_bytes, 0)
