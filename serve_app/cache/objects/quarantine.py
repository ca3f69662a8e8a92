"""Where a repair puts what it takes out of a store: in batches named by the time, until an operator has it emptied.

In a folder that is `quarantine/<batch>/<path below the root>`, in S3 `<prefix>/quarantine/<batch>/<key below the
prefix>`: moved back to where its path says, a value is what it was.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

FOLDER = "quarantine/"
_FORM = "%Y%m%dT%H%M%S.%fZ"
_DAY = 86_400.0


def new_batch(now: float | None = None) -> str:
    """Return the name of a batch that begins now (or at `now`, Unix seconds)."""
    return datetime.fromtimestamp(time.time() if now is None else now, UTC).strftime(_FORM)


def is_older(batch: str, days: float, now: float | None = None) -> bool:
    """Tell whether a batch began more than so many days ago; one whose name tells no time is not ours."""
    try:
        began = datetime.strptime(batch.removesuffix("-index"), _FORM).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return False
    return (time.time() if now is None else now) - began >= days * _DAY
