"""A part's weights into its class, by the libraries that wrote them, with nothing missing and nothing left over.

Both libraries would warn of a tensor that the file lacks and leave it random; a server must not start with that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from serve_app.errors import NotFound


def load(cls: Any, folder: Path, dtype: torch.dtype, device: str) -> Any:
    """Return a `cls` (of diffusers or transformers) with a folder's weights, on `device`, for inference.

    NotFound when the weights are not those of the folder's own configuration, or cannot be read.
    """
    name = "dtype" if cls.__module__.startswith("transformers.") else "torch_dtype"
    try:
        net, facts = cls.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, local_files_only=True, **{name: dtype}
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise NotFound(f"{folder} cannot be loaded as {cls.__name__}: {error}", param="model") from error
    _check(facts, folder)
    return net.eval().requires_grad_(False).to(device)


def _check(facts: Mapping[str, Any], folder: Path) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        found = sorted(map(str, facts[kind]))
        if found:
            words = kind.replace("_", " ")
            raise NotFound(
                f"The weights in {folder} do not fit their config: {words} {', '.join(found[:3])}.", param="model"
            )
