"""Where settings come from beside arguments: `ENCORE_X`, and for secrets and URLs the file `ENCORE_X_FILE` names."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

PREFIX = "ENCORE_"
OTHERS = frozenset(
    {"CACHE_DIR", "URL", "URL_FILE", "HAPROXY_BINARY", "LOOPBACK_ONLY", "LAUNCHER_EVENTS", "FLIGHT_RUNS"}
)
"""Variables that are no settings: of the command line, the client, the launcher and its children, the tests."""
_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP))")
"""What Kubernetes gives every pod beside a Service that is called `encore`."""


def variable(name: str) -> str:
    """Return the variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def sources(name: str) -> str:
    """Name the variables that a secret or a URL can come from."""
    return f"{variable(name)} or {variable(name)}_FILE (a file with it)"


def of_environment(name: str) -> str | None:
    """Return what the environment says of a secret or a URL, in itself or in a file; None when it says nothing."""
    return variables().get(variable(name).lower()) or of_file(name)


def of_file(name: str) -> str | None:
    """Return the content of the file that `ENCORE_X_FILE` names, without white space at its ends; None without one.

    Raises ValueError for a file that cannot be read, and when the setting has two sources.
    """
    told = variables()
    file = told.get(f"{variable(name)}_file".lower())
    if file is None:
        return None
    if variable(name).lower() in told:
        raise ValueError(f"{variable(name)} and {variable(name)}_FILE are both set; unset one of them")
    try:
        content = Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ValueError(f"{variable(name)}_FILE={file} cannot be read: {reason}") from None
    if not content:
        raise ValueError(f"{variable(name)}_FILE={file}: the file is empty")
    return content


def variables() -> Mapping[str, str]:
    """Return the environment by lower-case names, as pydantic-settings reads it; empty values are unset ones."""
    return {name.lower(): value for name, value in os.environ.items() if value}


def unknown_variables(known: Iterable[str], with_files: Iterable[str]) -> list[str]:
    """Return a line for each ENCORE_ variable that nothing reads, with the name that was probably meant."""
    names = {*(name.upper() for name in known), *(f"{name.upper()}_FILE" for name in with_files), *OTHERS}
    lines = []
    for name, value in sorted(os.environ.items()):
        rest = name.upper().removeprefix(PREFIX)
        if not value or rest == name.upper() or rest in names or _SERVICE_LINK.match(rest):
            continue
        if not (rest == "PORT" and value.startswith("tcp://")):
            lines.append(f"{name} is no setting and has no effect{meant(rest, names, prefix=PREFIX)}")
    return lines


def meant(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return `; did you mean ...?` when `name` is close to known ones, else nothing."""
    near = difflib.get_close_matches(name, known, n=2)
    return f"; did you mean {' or '.join(prefix + each for each in near)}?" if near else ""
