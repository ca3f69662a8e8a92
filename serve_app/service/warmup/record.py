"""The record of one warm-up: what `GET /v1/cache/warm/{id}` shows, and enough to go on after a crash.

The templates lie beside it (`Held`), because it is written every second and they never change. Items are numbered as
they come out of the templates, equal ones left out; all before `position`, and those `ahead` of it, are dealt with and
in the counts, so a runner that takes over neither counts nor renders an item twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

ERRORS_KEPT = 10


class WarmStatus(StrEnum):
    """How far a warm-up is; items that failed do not make a warm-up fail."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self is not WarmStatus.IN_PROGRESS


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one item could not be warmed."""

    prompt: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """One warm-up; times are Unix seconds. `there` were stored already, `duplicates` mean what an earlier item means.

    total: different videos, each of which ends in `there`, `rendered` or `failed`. errors: the first few.
    """

    id: str
    created_at: float
    updated_at: float
    expires_at: float
    total: int
    duplicates: int
    status: WarmStatus = WarmStatus.IN_PROGRESS
    there: int = 0
    rendered: int = 0
    failed: int = 0
    position: int = 0
    ahead: tuple[int, ...] = ()
    eta_seconds: float | None = None
    completed_at: float | None = None
    errors: tuple[ItemError, ...] = ()

    @property
    def done(self) -> int:
        """Items that are dealt with."""
        return self.there + self.rendered + self.failed

    def to_json(self) -> bytes:
        """Return the record as bytes."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> WarmUp:
        """Read a record written by `to_json`; raises KeyError, TypeError or ValueError for what is none."""
        record: dict[str, Any] = json.loads(data)
        record["status"] = WarmStatus(record["status"])
        record["ahead"] = tuple(record["ahead"])
        record["errors"] = tuple(ItemError(**each) for each in record["errors"])
        return cls(**{each.name: record[each.name] for each in fields(cls) if each.name in record})


@dataclass(frozen=True, slots=True)
class Held:
    """A warm-up with what was asked for: `request` has `templates` and maybe `ttl`, as they came."""

    warm_up: WarmUp
    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a warm-up would do: of `total` different videos how many are there, and what rendering the others takes.

    unknown: those of `missing` of which a tier that could not be asked may know. seconds_per_render and render_seconds
    are None while this router has seen no render. missing_keys: key(video) of each that is missing.
    """

    total: int
    duplicates: int
    there: int
    missing: int
    unknown: int
    seconds_per_render: float | None
    render_seconds: float | None
    missing_keys: tuple[str, ...]
