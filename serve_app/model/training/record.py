"""What a run was begun with and what it took: `run.json` in its folder.

A run that goes on with another recipe, seed or number of workers would take other steps than the ones before and
still look finished, so that is refused here. Lengths may change: the batches of a step do not depend on how many
steps there are. A folder of stages without this file (an older run's) is taken over, but its time is not known then.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve_app.errors import Conflict
from serve_app.model.native.config import NativeConfig
from serve_app.model.training.recipe import Recipe

FILE = "run.json"
_LENGTHS = frozenset({"steps", "decay"})


@dataclass(slots=True)
class Record:
    """One run's `run.json`; `seconds` is None when some of the time was never written down."""

    path: Path
    facts: Mapping[str, Any]
    hardware: list[str]
    seconds: float | None

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time that passes inside, however it ends, and write the file."""
        began = time.monotonic()
        self._write()
        try:
            yield
        finally:
            if self.seconds is not None:
                self.seconds += time.monotonic() - began
            self._write()

    def _write(self) -> None:
        whole = {**self.facts, "hardware": self.hardware, "seconds": self.seconds}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
        partial.replace(self.path)


def open_record(folder: Path, config: NativeConfig, recipe: Recipe, workers: int, device: str) -> Record:
    """Return the record of the run in `folder`, new or read; Conflict when the run there is another one."""
    path = folder / FILE
    facts = _plain({"config": asdict(config), "recipe": asdict(recipe), "workers": workers})
    here = hardware(device)
    if not path.exists():
        taken_over = any(folder.glob("*.ckpt")) or any(folder.glob("*.safetensors"))
        return Record(path, facts, [here], None if taken_over else 0.0)
    known = json.loads(path.read_text("utf-8"))
    _compare(folder, known, facts)
    return Record(path, facts, list(dict.fromkeys([*known["hardware"], here])), known["seconds"])


def hardware(device: str) -> str:
    """Say in words what computes: a GPU's name, or the processor's and how many cores this process may use."""
    if device != "cpu":
        import torch

        return str(torch.cuda.get_device_name(device))
    return f"{_processor()}, {usable_cores()} cores"


def usable_cores() -> int:
    """Count the cores this process may run on; two hardware threads of one core are one, where Linux tells."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({_text(Path(siblings.format(cpu))) or str(cpu) for cpu in os.sched_getaffinity(0)})


def _processor() -> str:
    named = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""


def _compare(folder: Path, known: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    before, now = dict(_flat(known)), dict(_flat(facts))
    for name, value in now.items():
        if name.rpartition(".")[2] not in _LENGTHS and before.get(name, value) != value:  # a newer field is no change
            raise Conflict(f"{folder} is a run with {name} = {before[name]}, not {value}: name another folder.")


def _flat(facts: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict) and name != "clips":
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON makes of it: lists for tuples, strings for keys."""
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain
