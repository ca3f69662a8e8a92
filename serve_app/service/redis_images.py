"""The images of jobs in Redis, beside the job records: as durable as they are, and no longer there than they need be.

Named by HMACs under the deployment secret; unlike records they are large, so in a cluster they are spread over sixteen
hash tags. What comes back is verified by who uses it: the digest of its pixels is in the job's spec.
"""

from __future__ import annotations

from typing import cast

from serve_app.cache.name import record_name
from serve_app.cache.script import Script, milliseconds
from serve_app.service.redis_records import RedisRecords

_KEEP, _RELEASE = Script("image_keep"), Script("image_release")


class RedisImages(RedisRecords):
    """An ImageStore that every replica shares; whoever gave it `redis` closes that."""

    kind = "image"
    called = "The images of jobs"

    async def keep(self, key: str, job_id: str, data: bytes, seconds: float) -> None:
        """Keep an image for a job in one step; raises Unavailable when it may not be stored."""
        await self._run(_KEEP, self._names(key), (job_id, milliseconds(seconds), data))

    async def find(self, key: str) -> bytes | None:
        """Return an image, None when no job needs it any more or it has expired."""
        name = self._names(key)[0]
        return cast(bytes | None, await self._ask(lambda redis: redis.get(name)))

    async def release(self, key: str, job_id: str) -> None:
        """Take a job off those that need an image, and delete it with the last."""
        await self._run(_RELEASE, self._names(key), (job_id,), storing=False)

    def _names(self, key: str) -> list[str]:
        """Return the names of an image and of the set of its jobs, in one slot."""
        kind = f"{self.kind}:{key[:1]}"
        return [record_name(self._secret, kind, key), record_name(self._secret, kind, f"{key}/jobs")]
