import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from serve_app.model.native.weights import Checkpoint, SeededWeights


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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Half-precision weights of two parts, one of them with a BatchNorm but without its integer count."""
    torch.manual_seed(0)
    parts = {
        "encoder": nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, affine=False)),
        "text_encoder": nn.Linear(4, 5),
    }
    tensors = {
        f"{part}.{name}": torch.rand(tensor.shape).half()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    save_file(tensors, tmp_path / "weights.safetensors")
    return Checkpoint(tmp_path / "weights.safetensors")


def test_a_checkpoint_fills_each_part_with_its_own(checkpoint: Checkpoint) -> None:
    """Tensors go by the part before the dot, `encoder` not being `text_encoder`, and widen to the module's dtype."""
    linear = nn.Linear(4, 5)
    checkpoint.fill(linear, "text_encoder")
    assert linear.weight.dtype == torch.float32
    assert torch.equal(linear.weight, linear.weight.half().float())
    with pytest.raises(RuntimeError):
        checkpoint.fill(nn.Linear(4, 5), "encoder")


def test_a_checkpoint_fills_buffers_and_does_without_counts(checkpoint: Checkpoint) -> None:
    """A BatchNorm's statistics are filled in; its count of batches, which a checkpoint drops, stays."""
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, affine=False))
    before = module[1].running_var.clone()
    checkpoint.fill(module, "encoder")
    assert not torch.equal(module[1].running_var, before)
    assert int(module[1].num_batches_tracked) == 0


@pytest.mark.parametrize("module", [nn.Linear(4, 6), nn.Linear(4, 5, bias=False), nn.Bilinear(4, 5, 6)])
def test_weights_of_another_architecture_are_refused(checkpoint: Checkpoint, module: nn.Module) -> None:
    """Other shapes, missing or surplus names: RuntimeError instead of a half-filled module."""
    with pytest.raises(RuntimeError):
        checkpoint.fill(module, "text_encoder")


def test_a_checkpoint_knows_its_parts(checkpoint: Checkpoint) -> None:
    """A part is there when a name begins with it and a dot."""
    assert [checkpoint.has(part) for part in ("encoder", "text_encoder", "text", "decoder")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_checkpoints_identity_is_its_digest(checkpoint: Checkpoint) -> None:
    """Equal files have equal identities wherever they lie, others have others."""
    assert checkpoint.identity == f"sha256:{hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()}"
    save_file({"a.b": torch.zeros(1)}, checkpoint.path.parent / "other.safetensors")
    assert Checkpoint(checkpoint.path.parent / "other.safetensors").identity != checkpoint.identity
