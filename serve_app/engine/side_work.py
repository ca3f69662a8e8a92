"""What a model does beside the passes: in a thread of its own, so that denoising goes on meanwhile.

Work that finds too little memory beside a pass is done again in the step thread, where no pass runs meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from serve_app.engine import device_memory
from serve_app.engine.watchdog import Watchdog
from serve_app.errors import RenderCancelled, RenderFailed

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SideWork:
    """One kind of such work.

    name: the phase that `stuck` watches. doing: what it does, to be read after "while".
    """

    name: str
    doing: str
    stuck: Watchdog

    async def run(self, work: Callable[[], T], *, beside: ThreadPoolExecutor, between: ThreadPoolExecutor) -> T | None:
        """Do it in the thread `beside` the passes, or if need be `between` two of them.

        None when there is too little memory in both; raises RenderCancelled and RenderFailed.
        """
        loop = asyncio.get_running_loop()
        done = await loop.run_in_executor(beside, self._try, work)
        return await loop.run_in_executor(between, self._try, work) if done is None else done

    def _try(self, work: Callable[[], T]) -> T | None:
        try:
            with self.stuck.running(self.name):
                return work()
        except (RenderCancelled, RenderFailed):
            raise
        except Exception as error:
            if device_memory.is_out_of_memory(error):
                logger.warning("too little memory for %s", self.doing)
                return None
            logger.exception("%s failed", self.doing)
            raise RenderFailed(f"The model failed while {self.doing}.") from error
