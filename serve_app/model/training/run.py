"""A whole training run in a folder: tokenizer, autoencoder, text encoder, encoded clips, denoiser, checkpoint.

Each stage ends in a file of its own and is not repeated when the run is started again; a stage that was stopped goes
on from its last checkpoint. On CPUs the run is shared by workers of one thread each; the first is the calling
process, so that progress needs no wire. What comes out is a checkpoint folder as `native` loads it, with the encoder,
which only the judge needs, and a model card.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from serve_app.model.native import tokenizer as tokenizers
from serve_app.model.native.config import NativeConfig
from serve_app.model.native.denoiser import DenoiserNet
from serve_app.model.native.native import CHECKPOINT_FOLDER, CONFIG_FILE, WEIGHTS_FILE
from serve_app.model.native.tokenizer import Tokenizer
from serve_app.model.training import model_card
from serve_app.model.training.recipe import Recipe, Schedule
from serve_app.model.training.record import Record, open_record
from serve_app.model.training.stages import clips
from serve_app.model.training.stages.autoencoding import Autoencoder, Autoencoding
from serve_app.model.training.stages.clip import adapted, adopt
from serve_app.model.training.stages.denoising import Denoising, initialise
from serve_app.model.training.stages.text_encoding import Reader, Reading
from serve_app.model.training.stages.trainer import Progress, Stage, Trainer, Worker
from serve_app.model.training.world import prompts

_M = TypeVar("_M", bound=nn.Module)
Report = Callable[[Progress], None]


def train(
    config: NativeConfig,
    recipe: Recipe,
    folder: Path,
    *,
    workers: int = 1,
    device: str = "cpu",
    clip: Path | None = None,
    report: Report,
) -> Path:
    """Train, or go on training, in `folder`; returns the checkpoint folder in it.

    With `clip`, a CLIP checkpoint's folder, its text encoder and tokenizer are used instead of trained ones.

    `report` is called after every step with that step's figures. Ctrl-C and SIGTERM save the stage that runs and raise
    KeyboardInterrupt. Raises ValueError for more workers than a batch feeds, or than one on a device that is no CPU;
    Conflict for a folder whose run has another recipe, seed or number of workers and could not take the same steps.
    """
    check_workers(recipe, workers, device)
    config = config if clip is None else adapted(config, clip)
    folder.mkdir(parents=True, exist_ok=True)
    record = open_record(folder, config, recipe, workers, device)
    if clip is not None:
        adopt(config, clip, folder)
    with record.timed(), _colleagues(config, recipe, folder, workers, device), _one_thread(device):
        out = _Run(config, recipe, folder, Worker(0, workers), device, report).whole()
    write_card(out, config, recipe, record)
    return out


def check_workers(recipe: Recipe, workers: int, device: str) -> None:
    """Raise ValueError when `workers` cannot share a run of `recipe` on `device`."""
    if workers > 1 and device != "cpu":
        raise ValueError("Several workers share a run on CPUs only.")
    if not 1 <= workers <= recipe.most_workers:
        raise ValueError(f"This recipe's batches feed 1 to {recipe.most_workers} workers, not {workers}.")


@contextmanager
def _colleagues(config: NativeConfig, recipe: Recipe, folder: Path, workers: int, device: str) -> Iterator[None]:
    """Start the other workers and join their group; they end with this process, whatever ends it."""
    if workers == 1:
        yield
        return
    with ExitStack() as stack:
        stack.callback(_leave)  # last, when the others are gone: they would complain of a closed connection
        meeting = stack.enter_context(tempfile.TemporaryDirectory()) + "/meeting"
        context = multiprocessing.get_context("spawn")
        for rank in range(1, workers):
            arguments = (config, recipe, folder, Worker(rank, workers), device, meeting)
            process = context.Process(target=_colleague, args=arguments, daemon=True)
            with _deaf_to_interrupts():
                process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=workers)
        yield
        dist.barrier()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that start meanwhile ignore Ctrl-C, which a terminal sends to all: the first worker decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _colleague(config: NativeConfig, recipe: Recipe, folder: Path, worker: Worker, device: str, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=worker.rank, world_size=worker.count)
    with _one_thread(device):
        _Run(config, recipe, folder, worker, device, lambda _: None).whole()
    dist.barrier()


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Run:
    config: NativeConfig
    recipe: Recipe
    folder: Path
    worker: Worker
    device: str
    report: Report

    def whole(self) -> Path:
        """Take every stage that is not done yet."""
        tokenizer = self._tokenizer()
        autoencoder = self._autoencoder()
        reader = self._reader(tokenizer)
        denoiser = self._denoiser(autoencoder, reader, tokenizer)
        out = self.folder / CHECKPOINT_FOLDER
        if self.worker.rank == 0:
            parts = {"text_encoder": reader.text_encoder, "denoiser": denoiser}
            parts |= {"decoder": autoencoder.decoder, "encoder": autoencoder.encoder}
            write_checkpoint(out, self.config, parts, tokenizer)
        self.worker.meet()
        return out

    def _tokenizer(self) -> Tokenizer:
        path = self.folder / tokenizers.FILE
        if self.worker.rank == 0 and not path.exists():
            texts = prompts.corpus(np.random.default_rng(self.recipe.seed), self.recipe.captions)
            path.write_text(tokenizers.train(texts, self.config.text_encoder.vocab_size), "utf-8")
        self.worker.meet()
        return Tokenizer(path)

    def _autoencoder(self) -> Autoencoder:
        torch.manual_seed(self.recipe.seed)
        module = Autoencoder(self.config.autoencoder)
        batch = self.recipe.autoencoder.batch // self.worker.count
        return self._stage(module, Autoencoding(module, self.recipe, batch=batch, device=self.device))

    def _reader(self, tokenizer: Tokenizer) -> Reader:
        torch.manual_seed(self.recipe.seed)
        module = Reader(self.config.text_encoder)
        batch = self.recipe.text_encoder.batch // self.worker.count
        return self._stage(module, Reading(module, tokenizer, batch=batch, device=self.device))

    def _denoiser(self, autoencoder: Autoencoder, reader: Reader, tokenizer: Tokenizer) -> DenoiserNet:
        torch.manual_seed(self.recipe.seed)
        module = DenoiserNet(self.config.denoiser)
        initialise(module)
        denoising = Denoising(
            module,
            reader.text_encoder,
            tokenizer,
            {frames: self._clips(autoencoder, count, frames) for frames, count in self.recipe.clips.items()},
            batch=self.recipe.denoiser.batch // self.worker.count,
            max_tokens=self.config.text_encoder.max_tokens,
            noise=NormalDist(self.recipe.noise_mean, self.recipe.noise_deviation),
            caption_dropout=self.recipe.caption_dropout,
            device=self.device,
        )
        return self._stage(module, denoising)

    def _clips(self, autoencoder: Autoencoder, count: int, num_frames: int) -> clips.Clips:
        name = f"clips of {num_frames} frames"
        return clips.clips(
            self.folder,
            autoencoder.encoder,
            count=count,
            num_frames=num_frames,
            seed=self.recipe.seed,
            worker=self.worker,
            progress=lambda done, of: self.report(Progress(name, done, of, {})),
        )

    def _stage(self, module: _M, stage: Stage) -> _M:
        """Return the stage's averaged weights: from its file, or by training, which writes the file."""
        path = self.folder / f"{stage.name}.safetensors"
        module.to(self.device)
        if not path.exists():
            schedule: Schedule = getattr(self.recipe, stage.name)
            trainer = Trainer(stage, schedule, seed=self.recipe.seed, folder=self.folder, worker=self.worker)
            average = trainer.run(self.report)
            if self.worker.rank == 0:
                save_file(average.state_dict(), path)
            self.worker.meet()
        module.load_state_dict(load_file(path, device=self.device))
        return module.eval()


def write_checkpoint(folder: Path, config: NativeConfig, parts: dict[str, nn.Module], tokenizer: Tokenizer) -> None:
    """Write the folder that `native` loads: half-precision weights of all parts in one file, tokenizer and sizes."""
    folder.mkdir(exist_ok=True)
    tensors = {
        f"{part}.{name}": tensor.half().contiguous().cpu()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).chmod(0o644)  # the library keeps its files to the owner; a package is for all users
    (folder / tokenizers.FILE).write_bytes(tokenizer.path.read_bytes())
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(config), indent=1) + "\n", "utf-8")


def write_card(folder: Path, config: NativeConfig, recipe: Recipe, record: Record) -> None:
    """Write the model card into a checkpoint folder; what an evaluation filled in for other weights goes."""
    text = model_card.model_card(config, recipe, record, model_card.sizes(folder / WEIGHTS_FILE))
    (folder / model_card.FILE).write_text(text, "utf-8")
