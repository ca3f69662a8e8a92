"""What does each speed setting of a Wan model give, and what does it cost?

    python benchmarks/wan_settings.py

`quantization` and `torch_compile`: guided passes (two rows) of the transformer of `wan_checkpoint.py`, at 560 tokens a
row: seconds, the bytes that its weights hold, how far its velocities are from the plain ones (root mean squares).
`vae_tiling`: decoding 480x640x17: seconds, the most memory held beyond what was held before, how far frames are from
the plain ones (of 255). `text_device`: what the text encoder holds, which moves with it, and its seconds a prompt.
Every line is a process of its own, float32, on the CPU of a Linux machine. Bytes and distances are a GPU's as well; its
seconds are not, and no GPU has run this: what torch.compile fuses waits for memory there, far more than here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wan_checkpoint
from form import Goal, Result, Row, main
from torch import Tensor, nn
from wan_sides import Size, spec

from serve_app.model.sampler import initial_noise
from serve_app.model.wan.speed import Speed
from serve_app.model.wan.wan import WanFamily, from_folder

PASS, DECODE, TEXT = "guided pass, 560 tokens", "decode, 480x640x17", "encode two prompts"
SMALL, LARGE = Size(256, 448, 17), Size(480, 640, 17)
QUICK: dict[str, tuple[dict[str, Any], ...]] = {
    PASS: ({}, {"quantization": "int8"}, {"quantization": "fp8"}, {"torch_compile": True}),
    DECODE: ({}, {"vae_tiling": True}),
}
FULL = {PASS: (*QUICK[PASS], {"quantization": "int8", "torch_compile": True}), DECODE: QUICK[DECODE], TEXT: ({},)}
WEIGHTS, INT8, FP8, COMPILED, TILED, TILED_MEMORY = 0.30, 0.02, 0.06, 1.0, 8.0, 0.75


def measure(quick: bool) -> Result:
    with tempfile.TemporaryDirectory(prefix="encore-wan-") as place:
        os.environ["XDG_CACHE_HOME"] = place  # digests of weights that are gone in a minute are not to be remembered
        folder = Path(place) / "checkpoint"
        wan_checkpoint.save(folder)
        rows = [
            row
            for work, settings in (QUICK if quick else FULL).items()
            for row in _lines(work, settings, folder, 1 if quick else 5)
        ]
    return Result(rows, goals(rows), {"threads": len(os.sched_getaffinity(0))})


def _lines(work: str, settings: Sequence[dict[str, Any]], folder: Path, rounds: int) -> list[Row]:
    """Measure one work with each of its settings; the plain one comes first and is what others are apart from."""
    rows: list[Row] = []
    answers: list[np.ndarray] = []
    for number, options in enumerate(settings):
        kept = folder.parent / f"{number}.npy"
        command = [sys.executable, __file__, "alone", work, str(folder), str(rounds), str(kept), json.dumps(options)]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(ended.stdout.splitlines()[-1])
        answers.append(np.load(kept).astype(np.float64))
        apart = float(np.sqrt(np.mean((answers[-1] - answers[0]) ** 2)))
        if work != DECODE:
            apart /= float(np.sqrt(np.mean(answers[0] ** 2)))
        words = ", ".join(f"{name}={value}" for name, value in options.items()) or "plain"
        rows.append({"work": work, "settings": words, **found, "apart": apart})
    return rows


def goals(rows: list[Row]) -> list[Goal]:
    """Judge that each setting gives what it is there for, and stays near the plain answer."""
    by = {(row["work"], row["settings"]): row for row in rows}
    plain, decoded, tiled = by[PASS, "plain"], by[DECODE, "plain"], by[DECODE, "vae_tiling=True"]
    compiled = by[PASS, "torch_compile=True"]
    small = {name: by[PASS, f"quantization={name}"] for name in ("int8", "fp8")}
    return [
        *(
            Goal.at_most(f"{name}: bytes of weights over plain", _over(row, plain, "weights, MB"), WEIGHTS)
            for name, row in small.items()
        ),
        Goal.at_most("int8: velocities apart from plain", float(small["int8"]["apart"]), INT8),
        Goal.at_most("fp8: velocities apart from plain", float(small["fp8"]["apart"]), FP8),
        Goal.at_most("torch_compile: seconds over plain", _over(compiled, plain, "s"), COMPILED),
        Goal.at_most("vae_tiling: memory over plain", _over(tiled, decoded, "peak beyond, MB"), TILED_MEMORY),
        Goal.at_most("vae_tiling: frames apart from plain, of 255", float(tiled["apart"]), TILED),
    ]


def _over(row: Row, plain: Row, column: str) -> float:
    return float(row[column]) / float(plain[column])


def _alone(work: str, folder: Path, rounds: int, kept: Path, options: dict[str, Any]) -> Row:
    """Measure one line in this process, and keep its answer."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    family = from_folder(folder, "float32", Speed(**options))
    began = time.perf_counter()
    nets, run = {PASS: _pass, DECODE: _decode, TEXT: _text}[work](family)
    loaded = time.perf_counter() - began
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _memory("VmRSS")
    answer, taken = run(), []  # the first warms
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    np.save(kept, np.asarray(answer))
    held = sum(tensor.nbytes for net in nets for tensor in (*net.parameters(), *net.buffers()))
    beyond = _memory("VmHWM") - before
    return {"s": min(taken), "weights, MB": held / 1e6, "peak beyond, MB": beyond / 1e6, "load, s": loaded}


def _pass(family: WanFamily) -> tuple[list[nn.Module], Callable[[], Tensor]]:
    denoiser: Any = family.load_denoiser("cpu")
    shape = denoiser.latent_shape(spec(SMALL, 1))
    latents, timesteps = initial_noise((2, *shape), 1), torch.tensor([700.0, 700.0])
    prompts = [denoiser.prepare(initial_noise((tokens, wan_checkpoint.TEXT_DIM), tokens)) for tokens in (30, 20)]
    return denoiser._nets, lambda: denoiser.predict(latents, timesteps, prompts)


def _decode(family: WanFamily) -> tuple[list[nn.Module], Callable[[], Any]]:
    decoder: Any = family.load_decoder("cpu")
    latents = initial_noise((wan_checkpoint.Z_DIM, 5, LARGE.height // 16, LARGE.width // 16), 1).half()
    return [decoder._net], lambda: decoder.decode(latents)


def _text(family: WanFamily) -> tuple[list[nn.Module], Callable[[], Tensor]]:
    encoder: Any = family.load_text_encoder("cpu")
    return [encoder._net], lambda: torch.cat(encoder.encode([wan_checkpoint.PROMPTS[0], wan_checkpoint.NEGATIVE]))


def _memory(kind: str) -> int:
    """Return bytes of this process's memory: VmRSS those held now, VmHWM the most that were."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[kind].split()[0]) * 1024


def draw(axes: Any, result: Result) -> None:
    """Draw seconds of each setting over the plain ones of the same work."""
    plain = {row["work"]: float(row["s"]) for row in result.rows if row["settings"] == "plain"}
    names = [f"{row['work']}: {row['settings']}" for row in result.rows]
    axes.barh(names, [float(row["s"]) / plain[row["work"]] for row in result.rows])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel="seconds / plain", title="Wan's speed settings, float32 on the CPU")


if __name__ == "__main__":
    if sys.argv[1:2] == ["alone"]:
        work, folder, rounds, kept, options = sys.argv[2:]
        print(json.dumps(_alone(work, Path(folder), int(rounds), Path(kept), json.loads(options))))
    else:
        sys.exit(main(__doc__ or "", measure, draw))
