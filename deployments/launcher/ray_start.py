"""Starting Ray on a machine that may be busy: with patience, again when it failed, and saying what was slow.

Ray 2.60 gives its node 30 seconds to register, whatever the settings say (`ray/_private/node.py`, `Node.__init__`); at
a load of 20 on two cores that is too short for half of all starts. So the one function that it asks in that time,
`ray._private.services.get_node`, waits longer here. What else has a limit is in `environment.PATIENCE`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from deployments.launcher.host.processes import load
from serve_app.errors import Unavailable

TRIES = 3
NODE_SECONDS = 120.0
"""How long a node may take to register."""


def start(
    init: Callable[[], object],
    clear: Callable[[], None],
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Call `init` until it succeeds, up to TRIES times, and `clear` away what a failed one left.

    tell: gets one line for a person after each failure but the last; raises Unavailable with all of it then.
    """
    began = clock()
    for number in range(1, TRIES + 1):
        tried = clock()
        try:
            init()
        except Exception as error:
            clear()
            reason = str(error).strip().splitlines() or [type(error).__name__]
            failure = f"Ray did not start within {clock() - tried:.0f} s ({load()}): {reason[0]}"
            if number == TRIES:
                raise Unavailable(
                    f"{failure} It was tried {TRIES} times in {clock() - began:.0f} s. "
                    "If the machine is busy, try again when it is less so."
                ) from error
            tell(f"{failure} Trying again ...")
        else:
            return


@contextmanager
def patient_node(seconds: float = NODE_SECONDS) -> Iterator[None]:
    """Let `ray.init` wait `seconds` for its node to register."""
    services: Any = ray._private.services
    get_node = services.get_node

    def waiting(gcs_address: str, node_id: str) -> Any:
        end = time.monotonic() + seconds
        while True:
            try:
                return get_node(gcs_address, node_id)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    services.get_node = waiting
    try:
        yield
    finally:
        services.get_node = get_node
