"""What `batch_invariant` is where nobody chose, and where somebody did."""

import pytest

from serve_app.model.batch_invariant import is_on
from serve_app.settings import Settings
from serve_app.wiring.model import batch_invariant


@pytest.mark.parametrize(
    ("asked", "device", "torch_compile", "expected"),
    [
        (None, "cpu", False, True),
        (None, "cuda", False, False),
        (None, "cuda:1", False, False),
        (None, "auto", False, None),
        (None, "cpu", True, False),
        (True, "cuda", False, True),
        (False, "cpu", False, False),
    ],
)
def test_is_on(asked: bool | None, device: str, torch_compile: bool, expected: bool | None) -> None:
    """A choice holds everywhere; without one it is for CPUs, not for GPUs and not for compiled blocks."""
    assert is_on(asked, device, torch_compile=torch_compile) is expected


def test_the_setting_reaches_what_is_told() -> None:
    """Settings say what is known without the device; with the device it is always known."""
    assert batch_invariant(Settings()) is None
    assert batch_invariant(Settings(), "cpu") is True
    assert batch_invariant(Settings(device="cuda")) is False
    assert batch_invariant(Settings(batch_invariant=False, device="cpu")) is False
