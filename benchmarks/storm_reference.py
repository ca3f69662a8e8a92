"""What the same requests give without any cache: the model's parts, the engine, the encoder, in one process of its own.

One request after the other and nobody else in a pass; no tier, no flight, no router. Only planning is shared with the
server, for it says what a request means; a wrong key cannot hide behind it, since answers are compared by their bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def reference(requests: Sequence[dict[str, Any]], torch_threads: int) -> list[str]:
    """Return the SHA-256 of each request's file; computed in a child process, which takes its memory along."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps({"requests": requests, "torch_threads": torch_threads}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    digests: list[str] = json.loads(done.stdout)
    return digests


async def digests(requests: Iterable[dict[str, Any]], torch_threads: int) -> list[str]:
    """Render each request and return the digest of its file."""
    from serve_app.engine.engine import StepEngine
    from serve_app.engine.threads import torch_thread
    from serve_app.media import encode_mp4
    from serve_app.model.families import load_family
    from serve_app.schema import parse_request
    from serve_app.settings import Settings
    from serve_app.telemetry import Telemetry
    from serve_app.wiring.model import open_planner

    family, planner = load_family("native/demo"), open_planner(Settings(model="native/demo"))
    text_encoder = family.load_text_encoder("cpu")
    encoding = torch_thread("text-encoder", torch_threads)  # how many threads share a product decides its last bits
    engine = StepEngine(
        family.load_denoiser("cpu"),
        family.load_decoder("cpu"),
        max_batch_size=1,
        telemetry=Telemetry(),
        torch_threads=torch_threads,
    )
    await engine.start()
    found = []
    for number, request in enumerate(requests):
        spec = planner.plan(parse_request(request)).spec
        prompts = [spec.prompt, spec.negative_prompt]
        prompt, negative = await asyncio.get_running_loop().run_in_executor(encoding, text_encoder.encode, prompts)
        rendering = await engine.render(
            str(number), spec, prompt, negative if spec.guided else None, lambda step, total: None
        )
        file = encode_mp4(rendering.frames, fps=spec.fps, quality=spec.quality)
        found.append(hashlib.sha256(file).hexdigest())
    await engine.stop()
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    json.dump(asyncio.run(digests(**json.load(sys.stdin))), sys.stdout)
