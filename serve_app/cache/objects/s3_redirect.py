"""Plain copies: a video beside its frame in S3, alone in an object of its type, so that a client can be sent there.

A frame begins with a header that no player reads, and a browser cannot be told to skip it. So each video is written a
second time as `plain/ab/<name>`, and a presigned URL of that is handed out. It is handed out only after looking: the
copy is of the digest that the frame, still there, tells, and its ETag, which S3 computes as the MD5 of what it holds,
is the one that was stamped on it under the deployment's secret when it was made from verified bytes. A copy that was
cut, replaced, or left behind by a deletion is not sent to; nor is any where a store's ETags are not MD5.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from serve_app.cache.envelope import Envelope, claims
from serve_app.cache.objects.saved_seconds import cost_seconds

FOLDER = "plain/"
LIFE_SECONDS = 3600
"""A player asks for further ranges of one video with the URL it began with."""


class RedirectCopies:
    """What to write on a plain copy, and whether one may be sent to; `secret` authenticates the stamps."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._envelope = Envelope(secret)

    def copy_of(self, name: str, frame: bytes) -> dict[str, Any] | None:
        """Return the arguments of the PUT for the copy of `frame`, None for what no client plays.

        Raises CorruptEntry for bytes that are no whole frame of `name`.
        """
        entry = self._envelope.unpack(name, "", frame)
        content_type = entry.meta.get("content_type")
        if content_type is None:
            return None
        md5 = hashlib.md5(entry.data, usedforsecurity=False).hexdigest()
        metadata = {"digest": entry.digest, "md5": md5}
        metadata["stamp"] = self._stamp(name, entry.size, content_type, metadata)
        return {"Body": entry.data, "ContentType": content_type, "Metadata": metadata}

    def may_be_sent_to(self, name: str, digest: str, copy: Mapping[str, Any]) -> bool:
        """Tell whether the copy is what was made of the payload of that digest, given the answer to a HEAD for it."""
        metadata = copy["Metadata"]
        return (
            metadata.get("digest") == digest
            and copy["ETag"].strip('"') == metadata.get("md5")
            and hmac.compare_digest(
                metadata.get("stamp", ""), self._stamp(name, copy["ContentLength"], copy["ContentType"], metadata)
            )
        )

    def _stamp(self, name: str, size: int, content_type: str, metadata: Mapping[str, str]) -> str:
        parts = ("plain", name, str(size), content_type, metadata.get("digest", ""), metadata.get("md5", ""))
        return hmac.new(self._secret, "\0".join(parts).encode(), hashlib.sha256).hexdigest()


def frame_metadata(frame: bytes) -> dict[str, str]:
    """Return what a frame's object says of itself to who only looks: what it saves and its payload's digest."""
    digest = claims(frame).get("digest")
    return {} if digest is None else {"cost-seconds": f"{cost_seconds(frame):.6g}", "digest": str(digest)}
