"""The optimisers: who moves what, at one rate, and exact states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serve_app.model.training.recipe import Schedule
from serve_app.model.training.stages.optimiser import Optimisers

MUON = Schedule(steps=9, batch=4, learning_rate=0.01, muon=True)


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 48), nn.Linear(48, 2))


def stepped(net: nn.Sequential, optimisers: Optimisers, steps: int, rate: float = 0.01) -> list[Tensor]:
    for step in range(steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimisers.zero_grad()
        net(x).square().sum().backward()
        optimisers.step(rate)
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_muon_moves_hidden_matrices_alone() -> None:
    """The hidden matrix moves as far in all directions that it is pulled in; all else moves as AdamW moves it."""
    net, twin = a_net(), a_net()
    before = net[1].weight.detach().clone()
    after = stepped(net, Optimisers(net, MUON), 1)
    by_adam = stepped(twin, Optimisers(twin, Schedule(steps=9, batch=4, learning_rate=0.01)), 1)
    stretch = torch.linalg.svdvals(after[2] - before)
    assert stretch[1] > 0.5 * stretch[0]  # two outputs make a gradient of rank two
    assert [torch.equal(a, b) for a, b in zip(after, by_adam, strict=True)] == [True, True, False, True, True, True]


def test_a_rate_of_zero_moves_nothing() -> None:
    """Both kinds follow the rate they are given."""
    net = a_net()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    assert all(map(torch.equal, before, stepped(net, Optimisers(net, MUON), 2, rate=0.0)))


def test_a_state_goes_on_to_the_bit() -> None:
    """Saved after two steps and loaded into new optimisers, the third step is the one of an unbroken run."""
    net, twin = a_net(), a_net()
    whole = stepped(net, Optimisers(net, MUON), 4)
    first = Optimisers(twin, MUON)
    stepped(twin, first, 2)
    second = Optimisers(twin, MUON)
    second.load_state_dict(first.state_dict())
    for step in (2, 3):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        second.zero_grad()
        twin(x).square().sum().backward()
        second.step(0.01)
    assert all(map(torch.equal, whole, twin.parameters()))
