"""One pass over jobs of all sorts: shapes, two transformers, half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from serve_app.engine.denoising import Trajectory, advance
from serve_app.model.sampler import initial_noise
from serve_app.model.wan.denoiser import KEPT, WanDenoiser
from serve_app.model.wan.wan import WanFamily
from tests.serve_app.model.wan.reference import Reference, plain, spec
from tests.serve_app.model.wan.tiny_checkpoint import T2V_1_3B, T2V_A14B, TI2V_5B, Kind

Families = Callable[[Kind], WanFamily]


def loaded(wan: Families, kind: Kind) -> Any:
    denoiser = wan(kind).load_denoiser("cpu")
    assert isinstance(denoiser, WanDenoiser)
    return denoiser


@pytest.mark.parametrize(("kind", "shape"), [(TI2V_5B, (8, 3, 4, 6)), (T2V_1_3B, (4, 3, 8, 12))], ids=["5b", "1.3b"])
def test_the_shape_of_latents(wan: Families, kind: Kind, shape: tuple[int, ...]) -> None:
    """9 frames of 96x64 are 1 + 2 latents in time; the autoencoder says how many there are in space."""
    assert loaded(wan, kind).latent_shape(spec()) == shape


def test_a_row_goes_to_the_transformer_of_its_timestep(wan: Families, pipeline: Callable[..., Reference]) -> None:
    """In one pass rows at and above the boundary are the first transformer's, rows below it the second one's."""
    denoiser, reference = loaded(wan, T2V_A14B), pipeline(T2V_A14B).pipeline
    latents, timesteps = initial_noise((4, 4, 1, 4, 4), 1), torch.tensor([999.0, 874.0, 875.0, 10.0])
    embeds = [initial_noise((length, 32), length) for length in (1, 2, 3, 4)]
    predicted = denoiser.predict(latents, timesteps, [denoiser.prepare(each) for each in embeds])
    nets = [reference.transformer, reference.transformer_2, reference.transformer, reference.transformer_2]
    for row, net in enumerate(nets):
        expected = plain(net, latents[row : row + 1], timesteps[row : row + 1], embeds[row : row + 1])
        torch.testing.assert_close(predicted[row : row + 1], expected, atol=1e-5, rtol=0)


def test_all_rows_in_one_stage(wan: Families) -> None:
    """A transformer without rows is not asked at all."""
    denoiser = loaded(wan, T2V_A14B)
    prompt = denoiser.prepare(initial_noise((3, 32), 0))
    denoiser._nets[1].blocks = None  # would fail if it were used
    velocity = denoiser.predict(initial_noise((1, 4, 1, 4, 4), 1), torch.tensor([900.0]), [prompt])
    assert velocity.isfinite().all()


@pytest.mark.parametrize("steps", [1, 5])
def test_keys_and_values_are_computed_once_per_job(wan: Families, steps: int) -> None:
    """However many steps a guided job has, each of its two prompts goes through a block's text layers once."""
    denoiser = loaded(wan, TI2V_5B)
    calls: list[int] = []
    layer = denoiser._nets[0].blocks[0].attn2.to_k
    layer.register_forward_hook(lambda module, given, out: calls.append(len(given[0])))
    job = Trajectory.of(denoiser, spec(num_inference_steps=steps), initial_noise((9, 32), 1), initial_noise((2, 32), 2))
    while job.step < steps:
        (job,) = advance(denoiser, [job])
    assert len(calls) == 2


def test_tables_of_many_shapes_are_not_kept_forever(wan: Families) -> None:
    """Of more shapes than fit the oldest table is made again, and gives what it gave before."""
    denoiser = loaded(wan, TI2V_5B)
    prompt = denoiser.prepare(initial_noise((3, 32), 0))

    def predict(frames: int) -> torch.Tensor:
        velocity: torch.Tensor = denoiser.predict(
            initial_noise((1, 8, frames, 2, 2), 1), torch.tensor([500.0]), [prompt]
        )
        return velocity

    first = predict(1)
    for frames in range(2, KEPT + 3):
        predict(frames)
    assert len(denoiser._tables) == KEPT
    assert torch.equal(predict(1), first)


def test_predictions_are_float32_in_half_precision_too(wan: Families) -> None:
    """In bfloat16 the velocity stays near the float32 one and is handed over in float32, what norms need kept exact."""
    exact = loaded(wan, TI2V_5B)
    family = WanFamily("half", wan(TI2V_5B).checkpoint, "bfloat16")
    half: Any = family.load_denoiser("cpu")
    assert half._nets[0].blocks[0].attn1.to_q.weight.dtype is torch.bfloat16
    assert half._nets[0].scale_shift_table.dtype is torch.float32
    latents, embeds = initial_noise((1, 8, 3, 4, 6), 1), initial_noise((5, 32), 2)
    velocities = [each.predict(latents, torch.tensor([500.0]), [each.prepare(embeds)]) for each in (exact, half)]
    assert velocities[1].dtype is torch.float32
    torch.testing.assert_close(*velocities, atol=0.1, rtol=0.05)
