"""POSTs that a client sends again because it did not hear the answer: they are told by a mark left with the job.

A client names its tries itself (`Idempotency-Key`, draft-ietf-httpapi-idempotency-key-header), or says only that it
tries again (the OpenAI SDKs' `x-stainless-retry-count`), and then the same fields a short while ago are taken for the
first try. A mark is left in the same step that makes the job, so of many tries at once one makes it. The digest is of
the fields as they came: a retry of `seed: "random"` gets the first try's seed.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.errors import KeyReused
from serve_app.schema import VideoRequest

KEY_SECONDS = 24 * 3600.0
RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RequestAttempt:
    """What a POST says of itself: the name of its tries, and whether this is not the first."""

    key: str | None = None
    retried: bool = False

    @property
    def may_repeat(self) -> bool:
        """Whether there may be an earlier try, and a later one that must find this."""
        return self.key is not None or self.retried


FIRST = RequestAttempt()


@dataclass(frozen=True, slots=True)
class Mark:
    """What is remembered of a POST, for `seconds`, beside its job.

    name, digest: 64 hex digits each, HMACs of the tries' name and of the fields. asks: whether an earlier mark of the
    name is this POST's answer; else it is replaced. instead_of: an earlier job that is no answer any more.
    """

    name: str
    digest: str
    seconds: float
    asks: bool
    instead_of: str = ""

    def answer(self, digest: str, job_id: str) -> str | None:
        """Return the job that an earlier mark of this name says, None if it does not count.

        Raises KeyReused when that POST had other fields.
        """
        if not self.asks or job_id == self.instead_of:
            return None
        if digest != self.digest:
            raise KeyReused("This Idempotency-Key was used with other fields; take a new one for another video.")
        return job_id


def mark_of(secret: bytes, request: VideoRequest, attempt: RequestAttempt) -> Mark:
    """Return the mark of `request`; equal fields have equal digests, in whatever form and order they came."""
    digest = _named(secret, "fields", request.model_dump_json(exclude_none=True))
    if attempt.key is not None:
        return Mark(_named(secret, "key", attempt.key), digest, KEY_SECONDS, True)
    return Mark(digest, digest, RETRY_SECONDS, attempt.retried)


def _named(secret: bytes, kind: str, text: str) -> str:
    return hmac.new(secret, f"repeat\0{kind}\0{text}".encode(), hashlib.sha256).hexdigest()


class Marks:
    """Marks in one process' memory, the oldest forgotten beyond `max_marks`."""

    def __init__(self, max_marks: int = 100_000, clock: Callable[[], float] = time.time) -> None:
        self._max_marks = max_marks
        self._clock = clock
        self._marks: OrderedDict[str, tuple[str, str, float]] = OrderedDict()

    def answer(self, mark: Mark) -> str | None:
        """Return the job that answers `mark`, None if there is none; raises KeyReused."""
        digest, job_id, until = self._marks.get(mark.name, ("", "", 0.0))
        return None if self._clock() >= until else mark.answer(digest, job_id)

    def leave(self, mark: Mark, job_id: str, life: float) -> None:
        """Leave `mark` for a job that lives `life` seconds more."""
        self._marks[mark.name] = (mark.digest, job_id, self._clock() + min(mark.seconds, life))
        self._marks.move_to_end(mark.name)
        if len(self._marks) > self._max_marks:
            self._marks.popitem(last=False)

    def forget(self, mark: Mark) -> None:
        """Forget the mark of this name, if there is one."""
        self._marks.pop(mark.name, None)

    def sweep(self) -> int:
        """Forget what has expired; return how many marks that were."""
        now = self._clock()
        expired = [name for name, (_, _, until) in self._marks.items() if now >= until]
        for name in expired:
            del self._marks[name]
        return len(expired)
