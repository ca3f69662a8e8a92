"""What the denoiser makes of prompts: once each, put together without a trace of the others."""

import pytest
import torch

from serve_app.model.native.condition import Prompts, last_tokens, moments
from serve_app.model.native.config import DenoiserConfig
from serve_app.model.native.denoiser import DenoiserNet
from serve_app.model.native.weights import SeededWeights
from serve_app.model.sampler import initial_noise

SMALL = DenoiserConfig(
    outer_channels=16, outer_blocks=1, inner_channels=24, inner_blocks=2, num_heads=2, context_dim=12
)
LENGTHS = (3, 7, 1)


@pytest.fixture(scope="module")
def net() -> DenoiserNet:
    made = DenoiserNet(SMALL).eval()
    SeededWeights(0).fill(made, "denoiser")
    return made


@pytest.fixture(scope="module")
def contexts() -> list[torch.Tensor]:
    return [initial_noise((length, 12), length) for length in LENGTHS]


def prepared(net: DenoiserNet, context: torch.Tensor) -> Prompts:
    return net.prepare(context[None], torch.ones(1, len(context), dtype=torch.bool))


def test_prompts_together_keep_their_rows_and_hide_the_padding(net: DenoiserNet, contexts: list[torch.Tensor]) -> None:
    """Each row holds the bits of its own prompt, and the mask is True on just so many tokens."""
    parts = [prepared(net, context) for context in contexts]
    together = Prompts.together(parts)
    assert together.key_value.shape == (3, 7, 2, 48)
    assert together.mask.sum(dim=1).tolist() == list(LENGTHS)
    for i, (part, length) in enumerate(zip(parts, LENGTHS, strict=True)):
        assert together.mask[i, :length].all()
        assert torch.equal(together.key_value[i, :length], part.key_value[0])
        assert torch.equal(together.whole[i], part.whole[0])
        assert torch.equal(together.whole_at[i], part.whole_at[0])


def test_prepared_prompts_give_what_training_s_forward_gives(net: DenoiserNet, contexts: list[torch.Tensor]) -> None:
    """Serving prepares prompts one by one, training a padded batch: the velocities agree to rounding."""
    latents, levels = initial_noise((3, 8, 5, 4, 6), 1), torch.tensor([0.1, 0.5, 0.9])
    padded = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True, padding_value=9.0)
    mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        together = Prompts.together([prepared(net, context) for context in contexts])
        served = net.denoise(latents, levels, together)
        torch.testing.assert_close(served, net(latents, levels, padded, mask), atol=1e-5, rtol=0)


def test_training_reaches_every_weight_through_the_prompts(net: DenoiserNet, contexts: list[torch.Tensor]) -> None:
    """The forward pass is differentiable in the context and in all parameters, keys and values among them."""
    context = contexts[0][None].requires_grad_()
    velocity = net(initial_noise((1, 8, 4, 4, 4), 1), torch.tensor([0.5]), context, torch.ones(1, 3, dtype=torch.bool))
    wanted = {"context": context, **dict(net.named_parameters())}
    gradients = torch.autograd.grad(velocity.square().mean(), list(wanted.values()))
    assert [name for name, each in zip(wanted, gradients, strict=True) if not each.any()] == []


def test_the_timestep_is_read_once_for_both_levels(net: DenoiserNet, contexts: list[torch.Tensor]) -> None:
    """A pass runs the timestep's layers once, and a level's condition does not depend on what the other asks for."""
    calls: list[object] = []
    handle = net.condition.timestep.register_forward_hook(lambda *given: calls.append(given))
    prompts = prepared(net, contexts[0])
    with torch.no_grad():
        net.denoise(initial_noise((1, 8, 5, 4, 4), 1), torch.tensor([0.5]), prompts)
        assert len(calls) == 1
        outer, inner = net.condition(torch.tensor([0.5]), prompts, (5, 3))
        (alone,) = net.condition(torch.tensor([0.5]), prompts, (3,))
    handle.remove()
    assert (outer.shape, inner.shape) == ((1, 5, 24), (1, 3, 24))
    assert torch.equal(inner, alone)


def test_moments_made_while_serving_can_be_trained_with() -> None:
    """The cached moments are ordinary tensors, also when inference mode asked for them first, one row a frame."""
    with torch.inference_mode():
        made = moments(13, torch.device("cpu"))
    assert not made.is_inference()
    assert made is moments(13, torch.device("cpu"))
    assert torch.cdist(made, made).add(10 * torch.eye(13)).min() > 0.1


def test_the_last_real_token_is_picked() -> None:
    """What stands behind a row's mask is never its last token."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert last_tokens(torch.arange(6).view(2, 3, 1), mask).tolist() == [[2], [3]]
