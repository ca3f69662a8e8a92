"""The images of jobs in Redis, beside the job records: as durable as they are, and no longer there than they need be.

Named by HMACs under the deployment secret; unlike records they are large, so in a cluster they are spread over sixteen
hash tags. Nothing has a TTL, which an eviction policy could use; what was not let go is swept when its jobs have
expired. What comes back is verified by who uses it: the digest of its pixels is in the job's spec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from serve_app.cache.redis.records import RedisRecords
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.redis.script import Script, milliseconds
from serve_app.cache.storage_name import record_name
from serve_app.service.jobs.input_images import MAX_BYTES, full
from serve_app.telemetry import Telemetry

_KEEP, _FIND = Script("image_keep", "memory"), Script("image_find")
_RELEASE, _SWEEP = Script("image_release", "images"), Script("image_sweep", "images")
_TAGS = "0123456789abcdef"
_SWEPT_AT_ONCE = 100


class RedisInputImages(RedisRecords):
    """An InputImageStore that every replica shares; `redis` belongs to the caller, which closes it.

    max_bytes: of all images; a server with `maxmemory` gives them no more than a quarter of it.
    """

    kind = "image"
    called = "The images of jobs"

    def __init__(
        self,
        redis: RedisTier,
        *,
        secret: bytes,
        telemetry: Telemetry,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(redis, secret=secret, telemetry=telemetry, clock=clock)
        self._tags = _TAGS if redis.is_cluster else ""
        self._max_bytes = max_bytes // max(1, len(self._tags))

    async def keep(self, key: str, job_id: str, data: bytes, seconds: float) -> None:
        """Keep an image for a job in one step; raises Busy without room, Unavailable when it may not be stored."""
        args = (self._now(), self._image(key), job_id, milliseconds(seconds), self._max_bytes, data)
        if not await self._run(_KEEP, self._names(key), args):
            raise full()

    async def find(self, key: str) -> bytes | None:
        """Return an image, None when no job needs it any more or it has expired."""
        args = (self._now(), self._image(key))
        return cast(bytes | None, await self._run(_FIND, self._names(key), args, storing=False))

    async def release(self, key: str, job_id: str) -> None:
        """Take a job off those that need an image, and delete it with the last."""
        await self._run(_RELEASE, self._names(key), (self._image(key), job_id), storing=False)

    async def sweep(self) -> int:
        """Let go of images whose jobs have expired."""
        args = (self._now(), _SWEPT_AT_ONCE)
        return sum([await self._swept(_SWEEP, self._names(tag), args, _SWEPT_AT_ONCE) for tag in self._tags or ("",)])

    def _image(self, key: str) -> str:
        return record_name(self._secret, self.kind, key).rpartition(":")[2]

    def _names(self, key: str) -> list[str]:
        """Return the names of the images, of how many jobs need each, and of when they do; in one slot."""
        kind = f"{self.kind}:{key[:1]}" if self._tags else self.kind
        return [record_name(self._secret, kind, part) for part in ("/images", "/needed", "/jobs")]
