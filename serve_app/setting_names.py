"""Settings that are lists of host names or of origins, between commas: how they are split and what may be in them."""

from __future__ import annotations

import re

_HOST = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*\.?", re.ASCII)
_ORIGIN = re.compile(
    r"\*|[a-z][a-z0-9+.-]*://((\*\.)?[\w-]+(\.[\w-]+)*|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE
)


def names(text: str | None) -> tuple[str, ...]:
    """Return what stands between commas or blanks."""
    return tuple((text or "").replace(",", " ").split())


def check_names(setting: str, text: str) -> None:
    """Raise ValueError when `text` cannot be the value of `setting`."""
    if setting == "allowed_hosts" and (bad := _first_bad(_HOST, text)):
        raise ValueError(
            f"'{bad[:100]}' is no host name; write names without scheme and port, as in encore.example.com or "
            "*.example.com, or * for any. Addresses are always allowed"
        )
    if setting == "allowed_origins" and (bad := _first_bad(_ORIGIN, text)):
        raise ValueError(
            f"'{bad[:100]}' is no origin; write SCHEME://HOST or SCHEME://HOST:PORT, as in https://app.example.com or "
            "https://*.example.com, or * for any"
        )


def _first_bad(pattern: re.Pattern[str], text: str) -> str | None:
    return next((each for each in names(text) if not pattern.fullmatch(each)), None)
