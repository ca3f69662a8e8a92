"""diffusers' WanPipeline and WanImageToVideoPipeline as the oracles: what they make of a spec, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from PIL import Image

from serve_app.core import Picture, VideoSpec


def spec(**fields: Any) -> VideoSpec:
    """A small video of a cat."""
    standard: dict[str, Any] = {
        "model": "wan", "prompt": "a cat walks on the grass, realistic style", "negative_prompt": "a red car",
        "seed": 3, "width": 96, "height": 64, "num_frames": 9, "fps": 16, "num_inference_steps": 4,
        "guidance_scale": 5.0,
    }  # fmt: skip
    return VideoSpec(**(standard | fields))


@torch.no_grad()
def plain(net: Any, latents: torch.Tensor, timesteps: torch.Tensor, embeds: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return what diffusers' own forward predicts, in float32, with texts padded as the pipeline pads them."""
    padded = [F.pad(each, (0, 0, 0, 512 - len(each))) for each in embeds]
    (velocity,) = net(
        hidden_states=latents.to(net.dtype),
        timestep=timesteps,
        encoder_hidden_states=torch.stack(padded).to(net.dtype),
        return_dict=False,
    )
    return velocity.float()


class Reference:
    """One pipeline, on the CPU in float32."""

    def __init__(self, pipeline: Any) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline

    def latents(self, spec: VideoSpec, image: Picture | None = None) -> list[torch.Tensor]:
        """Return the latents [channels, frames, height, width] after every step, and those that are decoded.

        image: uint8 RGB [height, width, 3] of the video's size, for the pipeline that takes one.
        """
        seen: list[torch.Tensor] = []

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            seen.append(tensors["latents"][0].clone())
            return tensors

        given = {} if image is None else {"image": Image.fromarray(image)}
        final = self.pipeline(
            prompt=spec.prompt,
            **given,
            negative_prompt=spec.negative_prompt,
            width=spec.width,
            height=spec.height,
            num_frames=spec.num_frames,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator().manual_seed(spec.seed),
            output_type="latent",
            callback_on_step_end=keep,
        ).frames[0]
        return [*seen[:-1], final]

    @torch.no_grad()
    def frames(self, latents: torch.Tensor) -> npt.NDArray[np.uint8]:
        """Decode latents as the pipeline does at its end; uint8 RGB [frames, height, width, 3]."""
        vae = self.pipeline.vae
        mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        video = vae.decode(latents[None].to(torch.float32) / (1.0 / std) + mean, return_dict=False)[0]
        pictures = self.pipeline.video_processor.postprocess_video(video, output_type="pil")[0]
        return np.stack([np.asarray(picture) for picture in pictures])
