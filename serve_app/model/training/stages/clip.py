"""A CLIP checkpoint as the text encoder of a model that is still to be trained.

Its text model and its own tokenizer go into the run's folder as if their stages were done, so that training goes
straight to the denoiser, whose context gets CLIP's width. Any folder in the layout of `transformers` will do: a whole
CLIP model or its text half, with `tokenizer.json`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from serve_app.errors import InvalidRequest
from serve_app.model.native import tokenizer as tokenizers
from serve_app.model.native.config import NativeConfig, TextEncoderConfig
from serve_app.model.native.text_encoder import TextEncoderNet
from serve_app.model.training.stages.text_encoding import Reader, Reading


def adapted(config: NativeConfig, clip: Path) -> NativeConfig:
    """Return `config` with the text encoder of the folder `clip`; InvalidRequest when that is no CLIP checkpoint."""
    from transformers import CLIPTextConfig

    _file(clip, "config.json")
    try:
        found = CLIPTextConfig.from_pretrained(clip, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{clip} is not a CLIP checkpoint: {error}", param="clip") from error
    text_encoder = TextEncoderConfig(
        vocab_size=found.vocab_size,
        hidden_size=found.hidden_size,
        intermediate_size=found.intermediate_size,
        num_layers=found.num_hidden_layers,
        num_heads=found.num_attention_heads,
        max_tokens=found.max_position_embeddings,
        context_dim=found.hidden_size,
        hidden_act=found.hidden_act,
    )
    denoiser = replace(config.denoiser, context_dim=found.hidden_size)
    return replace(config, text_encoder=text_encoder, denoiser=denoiser)


def adopt(config: NativeConfig, clip: Path, run: Path) -> None:
    """Put tokenizer and text encoder of `clip` into the run folder of an `adapted` config, unless there is one."""
    weights = run / f"{Reading.name}.safetensors"
    if weights.exists():
        return
    (run / tokenizers.FILE).write_bytes(_file(clip, tokenizers.FILE).read_bytes())
    reader = Reader(config.text_encoder)
    _fill(reader.text_encoder, clip)
    save_file(reader.state_dict(), weights)


def _fill(net: TextEncoderNet, clip: Path) -> None:
    from transformers import CLIPTextModel

    try:
        with _quiet():  # it would list every tensor of the vision half
            found = CLIPTextModel.from_pretrained(clip, local_files_only=True)
        net.clip.load_state_dict({name: tensor.float() for name, tensor in found.state_dict().items()})
    except (OSError, RuntimeError) as error:
        raise InvalidRequest(f"{clip} is not a CLIP checkpoint: {error}", param="clip") from error


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # transformers' own signatures
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _file(clip: Path, name: str) -> Path:
    path = clip / name
    if not path.is_file():
        raise InvalidRequest(f"{clip} is not a CLIP checkpoint: it has no {name}.", param="clip")
    return path
