"""`encore stats` and `models`: one call each, shown as a table or as the server's own JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from serve_app.client import Encore, Model

MIB = 2**20


def show_stats(*, url: str | None, as_json: bool) -> None:
    """Show the counters of the replica that answers; raises what the client raises."""
    with Encore(url) as encore:
        stats = encore.stats()
    if as_json:
        typer.echo(json.dumps(stats))
        return
    table = Table("", "figure", "value")
    table.columns[2].justify = "right"
    for group, figures in _groups("", stats):
        table.add_section()
        for index, (name, value) in enumerate(figures.items()):
            table.add_row("" if index else group, name, _figure(name, value))
    console = Console(markup=False)
    console.print(table)
    console.print(_whose(stats))


def _whose(stats: Mapping[str, Any]) -> str:
    """Say whose counts these are."""
    router = stats.get("router") or {}
    which, of = router.get("id", "?"), router.get("of")
    if of is None:
        return f"Counts of the router that answered ({which}) alone; the others could not be asked."
    sums = "" if of == 1 else "; 'all_routers' are the sums over all"
    return f"Counts of the router that answered ({which}), 1 of {of}{sums}."


def show_models(*, url: str | None, as_json: bool) -> None:
    """Show what each model accepts; raises what the client raises."""
    with Encore(url) as encore:
        models = encore.models()
    if as_json:
        typer.echo(json.dumps({"data": [{"id": model.id, **model.extra} for model in models]}))
        return
    console = Console(markup=False)
    for model in models:
        console.print(_ranges(model))


def _groups(path: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every level of a nested object that has figures of its own, with its path."""
    own = {name: value for name, value in figures.items() if not isinstance(value, dict)}
    if own:
        yield path or "this router", own
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _groups(f"{path} {name}".strip(), value)


def _figure(name: str, value: Any) -> str:
    if isinstance(value, int) and name.endswith("bytes"):
        return f"{value / MIB:,.1f} MiB"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _ranges(model: Model) -> Table:
    columns = ("minimum", "maximum", "step", "default")
    names = ", ".join((model.id, *model.extra.get("aliases", ())))
    table = Table("parameter", title=names, caption=model.extra.get("description"), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for name, allowed in model.extra.get("parameters", {}).items():
        table.add_row(name, *(str(allowed.get(column, "")) for column in columns))
    tokens = model.extra.get("max_prompt_tokens")
    table.add_row("prompt (tokens)", "", "" if tokens is None else str(tokens), "", "")
    return table
