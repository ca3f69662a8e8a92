"""Ids that carry their own record: read by whoever has the secret, refused in every other spelling."""

import base64
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.service.jobs.signed_id import PREFIX, issue, new_job_id, read

KEY = secrets.token_hex(32)
SECRET = b"secret"


@given(st.floats(0, 4e9))
def test_reads_what_it_issued(created_at: float) -> None:
    """Time (to the microsecond) and key come back."""
    receipt = read(SECRET, issue(SECRET, KEY, created_at))
    assert receipt is not None
    assert receipt.key == KEY
    assert abs(receipt.created_at - created_at) < 1e-6


def test_each_is_its_own() -> None:
    """Two receipts for one key at one time are two ids, short enough for a path segment and free of its signs."""
    ids = {issue(SECRET, KEY, 1.0) for _ in range(100)}
    assert len(ids) == 100
    assert all(len(job_id) == 86 and job_id.replace("-", "").replace("_", "").isalnum() for job_id in ids)


def test_another_secret_reads_nothing() -> None:
    """A receipt of another deployment is none here."""
    assert read(b"other", issue(SECRET, KEY, 1.0)) is None


@given(st.data())
def test_forged_or_cut(data: st.DataObject) -> None:
    """Any change of any character, and any other length, is no receipt."""
    job_id = issue(SECRET, KEY, 1.0)
    where = data.draw(st.integers(0, len(job_id) - 1))
    char = data.draw(st.sampled_from("ABCxyz019-_=!. \u00e9"))
    changed = job_id[:where] + char + job_id[where + 1 :]
    inserted = job_id[:where] + char + job_id[where:]
    assert changed == job_id or read(SECRET, changed) is None
    assert read(SECRET, inserted) is None
    assert read(SECRET, job_id[:where]) is None


def test_there_is_one_spelling() -> None:
    """Without prefix, with padding, line breaks or the other alphabet it is no receipt: deletion goes by spelling."""
    job_id = issue(SECRET, KEY, 1.0)
    bare = job_id.removeprefix(PREFIX)
    raw = base64.urlsafe_b64decode(bare)
    spellings = [bare, job_id + "=", job_id + "====", job_id + "\n", PREFIX + job_id, PREFIX + "!" + bare, " " + job_id]
    spellings += [PREFIX + base64.b16encode(raw).decode(), PREFIX + bare[:40] + "." + bare[40:]]
    assert [read(SECRET, spelling) for spelling in spellings] == [None] * len(spellings)


@pytest.mark.parametrize(
    "job_id", ["", PREFIX, "\ud800", PREFIX + "\u00e9", PREFIX + "A" * 80, PREFIX + "A", "A" * 100_000]
)
def test_nonsense(job_id: str) -> None:
    """Nonsense is no receipt and raises nothing."""
    assert read(SECRET, job_id) is None


def test_a_stored_jobs_id_is_no_receipt() -> None:
    """Ids of jobs with a record never read as receipts."""
    assert all(read(SECRET, new_job_id(1.8e9)) is None for _ in range(50))
