"""`encore vocabulary`: from earlier prompts to the words that typing mistakes may be corrected to.

It asks no server: the prompts may come from a log, from `GET /v1/videos`, or from the list one plans to warm up with.
"""

from __future__ import annotations

from collections.abc import Iterable

import typer

from serve_app.prompt.vocabulary import vocabulary_of
from serve_app.settings import Settings
from serve_app.wiring.model import open_family, open_normaliser


def print_vocabulary(prompts: Iterable[str], min_prompts: int) -> None:
    """Print each word on a line; what the prompts' own spelling is, the environment's settings decide."""
    settings = Settings()
    normaliser = open_normaliser(settings, open_family(settings).card.prompt_rules)
    for word in vocabulary_of(prompts, normaliser, min_prompts=min_prompts):
        typer.echo(word)
