"""Storage names tell nothing, differ by everything, and are the only thing a store takes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.storage_name import checked, masked, storage_name, unmasked


@given(st.binary(min_size=1, max_size=64), st.text(max_size=100))
def test_any_key_becomes_a_checked_name(secret: bytes, key: str) -> None:
    """Whatever a client sends as a key, the name is 64 hex digits."""
    assert checked(storage_name(secret, "video", key)) == storage_name(secret, "video", key)


def test_secret_kind_and_key_all_matter() -> None:
    """Another secret, kind or key gives another name."""
    names = {
        storage_name(secret, kind, key)
        for secret in (b"one", b"two")
        for kind in ("video", "embedding", "latents")
        for key in ("a", "b")
    }
    assert len(names) == 12


def test_the_name_is_pinned() -> None:
    """Names of an earlier release must be found again: this one is fixed."""
    name = storage_name(b"secret", "video", "key")
    assert name == "305e1dbd7e615fc3f4fa7143ecf6aa1ef85d4e679a0909c75baa3f9ed0f8efa0"


def test_an_unknown_kind_is_refused() -> None:
    """A misspelt kind would silently be a cache of its own."""
    with pytest.raises(ValueError, match="unknown kind"):
        storage_name(b"secret", "videos", "key")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n", "a" * 63 + "/"])
def test_anything_but_a_name_is_refused(name: str) -> None:
    """Paths, upper case, wrong lengths and a trailing newline are no storage names."""
    with pytest.raises(ValueError, match="not a storage name"):
        checked(name)


@given(st.text(), st.text(), st.text())
def test_what_is_masked_comes_back_to_who_has_the_secret(name: str, key: str, text: str) -> None:
    """Under the same secret and name; the metadata that hold it do not hold the key."""
    told = masked(b"secret", name, key)
    assert unmasked(b"secret", name, told) == key
    assert masked(b"secret", "another name" + name, "ab" * 32) != masked(b"secret", name, "ab" * 32) != "ab" * 32
    with suppress(ValueError):
        unmasked(b"secret", name, text)
