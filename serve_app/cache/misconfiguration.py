"""What a server says when only a person can mend it: wrong password, missing right, no such bucket.

To the callers it is a broken tier as any other, a miss; to the operator it is no outage that passes, so it is told
apart here, by the server's own words. They name users and buckets, never passwords or secret keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

_REDIS = {
    "WRONGPASS": "WRONGPASS|invalid username-password pair|invalid password|without any password configured",
    "NOAUTH": "NOAUTH|Authentication required|must be called with the client already authenticated",
    "NOPERM": "NOPERM|has no permissions",
    "ERR": "DB index is out of range|SELECT is not allowed in cluster mode|cluster support disabled",
    "TLS": "CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|certificate verify failed",
}
_REDIS_WORDS = {code: re.compile(words, re.IGNORECASE) for code, words in _REDIS.items()}
_S3_CODES = frozenset(
    {
        "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "AccessDenied", "AllAccessDisabled", "Forbidden",
        "InvalidToken", "ExpiredToken", "AuthorizationHeaderMalformed", "InvalidBucketName", "PermanentRedirect",
        "AccountProblem", "NotSignedUp", "InvalidSecurity", "RequestTimeTooSkewed",
    }
)  # fmt: skip
_REFUSED = (401, 403)


def of_redis(error: BaseException) -> str | None:
    """Return what Redis said, its code in front, when no waiting helps; None for an outage."""
    for each in _chain(error):
        said = str(each)
        for code, words in _REDIS_WORDS.items():
            if words.search(said):
                return said if said.startswith(code) or code in ("ERR", "TLS") else f"{code} {said}"
    return None


def of_s3(error: BaseException) -> str | None:
    """Return what S3 or its client said when no waiting helps; None for an outage."""
    for each in _chain(error):
        if isinstance(each, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
            return str(each)
        if isinstance(each, ClientError):
            status = each.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if each.response.get("Error", {}).get("Code") in _S3_CODES or status in _REFUSED:
                return str(each)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
