"""The configured model, its planner and the devices it computes on; no weights are read, no torch is imported
unless a device must be chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from serve_app.core import ModelCard, PromptRules, VideoSpec
from serve_app.errors import InvalidRequest
from serve_app.media.media import encoder_fingerprint
from serve_app.model.batch_invariant import is_on
from serve_app.model.families import load_family
from serve_app.model.model import Family
from serve_app.model.wan.speed import Speed
from serve_app.prompt.prompt import Normaliser
from serve_app.prompt.synonyms import Synonyms
from serve_app.prompt.vocabulary import read_vocabulary
from serve_app.schema import VideoRequest, resolve
from serve_app.service.plan import Planner
from serve_app.settings import Settings

T = TypeVar("T")


def open_family(settings: Settings) -> Family:
    """Return the configured model; raises NotFound, and InvalidRequest for a setting that it does not have."""
    speed = Speed(settings.quantization, settings.torch_compile, settings.vae_tiling)
    return load_family(
        settings.model,
        checkpoint=settings.checkpoint,
        revision=settings.revision,
        dtype=settings.dtype,
        speed=speed,
        batch_invariant=settings.batch_invariant,
    )


def open_planner(settings: Settings, family: Family | None = None) -> Planner:
    """Return the planner of the configured model; raises what `open_family`, `open_normaliser` and Planner raise."""
    family = family or open_family(settings)
    return Planner(
        family,
        encoder_fingerprint(),
        max_prompt_chars=settings.max_prompt_chars,
        max_image_bytes=settings.max_image_bytes,
        max_image_pixels=settings.max_image_pixels,
        normaliser=open_normaliser(settings, family.card.prompt_rules),
        negative_prompt=settings.negative_prompt,
    )


def open_normaliser(settings: Settings, rules: PromptRules) -> Normaliser:
    """Return what normalises under a model's rules less those the settings switch off, with the deployment's files.

    Raises InvalidRequest for a file that cannot be used.
    """
    rules = replace(
        rules,
        traditional_to_simplified=rules.traditional_to_simplified and settings.traditional_to_simplified,
        spelling=rules.spelling and settings.unify_spelling,
        wrappers=rules.wrappers and settings.strip_wrappers,
        typos=rules.typos and settings.correct_typos,
    )
    vocabulary = _read("vocabulary_file", settings.vocabulary_file, read_vocabulary) or frozenset()
    plain = Normaliser(rules)
    read_synonyms = partial(Synonyms.read, normalise=lambda term: plain.trace(term, correct_typos=False).text)
    return Normaliser(
        rules, synonyms=_read("synonyms_file", settings.synonyms_file, read_synonyms), vocabulary=vocabulary
    )


def _read(setting: str, file: str | None, read: Callable[[Path], T]) -> T | None:
    try:
        return None if file is None else read(Path(file).expanduser())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"Setting '{setting}' ({file}): {error}", param=setting) from error


def default_spec(card: ModelCard) -> VideoSpec:
    """Return the spec of a request that leaves everything to the model."""
    return resolve(VideoRequest(prompt=""), card)


def compute_device(settings: Settings) -> str:
    """Return the torch device to compute on; `auto` takes a GPU where there is one."""
    return _device(settings.device)


def text_device(settings: Settings) -> str:
    """Return the torch device of the text encoder."""
    return _device(settings.text_device or settings.device)


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def batch_invariant(settings: Settings, device: str | None = None) -> bool | None:
    """Tell whether videos depend on their request alone; `device`: where Diffusion computes, if that is known.

    None: it is for the device to decide, and the device is not known.
    """
    return is_on(settings.batch_invariant, device or settings.device, torch_compile=settings.torch_compile)
