"""The exception tree: statuses, wire form, and its way through a pickle."""

from __future__ import annotations

import pickle
import re

import pytest

from serve_app import errors
from serve_app.errors import EncoreError


def tree(kind: type[EncoreError]) -> list[type[EncoreError]]:
    """List a class and everything below it."""
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


KINDS = [kind for kind in tree(EncoreError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", KINDS)
def test_wire_form_is_openais(kind: type[EncoreError]) -> None:
    """Every error answers with the body the OpenAI SDKs read."""
    error = kind("No such luck.", param="seed")
    assert error.wire() == {
        "error": {"message": "No such luck.", "type": kind.type, "param": "seed", "code": kind.code}
    }
    assert str(error) == "No such luck."


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_everything(kind: type[EncoreError]) -> None:
    """An error that crosses from replica to replica arrives as the same class with the same fields."""
    arrived = pickle.loads(pickle.dumps(kind("Later.", param="model", retry_after=7)))
    assert type(arrived) is kind
    assert (arrived.message, arrived.param, arrived.retry_after) == ("Later.", "model", 7)
    assert arrived.wire() == kind("Later.", param="model").wire()


def test_codes_are_unique() -> None:
    """A client can tell every kind of error by its code; ReplicaDied is told as the Unavailable that it is."""
    codes = [kind.code for kind in KINDS if kind not in (errors.InvalidRequest, errors.ReplicaDied)]
    assert len(codes) == len(set(codes))


def test_the_docstring_is_the_tree() -> None:
    """The tree drawn in the module's docstring has every class, at its place, with its status."""
    drawn = re.findall(r"^([│ ├└─]*)([A-Z]\w+)(?: +(\d{3}))?", errors.__doc__ or "", re.MULTILINE)
    places = {name: (len(branch) // 4, status) for branch, name, status in drawn if hasattr(errors, name)}
    assert set(places) == {kind.__name__ for kind in KINDS}
    for kind in KINDS:
        depth, status = places[kind.__name__]
        assert depth == kind.__mro__.index(EncoreError)
        assert status in ("", str(kind.status))


@pytest.mark.parametrize("kind", tree(errors.InvalidRequest))
def test_the_clients_mistakes_are_400s(kind: type[EncoreError]) -> None:
    """What the client can mend has a 4xx status, all else a 5xx."""
    assert 400 <= kind.status < 500


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(tree(errors.InvalidRequest)), key=lambda kind: kind.__name__))
def test_the_servers_failures_are_500s(kind: type[EncoreError]) -> None:
    """What the client cannot mend has a 5xx status and the type server_error."""
    assert 500 <= kind.status < 600
    assert kind.type == "server_error"
