"""The exception tree; each class knows its HTTP status and its OpenAI `type` and `code`.

EncoreError
├── InvalidRequest            400  malformed: wrong JSON, wrong content type
│   ├── Unprocessable         422  well-formed but not allowed: `param` names the field
│   │   ├── UnknownField      422  a field that is not read would be a wrong hit
│   │   ├── Contradiction     422  two fields that cannot both hold
│   │   ├── InvalidImage      422  bytes that are no picture of a known type, or a damaged one
│   │   └── KeyReused         422  an Idempotency-Key that came with other fields before
│   ├── NotSupported          400  a call of OpenAI's API that this server does not have
│   ├── UnsupportedImage      415  a picture in a format that is not read here
│   ├── UnsupportedCoding     415  a body in a content coding that is not decoded here
│   ├── ImageNotSupported     400  an image for a model that starts from text alone
│   ├── OriginNotAllowed      403  a web page of another site asks
│   ├── HostNotAllowed        421  the request is for a name that is none of this server's
│   ├── NotFound              404  no such job, model or content
│   │   └── ContentGone       404  a completed job whose video no tier holds any more
│   ├── RequestTimeout        408  the body took too long to arrive
│   ├── TooLarge              413  body over the limit
│   ├── Conflict              409  a second server on the same cache folder
│   ├── RangeNotSatisfiable   416  a Range beyond the content
│   └── Busy                  429  queue full; `retry_after` seconds
├── NotCached                 504  `Cache-Control: only-if-cached`, and nothing is
├── Unavailable               503  no durable tier, or shutting down; `retry_after` seconds
│   └── ReplicaDied           503  the process that worked on it died (internal: it is tried again)
├── RenderFailed              500  the model or the encoder failed
│   ├── RenderCancelled       500  every waiter left, or the job was deleted
│   ├── NotStored             503  it was made, but no storage could take it
│   └── RenderCrashed         500  its renders ended in the death of their process, too often to try again
├── FingerprintMismatch       503  this replica runs other weights than the key was made for
├── CorruptEntry                   a stored value does not verify (internal: becomes a miss)
└── TierError                      a cache tier failed (internal: becomes a miss and a counter)
    ├── ForeignStore               it was written under another secret
    ├── TierRefused                it answers, but takes no values: full, read-only
    ├── TierFull                   it takes no values, because what memory it has left is for records
    └── TierLeftAlone              it was not asked: its breaker is open

The wire form is `{"error": {"message", "type", "param", "code"}}`, as the OpenAI SDKs read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar


class EncoreError(Exception):
    """Base of everything Encore raises on purpose; `str(error)` is safe to show to a client."""

    status = 500
    type = "server_error"
    code = "internal_error"
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Header fields of the answer, beside Retry-After."""

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling between Ray processes with the keyword fields intact."""
        return _rebuild, (type(self), self.message, self.param, self.retry_after)

    def wire(self) -> dict[str, dict[str, str | None]]:
        """Return the OpenAI error body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def _rebuild(kind: type[EncoreError], message: str, param: str | None, retry_after: int | None) -> EncoreError:
    return kind(message, param=param, retry_after=retry_after)


class InvalidRequest(EncoreError):
    """The request is malformed."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class Unprocessable(InvalidRequest):
    """The request is well-formed, but a value is not allowed."""

    status = 422
    code = "invalid_value"


class UnknownField(Unprocessable):
    """The request names a field that does not exist."""

    code = "unknown_field"


class Contradiction(Unprocessable):
    """Two fields say different things about the same quantity."""

    code = "contradiction"


class InvalidImage(Unprocessable):
    """What was sent as an image is none that can be read."""

    code = "invalid_image"


class KeyReused(Unprocessable):
    """An Idempotency-Key names another request; the status is that of draft-ietf-httpapi-idempotency-key-header."""

    code = "idempotency_key_reused"


class NotSupported(InvalidRequest):
    """A call of OpenAI's API that this server does not have; 400, because its SDK asks again after 501."""

    code = "not_supported"


class UnsupportedImage(InvalidRequest):
    """What was sent is a picture, in a format that is not read here."""

    status = 415
    code = "unsupported_image"


class UnsupportedCoding(InvalidRequest):
    """The body is in a content coding that is not decoded; the answer names those that are (RFC 9110, 15.5.16)."""

    status = 415
    code = "unsupported_content_coding"
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({"Accept-Encoding": "gzip, deflate, identity"})


class ImageNotSupported(InvalidRequest):
    """The model makes videos from text alone."""

    code = "image_not_supported"


class OriginNotAllowed(InvalidRequest):
    """A web page of another site asks."""

    status = 403
    code = "origin_not_allowed"


class HostNotAllowed(InvalidRequest):
    """The request is for a name that is none of this server's."""

    status = 421
    code = "host_not_allowed"


class NotFound(InvalidRequest):
    """There is no such thing."""

    status = 404
    code = "not_found"


class ContentGone(NotFound):
    """The job is known and was completed, but its video was evicted or invalidated meanwhile."""

    code = "content_gone"


class RequestTimeout(InvalidRequest):
    """The client was too slow to send its request."""

    status = 408
    code = "request_timeout"


class TooLarge(InvalidRequest):
    """The body is over the limit."""

    status = 413
    code = "request_too_large"


class Conflict(InvalidRequest):
    """The thing exists already or is held by another process."""

    status = 409
    code = "conflict"


class RangeNotSatisfiable(InvalidRequest):
    """The Range header lies beyond the content."""

    status = 416
    code = "range_not_satisfiable"


class Busy(InvalidRequest):
    """Too much is queued; try again after `retry_after` seconds."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class NotCached(EncoreError):
    """The client wanted a stored video alone, and there is none (RFC 9111, section 5.2.1.7)."""

    status = 504
    code = "not_cached"


class Unavailable(EncoreError):
    """The service cannot take this now; try again after `retry_after` seconds."""

    status = 503
    code = "unavailable"


class ReplicaDied(Unavailable):
    """The process that worked on it died; another one can take it."""

    code = "replica_died"


class RenderFailed(EncoreError):
    """The video could not be made."""

    code = "render_failed"


class RenderCancelled(RenderFailed):
    """The render was cancelled before it finished."""

    code = "render_cancelled"


class NotStored(RenderFailed):
    """The video was made, but no storage could take it, so only its leader has it."""

    status = 503
    code = "not_stored"


class RenderCrashed(RenderFailed):
    """Renders of this video ended in the death of their process so often that it is not tried again for a while."""

    code = "render_crashed"


class FingerprintMismatch(EncoreError):
    """The job's key was made for other weights than this replica runs (a rolling update)."""

    status = 503
    code = "fingerprint_mismatch"


class CorruptEntry(EncoreError):
    """Stored bytes do not have the length or digest they were stored with."""

    code = "corrupt_entry"


class TierError(EncoreError):
    """A cache tier could not be reached or refused; callers treat it as a miss.

    misconfigured: the server's words when waiting does not help (wrong password, no such bucket); None for an outage.
    """

    code = "tier_error"
    misconfigured: str | None = None


class ForeignStore(TierError):
    """A store was written under another secret than this one: nothing in it is read, written or deleted."""

    code = "foreign_store"


class TierRefused(TierError):
    """A cache tier answered that it takes no values now (full, read-only); what it holds can still be read."""

    code = "tier_refused"


class TierFull(TierError):
    """A cache tier takes no more values, because what memory it has left is for the records that it holds too."""

    code = "tier_full"


class TierLeftAlone(TierError):
    """A cache tier was not asked, because it failed too often just now."""

    code = "tier_left_alone"
