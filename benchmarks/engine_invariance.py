"""What `batch_invariant` costs the demo on a CPU: clips of 16 frames and 8 steps alone and eight at once, on and off.

Both models have the same weights and take turns, so that whatever else the machine does disturbs both; of each the best
round counts. Clips are denoised in one batch and decoded after it, through the engine's own steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from form import Row

from serve_app.core import VideoSpec
from serve_app.engine.denoising import Trajectory, advance
from serve_app.model.families import load_family

STEPS, TOGETHER = 8, 8
CASES = {"one clip": (1, False), "one guided clip": (1, True), f"{TOGETHER} guided clips at once": (TOGETHER, True)}


def renderer(batch_invariant: bool) -> Callable[[int, bool], None]:
    """Load the demo's parts on the CPU; return what makes so many clips, guided or not, and throws them away."""
    family = load_family("native/demo", batch_invariant=batch_invariant)
    denoiser, decoder = family.load_denoiser("cpu"), family.load_decoder("cpu")
    negative, prompt = family.load_text_encoder("cpu").encode(["", "a large blue star spinning"])
    guidance = family.card.guidance_scale.default

    def render(clips: int, guided: bool) -> None:
        scale = guidance if guided else 1.0
        batch = [Trajectory.of(denoiser, _spec(seed, scale), prompt, negative) for seed in range(clips)]
        for _ in range(STEPS):
            batch = advance(denoiser, batch)
        for trajectory in batch:
            decoder.decode(trajectory.final_latents())

    return render


def measure(threads: int, rounds: int) -> Row:
    """Return seconds a clip with it on and off, and their ratio, of every case."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        renderers = {on: renderer(on) for on in (True, False)}
        facts: Row = {}
        for name, (clips, guided) in CASES.items():
            taken: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(rounds):
                for on, render in renderers.items():
                    taken[on].append(_seconds(render, clips, guided))
            best = {on: min(each) / clips for on, each in taken.items()}
            facts[f"batch_invariant: {name}, s a clip, on"] = best[True]
            facts[f"batch_invariant: {name}, s a clip, off"] = best[False]
            facts[f"batch_invariant: {name}, on over off"] = best[True] / best[False]
        return facts
    finally:
        torch.set_num_threads(before)


def _spec(seed: int, guidance_scale: float) -> VideoSpec:
    return VideoSpec(
        model="native/demo", prompt="", negative_prompt="", seed=seed, width=64, height=64, num_frames=16, fps=16,
        num_inference_steps=STEPS, guidance_scale=guidance_scale,
    )  # fmt: skip


def _seconds(render: Callable[[int, bool], None], clips: int, guided: bool) -> float:
    began = time.perf_counter()
    render(clips, guided)
    return time.perf_counter() - began
