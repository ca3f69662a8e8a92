"""How the server process tells the launcher where it is: one JSON object a line, in a file the launcher follows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_VARIABLE = "ENCORE_LAUNCHER_EVENTS"
_BEAT = ".beat"


def say(state: str, **details: str) -> None:
    """Append one event; called in the server process."""
    with Path(os.environ[FILE_VARIABLE]).open("a") as file:
        file.write(json.dumps({"state": state, **details}) + "\n")


def beat() -> None:
    """Show that the server process and Ray are well; called in the server process."""
    path = Path(os.environ[FILE_VARIABLE])
    path.with_name(path.name + _BEAT).touch()


class Listener:
    """Reads the events that another process appends to `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the events that came since the last call."""
        with self.path.open() as file:
            file.seek(self._read)
            while (line := file.readline()).endswith("\n"):
                self._read = file.tell()
                yield json.loads(line)

    def last_beat(self) -> int | None:
        """Return when the server process last called `beat`, in nanoseconds; None if it never did."""
        try:
            return self.path.with_name(self.path.name + _BEAT).stat().st_mtime_ns
        except FileNotFoundError:
            return None
