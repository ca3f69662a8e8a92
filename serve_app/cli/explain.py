"""`encore explain`: one prompt with the help of the server, or thousands without one.

A server knows its own model and its tiers, so it is asked first; without one the planner of this process answers all
but the tiers. Neither way imports torch, Ray or transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, BinaryIO

import typer
from pydantic import ValidationError

from serve_app.cli.fields import Fields
from serve_app.errors import EncoreError, InvalidRequest
from serve_app.schema import parse_request
from serve_app.service.plan import Planner
from serve_app.settings import Settings
from serve_app.wiring.model import batch_invariant, open_planner


def explain_one(prompt: str, fields: Fields, *, url: str | None, as_json: bool) -> None:
    """Print what `prompt` means; raises what the server, or without one the planner, refuses."""
    try:
        explanation = _from_server(prompt, fields, url)
    except EncoreError as error:
        if isinstance(error, InvalidRequest) and error.param is not None:  # an Encore server, and it means this field
            raise
        settings = _settings(fields)
        explanation = open_planner(settings).plan(parse_request({"prompt": prompt, **fields})).explained()
        explanation |= {"tiers": None, "batch_invariant": batch_invariant(settings)}
        typer.echo(f"encore: Which tier has it is not known: {error.message}", err=True)
    typer.echo(json.dumps(explanation, ensure_ascii=False) if as_json else "\n".join(_told(explanation)))


def explain_lines(lines: Iterable[bytes], out: BinaryIO, fields: Fields) -> bool:
    """Write one JSON object per line of UTF-8, each as soon as its line was read; return whether all were usable.

    A line that cannot be used becomes `{"prompt", "error"}`. Raises NotFound for an unknown model.
    """
    planner = open_planner(_settings(fields))
    all_usable = True
    for line in lines:
        answer = _explained(line.rstrip(b"\r\n"), planner, fields)
        all_usable = all_usable and "error" not in answer
        out.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
        out.flush()
    return all_usable


def _explained(line: bytes, planner: Planner, fields: Fields) -> dict[str, Any]:
    prompt = line.decode(errors="replace")
    try:
        if prompt.encode() != line:
            raise InvalidRequest("The line is not UTF-8.", param="prompt")
        explanation = planner.plan(parse_request({"prompt": prompt, **fields})).explained()
    except EncoreError as error:
        return {"prompt": prompt, **error.wire()}
    told = {name: explanation[name] for name in ("prompt", "normalised", "keys")}
    return told | {name: explanation[name] for name in ("corrected", "notice") if explanation[name]}


def _settings(fields: Fields) -> Settings:
    """Return the environment's, with the model that was asked for where one was."""
    try:
        return Settings(**{"model": fields["model"]} if "model" in fields else {})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise InvalidRequest(f"The environment's ENCORE_{str(first['loc'][0]).upper()}: {first['msg']}.") from None


def _from_server(prompt: str, fields: Fields, url: str | None) -> dict[str, Any]:
    from serve_app.client import Encore  # thousands of lines need no HTTP

    with Encore(url) as encore:
        answer = encore.explain(prompt, **fields)
    return {
        "prompt": answer.prompt,
        "normalised": answer.normalised,
        "changes": answer.extra.get("changes", []),
        "corrected": answer.extra.get("corrected", []),
        "notice": answer.notice,
        "keys": {"prompt": answer.keys.prompt, "latents": answer.keys.latents, "video": answer.keys.video},
        "spec": dict(answer.spec),
        "tiers": dict(answer.tiers),
        "batch_invariant": answer.extra.get("batch_invariant"),
    }


def _told(explanation: dict[str, Any]) -> list[str]:
    """Return lines for a person; prompts are quoted and escaped, so that what is invisible shows."""
    lines = [_row("prompt", repr(explanation["prompt"]))]
    lines += [_row("", f"{change.get('step')}: {change.get('after')!r}") for change in explanation["changes"]]
    lines += [_row("corrected", f"{each['from']!r} to {each['to']!r}") for each in explanation["corrected"]]
    lines.append(_row("normalised", repr(explanation["normalised"])))
    lines += [_row("notice", explanation["notice"])] if explanation["notice"] else []
    spec = {name: value for name, value in explanation["spec"].items() if name != "prompt"}
    lines.append(_row("spec", ", ".join(f"{name}={value!r}" for name, value in spec.items())))
    lines += [_row(f"key({stage})", key) for stage, key in explanation["keys"].items()]
    lines.append(_row("bytes", _ALONE[explanation["batch_invariant"]]))
    return [*lines, _row("tiers", _tiers(explanation["tiers"]))]


_ALONE = {
    True: "depend on the request alone",
    False: "depend on what is rendered beside it, in last bits (batch_invariant is off)",
    None: "depend on the request alone where the model computes on a CPU (batch_invariant)",
}


def _row(name: str, value: str) -> str:
    return f"{name:<14}{value}"


def _tiers(tiers: dict[str, bool | None] | None) -> str:
    if tiers is None:
        return "not known"
    words = {True: "has the video", False: "no", None: "not known"}
    return ", ".join(f"{tier}: {words[held]}" for tier, held in tiers.items())
