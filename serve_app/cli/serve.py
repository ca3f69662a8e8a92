"""`encore serve`: check what can be checked at once, then become the launcher.

The launcher lives above this floor, so it is not imported but executed, in this very process: a supervisor's signals
and exit status are the server's own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer
import yaml
from pydantic import ValidationError

from serve_app.errors import InvalidRequest
from serve_app.model.families import checkpoint_path
from serve_app.model.wan.speed import PLAIN
from serve_app.setting_sources import meant, variable
from serve_app.settings import SECRETS, Settings, first_fault, refuse_secret

MODEL_SETTINGS = frozenset({"model", "checkpoint", "revision", "dtype", *PLAIN.__slots__})
LAUNCHER = "deployments.launcher.launcher"


def launch(
    *, port: int | None, cache_dir: Path | None, model: str | None, config: Path | None, assignments: Sequence[str]
) -> NoReturn:
    """Replace this process by the launcher; raises BadParameter or NotFound (no such model) before that."""
    if config is not None:
        _check_config(config)
    arguments = {
        "cache_dir": str(absolute(cache_dir or default_cache_dir(os.environ))),
        "port": port,
        "overrides": overrides(model, assignments),
        "config": None if config is None else str(config.absolute()),
    }
    if sys.stdout is not None:  # `>&-`
        sys.stdout.flush()
    # Signals wait until the launcher can handle them: Python's own answer to Ctrl-C while it imports is a traceback.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        os.execv(sys.executable, [sys.executable, "-P", "-m", LAUNCHER, json.dumps(arguments)])  # noqa: S606 - the point
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def absolute(folder: Path) -> Path:
    """Return a folder that was given on the command line, as an absolute path; raises BadParameter."""
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise typer.BadParameter(f"{folder}: {error}", param_hint="--cache-dir") from None


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """Return the user's cache folder for Encore (XDG Base Directory: a relative XDG_CACHE_HOME is ignored)."""
    base = Path(environment.get("XDG_CACHE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "encore"
    except RuntimeError:
        raise InvalidRequest(
            "This user has no home folder to keep the cache in; set HOME or ENCORE_CACHE_DIR, or give --cache-dir."
        ) from None


def overrides(model: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Return the settings that --model and --set change, checked and JSON-able; `none` unsets.

    Raises BadParameter for what is no setting, a secret, or not a value of it; NotFound and InvalidRequest for a model
    that cannot be served, Unprocessable for a negative prompt that it cannot read.
    """
    given = dict(_assignment(text) for text in assignments)
    if model is not None:
        if given.get("model", model) != model:
            raise typer.BadParameter(f"--model {model} and --set model={given['model']} contradict each other.")
        given["model"] = model
    settings = read_settings(given)
    checked = settings.model_dump(mode="json", include=set(given))
    if checked.get("negative_prompt") is not None:
        from serve_app.wiring.model import open_planner

        open_planner(settings)
    elif not MODEL_SETTINGS.isdisjoint(checked):
        from serve_app.wiring.model import open_family

        open_family(settings)
    for name in ("model", "checkpoint"):
        folder = checkpoint_path(checked[name]) if checked.get(name) else None
        checked |= {} if folder is None else {name: str(folder)}  # replicas run elsewhere
    return checked


def _assignment(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"'{text}' is not NAME=VALUE.", param_hint="--set")
    try:
        refuse_secret(name, value)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--set") from None
    if name not in Settings.model_fields:
        raise typer.BadParameter(f"There is no setting '{name}'{_meant(name)}.", param_hint="--set")
    return name, None if value.lower() == "none" else value


def _meant(name: str) -> str:
    known = [each for each in Settings.model_fields if each not in SECRETS]
    return meant(name, known) or f"; there are {', '.join(known)}"


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Return the settings of the environment with `given` ones before them; raises BadParameter for a wrong one."""
    try:
        return Settings(**given)
    except ValidationError as error:
        name, message = first_fault(error)
        source = f"--set {name}" if name in given else f"the environment's {variable(name)}"
        raise typer.BadParameter(f"{message}.", param_hint=source) from None
    except ValueError as error:  # a secret's file that cannot be read
        raise typer.BadParameter(f"{error}.", param_hint="the environment") from None


def _check_config(path: Path) -> None:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}", param_hint="--config") from None
    if not isinstance(config, dict) or not config.get("applications"):
        raise typer.BadParameter(f"{path} is not a Serve config: it has no `applications`.", param_hint="--config")
