"""`encore invalidate`: one key as ever, or all that an option chooses; told in a line or as the server's own JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import typer

from serve_app.client import Encore, Invalidation

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def show_invalidated(key: str, *, url: str | None, as_json: bool) -> None:
    """Delete `key` everywhere and tell where it was; raises what the client raises."""
    with Encore(url) as encore:
        removed = encore.invalidate(key)
    if as_json:
        typer.echo(json.dumps({"key": removed.key, "deleted": removed.deleted}))
    elif removed.deleted:
        typer.echo(f"deleted from {', '.join(removed.deleted)}")
    else:
        typer.echo("no tier had it")


def show_invalidation(chosen: Mapping[str, Any], *, url: str | None, as_json: bool) -> None:
    """Invalidate what is `chosen` (`older_than` as `age_seconds` reads it); raises what the client raises."""
    choice = dict(chosen)
    if "older_than" in choice:
        choice["older_than_seconds"] = age_seconds(choice.pop("older_than"))
    with Encore(url) as encore:
        told = encore.invalidate_where(**choice)
    if as_json:
        rule = {"selector": told.selector, "before": told.before}
        answer = {"rule": rule, "epoch": told.epoch, "deleted": dict(told.deleted), "known": told.known}
        typer.echo(json.dumps(answer))
        return
    typer.echo(_line(told))


def _line(told: Invalidation) -> str:
    """Say what was chosen and what is known of it; `deleted` is what one router has lost at once."""
    when = datetime.fromtimestamp(told.before).astimezone().isoformat(timespec="seconds")
    what = "everything" if told.selector == "everything" else f"what the {told.selector} chooses"
    line = f"invalidated: {what}, begun before {when}"
    if told.known is False:
        unknown = {"key": "no tier had it", "fingerprint": "this server makes nothing by it now"}
        return f"{line}; {unknown.get(told.selector, 'the server does not know it')}"
    gone = ", ".join(f"{count} from {tier}" for tier, count in told.deleted.items() if count)
    rest = "" if told.selector == "key" else "; the shared tiers lose theirs in the background"
    return f"{line}; deleted at once by the router that answered: {gone or 'nothing in its memory'}{rest}"


def age_seconds(text: str) -> float:
    """Return the seconds of an age such as `90`, `15m`, `12h` or `3d`; raises typer.BadParameter."""
    read = _AGE.fullmatch(text.strip())
    if read is None:
        raise typer.BadParameter(f"'{text}' is no age: say 90, 15m, 12h or 3d.")
    return float(read[1]) * _SECONDS[read[2]]
