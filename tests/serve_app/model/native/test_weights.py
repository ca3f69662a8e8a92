import torch
from torch import nn

from serve_app.model.native.weights import SeededWeights


def filled(seed: int, part: str) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300), nn.Conv2d(50, 60, 3))
    SeededWeights(seed).fill(module, part)
    return module


def test_weights_depend_on_seed_and_part_alone() -> None:
    """The global generator does not matter; another seed or another part gives other weights."""
    first = filled(1, "a")[0].weight
    torch.rand(3)
    assert torch.equal(first, filled(1, "a")[0].weight)
    assert not torch.equal(first, filled(2, "a")[0].weight)
    assert not torch.equal(first, filled(1, "b")[0].weight)


def test_filling_leaves_the_global_generator_alone() -> None:
    """Loading a model changes nobody else's random numbers."""
    module = nn.Linear(4, 4)
    state = torch.get_rng_state()
    SeededWeights(1).fill(module, "a")
    assert torch.equal(state, torch.get_rng_state())


def test_weights_keep_signals_at_unit_scale() -> None:
    """Matrices have variance 1/fan_in, biases are 0 and norm gains 1."""
    linear, norm, conv = filled(1, "a")
    assert abs(float(linear.weight.detach().std()) * 400**0.5 - 1) < 0.02
    assert abs(float(conv.weight.detach().std()) * 450**0.5 - 1) < 0.02
    assert not linear.bias.any()
    assert bool((norm.weight == 1).all())


def test_the_identity_names_seed_and_public_torch_version() -> None:
    """A CPU router and a GPU replica of one torch release agree on the identity."""
    version = torch.__version__.partition("+")[0]
    assert SeededWeights(7).identity == f"seeded:7:torch-{version}"
