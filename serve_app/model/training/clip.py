"""A CLIP checkpoint as the text encoder of a model that is still to be trained.

Its text model and its own tokenizer go into the run's folder as if their stages were done, so that training goes
straight to the denoiser, whose context gets CLIP's width. Any folder in the layout of `transformers` will do: a whole
CLIP model or its text half, with `tokenizer.json`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from serve_app.errors import InvalidRequest
from serve_app.model.native import tokenizer as tokenizers
from serve_app.model.native.config import NativeConfig, TextEncoderConfig
from serve_app.model.native.text_encoder import TextEncoderNet
from serve_app.model.training.reading import Reader, Reading


def adopt(config: NativeConfig, clip: Path, run: Path) -> NativeConfig:
    """Put the text encoder of the checkpoint folder `clip` into the run folder `run`; returns the config to train.

    What is in the run folder already stays. Raises InvalidRequest when `clip` is no CLIP checkpoint.
    """
    changed = _config(config, clip)
    run.mkdir(parents=True, exist_ok=True)
    weights = run / f"{Reading.name}.safetensors"
    if not weights.exists():
        (run / tokenizers.FILE).write_bytes(_file(clip, tokenizers.FILE).read_bytes())
        reader = Reader(changed.text_encoder)
        _fill(reader.text_encoder, clip)
        save_file(reader.state_dict(), weights)
    return changed


def _config(config: NativeConfig, clip: Path) -> NativeConfig:
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


def _fill(net: TextEncoderNet, clip: Path) -> None:
    from transformers import CLIPTextModel

    try:
        net.clip.load_state_dict(CLIPTextModel.from_pretrained(clip, local_files_only=True).float().state_dict())
    except (OSError, RuntimeError) as error:
        raise InvalidRequest(f"{clip} is not a CLIP checkpoint: {error}", param="clip") from error


def _file(clip: Path, name: str) -> Path:
    path = clip / name
    if not path.is_file():
        raise InvalidRequest(f"{clip} is not a CLIP checkpoint: it has no {name}.", param="clip")
    return path
