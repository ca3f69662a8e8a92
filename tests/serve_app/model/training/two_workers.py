"""What each of two processes does in the test of shared gradients; a module of its own, because they import it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from serve_app.model.training.recipe import SHORT, SHORT_MODEL, Schedule
from serve_app.model.training.stages.autoencoding import Autoencoder, Autoencoding
from serve_app.model.training.stages.trainer import Trainer, Worker

STEPS = Schedule(steps=3, batch=8, learning_rate=3e-3, warmup=1)


def trained(folder: Path, worker: Worker) -> None:
    """Train from one start in `folder` and write the weights that this worker ends with."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stage = Autoencoding(Autoencoder(SHORT_MODEL.autoencoder), SHORT, batch=STEPS.batch // worker.count)
    average = Trainer(stage, STEPS, seed=1, folder=folder, worker=worker).run()
    for name, module in {"module": stage.module, "average": average}.items():
        save_file(dict(module.named_parameters()), folder / f"{name}-{worker.rank}-of-{worker.count}.safetensors")


def work(rank: int, folder: Path) -> None:
    """Be one of two."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    trained(folder, Worker(rank, 2))
    dist.barrier()
    dist.destroy_process_group()
